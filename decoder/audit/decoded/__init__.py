"""What exported decoders read in suspects and in the tests they were exported with."""
