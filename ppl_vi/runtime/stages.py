"""What is being worked on: code that takes long opens a `stage`, and whoever listens is told how far it has come.

Who listens is held in a context variable instead of being an argument. The loops that count lie up to ten calls below
the public functions, and what is told, like a log, changes no result. The price is that a signature does not show
whether a function tells its stages. The variable is set in a `with` block alone, each thread and process has its own,
and a generator must not hold such a block open while it yields, because its caller would share it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

# Seconds from one event of a stage to the next, but for its first and last. With a smaller number a line on a screen
# moves more smoothly, and more of the time goes into telling.
MIN_SECONDS = 0.1
# About how many seconds `Running.spans` lets pass between two events. A larger number means fewer, longer calls.
SPAN_SECONDS = 0.2
# The last events over which a rate is measured. Over more of them it is steadier, and follows a change more slowly.
RATE_EVENTS = 50


@dataclass(frozen=True)
class Stage:
    """How far a stage of the work has come.

    The stages of a subject follow one another, but for a fit's, whose steps are broken off for its checks. The last
    event of a stage, and no other, has `done` equal to `total`, also where an error ended it or fewer units sufficed.

    Attributes:
        subject: whose stage it is: "truth", the name of a guide, or "" for the work as a whole.
        name: what is done, such as "fitting".
        done: how many units are done.
        total: how many units there are at most; None where that is not known before the end.
        unit: what is counted, such as "step"; "" where nothing is.
        seconds: since the stage began.
        rate: units done a second, over the last events; None before the first unit.
        is_detail: whether it is a stage of one of very many like pieces of work, as of a task of a sweep, which a log
            leaves out.
    """

    subject: str
    name: str
    done: int
    total: int | None
    unit: str
    seconds: float
    rate: float | None
    is_detail: bool = False

    @property
    def is_over(self) -> bool:
        """Whether this is the stage's last event."""
        return self.done == self.total

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end, if the rest goes as fast as what is done; None where that can't be said."""
        return None if self.total is None or not self.rate else (self.total - self.done) / self.rate

    @property
    def title(self) -> str:
        """Such as "AutoNormal: fitting"."""
        return f"{self.subject}: {self.name}" if self.subject else self.name

    def __str__(self) -> str:
        """Such as "AutoNormal: fitting, 400 of 1,000 steps"."""
        if not self.unit:
            return self.title
        count = f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"
        many = "" if (self.total or self.done) == 1 else "s"
        return f"{self.title}, {count} {self.unit}{many}"


Callback = Callable[[Stage], None]


@dataclass(frozen=True)
class Listener:
    """Who is told of stages, as those of a subject, and whether as details."""

    callback: Callback
    subject: str
    is_detail: bool = False


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


class _CallbackError(BaseException):
    """Carries what a callback raised past the code that takes any `Exception` for a failure of the work itself."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def is_heard() -> bool:
    """Whether anybody listens."""
    return _listener.get() is not None


def listener() -> Listener | None:
    """Who listens; None where nobody does."""
    return _listener.get()


def tell_details(outer: Listener | None) -> None:
    """Tells a listener of the stages of this context, all of them details, whose pieces no clock cuts.

    The context must be one that was made for this, since nothing ends it.
    """
    _listener.set(outer and replace(outer, is_detail=True))


@contextmanager
def listening(callback: Callback | None, subject: str = "", is_detail: bool = False) -> Iterator[None]:
    """Tells the callback the stages of this block. What it raises ends the work, and is raised from here.

    Args:
        callback: is called with each event, in the thread that does the work; without it, whoever listens already goes
            on listening.
        subject: whose stages they are. Where there is no new callback, a subject that has a name already keeps it.
        is_detail: whether a new callback is told of them as details.
    """
    outer = _listener.get()
    if callback is not None:
        inner: Listener | None = Listener(callback, subject, is_detail)
    else:
        inner = outer if outer is None or outer.subject else replace(outer, subject=subject)
    failure: Exception | None = None
    token = _listener.set(inner)
    try:
        yield
    except _CallbackError as carrier:
        if callback is None:
            raise
        failure = carrier.error
    finally:
        _listener.reset(token)
    if failure is not None:
        raise failure


def relay(stage: Stage) -> None:
    """Tells whoever listens of an event that another process has sent."""
    _tell(_listener.get(), stage)


def _tell(listener: Listener | None, stage: Stage) -> None:
    if listener is None:
        return
    token = _listener.set(None)  # what the callback itself calls is not told
    try:
        listener.callback(stage)
    except Exception as error:
        raise _CallbackError(error) from error
    finally:
        _listener.reset(token)


class Running:
    """A stage that is open: `at` or `advance` count what is done. Without a listener they do next to nothing.

    Attributes:
        done: the units that are done; parts of a unit are counted, and not told.
    """

    def __init__(self, name: str, unit: str, total: int | None) -> None:
        self.done: float = 0
        self._listener = _listener.get()
        self._name, self._unit, self._total = name, unit, total
        self._began = time.monotonic()
        self._told = -MIN_SECONDS
        self._span = 1
        self._events: deque[tuple[float, float]] = deque(maxlen=RATE_EVENTS)  # seconds, and units done by then

    def at(self, done: float) -> None:
        """So many units are done now."""
        self.done = done
        if self._listener is None or int(done) == self._total:  # which the end of the stage tells
            return
        now = time.monotonic()
        if now - self._told >= MIN_SECONDS:
            self._told = now
            self._tell(self._total)

    def advance(self, num: float = 1) -> None:
        """So many more units are done."""
        self.at(self.done + num)

    def end(self) -> None:
        """There is no more to do."""
        self._tell(int(self.done))

    def spans(self, num: int, multiple: int) -> Iterator[tuple[int, int]]:
        """Cuts work on `num` units that could be done in one call, so that there is something to tell meanwhile.

        Args:
            num: how many units there are.
            multiple: each span but the last has a multiple of so many units.

        Yields:
            The first unit of each span, and the one after its last; a single span where nobody listens, or only to
            details.
        """
        begin = 0
        while begin < num:
            end = num if self._listener is None or self._listener.is_detail else min(begin + multiple * self._span, num)
            began = time.monotonic()
            yield begin, end
            seconds = time.monotonic() - began
            aim = (end - begin) / multiple * SPAN_SECONDS / max(seconds, 1e-9)
            self._span = max(1, min(int(aim), 10 * self._span))
            begin = end

    def _tell(self, total: int | None) -> None:
        if self._listener is None:
            return
        seconds = time.monotonic() - self._began
        self._events.append((seconds, self.done))
        since, before = self._events[0]
        rate = (self.done - before) / (seconds - since) if self.done and seconds > since else None
        subject, done, is_detail = self._listener.subject, int(self.done), self._listener.is_detail
        _tell(self._listener, Stage(subject, self._name, done, total, self._unit, seconds, rate, is_detail))


@contextmanager
def stage(name: str, unit: str = "", total: int | None = None) -> Iterator[Running]:
    """Tells that a stage begins, how far it has come, and that it is over.

    Args:
        name: what is done, as it is shown after the subject.
        unit: what is counted, in the singular.
        total: how many there are at most, at least 1; None where that is not known.
    """
    running = Running(name, unit, total)
    running.at(0)
    try:
        yield running
    except _CallbackError:
        raise
    except BaseException:
        running.end()
        raise
    running.end()
