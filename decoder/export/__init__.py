"""Decoders on disk: written, opened again, collected and chosen from. Only opening and writing import torch, when they are called."""

from decoder.export.save import load_decoder, read_config, save_decoder

__all__ = ["load_decoder", "read_config", "save_decoder"]
