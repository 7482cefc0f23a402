"""What the paper on tracing and reversing edits measures, measured of a store of edits and its host."""
