"""Files that others have saved: tensors by name, piece by piece, and never as a pickle."""
