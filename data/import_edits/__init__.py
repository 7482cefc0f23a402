"""Edits that other tools saved -> store."""
