"""What Ctrl-C, SIGTERM and SIGHUP do to a program of the command line: what is finished is kept, without a traceback.

A program is in one of four phases. While it is *starting*, nothing is finished yet, and a signal ends it at once: an
exception in the middle of an import can get lost in the machine code of a library. While it is *working*, a signal
raises `KeyboardInterrupt`. While it is *saving*, a signal waits: what is being written and printed comes first. While
it is *ending*, all is written, and a signal ends it at once. So there is no moment at which a signal could cost what is
finished.

Signals that are ignored when the program starts, as after `nohup`, stay ignored. Python itself takes a moment to start
before any of this counts; a signal then ends it in Python's own way.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

# Ctrl-C; what `kill` and `timeout` send; and what a terminal sends that is closed. Windows has no SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
WORDS = {"SIGINT": "interrupted", "SIGTERM": "ended by SIGTERM", "SIGHUP": "ended by SIGHUP"}
# Seconds after which a signal is raised again where the code that it met has swallowed the exception, as Python does in
# a destructor. What a program cleans up meanwhile takes much less; with a smaller number that might be cut short.
AGAIN_SECONDS = 2.0
# Seconds that saving may take after a signal. Another signal later than that ends the program at once, because it hangs
# on a full pipe or a network's disk.
PATIENCE_SECONDS = 5.0
# Seconds after which a signal is raised again where Python says that it has swallowed the exception.
SOON_SECONDS = 0.1


class Phase(Enum):
    """What a signal does now."""

    STARTING = "ends the program at once"
    WORKING = "raises KeyboardInterrupt"
    SAVING = "waits"
    ENDING = "ends the program at once, without a word"


class Interrupted(KeyboardInterrupt):
    """A signal has come.

    It is a class of its own because Python ends a program as after Ctrl-C, whatever its exit code, if a plain
    `KeyboardInterrupt` has passed through a call of `exec`.
    """


@dataclass
class _State:
    """Of this process. Only the main thread changes it.

    Attributes:
        phase: None outside of `handled`, where signals do what they always do.
        program: its name in messages.
        signum: the first signal that came; 0 before.
        since: when it came.
    """

    phase: Phase | None = None
    program: str = ""
    signum: int = 0
    since: float = 0.0


_state = _State()


def take_over(program: str) -> None:
    """Handles the signals as this module says, from the phase of starting on, until the process ends.

    Args:
        program: its name in messages.
    """
    _state.phase, _state.program, _state.signum = Phase.STARTING, program, 0
    sys.unraisablehook = partial(_unraisable, sys.unraisablehook)
    for one in SIGNALS:
        if signal.getsignal(one) != signal.SIG_IGN:
            signal.signal(one, _came)


@contextmanager
def handled(program: str) -> Iterator[None]:
    """Does the same as `take_over` for a block, unless that is done already; outside of the main thread nothing."""
    if _state.phase is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers, hook = {one: signal.getsignal(one) for one in SIGNALS}, sys.unraisablehook
    take_over(program)
    try:
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
        _state.phase, sys.unraisablehook = None, hook


def starting() -> AbstractContextManager[None]:
    """A block in which a signal ends the program at once: it imports what the program needs."""
    return _in_phase(Phase.STARTING)


def working() -> AbstractContextManager[None]:
    """A block in which a signal raises `KeyboardInterrupt`, as does one that has been waiting."""
    return _in_phase(Phase.WORKING)


def saving(*, last: bool = False) -> AbstractContextManager[None]:
    """A block at whose end a signal waits to be raised; with `last` the program is ending then, and none is raised."""
    return _in_phase(Phase.SAVING, Phase.ENDING if last else None)


@contextmanager
def _in_phase(phase: Phase, after: Phase | None = None) -> Iterator[None]:
    if _state.phase is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    after = after or _state.phase
    try:
        _enter(phase)
        yield
    finally:
        if _state.phase is not Phase.ENDING:
            _enter(after)


def _enter(phase: Phase) -> None:
    _state.phase = phase
    if phase is Phase.WORKING and _state.signum:
        _raise()
    _remind(0.0)


def has_come() -> bool:
    """Whether a signal has come."""
    return _state.signum != 0


def exit_code() -> int:
    """The exit code of a program that a signal has ended: 128 and the signal's number, by convention."""
    return 128 + (_state.signum or signal.SIGINT)


def word() -> str:
    """What a signal has done to the program: "interrupted" for Ctrl-C."""
    return WORDS[signal.Signals(_state.signum or signal.SIGINT).name]


def _came(signum: int, _frame: Any) -> None:
    """Handles a signal."""
    if not _state.signum:
        _state.signum, _state.since = signum, time.monotonic()
    late = time.monotonic() - _state.since > PATIENCE_SECONDS
    if _state.phase in (Phase.STARTING, Phase.ENDING) or (_state.phase is Phase.SAVING and late):
        _leave()
    if _state.phase is Phase.WORKING:
        _raise()


def _raise() -> None:
    _remind(AGAIN_SECONDS)
    raise Interrupted


def _remind(seconds: float) -> None:
    """Raises the signal again after so many seconds, unless the program has stopped working by then; 0 does not."""
    if hasattr(signal, "setitimer") and (seconds or signal.getsignal(signal.SIGALRM) is _remembered):
        signal.signal(signal.SIGALRM, _remembered)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _remembered(_signum: int, _frame: Any) -> None:
    if _state.phase is Phase.WORKING:
        _raise()


def _unraisable(told: Callable[[Any], Any], what: Any) -> None:
    """Passes on what Python could not raise, but for the signal's own exception, which is soon raised again."""
    if _state.signum and issubclass(what.exc_type, KeyboardInterrupt):
        _remind(SOON_SECONDS)
    else:
        told(what)


def _leave() -> None:
    """Ends the process, in the middle of whatever it is doing."""
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\r\x1b[K\x1b[?25h")  # clears a line that shows progress, and gives the cursor back
        if _state.phase is Phase.STARTING:
            os.write(2, f"{_state.program}: {word()}, nothing was finished\n".encode())
    os._exit(exit_code())
