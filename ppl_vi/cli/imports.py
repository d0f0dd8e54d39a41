"""Imports what the user names as `module:attribute`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppl_vi.cli.parsing import UsageError
from ppl_vi.runtime import names


@contextmanager
def modules_from_here() -> Iterator[None]:
    """Finds modules in the current folder, too, while the context is open."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:  # which a module may have changed
            sys.path.remove(folder)


def imported(what: str, path: str) -> Any:
    """The object at `module:attribute`, in the folder in which the program was started, where its outputs go.

    Raises:
        UsageError: it can't be imported.
    """
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        hint = f"; did you mean {names.with_colon(path)}?" if names.with_colon(path) else ""
        raise UsageError(f"{what}: expected package.module:attribute, got '{path}'{hint}")
    folder, found = Path.cwd(), None
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a module may raise anything when it is imported
        known = [name for name in vars(found) if not name.startswith("__")] if found is not None else []
        hint = names.meant(attribute, known) if isinstance(error, AttributeError) else ""
        if isinstance(error, ModuleNotFoundError) and names.with_colon(path):
            hint = f"; did you mean {names.with_colon(path)}?"
        raise UsageError(f"{what}: '{path}' can't be imported: {type(error).__name__}: {error}{hint}") from error
    finally:
        os.chdir(folder)
    return found
