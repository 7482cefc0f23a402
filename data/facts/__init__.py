"""Facts: what they are, where they are read from, and which of them may be trained on."""
