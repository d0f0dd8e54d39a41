"""`python -m benchmarks.annealing` as a user tries it, small."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import annealing


def test_annealing_comes_nearer_with_more_temperatures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(annealing, "TEMPERATURES", (10, 80))
    monkeypatch.setattr(annealing, "NUM_PARTICLES", 10)
    shown = []
    monkeypatch.setattr(annealing, "cells", lambda row, cells=annealing.cells: shown.append(row) or cells(row))
    assert annealing.main(["--num-points", "8", "--num-epochs", "3"]) == 0
    assert [(row.likelihood, row.bound) for row in shown] == [
        (likelihood, bound)
        for likelihood in ("bernoulli", "gaussian")
        for bound in ("IWAE-10", "AIS, 10 temperatures", "AIS, 80 temperatures")
    ]
    assert all(len(row.difference) == 8 and row.mean_error > 0 for row in shown)
    # a Bernoulli decoder hardly uses its latents so early: any bound is tight
    assert max(np.abs(row.difference).max() for row in shown[:3]) < 0.3
    coarse, fine = shown[4:]
    assert np.abs(fine.difference).mean() < np.abs(coarse.difference).mean() / 3
    assert fine.mean_error < coarse.mean_error
    assert 1 <= coarse.effective_chains < fine.effective_chains <= 16
    assert fine.root_mean_square < 5 < coarse.root_mean_square  # few temperatures miss more than their errors say
    printed = capsys.readouterr().out
    assert "bound - log p(x), nats, at 8 certified digits" in printed
    assert "AIS, 80 temperatures" in printed
