"""The comparison of systems: exact scores against closed forms, and what is said of what failed."""

import math

import numpy as np
import pytest
import torch

import ppl_vi
from benchmarks import ppls, ppls_page, ppls_systems
from benchmarks.ppls_exact import divergence_of, gaussian_of, moments_of
from benchmarks.ppls_fits import LADDER, Snapshot, ladder_to
from benchmarks.ppls_process import Outcome, density_in_own_process, fit_in_own_process
from benchmarks.ppls_records import Problem, record_of, settings_of
from models import ZOO, gamma_poisson, normal_normal
from ppl_vi.adapters import stan
from tests.strict_json import strict

SD_RATIO, SHIFT = 0.5, 0.3  # a Gaussian of half the posterior's sd, its mean moved by 0.3 sds


@pytest.fixture(scope="module")
def truth():
    return ppl_vi.ground_truth(ZOO["normal_normal"]())


def gaussian(truth, sd_ratio=SD_RATIO, shift=SHIFT, num=600):
    mean, sd = (float(value[0]) for value in normal_normal.posterior(truth.target.args[0]))
    noise = np.random.default_rng(0).standard_normal(num)
    mu = mean + shift * sd + sd_ratio * sd * noise
    log_q = -(noise**2) / 2 - math.log(sd_ratio * sd) - math.log(2 * math.pi) / 2
    return ppl_vi.Approximation({"mu": mu[None]}, log_q[None], "one", "by hand 1.0")


def test_the_reverse_kl_of_a_gaussian_is_that_of_the_closed_form(truth):
    found = divergence_of(truth, gaussian(truth))
    expected = (SD_RATIO**2 + SHIFT**2 - 1) / 2 - math.log(SD_RATIO)
    assert found.is_gaussian
    assert abs(found.reverse_kl - expected) < 5 * found.reverse_kl_std_error + 1e-6
    assert abs(found.reverse_kl - expected) < 1e-3
    assert abs(found.drawn_kl - expected) < 5 * found.drawn_kl_std_error
    moments = moments_of(truth, gaussian(truth))
    assert abs(moments.sd_ratio - SD_RATIO) < 5 * moments.sd_ratio_std_error
    assert abs(moments.mean_error - SHIFT) < 5 * moments.mean_error_std_error


def test_a_log_normal_is_a_gaussian_of_the_logarithm_and_a_gamma_is_none():
    truth = ppl_vi.ground_truth(gamma_poisson.target())
    one = torch.distributions.LogNormal(torch.tensor(-0.5, dtype=torch.float64), 0.1)
    torch.manual_seed(0)
    draws = one.sample((1, 2000))
    loc, scale = gaussian_of(truth, ppl_vi.Approximation({"rate": draws.numpy()}, one.log_prob(draws).numpy()))
    np.testing.assert_allclose([loc[0], scale[0, 0]], [-0.5, 0.1], atol=1e-8)
    other = torch.distributions.Gamma(torch.tensor(5.0, dtype=torch.float64), 8.0)
    draws = other.sample((1, 2000))
    assert gaussian_of(truth, ppl_vi.Approximation({"rate": draws.numpy()}, other.log_prob(draws).numpy())) is None


def problem(truth, theirs=lambda log_joint: log_joint):
    """The conjugate model, with another system's copy of it whose log density is a function of ours."""

    def log_joint(points):
        ours = truth.target.log_joint({name: torch.from_numpy(value)[None] for name, value in points.items()})
        return theirs(ours[0].numpy())

    return Problem(
        "normal_normal",
        truth,
        {"AutoNormal": 0.0},
        lambda copy: ppl_vi.same_density(truth, log_joint, num_points=20, vectorised=True),
    )


def fitted(truth):
    return Outcome(
        [
            Snapshot(100, 1.0, 2.0, gaussian(truth)),
            Snapshot(1000, 3.0, 2.0, gaussian(truth, 1.0, 0.0)),
            Snapshot(10_000, 9.0, 2.0, gaussian(truth, 1.0, 1e-3)),
        ]
    )


@pytest.fixture
def _all_installed(monkeypatch):
    monkeypatch.setattr(ppls_systems.importlib.util, "find_spec", lambda package: package)


@pytest.mark.usefixtures("_all_installed")
def test_a_record_says_from_when_on_the_tolerance_is_met_and_what_failed(truth):
    outcomes = {"default": fitted(truth), "common": Outcome((), "ValueError: no")}
    default, common = (
        record_of(problem(truth), "NumPyro AutoNormal", setting, lambda *names: outcomes[names[2]])
        for setting in settings_of("NumPyro AutoNormal")
    )
    assert (default["steps_to_best"], default["seconds_to_best"]) == (1000, 5.0)
    assert default["density_difference"] == 0
    assert (common["status"], common["reason"]) == ("failed", "ValueError: no")
    first, second, nearest = ppls_page.verdict([default, common])
    assert first == (
        "normal_normal, mean field, default: within 0.001 nats of the family's best: NumPyro AutoNormal (5 s)."
    )
    assert second.endswith("best: none. Without a fit: NumPyro AutoNormal (failed).")
    assert nearest.startswith("normal_normal: the lowest reverse KL is that of NumPyro AutoNormal (default, ")
    assert "failed: ValueError: no" in ppls_page.rows([default, common])[1]


@pytest.mark.usefixtures("_all_installed")
def test_a_copy_with_another_density_is_not_compared(truth):
    def unfitted(*_):
        raise AssertionError("what is not compared is not fitted")

    found = record_of(problem(truth, lambda value: value + 1e-6), "NumPyro AutoNormal", "common", unfitted)
    assert found["status"] == "failed"
    assert found["density_difference"] == pytest.approx(1e-6, rel=1e-3)
    assert "its copy of the model is not ours: the same density up to a constant" in found["reason"]

    def broken(value):
        raise RuntimeError("out of ideas")

    found = record_of(problem(truth, broken), "NumPyro AutoNormal", "common", unfitted)
    assert found["status"] == "failed"
    assert "raised RuntimeError: out of ideas" in found["reason"]


def test_a_system_that_is_not_installed_is_missing(truth, monkeypatch):
    monkeypatch.setattr(ppls_systems.importlib.util, "find_spec", lambda package: None)
    assert settings_of("PyMC ADVI") == ("default",)
    found = record_of(problem(truth), "PyMC ADVI", "default")
    assert (found["status"], found["reason"]) == ("missing", "not installed: pymc")
    assert ppls_page.heat_map([found]).axes
    monkeypatch.setattr(stan, "which", lambda name: None)
    stan.missing.cache_clear()
    found = record_of(problem(truth), "Stan ADVI", "default")
    stan.missing.cache_clear()
    assert found["status"] == "missing"
    assert "R is not installed" in found["reason"]


def test_a_run_that_was_cut_is_resumed(tmp_path, monkeypatch):
    asked = []

    def of_model(model, systems, done):
        todo = [key for key in ((model, name, "default") for name in systems) if key not in done]
        for key in todo:
            asked.append(key)
            if len(asked) == 2:
                raise ppls.cli.UsageError("cut")
            yield dict(zip(("model", "system", "setting"), key, strict=True)) | {
                "status": "failed", "reason": "tired", "family": "mean field",
            }  # fmt: skip

    monkeypatch.setattr(ppls, "of_model", of_model)
    line = ["--models", "normal_normal", "--systems", "Stan ADVI", "PyMC ADVI", "--out", str(tmp_path)]
    assert ppls.main(line) == 2
    assert ppls.main([*line, "--resume"]) == 0
    assert [system for _, system, _ in asked] == ["Stan ADVI", "PyMC ADVI", "PyMC ADVI"]
    assert [one["system"] for one in strict((tmp_path / "records.json").read_text())] == ["PyMC ADVI", "Stan ADVI"]
    assert "failed: tired" in (tmp_path / "table.md").read_text()
    (tmp_path / "records.json").write_text("[1]")
    assert ppls.main([*line, "--resume"]) == 2


@pytest.mark.slow
def test_a_fit_and_a_density_come_back_from_a_process_of_their_own(truth):
    found = fit_in_own_process("ppl_vi AutoNormal", "normal_normal", "default")
    assert not found.failure
    assert divergence_of(truth, found.snapshots[0].approximation).reverse_kl < 1e-3
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        density_in_own_process("nothing", "normal_normal", {"mu": np.zeros(2)})


def test_the_ladder_ends_with_the_number_of_steps():
    assert ladder_to(2000) == (100, 300, 1000, 2000)
    assert ladder_to(LADDER[-1]) == LADDER
