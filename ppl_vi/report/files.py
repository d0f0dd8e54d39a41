"""Writes records as strict JSON and as CSV, and figures as PNG."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_vi.runtime.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_json(records: Sequence[dict[str, Any]]) -> str:
    """Records as strict JSON, which has no NaN and no Infinity.

    Raises:
        ValueError: a value is nan or infinite; records have null and the strings "inf" and "-inf" instead.
    """
    return json.dumps(list(records), allow_nan=False, indent=1, ensure_ascii=False) + "\n"


def to_csv(records: Sequence[dict[str, Any]]) -> str:
    """Records as CSV: one line for each, nested values as JSON, and missing values empty."""
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(record.get(name)) for name in names] for record in records)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(value, allow_nan=False) if isinstance(value, dict | list) else value


def to_png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG; a file of that name is replaced at once, and never by a part of the new one."""
    replace_file(path, lambda file: figure.savefig(file, format="png"))
