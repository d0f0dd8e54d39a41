"""Plans in TOML files, with the line of each entry for messages."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppl_vi.sweeps.options import Place, PlanError
from ppl_vi.sweeps.plan import Plan, plan_of


@dataclass(frozen=True)
class PlanFile:
    """A plan, and where its file says that the results go; None where it does not."""

    plan: Plan
    file: Path | None


def plan_from_file(path: Path, instead: Mapping[str, Any] | None = None) -> PlanFile:
    """The plan in a TOML file.

    Args:
        path: of the file.
        instead: entries that stand in place of the file's, from the command line.

    Raises:
        PlanError: the file can't be read, or entries are wrong; a line for each, with its place.
    """
    try:
        text = path.read_text(encoding="utf-8")
        entries = tomllib.loads(text)
    except OSError as error:
        raise PlanError([f"can't read '{path}': {error.strerror or error}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError([f"'{path}' is no TOML: {' '.join(str(error).split())}"]) from error
    file = entries.pop("file", None)
    if file is not None and not (isinstance(file, str) and file):
        raise PlanError([f"{path}:{line_of(text, Place('file'))}: file: expected the name of a file, got {file!r}"])
    given = dict(instead or {})

    def where(place: Place) -> str:
        if place.name in given:
            return f"--{place}".replace("_", "-")
        return f"{path}:{line_of(text, place, entries.get(place.name))}: {place}"

    return PlanFile(plan_of(entries | given, where), None if file is None else path.parent / file)


def line_of(text: str, place: Place, value: Any = None) -> int:
    """The line, from 1 on, at which an entry of a TOML file stands; 1 where it is left out.

    An item of a list is looked for after the entry's name, by its text.
    """
    lines = text.splitlines()
    name = re.escape(place.name)
    tables = [i for i, line in enumerate(lines) if re.match(rf"\s*\[+\s*{name}\s*\]+", line)]
    if tables:
        return tables[min(place.index or 0, len(tables) - 1)] + 1
    keys = [i for i, line in enumerate(lines) if re.match(rf"\s*[\"']?{name}[\"']?\s*=", line)]
    if not keys:
        return 1
    if place.index is None or not isinstance(value, list) or place.index >= len(value):
        return keys[0] + 1
    return _line_of_item(lines, keys[0], value, place.index) + 1


def _line_of_item(lines: list[str], first: int, items: list[Any], index: int) -> int:
    """The line of an item: that after which all items before it, and then it, have been seen."""
    line, column = first, lines[first].index("=") + 1
    for item in items[: index + 1]:
        spelled = _spelled(item)
        at = line
        while at < len(lines) and (found := lines[at].find(spelled, column if at == line else 0)) < 0:
            at += 1
        if at < len(lines):
            line, column = at, found + len(spelled)
    return line


def _spelled(item: Any) -> str:
    if isinstance(item, dict):
        return next((value for value in item.values() if isinstance(value, str)), "{")
    return item if isinstance(item, str) else str(item).lower() if isinstance(item, bool) else str(item)
