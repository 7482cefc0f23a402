"""Starting, and ending, without delay."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """Around imports: the garbage collector leaves what they make alone, now, later and when the program ends.

    torch, Lightning and transformers make half a million of them that live as long as the program. Looking through them takes a fifth of
    the time to import them, and more than a second at the end.
    """
    before, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # A later run of a grid imports nothing, and what the one before it left must go.
        if len(sys.modules) > before:
            gc.freeze()
        if collects:
            gc.enable()
