"""How much memory may be used, and how work is cut so that it keeps within that.

Whoever computes something for many points at once asks `at_once` how many of them to take together. The answer is the
number that is fastest, or fewer where their temporaries would take more than there is. It is the same number for all
bounds that are large enough, and sums are cut at powers of 2 of it, so that results depend on the bound at most by
rounding.

A bound is set for a block of code by `bounded`, which takes the most memory that this process may hold, or by
`allowing`, which takes what may come on top of what it holds already. Without either half of the free memory may be
taken. The bound is a context variable, so each thread has its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

# The share of the free memory that is taken where nobody sets a bound; the rest is left for other programs.
SHARE_OF_FREE_MEMORY = 0.5
# The share of what may be taken that temporaries may take at once; the rest is left for results that are kept.
SHARE_OF_TEMPORARIES = 0.5
# What a process that shares the families needs besides what the main process holds after its imports, in bytes: room
# for compilers and small temporaries. Where there is less for each of several processes, fewer of them are started.
MIN_ROOM = 400 * 10**6
UNITS = {"": 1, "k": 1, "m": 2, "g": 3, "t": 4}
SIZE = re.compile(r"\s*(?P<number>\d+\.?\d*|\.\d+)\s*(?:(?P<prefix>[kmgt]?)(?P<binary>i?)(?P<unit>b?))\s*", re.I)
EXPECTED = "expected an amount of memory such as 500MB, 4GB or 4GiB"
# Where Linux states the limits of the group of processes that this one belongs to: by version 2 of control groups, and
# by version 1. Each pair is the limit and what of it is taken.
CGROUPS = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
MEMORY_FILE, STATUS_FILE = Path("/proc/meminfo"), Path("/proc/self/status")

_room: ContextVar[float | None] = ContextVar("_room", default=None)


class MemoryBoundError(ValueError):
    """What is asked for needs more memory than may be taken; the message says how much, and what to do."""


def parsed(text: str) -> float:
    """The bytes of an amount such as `500MB`, `4GB`, `4GiB`; a number without unit is in GiB.

    MB and GB are powers of 10, MiB and GiB powers of 2.

    Raises:
        ValueError: it is no such amount, or 0.
    """
    found = SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"{EXPECTED}, got '{text}'")
    number, prefix = float(found["number"]), found["prefix"].lower()
    if not number:
        raise ValueError(f"{EXPECTED}, got '{text}', which is nothing")
    if not prefix and not found["binary"] and not found["unit"]:
        return number * 2**30
    if found["binary"] and not prefix:
        raise ValueError(f"{EXPECTED}, got '{text}'")
    return number * (1024 if found["binary"] else 1000) ** (UNITS[prefix] if prefix else 0)


def bytes_of(max_memory: float | str | None) -> float | None:
    """The bytes of a bound as users state it: a text for `parsed`, or a number of GiB; None stays None.

    Raises:
        ValueError: it is no amount of memory.
        TypeError: it is neither text nor a number.
    """
    if max_memory is None:
        return None
    if isinstance(max_memory, str):
        return parsed(max_memory)
    if isinstance(max_memory, bool) or not isinstance(max_memory, (int, float)):
        raise TypeError(f"max_memory: {EXPECTED}, or a number of GiB; got {type(max_memory).__name__}")
    if not 0 < max_memory < float("inf"):
        raise ValueError(f"max_memory must be positive and finite, got {max_memory}")
    return max_memory * 2**30


def shown(num_bytes: float) -> str:
    """An amount for messages, in GB or MB."""
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"


def free_bytes() -> float:
    """The memory that is free now, in bytes: of the machine, and of every control group that this process is in."""
    try:
        lines = MEMORY_FILE.read_text().splitlines()
        free = float(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) * 1024
    except (OSError, StopIteration):
        free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min([free, *_free_in_groups()])


def _free_in_groups() -> Iterator[float]:
    """What each control group that this process belongs to still allows, in bytes; nothing where there are none."""
    try:
        entries = [line.split(":", 2) for line in CGROUPS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in entries:
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUP_ROOT / "memory" if controllers else CGROUP_ROOT
        inner = root / path.strip("/")
        # inside of a container the group's own folder may be mounted as the root
        for folder in {inner, *(parent for parent in inner.parents if parent.is_relative_to(root))}:
            for limit_file, usage_file in CGROUP_FILES:
                try:
                    yield float((folder / limit_file).read_text()) - float((folder / usage_file).read_text())
                except (OSError, ValueError):  # there is no such file, or the limit is "max"
                    continue


def status_bytes(name: str) -> float:
    """A number of `/proc/self/status` in bytes, such as `VmRSS`, what the process holds, or `VmHWM`, the most it held;
    0 where there is no such file."""
    try:
        lines = STATUS_FILE.read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) * 1024
    except (OSError, StopIteration):
        return 0.0


def room() -> float:
    """What may be taken now on top of what this process held when its bound was set, in bytes."""
    here = _room.get()
    return SHARE_OF_FREE_MEMORY * free_bytes() if here is None else here


def is_bounded() -> bool:
    """Whether a bound is set here."""
    return _room.get() is not None


@contextmanager
def allowing(num_bytes: float | None) -> Iterator[None]:
    """In this block so many bytes may be taken on top of what the process holds; None changes nothing."""
    token = _room.set(_room.get() if num_bytes is None else num_bytes)
    try:
        yield
    finally:
        _room.reset(token)


@contextmanager
def bounded(num_bytes: float | None) -> Iterator[None]:
    """In this block the process may hold so many bytes, libraries and all; None is what it holds and half of what is
    free, as it is at the start.

    Raises:
        MemoryBoundError: it holds more already.
    """
    held = status_bytes("VmRSS")
    if num_bytes is not None and num_bytes <= held:
        raise MemoryBoundError(
            f"{shown(num_bytes)} of memory may be taken, and Python with its libraries and the data takes "
            f"{shown(held)} already: allow more, at least {shown(2 * held)}"
        )
    with allowing(room() if num_bytes is None else num_bytes - held):
        yield


def at_once(wished: int, bytes_each: float) -> int:
    """How many of `wished` items, whose temporaries take so many bytes each, to compute together: at least 1."""
    while wished > 1 and wished * bytes_each > SHARE_OF_TEMPORARIES * room():
        wished = (wished + 1) // 2
    return wished


def require(num_bytes: float, what: str, do: str = "allow more memory") -> None:
    """Refuses what would take more memory than may be taken.

    Args:
        num_bytes: that it would take at once, on top of what the process holds.
        what: it is, as the subject of a sentence.
        do: what the user may do instead.

    Raises:
        MemoryBoundError: it would.
    """
    if num_bytes > room():
        raise MemoryBoundError(
            f"{what} takes about {shown(num_bytes)} of memory, and {shown(room())} may be taken: {do}"
        )


def num_sharing(max_bytes: float | None, most: int) -> int:
    """How many processes, at most `most`, can share memory of so many bytes beside this one, each with enough room."""
    held = status_bytes("VmRSS")
    total = held + room() if max_bytes is None else max_bytes
    return max(1, min(most, int((total - held) // (held + MIN_ROOM))))


def share(max_bytes: float | None, num_processes: int) -> float:
    """What each of so many processes may hold in all, in bytes, where this process alone, or this one and they
    together, may hold `max_bytes`; None is what it holds and half of what is free.

    Args:
        max_bytes: of all together.
        num_processes: that share the work; 1 is this process itself.
    """
    held = status_bytes("VmRSS")
    total = held + room() if max_bytes is None else max_bytes
    return total if num_processes == 1 else (total - held) / num_processes


def shortage(error: BaseException) -> str:
    """What to tell of an error where it says that there was no memory; "" for any other error."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error)):
        return "it needs more memory than there is: give fewer replicas, draws or data, or free some memory"
    return ""
