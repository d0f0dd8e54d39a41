"""The folder that a program writes its results to: whose results it holds, and what an earlier run left there.

A file beside the results, `MANIFEST`, says whose they are and which files the program wrote. A run of the same model
renews the folder: when it writes its first file, it removes those that the earlier run wrote, so that no old figure
stands beside new records. What the manifest does not list is never removed. The results of another model are never
replaced: a folder that the user named is refused, and beside the default folder another one is taken.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppl_vi.runtime.files import write_text

MANIFEST = "manifest.json"
RECORDS = "records.json"  # which every program writes that writes results
UNKNOWN = f"an earlier version, which wrote no {MANIFEST} that says of which model they are"
MAX_FOLDERS = 1000  # beside the default one; so many were not made by running programs


class OtherResultsError(ValueError):
    """A folder holds the results of another model."""


@dataclass
class Results:
    """What a run writes.

    Attributes:
        folder: where its results go; None where the program has no such folder.
        whose: the model that they are of.
        why_here: a line that says why it is another folder than usual; "" where it is not.
        written: the names of the files in the folder that it has written, in order.
        elsewhere: files in other folders that it has written.
        removed: the names of an earlier run's files that it has removed.
    """

    folder: Path | None = None
    whose: str = ""
    why_here: str = ""
    written: list[str] = field(default_factory=list)
    elsewhere: list[Path] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def begin(self, path: Path) -> None:
        """Is called before a file is written: lists it, and removes an earlier run's files before the first one.

        Raises:
            OSError: the manifest can't be written.
        """
        if self.folder is None or path.parent != self.folder or path.name in self.written:
            return
        if not self.written:
            self.removed = _without(self.folder, _listed(self.folder)[1], path.name)
        self.written.append(path.name)
        _list(self.folder, self.whose, self.written)

    def done(self, path: Path) -> None:
        """Is called when a file in any folder has been written."""
        if path.parent != self.folder and path not in self.elsewhere:
            self.elsewhere.append(path)

    def lost(self, path: Path) -> None:
        """Is called when a file could not be written."""
        if path.parent == self.folder and path.name in self.written:
            self.written.remove(path.name)

    def in_words(self) -> list[str]:
        """What was written and where, and what was removed, in lines."""
        lines = [self.why_here] if self.why_here and self.written else []
        lines += [f"written to {self.folder}: {', '.join(self.written)}"] if self.written else []
        lines += [f"written to {path}" for path in self.elsewhere]
        gone = [name for name in self.removed if name not in self.written]
        if gone:
            lines.append(f"removed from {self.folder}, since an earlier run had written them: {', '.join(gone)}")
        return lines


_current: ContextVar[Results | None] = ContextVar("results", default=None)


@contextmanager
def collecting() -> Iterator[Results]:
    """Collects what a run writes while the context is open."""
    token = _current.set(Results())
    try:
        found = _current.get()
        assert found is not None
        yield found
    finally:
        _current.reset(token)


def current() -> Results:
    """What the run that is going on has written; a record that nobody reads where none collects."""
    return _current.get() or Results()


def claimed(folder: Path, whose: str, *, given: bool, unlisted_is_own: bool) -> tuple[Path, str]:
    """The folder for the results of a model, and what is to be said of it, or "".

    Args:
        folder: the one that was asked for.
        whose: the model, in words that tell it from others.
        given: whether the user named the folder.
        unlisted_is_own: whether results without a manifest are this program's own, from an earlier version.

    Raises:
        OtherResultsError: the user named a folder that holds another model's results.
    """
    holder = _holder(folder, unlisted_is_own)
    if holder in (None, whose):
        return folder, ""
    held = f"'{folder}' holds the results of {holder}"
    if given:
        raise OtherResultsError(f"{held}: name another folder, or remove that one")
    for number in range(2, MAX_FOLDERS):
        other = folder.with_name(f"{folder.name}_{number}")
        if _holder(other, unlisted_is_own=False) in (None, whose):
            mend = f". Remove '{folder}' if you don't need them" if holder == UNKNOWN else ""
            return other, f"{held}; those of {whose} go to '{other}'{mend}"
    raise OtherResultsError(f"{held}, and so on up to number {MAX_FOLDERS}: remove some of them")


def _holder(folder: Path, unlisted_is_own: bool) -> str | None:
    """Whose results a folder holds; None where it holds none, or none that count."""
    whose, names = _listed(folder)
    if whose and any(_is_plain_file(folder / name) for name in names):
        return whose
    unlisted = not whose and _is_plain_file(folder / RECORDS)
    return UNKNOWN if unlisted and not unlisted_is_own else None


def _listed(folder: Path) -> tuple[str, list[str]]:
    """Whose results the manifest of a folder lists, and the names of their files; ("", []) where none can be read."""
    try:
        found: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whose, names = found["whose"], found["files"]
    except (OSError, ValueError, TypeError, KeyError):
        return "", []
    good = isinstance(whose, str) and isinstance(names, list)
    plain = [name for name in names if isinstance(name, str) and name == Path(name).name] if good else []
    return (whose, plain) if good else ("", [])


def _list(folder: Path, whose: str, names: list[str]) -> None:
    write_text(folder / MANIFEST, json.dumps({"whose": whose, "files": names}, indent=1, ensure_ascii=False) + "\n")


def _without(folder: Path, names: list[str], kept: str) -> list[str]:
    """Removes files from a folder, but for one, which is replaced next; the names of those that were there."""
    gone = []
    for name in names:
        if name not in (kept, MANIFEST) and _is_plain_file(folder / name):
            (folder / name).unlink()
            gone.append(name)
    return gone


def _is_plain_file(path: Path) -> bool:
    """Whether there is a regular file, not behind a link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False
