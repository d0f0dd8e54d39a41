"""The page of draws from other systems says of each distance what was measured, and nothing of fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ppl_vi
from ppl_vi.measuring.measurement import Measurement
from ppl_vi.page.render import html_of
from ppl_vi.page.results import page_of
from ppl_vi.report.page_data import data_of, to_text
from tests.page.reading import Document
from tests.page.results import HOSTILE, measured_draws, toy
from tests.strict_json import strict


@pytest.fixture(scope="module")
def measured() -> Measurement:
    return measured_draws()


def document_of(data: dict[str, Any]) -> Document:
    held = strict(to_text(data))
    return Document(html_of(page_of(held["records"], held)))


def test_distances_are_those_measured_with_their_errors(measured: Measurement) -> None:
    document = document_of(data_of(measured.comparison))
    rows = {row["distance"]: row for row in document.table("s1-draws")}
    for name, called in (
        ("energy_distance", "energy distance"),
        ("c2st", "C2ST"),
        ("quantile_error", "quantile error (worst)"),
    ):
        value, rest = rows[called][HOSTILE].split(" ± ")
        assert float(value) == pytest.approx(float(measured.scores[name].value[0, 0]), rel=6e-3)  # three digits
        assert rows[called]["ideal"] == {"c2st": "0.5"}.get(name, "0")
        assert float(rest.split()[0]) == pytest.approx(float(measured.scores[name].std_error[0, 0]), rel=6e-2)
    assert "reverse KL" not in rows
    notes = " ".join(one.text for one in document.all("div", class_="notes"))
    assert "log q of the draws is not known" in notes


def test_a_page_of_draws_alone_has_no_word_of_fits(measured: Measurement) -> None:
    text = document_of(data_of(measured.comparison)).one("main").text
    assert "Draws of one other system against the exact posterior: how far they are from it." in text
    assert "Posterior and draws" in text
    for word in ("Gaps by cause", "SVI steps", "objective", "fitted"):
        assert word not in text


def test_draws_stand_beside_guides(measured: Measurement) -> None:
    settings: dict[str, Any] = {"num_steps": 20, "num_replicas": 2, "num_particles": 4, "num_draws": 200}
    found = ppl_vi.compare(
        toy, ["gamma"], torch.tensor(1.5), approximations={"Other": measured}, engine="batched", **settings
    )
    document = document_of(data_of(found))
    assert {row["guide"] for row in document.table("s1-table")} == {"gamma", "Other"}
    assert "Other" in document.table("s1-draws")[0]
    text = document.one("main").text
    assert "One guide and draws of one other system against the exact posterior" in text
    assert "Gaps by cause" in text
    bars = [one for one in document.plots().values() if one["layout"].get("barmode")]
    assert len(bars) == 1
