"""Draws against a posterior that is known in closed form: every metric at its right value, and what can't be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor

import ppl_vi
from ppl_vi import Approximation, Target
from ppl_vi.measuring.measurement import Measurement
from ppl_vi.metrics.table import METRICS
from ppl_vi.truth import Truth

Y = torch.tensor([0.6, -1.4], dtype=torch.float64)
CENTRE, SD = Y.numpy() / 2, math.sqrt(0.5)  # of the posterior: each number is normal, independent of the other
LOG_EVIDENCE = float(stats.norm(0, math.sqrt(2)).logpdf(Y.numpy()).sum())
SHIFT, SHRUNK = np.array([0.0, 1.0]), np.array([0.5, 1.0])  # in posterior sds: the wrong approximation


def pair(y: Tensor) -> None:
    """Two numbers, each seen once."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return ppl_vi.ground_truth(Target.of(pair, (Y,), name="pair"))


def log_q(draws: dict[str, np.ndarray]) -> np.ndarray:
    return stats.norm.logpdf(draws["z"], CENTRE + SHIFT * SD, SHRUNK * SD).sum(-1)


def drawn(num: int, seed: int = 0, shift: np.ndarray = SHIFT, width: np.ndarray = SHRUNK) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((4, num, 2))
    return CENTRE + SD * (shift + width * noise)


@pytest.fixture(scope="module")
def wrong(truth: Truth) -> Measurement:
    return ppl_vi.measure(truth, {"z": drawn(2500)}, log_q=log_q, name="wrong")


def mean_length(mean: np.ndarray, variance: np.ndarray) -> float:
    """E|N(mean, diag(variance))| of two numbers, by quadrature."""

    def at(a: float, b: float) -> float:
        x, y = mean + np.sqrt(variance) * np.array([a, b])
        return math.hypot(x, y) * math.exp(-(a * a + b * b) / 2) / (2 * math.pi)

    return float(integrate.dblquad(at, -7, 7, -7, 7, epsabs=1e-6, epsrel=1e-6)[0])


def kernel_mean(mean: np.ndarray, variance: np.ndarray, width: float) -> float:
    """E exp(-|d|^2 / (2 width^2)) of d ~ N(mean, diag(variance))."""
    wide = width**2 + variance
    return float(np.prod(width / np.sqrt(wide) * np.exp(-(mean**2) / (2 * wide))))


def expected() -> dict[str, float]:
    """Each metric of the wrong approximation in closed form or by SciPy's quadrature."""
    across, own, of_truth = 1 + SHRUNK**2, 2 * SHRUNK**2, np.array([2.0, 2.0])
    width, zero = math.sqrt(2) * math.sqrt(2 * math.log(2)), np.zeros(2)  # the median distance of two points
    half = special.ndtri(0.95) / 2
    reverse_kl = (1.25 + 1 - 2 + math.log(4)) / 2
    return {
        "mean_error": 1.0,
        "sd_ratio": 0.5,
        "wasserstein": 1.0,
        "coverage_90": float(special.ndtr(half) - special.ndtr(-half)),
        "quantile_error": 1.0,
        "relative_covariance_error": 0.75,
        "energy_distance": 2 * mean_length(SHIFT, across) - mean_length(zero, own) - mean_length(zero, of_truth),
        "mmd_squared": kernel_mean(zero, own, width)
        + kernel_mean(zero, of_truth, width)
        - 2 * kernel_mean(SHIFT, across, width),
        "reverse_kl": reverse_kl,
        "elbo": LOG_EVIDENCE - reverse_kl,
        "leaked_mass": 0.0,
    }


@pytest.mark.parametrize("name", list(expected()))
def test_each_metric_catches_the_wrong_approximation_at_its_right_value(wrong: Measurement, name: str) -> None:
    """One sd halved, the other number shifted by an sd: within four standard errors, which are small.

    The worst of five quantiles that are all wrong by an sd is larger than that by what noise makes of the worst one.
    """
    found = wrong.scores[name]
    value, error = float(found.value[0, 0]), float(found.std_error[0, 0] + found.error[0, 0])
    assert error < 0.05
    noise = wrong.noise[name] if name == "quantile_error" else 0.0
    assert abs(value - expected()[name]) < 4 * error + noise + 1e-9


def test_a_classifier_tells_the_two_apart_nearly_as_well_as_can_be(wrong: Measurement) -> None:
    """The best accuracy is (1 + TV) / 2, and no classifier has a better one."""

    def least(a: float, b: float) -> float:
        at = np.array([a, b])
        return float(min(stats.norm.pdf(at).prod(), stats.norm.pdf(at, SHIFT, SHRUNK).prod()))

    best = 1 - integrate.dblquad(least, -8, 8, -8, 8, epsabs=1e-4, epsrel=1e-4)[0] / 2
    found = wrong.scores["c2st"]
    value, error = float(found.value[0, 0]), float(found.std_error[0, 0])
    assert best - 0.02 - 4 * error < value < best + 4 * error


def test_exact_draws_are_told_from_the_posterior_by_nothing(truth: Truth) -> None:
    exact = {"z": drawn(1500, 1, np.zeros(2), np.ones(2))}
    found = ppl_vi.measure(truth, exact, log_q=lambda d: stats.norm.logpdf(d["z"], CENTRE, SD).sum(-1))
    for name, right in {"energy_distance": 0.0, "mmd_squared": 0.0, "mean_error": 0.0, "sd_ratio": 1.0}.items():
        score = found.scores[name]
        assert abs(float(score.value[0, 0]) - right) < 4.5 * float(score.std_error[0, 0]), name
    assert float(found.scores["reverse_kl"].value[0, 0]) == pytest.approx(0, abs=1e-7)
    assert float(found.scores["importance_log_evidence"].value[0, 0]) == pytest.approx(LOG_EVIDENCE, abs=1e-7)
    assert abs(float(found.scores["c2st"].value[0, 0]) - 0.5) < 4.5 * float(found.scores["c2st"].std_error[0, 0])


# q is `width` times as wide as the posterior in both numbers, and the tail of the weights is GPD-like with this shape:
# with |z|^2 / (2 width^2) exponential, w is c exp(E (1 - width^2)): an exact Pareto tail of the shape 1 - width^2 where
# q is narrower; where it is wider, a bounded density that is flat at its end, with the shape -1.
IMPORTANCE = {"narrower": (0.9, 1 - 0.9**2), "wider": (1.3, -1.0)}


@pytest.mark.parametrize("name", list(IMPORTANCE))
def test_importance_weights_have_their_right_values(name: str, truth: Truth) -> None:
    """(E w)^2 / E w^2 = (2 s^2 - 1) / s^4, and k-hat is the tail's shape, with the error (1 + k) / sqrt(300) and 0.2.

    300 = 3 sqrt(10,000) draws are in the tail. The variance of a shape below -1/2 has no such formula, hence the 0.2.
    The reverse KL is 2 (s^2 / 2 - 1 / 2 - log s).
    """
    s, shape = IMPORTANCE[name]
    draws = {"z": drawn(2500, 2, np.zeros(2), np.full(2, s))}
    found = ppl_vi.measure(truth, draws, log_q=lambda d: stats.norm.logpdf(d["z"], CENTRE, s * SD).sum(-1)).scores
    kl = s * s - 1 - 2 * math.log(s)
    right = {
        "importance_log_evidence": LOG_EVIDENCE,
        "ess": 10_000 * (2 * s * s - 1) / s**4,
        "reverse_kl": kl,
        "elbo": LOG_EVIDENCE - kl,
        "sd_ratio": s,
        "relative_covariance_error": abs(s * s - 1),
    }
    for score, value in right.items():
        one = found[score]
        error = 4 * float(one.std_error[0, 0]) + float(one.error[0, 0])
        assert abs(float(one.value[0, 0]) - value) < error < 0.15 * (10_000 if score == "ess" else 1), score
    slack = 0.2 if name == "wider" else 0.0
    assert abs(float(found["khat"].value[0, 0]) - shape) < 4 * (1 + shape) / math.sqrt(300) + slack


def test_a_fit_of_ours_is_measured_as_score_does(truth: Truth) -> None:
    """Each figure of each number within 4.5 standard errors of draws and the errors that are stated."""
    fit = ppl_vi.fit(truth.target, "AutoNormal", num_replicas=1, seed=0)
    ours, found = ppl_vi.score(fit, truth), ppl_vi.measure(truth, fit)
    assert ours.marginals is not None
    assert found.marginals is not None
    pairs = [(name, ours.scores[name], found.scores[name]) for name in ("elbo", "reverse_kl")]
    for name in ("mean_error", "sd_ratio", "wasserstein", "coverage_90", "quantile_error_5"):
        both = zip(ours.marginals.scores[name], found.marginals.scores[name], strict=True)
        pairs += [(name, one, other) for one, other in both]
    for name, one, other in pairs:
        spread = math.hypot(float(one.std_error[0, 0]), float(other.std_error[0, 0]))
        slack = 4.5 * spread + float(one.error[0, 0] + other.error[0, 0]) + 1e-9
        assert abs(float(one.value[0, 0]) - float(other.value[0, 0])) < slack, name


def test_errors_count_the_autocorrelation_of_chains(truth: Truth) -> None:
    """AR(1) draws of the posterior with correlation 0.9 are worth a nineteenth: errors are some 4.4 times as large."""
    noise = np.random.default_rng(3).standard_normal((4, 3000, 2))
    chain = np.empty_like(noise)
    chain[:, 0] = noise[:, 0]
    for t in range(1, 3000):
        chain[:, t] = 0.9 * chain[:, t - 1] + math.sqrt(1 - 0.81) * noise[:, t]
    slow = ppl_vi.measure(truth, {"z": CENTRE + SD * chain}).scores["mean_error"]
    fast = ppl_vi.measure(truth, {"z": CENTRE + SD * noise}).scores["mean_error"]
    assert 3 < float(slow.std_error[0, 0] / fast.std_error[0, 0]) < 6
    assert abs(float(slow.value[0, 0])) < 4.5 * float(slow.std_error[0, 0])


def test_without_a_density_what_needs_it_is_null_with_the_reason(truth: Truth) -> None:
    found = ppl_vi.measure(truth, {"z": drawn(500)})
    record = found.record()
    for name in ("reverse_kl", "elbo", "khat", "importance_log_evidence", "family_gap", "optimization_gap"):
        assert record[name] is None
        assert record["reasons"][name]
    assert "log q" in record["reasons"]["elbo"]
    assert set(METRICS) <= set(record)


def test_the_row_stands_beside_fitted_guides(truth: Truth) -> None:
    table = ppl_vi.compare(
        pair, ["AutoNormal"], args=(Y,), num_replicas=1, num_steps=200, approximations={"halved": {"z": drawn(400)}}
    )
    records = table.records()
    assert [record["guide"] for record in records] == ["AutoNormal", "halved"]
    fitted, of_draws = ({key for key in record if not key.endswith("_error")} for record in records)
    assert fitted == of_draws  # a value has an error where there is one
    assert records[1]["sd_ratio"] == pytest.approx(0.5, abs=0.05)
    assert "halved" in str(table)


def test_noise_stands_beside_the_scores_wherever_they_are_read(wrong: Measurement, tmp_path: Path) -> None:
    noise = dict(wrong.noise)
    assert set(noise) == {"mean_error", "sd_ratio", "coverage_90", "quantile_error"}
    wrong.comparison.save(tmp_path / "saved")
    again = ppl_vi.load(tmp_path / "saved", Target.of(pair, (Y,), name="pair"))
    for result in (wrong.comparison, again):
        assert json.loads(json.dumps(result.records()[0]))["noise"] == pytest.approx(noise)
        row = result.to_dataframe().loc["wrong"]
        assert {name: row[f"{name}_noise"] for name in noise} == pytest.approx(noise)
        attrs = result.to_datatree()["wrong"].attrs
        assert {name: attrs[f"{name}_noise"] for name in noise} == pytest.approx(noise)
        assert attrs["mean_error"] == pytest.approx(row["mean_error"])


# ---- what is read


def as_npz(folder: Path, draws: np.ndarray) -> Any:
    np.savez(folder / "draws.npz", z=draws)
    return folder / "draws.npz"


def as_stan(folder: Path, draws: np.ndarray) -> Any:
    paths = []
    for chain, some in enumerate(draws):
        path = folder / f"chain_{chain}.csv"
        rows = "\n".join(f"-3.1,{a:.17g},{b:.17g}" for a, b in some)
        path.write_text(f"# model = pair\nlp__,z.1,z.2\n# Adaptation terminated\n{rows}\n# Elapsed Time: 0.1\n")
        paths.append(path)
    return paths


def as_frame(folder: Path, draws: np.ndarray) -> Any:
    flat = draws.reshape(-1, 2)
    chain = np.repeat(np.arange(len(draws)), draws.shape[1])
    return pd.DataFrame({"chain": chain, "z[0]": flat[:, 0], "z[1]": flat[:, 1]})


def as_tree(folder: Path, draws: np.ndarray) -> Any:
    from arviz_base import from_dict  # importing it takes a second

    return from_dict({"posterior": {"z": draws}})


def as_approximation(folder: Path, draws: np.ndarray) -> Any:
    return Approximation({"z": draws}, name="mine", system="mine 1.0")


@pytest.mark.parametrize("form", [as_npz, as_stan, as_frame, as_tree, as_approximation])
def test_every_form_of_draws_gives_the_same_numbers(form: Any, truth: Truth, tmp_path: Path) -> None:
    draws = drawn(300)
    plain, found = ppl_vi.measure(truth, {"z": draws}), ppl_vi.measure(truth, form(tmp_path, draws))
    for name in ("mean_error", "sd_ratio", "coverage_90", "energy_distance"):
        assert float(found.scores[name].value[0, 0]) == pytest.approx(float(plain.scores[name].value[0, 0]), rel=1e-9)


def test_another_parametrisation_with_its_density(truth: Truth) -> None:
    """Draws of w = z / 2 with their own log q: the Jacobian is accounted for."""
    draws = {"w": drawn(2500) / 2}
    found = ppl_vi.measure(
        truth,
        draws,
        log_q=lambda d: log_q({"z": 2 * d["w"]}) + 2 * math.log(2),
        transforms={"w": ("z", lambda w: 2 * w)},
    )
    score = found.scores["reverse_kl"]
    assert abs(float(score.value[0, 0]) - expected()["reverse_kl"]) < 4 * float(score.std_error[0, 0])


MISTAKES = {
    "another name": ({"theta": drawn(50)}, "no 'z'"),
    "another shape": ({"z": drawn(50)[..., :1]}, "shape"),
    "not finite": ({"z": np.where(drawn(50) > 5, np.nan, np.nan)}, "finite"),
    "no array": ({"z": "draws"}, "z"),
    "one draw": ({"z": drawn(1)[:1]}, "1 draws.* at least 4"),
    "three draws": ({"z": drawn(3)[:1]}, "3 draws.* at least 4"),
    "a mask": ({"z": np.ma.masked_greater(drawn(50), 0.5)}, "masked"),
    "complex": ({"z": drawn(50) + 1j}, "ndarray of complex128"),
    "a column of texts": (pd.DataFrame({"z": ["a"] * 9}), "column 'z' must hold numbers; it holds"),
    "booleans": ({"z": drawn(50) > 0}, "ndarray of bool"),
    "constant": ({"z": np.ones((2, 50, 2))}, "do not vary"),
}
WRONG_DENSITIES = {
    "another length": (np.zeros((4, 49)), r"\(4, 50\)"),
    "minus infinity": (np.where(np.arange(50) == 3, -np.inf, np.zeros((4, 50))), "finite"),
    "a function of another shape": (lambda draws: np.zeros(3), r"\(200,\)"),
    "a function of one draw": (lambda draws: float(draws["z"]), r"all draws at once, {'z': \(200, 2\)}.* TypeError"),
    "a function of other names": (lambda draws: draws["theta"], "KeyError: 'theta'"),
}


@pytest.mark.parametrize("name", list(WRONG_DENSITIES))
def test_a_density_that_does_not_fit_is_one_clear_line(name: str, truth: Truth) -> None:
    density, part = WRONG_DENSITIES[name]
    with pytest.raises(ValueError, match=part) as raised:
        ppl_vi.measure(truth, {"z": drawn(50)}, log_q=density)
    assert "\n" not in str(raised.value)


def test_four_draws_are_measured_and_said_to_be_few(truth: Truth) -> None:
    found = ppl_vi.measure(truth, {"z": drawn(1)})
    assert all("too few" in remark for remark in found.remarks)
    assert float(found.scores["c2st"].std_error[0, 0]) > 0.1
    assert np.isnan(found.scores["elbo"].value).all()


@pytest.mark.parametrize("name", list(MISTAKES))
def test_what_does_not_fit_is_one_clear_line(name: str, truth: Truth) -> None:
    draws, part = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=part) as raised:
        ppl_vi.measure(truth, draws)
    assert "\n" not in str(raised.value)
