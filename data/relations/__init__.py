"""Fitting what tells the relation of an edit by its value."""
