"""Rows of tokens through a suspect, those that begin alike together, and what it says behind them."""
