"""Which of several decoders to believe: a gate, fitted on validation edits of several editors."""
