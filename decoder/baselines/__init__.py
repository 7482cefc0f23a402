"""What simpler readers make of the same edits. A decoder's score means little without them."""
