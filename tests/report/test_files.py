"""Written files: strict, and all or nothing."""

import csv
import json
from pathlib import Path

import pytest

from ppl_vi.report import files


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.to_json([{"elbo": float("inf")}])
    assert json.loads(files.to_json([{"elbo": "inf", "x": 0.1}])) == [{"elbo": "inf", "x": 0.1}]


def test_csv_keeps_every_digit_and_nested_values() -> None:
    rows = list(
        csv.DictReader(files.to_csv([{"x": 0.1 + 0.2, "none": None, "all": [{"a": 1}]}, {"new": "a,b"}]).splitlines())
    )
    assert float(rows[0]["x"]) == 0.1 + 0.2
    assert (rows[0]["none"], json.loads(rows[0]["all"]), rows[1]["new"]) == ("", [{"a": 1}], "a,b")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_text(path, "old")

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.replace(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"
