"""Stores of edits on disk: an Arrow data set or Parquet files, and a manifest that says what they hold."""

from data.store.store import EditStore

__all__ = ["EditStore"]
