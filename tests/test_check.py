"""`ppl-vi check` and `ppl_vi.testing`: the same judgement of guides whose distance is known in closed form."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from torch import distributions

import ppl_vi
from ppl_vi.__main__ import main
from ppl_vi.runtime.limits import LIMITS
from ppl_vi.testing import assert_close_to_posterior
from ppl_vi.truth import UncertifiedTruthError

MODULE = """
import torch, pyro, pyro.distributions as dist
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
x = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
data = (x, torch.tensor([0.5, 2.0, 1.0, 3.5, 3.0]))
def model(x, y):
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y)
def full(model):
    return AutoMultivariateNormal(model)
def guide(x, y):
    pyro.sample("a", dist.Normal(pyro.param("a_loc", torch.tensor(0.5)), 0.5))
    pyro.sample("b", dist.Normal(pyro.param("b_loc", torch.tensor(0.8)), 0.2))
"""
CHECK = ["check", "to_check:model", "--args", "to_check:data"]
FEW = ["--num-replicas", "1", "--num-draws", "100"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "to_check.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("ppl_vi.cli.workers.MAX_WORKERS", 1)
    with pyro.get_param_store().scope():
        yield tmp_path
    sys.modules.pop("to_check", None)


def posterior() -> distributions.MultivariateNormal:
    x, y = torch.arange(5.0).double(), torch.tensor([0.5, 2.0, 1.0, 3.5, 3.0]).double()
    design = torch.stack([torch.ones(5).double(), x], 1)
    precision = torch.eye(2).double() / 4 + design.mT @ design
    mean = torch.linalg.solve(precision, design.mT @ y)
    return distributions.MultivariateNormal(mean, precision_matrix=precision)


def best_mean_field() -> tuple[float, list[float]]:
    """The reverse KL of the best independent normals, and what their 90% intervals cover: both in closed form."""
    p = posterior()
    sd = p.precision_matrix.diagonal().rsqrt()
    best = distributions.MultivariateNormal(p.mean, torch.diag(sd**2))
    width = stats.norm.ppf(0.95) * (sd / p.variance.sqrt()).numpy()
    return float(distributions.kl_divergence(best, p)), (2 * stats.norm.cdf(width) - 1).tolist()


def test_the_exit_code_says_whether_the_limits_are_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Limits that lie on either side of closed forms: what AutoNormal fails, the family with the posterior passes."""
    kl, covered = best_mean_field()
    assert 0.2 < kl < 0.8
    assert max(covered) < 0.8
    limits = ["--max-reverse-kl", f"{0.9 * kl}", "--max-family-gap", f"{1.1 * kl}", "--min-coverage", "0.85"]
    code = main([*CHECK, "--guides", "AutoNormal", "full", *limits, "--junit", "check.xml", *FEW])
    lines = capsys.readouterr().out.splitlines()
    assert (code, len(lines)) == (1, 4)
    assert lines[0].startswith(f"AutoNormal: reverse KL is {kl:.3g}")
    assert [line.partition(":")[0] for line in lines[1:3]] == ["AutoNormal, a", "AutoNormal, b"]
    for line, expected in zip(lines[1:3], covered, strict=True):
        assert float(line.partition("interval is ")[2].split()[0]) == pytest.approx(expected, abs=0.01)
        assert line.endswith("at least 0.85 was asked")
    assert lines[3] == "to_check:model: 5 passed, 3 failed"
    (suite,) = ElementTree.parse(folder / "check.xml").getroot()
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) == ("8", "3", "0")
    assert [case[0].text for case in suite if len(case)] == lines[:3]
    assert main([*CHECK, "--guides", "full", *limits, *FEW]) == 0
    assert capsys.readouterr().out == "to_check:model: 4 passed\n"


def test_a_guide_is_measured_with_the_values_that_it_has(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Independent normals with means and scales as the module states them; their reverse KL is in closed form."""
    given = distributions.MultivariateNormal(
        torch.tensor([0.5, 0.8]).double(), torch.diag(torch.tensor([0.25, 0.04]).double())
    )
    kl = float(distributions.kl_divergence(given, posterior()))
    for guide in (["--guides", "guide", "--num-steps", "0"], ["--guides", "to_check:guide", "--num-steps", "0"]):
        assert main([*CHECK, *guide, "--max-reverse-kl", f"{1.001 * kl}", *FEW]) == 0
    assert main([*CHECK, *guide, "--max-reverse-kl", f"{0.999 * kl}", *FEW]) == 1
    assert f"reverse KL is {kl:.3g}" in capsys.readouterr().out


def test_the_helper_says_the_same_as_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import to_check

    kl, _ = best_mean_field()
    few: dict[str, Any] = {"num_replicas": 1, "num_draws": 100}
    result = assert_close_to_posterior(to_check.model, AutoNormal, to_check.data, max_reverse_kl=1.1 * kl, **few)
    with pytest.raises(AssertionError) as caught:
        assert_close_to_posterior(
            to_check.model, AutoNormal, to_check.data, max_reverse_kl=0.3, min_coverage=0.7, **few
        )
    main([*CHECK, "--max-reverse-kl", "0.3", "--min-coverage", "0.7", *FEW])
    assert str(caught.value).splitlines() == capsys.readouterr().out.splitlines()[:-1]
    fitted = ppl_vi.fitted(result["AutoNormal"].guide(replica=0))
    again = assert_close_to_posterior(to_check.model, fitted, args=to_check.data, max_reverse_kl=1.1 * kl, **few)
    (record,), (before,) = again.records(), result.records()
    assert record["status"] == "as_given"
    assert record["reverse_kl"] == pytest.approx(before["reverse_kl"], rel=1e-6)
    with pytest.raises(AssertionError, match="optimization gap is"):
        assert_close_to_posterior(to_check.model, fitted, to_check.data, max_optimization_gap=1e-14, **few)


def test_without_a_truth_nothing_is_kept_and_the_exit_code_is_3(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(target: Any, seed: int = 0) -> None:
        raise UncertifiedTruthError("no route reaches it")

    import to_check

    monkeypatch.setattr("ppl_vi.model_comparison.ground_truth", failing)
    assert main([*CHECK, "--max-reverse-kl", "0.3", "--junit", "check.xml"]) == 3
    line = "AutoNormal: uncertified: there is no truth to measure by: no route reaches it"
    assert capsys.readouterr().out.splitlines() == [line, "to_check:model: 1 uncertified"]
    (suite,) = ElementTree.parse(folder / "check.xml").getroot()
    assert (suite.attrib["errors"], suite[0][0].tag, suite[0][0].text) == ("1", "error", line)
    with pytest.raises(AssertionError, match="no route reaches it"):
        assert_close_to_posterior(to_check.model, "AutoNormal", to_check.data, max_reverse_kl=0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a limit at least, such as --max-reverse-kl 0.05"),
        (["--min-coverage", "85"], "--min-coverage must be a finite number of at least 0 and at most 1, got 85"),
        (["--max-khat", "nan"], "argument --max-khat: must be finite, got nan"),
        (["--max-khat", "1", "--guides", "AutoNormall"], "no attribute 'AutoNormall'; did you mean AutoNormal"),
        (["--max-khat", "1", "--junit", "nowhere/check.xml"], "--junit: there is no folder 'nowhere'"),
        (["--max-khat", "1", "--junit", ""], "--junit: expected a file, got ''"),
        (["--max-khat", "1", "--as-is"], "--as-is is about guides of your own"),
    ],
)
def test_a_slip_is_one_line(
    folder: Path, refused: Callable[[Callable[[list[str]], int], list[str]], str], arguments: list[str], message: str
) -> None:
    assert message in refused(main, [*CHECK, *arguments])


def test_every_limit_can_be_given_in_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    parameters = inspect.signature(assert_close_to_posterior).parameters
    assert [name for name in parameters if name.startswith(("max_", "min_")) and name != "max_memory"] == list(LIMITS)
    compared = inspect.signature(ppl_vi.compare).parameters
    shared = {
        name: one.default for name, one in parameters.items() if name in compared and name not in ("model", "args")
    }
    assert shared == {name: compared[name].default for name in shared}
    assert set(compared) - set(shared) == {"model", "guides", "args", "progress", "start", "approximations"}
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in LIMITS)
    assert math.isfinite(best_mean_field()[0])
