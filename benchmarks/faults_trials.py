"""What a class of faults in `benchmarks.faults` is given: a folder, a number of trials, and where to tell outcomes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MAX_DAMAGED_BYTES = 200  # that one fault overwrites, takes away or adds


@dataclass
class Trials:
    """The trials of one class.

    Attributes:
        folder: an empty folder for its files.
        num: how many trials to make.
        seed: of what is drawn.
        outcomes: how many trials ended how, in words.
        wrong: what should not have happened, one text a trial.
    """

    folder: Path
    num: int
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def tell(self, outcome: str, wrong: str = "") -> None:
        """Notes how a trial ended, and what was wrong with that, if anything was."""
        self.outcomes[outcome] += 1
        if wrong:
            self.wrong.append(wrong)

    def expect_refusal(self, what: str, act: Callable[[], object], kind: type[Exception]) -> None:
        """Tries what must be refused by an error of one kind, whose message is one line."""
        try:
            act()
        except kind as error:
            self.tell("refused in one line", "" if "\n" not in str(error) else f"{what}: several lines: {error}")
        except BaseException as error:  # whatever else comes is what the trial looks for
            self.tell("raw errors", f"{what}: {type(error).__name__}: {error}")
        else:
            self.tell("accepted", f"{what}: accepted")


def damaged(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A file's content after one fault of a random kind, and what the fault was."""
    kind, changed = draw.choice(list(DAMAGE.items()))
    while (found := changed(content, draw)) == content:
        pass
    return kind, found


def _flipped(content: bytes, draw: random.Random) -> bytes:
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def _overwritten(content: bytes, draw: random.Random) -> bytes:
    place, num = draw.randrange(len(content)), draw.randrange(1, MAX_DAMAGED_BYTES)
    return content[:place] + draw.randbytes(num) + content[place + num :]


def _shortened(content: bytes, draw: random.Random) -> bytes:
    place, num = draw.randrange(len(content)), draw.randrange(1, MAX_DAMAGED_BYTES)
    return content[:place] + content[place + num :]


def _lengthened(content: bytes, draw: random.Random) -> bytes:
    place, num = draw.randrange(len(content) + 1), draw.randrange(1, MAX_DAMAGED_BYTES)
    return content[:place] + draw.randbytes(num) + content[place:]


def _zeroed(content: bytes, draw: random.Random) -> bytes:
    place, num = draw.randrange(len(content)), draw.randrange(1, 4096)  # as a disk that lost a block
    return content[:place] + bytes(len(content[place : place + num])) + content[place + num :]


def _swapped(content: bytes, draw: random.Random) -> bytes:
    first, second = sorted(draw.sample(range(len(content)), 2))
    num = min(MAX_DAMAGED_BYTES, second - first, len(content) - second)
    one, other = content[first : first + num], content[second : second + num]
    return content[:first] + other + content[first + num : second] + one + content[second + num :]


def _repeated(content: bytes, _: random.Random) -> bytes:
    return content + content


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "one bit flipped": _flipped,
    "cut": _cut,
    "overwritten": _overwritten,
    "shortened": _shortened,
    "lengthened": _lengthened,
    "a block of zeros": _zeroed,
    "two parts swapped": _swapped,
    "the file twice": _repeated,
}
