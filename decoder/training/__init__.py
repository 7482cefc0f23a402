"""Fitting a decoder with Lightning."""
