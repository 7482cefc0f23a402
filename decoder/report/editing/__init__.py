"""What was measured of editors: who reads whom, and what many edits do to a host."""
