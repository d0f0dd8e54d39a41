"""The files that programs write: checked before anything is computed, and no result is lost where one can't be written.

An output that can't be written, as where the disk is full, is told in one line on standard error. The program goes on,
prints its tables, and ends with the exit code `UNWRITTEN`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ppl_vi.runtime import result_folder, verbosity
from ppl_vi.runtime.files import is_replaced, write_text

UNWRITTEN = 1  # the exit code of a program some of whose outputs could not be written

# While a program runs: the outputs that could not be written, with the folder and the reason.
_failed: ContextVar[dict[Path, tuple[Path, str]] | None] = ContextVar("failed", default=None)


@contextmanager
def noting_failures() -> Iterator[dict[Path, tuple[Path, str]]]:
    """Notes the outputs that can't be written while the context is open, instead of raising their errors."""
    failed: dict[Path, tuple[Path, str]] = {}
    token = _failed.set(failed)
    try:
        yield failed
    finally:
        _failed.reset(token)


def write_output(path: Path, write: Callable[[Path], None]) -> None:
    """Writes an output by `write`. Where it can't be written, one line says so, once for each folder and reason.

    Raises:
        OSError: it can't be written, and failures are not noted.
    """
    results = result_folder.current()
    try:
        results.begin(path)
    except OSError as error:  # the output itself may be written all the same
        note_failure(path.with_name(result_folder.MANIFEST), error)
    try:
        write(path)
    except OSError as error:
        results.lost(path)
        failed = _failed.get()
        if failed is None:
            raise
        note_failure(path, error)
    else:
        results.done(path)
        (_failed.get() or {}).pop(path, None)


def tell_results() -> None:
    """Says on standard error what the run that is going on has written, and where, unless it is to be quiet."""
    if sys.stderr is not None and not verbosity.is_quiet():
        for line in result_folder.current().in_words():
            print(one_line(line), file=sys.stderr)


def note_failure(path: Path, error: OSError) -> None:
    """Notes that an output could not be written, and says so unless that was said of its folder for the same reason."""
    failed = _failed.get()
    reason = reason_of(error)
    if failed is None or (path.parent, reason) not in failed.values():
        print(one_line(f"can't write '{path}': {reason}; what was found is shown all the same"), file=sys.stderr)
    if failed is not None:
        failed[path] = path.parent, reason


def write_output_text(path: Path, text: str) -> None:
    """Writes an output that is text; see `write_output`."""
    write_output(path, lambda place: write_text(place, text))


def one_line(text: str) -> str:
    """A message as one line, whatever a path in it holds."""
    return " ".join(text.split())


def reason_of(error: OSError | ValueError) -> str:
    """Why a file can't be written, in few words."""
    return getattr(error, "strerror", None) or str(error)


def why_not_folder(folder: Path) -> str:
    """Creates a folder if it is missing, and tries to write to it; why that fails, or ""."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except (OSError, ValueError) as error:
        return f"can't write to '{folder}': {reason_of(error)}"


def why_not_file(file: Path) -> str:
    """Why a file can't be written, as far as that can be told beforehand, or ""."""
    try:
        if file.is_dir():
            return f"'{file}' is a folder"
        if not file.parent.is_dir():
            return f"there is no folder '{file.parent}'"
        if not is_replaced(file):
            return "" if os.access(file, os.W_OK) else f"can't write to '{file}': Permission denied"
        folder = Path(os.path.realpath(file)).parent
        if not folder.is_dir():
            return f"there is no folder '{folder}'"
    except (OSError, ValueError) as error:
        return f"can't write to '{file}': {reason_of(error)}"
    return why_not_folder(folder)
