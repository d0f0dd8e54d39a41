"""Records as strict JSON and as CSV; a file is replaced only once all of it is written."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def to_json(records: Sequence[dict[str, Any]]) -> str:
    """Strict JSON: no NaN and no Infinity.

    Raises:
        ValueError: a value is not finite; records hold "inf" and null instead.
    """
    return json.dumps(list(records), allow_nan=False, indent=1, ensure_ascii=False) + "\n"


def to_csv(records: Sequence[dict[str, Any]]) -> str:
    """One line a record, nested values as JSON, missing ones empty."""
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(record.get(name)) for name in names] for record in records)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(value, allow_nan=False) if isinstance(value, dict | list) else value


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with the path of a temporary file beside `path`, then puts it in its place."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    partial = Path(name)
    try:
        write(partial)
        partial.chmod(0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a text file, all or nothing."""
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _umask() -> int:
    """The process's umask, which only setting it tells."""
    current = os.umask(0o022)
    os.umask(current)
    return current
