"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def replace_file(path: Path, write: Callable[[BinaryIO], Any], *, durable: bool = False) -> None:
    """Writes or replaces a file, all or nothing: until all of it is written, what was there before stays.

    Args:
        path: of the file; its folder exists.
        write: given a temporary file beside it, writes to that.
        durable: whether to wait until the content is on the disk before it replaces the old one, so that a loss of
            power leaves one or the other.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())  # which `mkstemp` gives to the owner alone
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a text file, all or nothing."""
    replace_file(path, lambda file: file.write(text.encode()))


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    current = os.umask(0o022)
    os.umask(current)
    return current
