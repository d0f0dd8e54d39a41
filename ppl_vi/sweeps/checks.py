"""What a file of results must be before it is read or written, and what is said where it is not."""

from __future__ import annotations

import hashlib
import marshal
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppl_vi.sweeps.schema import APPLICATION_ID, VERSION

MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100  # of an SQLite file


class StoreError(Exception):
    """A file of results can't be used; the message is one line that says why, and what to do."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raises SQLite's errors again as `StoreError`, with what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"'{path}': {_explanation(error)}") from error


def _explanation(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_FULL") or "SQLITE_IOERR_WRITE" in name:
        return f"can't be written, as where the disk is full ({error}); what was stored before is kept: make room"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"is damaged or no file of results ({error}): move it away, or put back a copy from before"
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "is being used by another program: wait until that has ended"
    return f"can't be used: {error}"


def check_file(path: Path) -> bool:
    """Whether there is a file with results.

    Raises:
        StoreError: there is a file that can't be one.
    """
    try:
        if not path.exists():
            return False
        if not path.is_file():
            raise StoreError(f"'{path}' is no file")
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except OSError as error:
        raise StoreError(f"can't read '{path}': {error.strerror or error}") from error
    if not header:
        return False
    if header[: len(MAGIC)] != MAGIC:
        raise StoreError(f"'{path}' is no file of results: expected one that 'ppl-vi sweep' has written")
    return True


def is_blank(connection: sqlite3.Connection) -> bool:
    """Whether a database has no tables."""
    return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def check_kind(connection: sqlite3.Connection, path: Path) -> None:
    """Refuses a database of another program, of a newer version, or one that is damaged."""
    kind = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if kind != APPLICATION_ID:
        raise StoreError(f"'{path}' is a database of another program: expected one that 'ppl-vi sweep' has written")
    if version > VERSION:
        raise StoreError(
            f"'{path}' is of version {version}, written by a newer ppl_vi; this one knows version {VERSION}: update it"
        )
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreError(
            f"'{path}' is damaged ({' '.join(str(found).split())}): move it away, or put back a copy from before"
        )


def digest_of(rows: Sequence[Sequence[Any]]) -> str:
    """A digest of the rows of a task, to the last bit; a column that is added later, and empty, does not change it."""
    trimmed = []
    for row in rows:
        end = len(row)
        while end and row[end - 1] is None:
            end -= 1
        trimmed.append(tuple(row[:end]))
    return hashlib.blake2b(marshal.dumps(trimmed, 2), digest_size=16).hexdigest()
