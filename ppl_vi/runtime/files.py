"""Files that are written whole or not at all, and folders that nobody else may write to."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def replace_file(path: Path, write: Callable[[BinaryIO], Any], *, durable: bool = False) -> None:
    """Writes or replaces a file, all or nothing: until all of it is written, what was there before stays.

    A symbolic link stays one: the file that it leads to is replaced, which keeps its permissions. What is no regular
    file, such as a device or a pipe, is written to in place, and so is the file that standard output or standard error
    goes to.

    Args:
        path: of the file; its folder exists.
        write: given a file that is opened for writing, a temporary one beside `path` or `path` itself, writes to that.
        durable: whether to wait until the content is on the disk before it replaces the old one, so that a loss of
            power leaves one or the other.

    Raises:
        OSError: the file can't be written, as where the disk is full.
        ValueError: the path holds a NUL character.
    """
    if "\0" in str(path):
        raise ValueError(f"the name of a file can't hold a NUL character, got {str(path)!r}")
    found = _status(path)
    in_place = _stream_at(found)
    if in_place is not None:
        with in_place as file:
            write(file)
    elif found is not None and not stat.S_ISREG(found.st_mode):
        with path.open("wb") as file:
            write(file)
    else:
        mode = 0o666 & ~_umask() if found is None else stat.S_IMODE(found.st_mode) & 0o777
        _replace(Path(os.path.realpath(path)), write, mode, durable=durable)


def _replace(path: Path, write: Callable[[BinaryIO], Any], mode: int, *, durable: bool) -> None:
    """Writes a temporary file in the same folder, and moves it to `path`."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".ppl_vi-", suffix=path.suffix[:16])
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.chmod(mode)  # `mkstemp` makes a file for its owner alone
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a text file, all or nothing; see `replace_file`."""
    replace_file(path, lambda file: file.write(text.encode()))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes or replaces a file, all or nothing; see `replace_file`."""
    replace_file(path, lambda file: file.write(content))


def is_replaced(path: Path) -> bool:
    """Whether a path is a regular file, or none yet: what `replace_file` replaces, and what can be written repeatedly.

    Raises:
        OSError: the path can't be looked at, as where its name is too long or its links lead in a circle.
    """
    found = _status(path)
    return found is None or (stat.S_ISREG(found.st_mode) and _stream_of(found) is None)


def _status(path: Path) -> os.stat_result | None:
    """Of what a path leads to; None where there is nothing."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _stream_of(found: os.stat_result | None) -> Any:
    """Standard output or standard error, where that goes to this file."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if found is not None and os.path.samestat(found, os.fstat(stream.fileno())):
                return stream
        except (AttributeError, OSError, ValueError):  # there is no such stream, or it is no file
            continue
    return None


def _stream_at(found: os.stat_result | None) -> BinaryIO | None:
    """A file that writes where standard output or standard error goes on, where one of them goes to `found`."""
    stream = _stream_of(found)
    if stream is None or found is None or stat.S_ISCHR(found.st_mode):
        return None  # a terminal or /dev/null can be opened once more
    stream.flush()
    return os.fdopen(os.dup(stream.fileno()), "wb")


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    current = os.umask(0o022)
    os.umask(current)
    return current


def why_not_private(folder: Path) -> str:
    """Why others could put files into a folder, or "" where they can't.

    The folder has to be this user's own, and nobody else may write to it. Of the folders that it lies in nobody but
    this user and root may own or write to one, unless others can't move what is not theirs, as in /tmp (sticky bit).
    """
    if not hasattr(os, "geteuid"):  # as on Windows, where a user's folders are their own
        return ""
    user, real = os.geteuid(), Path(os.path.realpath(folder))
    for place in (real, *real.parents):
        found = place.stat()
        if found.st_uid != user and (place == real or found.st_uid != 0):
            return f"'{place}' belongs to another user"
        if found.st_mode & OTHERS_WRITE and (place == real or not found.st_mode & stat.S_ISVTX):
            return f"others may write to '{place}'"
    return ""


def is_own(path: Path) -> bool:
    """Whether a file or folder is this user's own, no link, and nobody else may write to it."""
    if not hasattr(os, "geteuid"):
        return True
    found = path.lstat()
    linked = stat.S_ISLNK(found.st_mode)
    return not linked and found.st_uid == os.geteuid() and not found.st_mode & OTHERS_WRITE


def make_private(folder: Path) -> None:
    """Makes a folder, and those that it lies in where they are missing, for this user alone.

    Raises:
        OSError: it can't be made.
    """
    for place in (*reversed(folder.parents), folder):
        if not place.is_dir():
            place.mkdir(mode=0o700, exist_ok=True)
