"""Suspects: matrices and checkpoints from strangers, read by exported decoders."""
