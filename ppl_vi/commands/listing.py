"""The command `ppl-vi list`: guides, models, objectives and metrics by name, each with what it is."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ppl_vi import cli
from ppl_vi.runtime import names

TEXT = "guides, models, objectives or metrics, each with what it is"
EXAMPLES = """examples:
  ppl-vi list guides
  ppl-vi list metrics --json"""
Found = list[dict[str, Any]]


def add(commands: Any) -> None:
    """Adds the command to those of a parser."""
    parser = cli.add_command(commands, "list", TEXT, EXAMPLES)
    parser.add_argument("what", choices=list(LISTS), help="what is listed")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(program=list_program)


def list_program(arguments: argparse.Namespace) -> int:
    """Prints a list; the exit code."""
    with cli.modules_from_here(), cli.loading():
        found = LISTS[arguments.what]()
    if arguments.json:
        text = json.dumps(found, indent=1, ensure_ascii=False)
    else:
        width = max((len(one["name"]) for one in found), default=0)
        text = "\n".join(f"{one['name']:{width}}  {_described(one)}" for one in found)
    sys.stdout.write(text + "\n")
    return 0


def _described(one: dict[str, Any]) -> str:
    refused = f"refused: {one['refused']}" if one.get("refused") else ""
    return str(refused or one["description"])


def _guides() -> Found:
    """The families, then Pyro's autoguides that are refused, with the reason."""
    from ppl_vi.guides import FAMILIES, summary

    found: Found = [{"name": name, "description": summary(name), "refused": None} for name in FAMILIES]
    return found + [{"name": name, "description": None, "refused": why} for name, why in names.REFUSED.items()]


def _models() -> Found:
    """The zoo's models, which come with a checkout of the project and not with the installed package."""
    spec = find_spec("models")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if not any((folder / "exponential_normal.py").is_file() for folder in folders):
        raise cli.UsageError("the models are not installed: run this from the root of a checkout of ppl_vi")
    found: Found = []
    for name, make in import_module("models").ZOO.items():
        module = getattr(make, "func", make).__module__
        text = (import_module(module).__doc__ or "").partition("\n")[0]
        found.append({"name": name, "description": text, "target": f"{module}:{getattr(make, 'func', make).__name__}"})
    return found


def _objectives() -> Found:
    return [{"name": name, "description": text} for name, text in names.OBJECTIVES.items()]


def _metrics() -> Found:
    from ppl_vi.metrics.table import METRICS, described

    return [{"name": name, "description": described(name)} for name in METRICS]


LISTS: dict[str, Callable[[], Found]] = {
    "guides": _guides,
    "models": _models,
    "objectives": _objectives,
    "metrics": _metrics,
}
