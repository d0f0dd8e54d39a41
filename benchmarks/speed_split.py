"""What the time of a whole `fit` or `compare` is spent on, from the stages that they tell (`ppl_vi.runtime.stages`)."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

from ppl_vi.runtime.stages import Stage

# The parts of the time. "ready" is tracing, compiling or loading, and choosing starts; "rest" lies between the stages.
PARTS = ("ready", "steps", "checks", "truth", "best member", "scores", "rest")
# The part to which a stage belongs, by its name; all stages of the subject "truth" are the truth's.
PART_OF = {
    "loading Pyro and the model": "ready",
    "choosing starts": "ready",
    "choosing starts by paths": "ready",
    "preparing the steps": "ready",
    "fitting": "steps",
    "checking convergence": "checks",
    "best member": "best member",
    "the objective's own optimum": "best member",
    "ELBO of each replica": "scores",
    "scoring": "scores",
    "scoring draws": "scores",
    "importance sampling": "scores",
    "curves for the figures": "scores",
    "figures": "scores",
    "comparison": "rest",
}


class OverTimeError(Exception):
    """The work took longer than it may."""


def processor_seconds() -> float:
    """Processor time of this process and of the children that it has waited for, such as the C++ compiler."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Split:
    """A callback for `progress=` that adds up the time of each part.

    The time between two events belongs to the innermost stage that is open: the checks inside "fitting" are not steps.
    """

    def __init__(self, clock: Callable[[], float] = processor_seconds, most: float = float("inf")) -> None:
        """Begins now; the work is ended by `OverTimeError` at the first event after `most` seconds of the clock."""
        self._clock, self._most = clock, most
        self._began = self._last = clock()
        self._open: list[tuple[str, str]] = []
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def __call__(self, stage: Stage) -> None:
        """Takes in an event."""
        self._charge()
        key = stage.subject, stage.name
        if stage.is_over:
            if key in self._open:
                del self._open[-1 - self._open[::-1].index(key)]
        elif key not in self._open:
            self._open.append(key)
        if self._last - self._began > self._most:
            raise OverTimeError(f"not finished in {self._most:.0f} s; the last stage was '{stage.title}'")

    def seconds(self) -> dict[str, float]:
        """The time of each part until now; the sum is the whole time."""
        self._charge()
        return dict(self._seconds)

    def _charge(self) -> None:
        now = self._clock()
        self._seconds[part_of(*self._open[-1]) if self._open else "rest"] += now - self._last
        self._last = now


def part_of(subject: str, name: str) -> str:
    """The part of a stage; one that is not listed is part of the rest."""
    return "truth" if subject == "truth" else PART_OF.get(name, "rest")
