"""Python's search for garbage, in programs that need little of it.

Importing torch and Pyro makes a million objects that stay until the process ends. Python would look through all of them
for garbage again and again: while they are imported, which takes a quarter of that time, whenever enough other objects
have been made, and once more when the process ends, which takes a second.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_kept() -> Iterator[None]:
    """A block that imports what a program needs: none of it is looked through for garbage, in the block or later.

    Where torch has been imported before, it does nothing: what the caller has made by then may become garbage.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def all_kept_at_exit() -> None:
    """Lets the process end without looking for garbage: its memory goes back to the system as it is."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
