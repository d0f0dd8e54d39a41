"""Written files: strict, and of their kind."""

import csv
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

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


def test_a_figure_is_png_whatever_its_ending(tmp_path: Path) -> None:
    files.write_figure(tmp_path / "figure", Figure())
    assert (tmp_path / "figure").read_bytes().startswith(b"\x89PNG")
