"""Making edits and streaming them to a decoder."""
