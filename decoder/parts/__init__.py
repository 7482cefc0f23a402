"""Telling apart what was planted together: several facts of one edited host, each read as if it were alone."""
