"""Cache folders, which are used only where nobody else could have put anything into them."""

from __future__ import annotations

import logging
import multiprocessing
import os
from functools import cache
from pathlib import Path

from ppl_vi.runtime.files import make_private, why_not_private

_log = logging.getLogger(__name__)


def is_usable(folder: Path) -> bool:
    """Whether a cache folder, which is made where it is missing, can be written to by this user and by nobody else.

    Where others could write to it, that is said once: what they put there might be run, or taken for a truth.
    """
    try:
        make_private(folder)
        why = why_not_private(folder)
    except (OSError, ValueError):  # a ValueError where the path holds a NUL character
        return False
    if why:
        _say_once(why)
    return not why and os.access(folder, os.W_OK | os.X_OK)


@cache
def _say_once(why: str) -> None:
    if multiprocessing.parent_process() is None:  # else the process that started this one says so
        _log.warning(
            "a cache is not used, since %s: what it holds could be theirs. Remove the folder, or make it your own by "
            "chown and chmod go-w; until then nothing is kept for later runs",
            why,
        )
