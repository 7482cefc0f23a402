"""Reading the object of a knowledge edit out of an edited weight matrix."""

__version__ = "0.1.0"
