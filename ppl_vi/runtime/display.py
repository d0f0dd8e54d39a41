"""Shows stages while they run: lines that move in a terminal or a notebook, else one line a stage on standard error."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ppl_vi.runtime import verbosity
from ppl_vi.runtime.stages import Callback, Stage, listening

# Columns of the bar before each line; a longer one leaves less room for the line in a narrow terminal.
BAR_WIDTH = 12
# Seconds for which a stage that is over is still shown, so that its line is not blank until the next one begins. With a
# larger number the line of a guide that is finished stays longer.
LINGER_SECONDS = 1.0


@contextmanager
def following(progress: Callback | bool, subject: str = "") -> Iterator[None]:
    """Follows the stages of this block.

    Args:
        progress: True shows them, a function is called with each `Stage`, and with False only those follow them who
            did so before.
        subject: whose stages they are, unless somebody who follows them already has named another.
    """
    if progress is True:
        with shown() as callback, listening(callback, subject):
            yield
    else:
        with listening(progress or None, subject):
            yield


def shown() -> AbstractContextManager[Callback]:
    """Gives a callback that shows stages as well as the place allows it."""
    if verbosity.is_quiet():
        return nullcontext(lambda stage: None)
    if Console().is_jupyter:
        return _in_notebook()
    stream = cast(TextIO, _Unfailing(sys.stderr))
    if verbosity.is_verbose():
        return _with_ends(stream)
    moves = stream.isatty() and not Console(file=stream).is_dumb_terminal
    return _in_terminal(stream) if moves else _line_by_line(stream)


class Lines:
    """The stages that are running, one line for each subject, as they are shown by rich or as text."""

    def __init__(self) -> None:
        self._events: dict[str, tuple[Stage, float]] = {}

    def update(self, stage: Stage) -> None:
        """Takes in an event."""
        self._events[stage.subject] = stage, time.monotonic()

    def __rich__(self) -> Table:
        """The lines with bars, as of now."""
        grid = Table.grid(padding=(0, 1))
        for stage, line in self._running():
            bar = ProgressBar(stage.total, stage.done, BAR_WIDTH, pulse=stage.total is None)
            grid.add_row(bar, Text(line, no_wrap=True, overflow="ellipsis"))
        return grid

    def __str__(self) -> str:
        return "\n".join(line for _, line in self._running())

    def _running(self) -> list[tuple[Stage, str]]:
        now = time.monotonic()
        events = [(stage, now - came) for stage, came in list(self._events.values())]
        return [(one, with_times(one, since)) for one, since in events if not one.is_over or since < LINGER_SECONDS]


def with_times(stage: Stage, since: float) -> str:
    """A stage as a line with its rate, and the time left or else the time it has taken.

    Args:
        stage: what was told last.
        since: the seconds that have passed since then.
    """
    parts = [str(stage)]
    if stage.rate:
        each = 1 / stage.rate
        parts.append(
            f"{stage.rate:,.0f}/s" if each <= 0.1 else f"{each:.2g} s each" if each < 10 else f"{_clock(each)} each"
        )
    left = stage.seconds_left
    parts.append(_clock(stage.seconds + since) if left is None else f"{_clock(max(left - since, 0.0))} left")
    return " · ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def _in_terminal(stream: TextIO) -> Iterator[Callback]:
    lines = Lines()
    # what is printed meanwhile goes above the lines, but never from standard output to standard error
    both = sys.stdout is not None and sys.stdout.isatty()
    with Live(lines, console=Console(file=stream), transient=True, refresh_per_second=10, redirect_stdout=both):
        yield lines.update


@contextmanager
def _in_notebook() -> Iterator[Callback]:
    """By the display that every kernel has: rich would need ipywidgets, in the kernel and in the browser."""
    from IPython.display import display

    lines = Lines()
    cell = display(_plain(""), raw=True, display_id=True)

    def update(stage: Stage) -> None:
        lines.update(stage)
        if not stage.is_over:  # the next stage follows at once, and a cell that empties meanwhile would flicker
            cell.update(_plain(str(lines)), raw=True)

    try:
        yield update
    finally:
        cell.update(_plain(""), raw=True)


def _plain(text: str) -> dict[str, str]:
    return {"text/plain": text}


@contextmanager
def _line_by_line(stream: TextIO) -> Iterator[Callback]:
    """A line when a stage is told for the first time; what counts the work as a whole, such as guides, gets none.

    Nor do details, of which there are many.
    """
    seen: set[str] = set()

    def update(stage: Stage) -> None:
        if (stage.subject or not stage.unit) and not stage.is_detail and stage.title not in seen:
            seen.add(stage.title)
            stream.write(f"{stage.title}\n")
            stream.flush()

    yield update


@contextmanager
def _with_ends(stream: TextIO) -> Iterator[Callback]:
    """A line when a stage begins, and one with its seconds when it is over."""
    seen: set[tuple[str, str]] = set()

    def update(stage: Stage) -> None:
        key = stage.subject, stage.name
        if stage.is_over:
            seen.discard(key)
            stream.write(f"{stage.title}: {stage.seconds:.2f} s\n")
        elif key not in seen:
            seen.add(key)
            stream.write(f"{stage.title}\n")
        stream.flush()

    yield update


class _Unfailing(io.TextIOBase):
    """Standard error, or nothing where it is closed: a reader who has gone does not end the work."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        """That of the stream."""
        if self._stream is None:
            raise OSError("standard error is closed")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Writes if it can."""
        try:
            if self._stream is not None:
                self._stream.write(text)
        except (OSError, ValueError):
            self._stream = None
        return len(text)

    def flush(self) -> None:
        """Flushes if it can."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            self._stream = None
