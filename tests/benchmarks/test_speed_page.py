"""The page's tables are those of the records beside it, and each stands at its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import speed_page

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


@pytest.mark.parametrize("name", speed_page.PARTS)
def test_the_page_shows_its_records(name: str) -> None:
    part, page = speed_page.PARTS[name], (DOCS / speed_page.PAGE).read_text(encoding="utf-8")
    records = json.loads((DOCS / "results" / part.records).read_text(encoding="utf-8"))
    assert speed_page.renewed(page, part, records) == page


def test_a_table_takes_its_place() -> None:
    page = "a\n<!-- x -->\nold\n<!-- end of x -->\nb <!-- y -->\n"
    assert speed_page.with_table(page, "x", "| 1 |\n") == "a\n<!-- x -->\n\n| 1 |\n\n<!-- end of x -->\nb <!-- y -->\n"
    with pytest.raises(ValueError, match="no place '<!-- y -->' to '<!-- end of y -->'"):
        speed_page.with_table(page, "y", "")


def test_a_row_of_steps() -> None:
    def record(engine: str, time: float | None) -> dict[str, Any]:
        spread = None if time is None else [time / 2, time * 2]
        more = {"us_per_step_range": spread, "compile_seconds": None if time is None else 1.25}
        return {"problem": "eight_schools", "guide": "AutoNormal", "replicas": 1000, "engine": engine} | {
            "us_per_step": time, **more
        }  # fmt: skip

    (row,) = speed_page.step_rows([record("compiled", 4.0), record("numpyro", 14.0), record("floor", None)])
    assert row == [
        "eight schools, AutoNormal", "1,000", "–", "–", "4.00", "2.00 to 8.00", "14.0", "3.50", "–", "1.25", "1.25",
    ]  # fmt: skip
    assert len(row) == len(speed_page.STEP_HEADINGS)


def test_the_program_measures_keeps_and_renews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = tmp_path / "docs"
    (docs / "results").mkdir(parents=True)
    shutil.copy(DOCS / speed_page.PAGE, docs)
    kept = (DOCS / "results" / "speed_compare.json").read_text(encoding="utf-8")
    asked = []

    def measure(arguments: list[str]) -> int:
        asked.append(arguments)
        folder = Path(arguments[-1])
        folder.mkdir(parents=True)
        (folder / "records.json").write_text(json.dumps(json.loads(kept)[:1]))
        return 0

    part = speed_page.PARTS["compare"]
    monkeypatch.setitem(speed_page.PARTS, "compare", replace(part, run=measure))
    out = tmp_path / "out"
    assert speed_page.main(["--only", "compare", "--quick", "--docs", str(docs), "--out", str(out)]) == 0
    assert asked == [["--quick", "--out", str(out / "compare")]]
    assert len(json.loads((docs / "results" / "speed_compare.json").read_text())) == 1
    assert (docs / speed_page.PAGE).read_text() != (DOCS / speed_page.PAGE).read_text(encoding="utf-8")
    (docs / "results" / "speed_compare.json").write_text(kept)
    assert speed_page.main(["--only", "compare", "--tables", "--docs", str(docs)]) == 0
    assert (docs / speed_page.PAGE).read_text() == (DOCS / speed_page.PAGE).read_text(encoding="utf-8")


def test_an_unknown_part_is_refused_in_a_line(
    refused: Callable[[Callable[[list[str]], int], list[str]], str],
) -> None:
    assert "unknown part 'nothing'; there are steps, " in refused(speed_page.main, ["--only", "nothing"])
