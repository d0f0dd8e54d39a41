"""Reads the results that a page is made of, and makes the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppl_vi.page import comparison, decoder
from ppl_vi.page.explorer import explorer_section
from ppl_vi.page.parts import Page
from ppl_vi.report.page_data import FILE, FORMAT, VERSION
from ppl_vi.runtime.result_folder import RECORDS

TOY = "exponential_normal"  # the model of `benchmarks.toy_posterior`, which has an explorer
EXPECTED = "expected what 'ppl-vi compare', a benchmark, 'save' of a comparison or 'ppl-vi sweep' has written"

Record = dict[str, Any]


class NoResultsError(ValueError):
    """There is nothing that a page could show; the message is one line."""


def page_of(records: Sequence[Record], held: Mapping[str, Any]) -> Page:
    """The page of records and what is held beside them; see `page_at`.

    Raises:
        NoResultsError: they are no records of ppl_vi, or there are none.
    """
    if not records:
        raise NoResultsError("there are no records")
    kind = decoder if decoder.is_decoder(records) else comparison
    try:
        return kind.page_of(records, held, _explorer(records))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise NoResultsError(f"its records are not as ppl_vi writes them: {type(error).__name__}: {error}") from error


def _explorer(records: Sequence[Record]) -> str:
    """The explorer of the toy posterior where the records are of the toy; "" elsewhere."""
    return explorer_section() if all(record.get("model") == TOY for record in records) else ""


def page_at(path: Path) -> Page:
    """The page of a folder of results, or of one of its JSON files.

    Raises:
        NoResultsError: there are no results, or they can't be used.
    """
    file = (
        path if not path.is_dir() else next((path / name for name in (FILE, RECORDS) if (path / name).is_file()), None)
    )
    if file is None:
        raise NoResultsError(f"there is no {FILE} or {RECORDS} in '{path}': {EXPECTED}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise NoResultsError(f"can't read '{file}': {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise NoResultsError(f"'{file}' is no JSON: {EXPECTED}") from error
    try:
        return page_of(*_parts(found))
    except NoResultsError as error:
        raise NoResultsError(f"'{file}': {error}") from error


def _parts(found: Any) -> tuple[list[Record], dict[str, Any]]:
    """The records, and what is held beside them."""
    held = found if isinstance(found, dict) else {}
    if held and held.get("format") != FORMAT:
        raise NoResultsError(EXPECTED)
    if held and held.get("version") != VERSION:
        raise NoResultsError(f"it has format version {held.get('version')}; this ppl_vi reads {VERSION}")
    records = held.get("records") if held else found
    if not isinstance(records, list) or not all(isinstance(one, dict) and "guide" in one for one in records):
        raise NoResultsError(EXPECTED)
    return records, held
