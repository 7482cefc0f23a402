"""Benign and hostile changes of a whole checkpoint, seeded, after an edit or without one: what an audit is calibrated and tested on."""
