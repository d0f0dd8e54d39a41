"""How much a program says on standard error: `-q` and `-v`.

Results, warnings and errors are told at any level. What is said of the work while it goes on, and of files that were
written, is not told by a quiet program; a verbose one tells each stage with its time, and where an error came from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

QUIET, NORMAL, VERBOSE = -1, 0, 1

_level: ContextVar[int] = ContextVar("verbosity", default=NORMAL)


@contextmanager
def speaking(level: int) -> Iterator[None]:
    """Sets the level while the context is open. At `VERBOSE`, what this package logs goes to standard error, too."""
    token, log = _level.set(level), logging.getLogger("ppl_vi")
    before, handler = log.level, logging.StreamHandler()
    if level == VERBOSE:
        log.setLevel(logging.DEBUG)
        log.addHandler(handler)
    try:
        yield
    finally:
        _level.reset(token)
        log.setLevel(before)
        log.removeHandler(handler)


def is_quiet() -> bool:
    """Whether only results, warnings and errors are told."""
    return _level.get() == QUIET


def is_verbose() -> bool:
    """Whether more is told than usual."""
    return _level.get() == VERBOSE
