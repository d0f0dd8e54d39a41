"""The verdict's words on posteriors where the right advice is known, and each clause on records made by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vi
from models import correlated_gaussian, eight_schools
from ppl_vi.comparison.structure import NonCentring, Structure, structure_of
from ppl_vi.report.standing import others_of, status_of
from ppl_vi.report.verdict import Verdict, verdict_of
from tests.report.test_table import record

TINY = {"num_steps": 300, "num_replicas": 2, "num_draws": 500}
REAL = torch.float64


def toy():
    z = pyro.sample("z", dist.Exponential(torch.tensor(1.0, dtype=REAL)))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.5, dtype=REAL))


def words(verdict: Verdict) -> str:
    return " ".join(str(verdict).split())


# ---- real comparisons


def test_the_toy_takes_the_family_that_holds_its_posterior() -> None:
    """Its posterior is a normal truncated to the positive numbers."""
    verdict = ppl_vi.compare(toy, ["lognormal", "normal", "truncated_normal"], **TINY).verdict()
    assert (verdict.best, verdict.mend, verdict.tied) == ("truncated_normal", "nothing", ())
    assert words(verdict).startswith("Take truncated_normal: ")
    assert "lognormal's 90% interval of z covers 79%: the family can't do better (family gap 0.160 of" in str(verdict)
    assert [(one.guide, one.latent, one.cause) for one in verdict.narrow] == [("lognormal", "z", "family")]
    assert "Don't take normal: it puts mass where the model has none, at z. Write z in log form, or take a" in str(
        verdict
    )
    assert verdict.reverse_kl is not None
    assert 0 < verdict.reverse_kl < 0.01
    assert verdict.seconds is not None


def test_a_correlated_posterior_takes_a_full_covariance() -> None:
    result = ppl_vi.compare(correlated_gaussian.target(), ["AutoNormal", "AutoMultivariateNormal"], **TINY)
    both = result.verdict()
    assert both.best == "AutoMultivariateNormal"
    assert words(both).startswith("Take AutoMultivariateNormal: ")
    assert both.narrow[0].guide == "AutoNormal"
    alone = replace(result, entries=result.entries[:1])
    verdict = alone.verdict()
    assert verdict.mend == "full covariance"
    assert "Take a guide with full covariance, such as AutoMultivariateNormal" in words(verdict)
    assert words(verdict).startswith("AutoNormal is 3.91 nats from the posterior after ")
    assert ". Its 90% interval of z[" in words(verdict)
    elsewhere = replace(alone, entries=tuple(replace(entry, card=None) for entry in alone.entries))
    assert elsewhere.verdict().mend == "full covariance"  # as where another process has the fits


@pytest.mark.parametrize(
    "guides", [["AutoNormal"], pytest.param(["AutoNormal", "AutoMultivariateNormal"], marks=pytest.mark.slow)]
)
def test_centred_eight_schools_are_to_be_written_non_centred(guides: list[str]) -> None:
    verdict = ppl_vi.compare(eight_schools.target(), guides, **TINY).verdict()
    assert (verdict.mend, verdict.site) == ("non-centred form", "theta")
    assert "Write theta non-centred (its spread follows tau)" in words(verdict)
    assert verdict.narrow[0].latent == "tau"
    assert verdict.mend_nats is not None
    assert verdict.mend_nats > 3


def waves(t: torch.Tensor, y: torch.Tensor) -> None:
    """A sinusoid of unknown period: one high mode and several low ones."""
    period = pyro.sample("period", dist.LogNormal(1.5, 0.5))
    with pyro.plate("t", len(t)):
        pyro.sample("y", dist.Normal(torch.sin(2 * math.pi * t / period), 0.5), obs=y)


def test_a_posterior_of_several_modes_needs_another_start() -> None:
    t = torch.linspace(0.0, 9.6, 25, dtype=REAL)
    y = torch.sin(2 * math.pi * t / 3.1) + 0.3 * torch.cos(17 * t)
    result = ppl_vi.compare(waves, ["AutoNormal"], (t, y), num_steps=300, num_replicas=4, num_draws=500)
    verdict = result.verdict()
    assert verdict.mend == "another start"
    assert "AutoNormal needs another start: " in words(verdict)
    assert "Start several times and keep the highest ELBO; more steps won't help." in words(verdict)
    gaps = [replica["start_gap"] for replica in result.records()[0]["replicas"]]
    assert verdict.mend_nats == max(gaps)
    assert "far from best" in result.table()


def independent(y: torch.Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(1.0, 2.0))
    pyro.sample("y", dist.Normal(torch.stack([a, b]), 0.5).to_event(1), obs=y)


def test_a_good_mean_field_has_nothing_to_mend() -> None:
    verdict = ppl_vi.compare(independent, ["AutoNormal"], (torch.tensor([0.3, 2.0]),), **TINY).verdict()
    assert (verdict.best, verdict.mend, verdict.narrow) == ("AutoNormal", "nothing", ())
    assert words(verdict).startswith("AutoNormal is ")
    assert words(verdict).endswith("Nothing to mend.")


def jump(y: torch.Tensor) -> None:
    """A posterior that ends in a jump, which no rule of quadrature here can certify."""
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Pareto(scale, 3.0), obs=y)


def test_nothing_is_to_be_trusted_where_the_truth_is_uncertified() -> None:
    result = ppl_vi.compare(jump, ["AutoNormal"], (torch.tensor([1.5, 0.9]),), **TINY)
    verdict = result.verdict()
    assert words(verdict).startswith("Nothing here can be trusted, because the truth is uncertified: ")
    assert result.records()[0]["reason"] == ""  # although its ELBO is not finite
    assert (verdict.best, verdict.reverse_kl, verdict.narrow, verdict.mend) == (None, None, (), "")
    assert verdict.reason
    assert result.best is None


def test_it_is_silent_where_no_guide_could_be_measured_and_where_errors_are_too_large() -> None:
    refused = ppl_vi.compare(toy, ["AutoDelta"], **TINY)
    assert str(refused.verdict()) == ""
    assert refused.verdict().reason == "no guide has a finite reverse KL"
    assert refused.table().splitlines()[3].lstrip().startswith("guide")  # nothing stands between title and table
    vague = verdict_of([row("a", 0.3, reverse_kl_std_error=0.4), row("b", 0.9)])
    assert str(vague) == ""
    assert vague.reason == "the reverse KL of a is known to ± 0.8 nats only"


# ---- clauses


def row(guide: str, reverse_kl: float | None, **more: Any) -> dict[str, Any]:
    """A record of two replicas whose reverse KL is all family gap."""
    gaps = {"family_gap": reverse_kl, "optimization_gap": 0.0, "start_gap": 0.0}
    gaps |= {name: more[name] for name in gaps if name in more}
    total = sum(value for value in (*gaps.values(), more.get("objective_gap")) if value is not None)
    replica = {"status": "converged", "stop_reason": "", "reverse_kl": total, **gaps}
    common = {"reverse_kl_error": 1e-9, "seconds": 1.0, "num_steps": 100, "marginals": [], "coverage_90": 0.9}
    return record(
        guide, total if reverse_kl is not None else None, **common | gaps | {"replicas": [replica] * 2} | more
    )


def marginals(**covered: float) -> list[dict[str, Any]]:
    return [{"name": name, "coverage_90": value, "coverage_90_error": 1e-3} for name, value in covered.items()]


def test_guides_that_differ_by_less_than_their_errors_are_not_ranked() -> None:
    rows = [row("slow", 0.5, reverse_kl_std_error=0.01, seconds=9.0), row("quick", 0.51, reverse_kl_std_error=0.01)]
    verdict = verdict_of([*rows, row("far", 2.0)])
    assert str(verdict).startswith("Take quick or slow, which are equally near: 0.510 nats")
    assert (verdict.best, verdict.tied) == ("quick", ("slow",))
    same = verdict_of([row("slow", 0.5, seconds=9.0), row("quick", 0.509)])
    assert (same.best, same.tied) == ("quick", ("slow",))  # by 0.009 nats, which is 2% of them
    assert verdict_of([row("a", 0.004), row("b", 0.005)]).tied == ()  # a quarter
    assert verdict_of([row("a", 4.0), row("b", 4.02)]).tied == ()  # more than 0.01 nats
    apart = verdict_of([*(one | {"reverse_kl_std_error": 0.001} for one in rows), row("far", 2.0)])
    assert (apart.best, apart.tied) == ("slow", ())


def test_guides_whose_replicas_overlap_are_not_ranked() -> None:
    spread = [{"status": "converged", "stop_reason": "", "reverse_kl": value} for value in (0.4, 0.6)]
    rows = [row("a", 0.5, replicas=spread), row("b", 0.55, replicas=spread)]
    assert verdict_of(rows).tied == ("b",)
    assert verdict_of([rows[0], row("b", 0.55)]).tied == ()


def test_the_cost_is_told_against_the_nearest_of_those_that_took_less() -> None:
    rows = [
        row("best", 0.1, seconds=5.0),
        row("near", 0.5),
        row("nearer", 0.3, seconds=2.0),
        row("as slow", 0.2, seconds=4.9),
    ]
    assert "That is 0.200 nats nearer than nearer for 3.0 s more, 0.067 nats a second." in str(verdict_of(rows))
    alike = verdict_of([row("best", 0.1, seconds=5.0), row("cheap", 0.105)])
    assert "cheap took 1.0 s and is 0.005 nats farther." in str(alike)
    assert " more, " not in str(verdict_of([row("best", 0.1, seconds=0.3), row("cheap", 0.5, seconds=0.2)]))


def test_the_time_of_a_guide_that_was_fitted_elsewhere_is_not_known() -> None:
    given = row("given", 0.5, status="as_given", seconds=0.01, num_steps=0)
    given["replicas"] = [{"status": "as_given", "stop_reason": "", "reverse_kl": 0.5}]
    assert " nats nearer than " not in str(verdict_of([row("best", 0.1, seconds=9.0), given]))
    alone = verdict_of([given])
    assert str(alone).startswith("given is 0.500 nats from the posterior. ")
    assert alone.seconds is None
    assert status_of(given) == "as given"


def test_narrow_intervals_name_guide_latent_and_cause_and_long_lists_are_cut() -> None:
    rows = [
        row("steps", 0.01, optimization_gap=0.4, marginals=marginals(a=0.89, b=0.7)),
        row("family", 0.6, marginals=marginals(a=0.5, b=0.7)),
        row("twin", 0.6001, marginals=marginals(a=0.5, b=0.7)),
        *(row(f"far{i}", 1.0 + i, marginals=marginals(a=0.4 - i / 10)) for i in range(5)),
        row("wide", 9.0, marginals=marginals(a=0.99)),
    ]
    verdict = verdict_of(rows)
    text = str(verdict)
    assert "Its 90% interval of b covers 70%. " in text  # the mend says why
    assert "More steps: after 100 of them the optimiser has left 0.400 nats." in text
    assert "With family and twin the 90% interval of a covers 50%: the family can't do better" in text
    assert "Too narrow as well: far0, far1, far2 and 2 more." in text
    assert [one.guide for one in verdict.narrow] == ["steps", "family", "twin", *(f"far{i}" for i in range(5))]
    assert (verdict.narrow[0].latent, verdict.narrow[0].coverage, verdict.narrow[0].cause) == ("b", 0.7, "optimization")
    within = row("a", 0.5, marginals=[{"name": "z", "coverage_90": 0.84, "coverage_90_error": 0.02}])
    assert verdict_of([within]).narrow == ()  # the error allows for 0.86


@pytest.mark.parametrize(
    ("best", "structure", "kind", "text"),
    [
        (row("a", 0.01, optimization_gap=0.5), Structure(), "more steps", "after 100 of them the optimiser has"),
        (row("a", 0.01, optimization_gap=0.5, num_steps=0), Structure(), "more steps", "A fit of a by SVI would win"),
        (row("a", 0.01, optimization_gap=0.5, is_laplace=True), Structure(), "more steps", "A fit of the same family"),
        (row("a", 0.5, family_gap_is_upper_bound=True), Structure(), "another family", "by 0.500 nats at most."),
        (row("a", 0.01, start_gap=0.5), Structure(), "another start", "2 of 2 replicas ended in a worse"),
        (row("a", 0.5), Structure(), "another family", "Only another family, or the model written in another way"),
        (row("a", 0.5), Structure(num_modes=3), "another family", "The posterior has 3 modes."),
        (row("a", 0.5), Structure(correlation=0.3), "full covariance", "is worth 0.300 nats: by so much"),
        (row("flow", 0.5), Structure(correlation=0.3), "another family", "Only another family"),
        (row("a", 0.5), Structure((NonCentring("b", "s", 2.0),)), "non-centred form", "Write b non-centred"),
        (row("a", 0.5), Structure((NonCentring("b", "s", 0.05),)), "another family", "Only another family"),
        (row("a", 0.2, optimization_gap=0.5), Structure((NonCentring("b", "", 2.0),)), "non-centred form", "More"),
        (row("a", 0.004), Structure(correlation=9.0), "nothing", "Nothing to mend."),
        (row("a", 0.004, marginals=marginals(z=0.5)), Structure(), "", ""),
    ],
)  # fmt: skip
def test_each_cause_has_its_mend(best: dict[str, Any], structure: Structure, kind: str, text: str) -> None:
    verdict = verdict_of([best | {"is_independent": best["guide"] == "a"}], lambda: structure)
    assert verdict.mend == kind
    assert text in str(verdict)


def test_another_objective_is_told() -> None:
    verdict = verdict_of([row("a", 0.01, objective="iwae:8", objective_gap=0.3)])
    assert verdict.mend == "another objective"
    assert "Let SVI maximise the ELBO: the optimum of iwae:8 is 0.300 nats farther away." in str(verdict)


def test_a_farther_guide_whose_family_holds_a_nearer_member_is_to_be_fitted_on() -> None:
    flow = row("flow", 0.1, optimization_gap=0.9)
    verdict = verdict_of([row("a", 0.5), flow])
    assert verdict.mend == "another fit"
    assert "flow could be nearer still: it is 1.00 nats away, the best member of its family 0.100. Give" in str(verdict)
    assert verdict.mend_nats == pytest.approx(0.4)


def test_a_laplace_approximation_is_not_told_to_take_more_steps() -> None:
    at_mode = row("laplace", 0.2, optimization_gap=0.4, is_laplace=True, **{"marginals": marginals(z=0.7)})
    text = words(verdict_of([row("a", 0.3), at_mode]))
    assert "laplace's 90% interval of z covers 70%: a fit by SVI would do better (optimization gap 0.400 of" in text
    assert "laplace could be nearer still" not in text


def test_a_fit_that_has_not_converged_is_told_so_before_its_family_is_blamed() -> None:
    replica = {"status": "not_converged", "stop_reason": "", "reverse_kl": 0.5, "family_gap": 0.5}
    text = words(
        verdict_of([row("flow", 0.5, status="not_converged", replicas=[replica | {"optimization_gap": 0.0}] * 2)])
    )
    assert "More steps may help: the fit has not converged. Beyond that, only another family" in text


def test_a_full_covariance_that_was_tried_is_not_advised() -> None:
    correlated, best = Structure(correlation=0.6), row("a", 0.5, is_independent=True)
    for tried, mend in ((False, "another family"), (None, "full covariance"), (True, "full covariance")):
        assert verdict_of([best, row("other", 0.9, is_independent=tried)], lambda: correlated).mend == mend


# ---- what the truth's points say


def test_what_a_non_centred_form_is_worth_by_hand() -> None:
    """x_j ~ Normal(0, e^s) with s ~ Normal(0, 1/2): log sd(x_j) = s's variance, 1/4, and E log e^s = 0."""

    def funnel() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with pyro.plate("j", 4):
            pyro.sample("x", dist.Normal(0.0, scale))

    structure = structure_of(ppl_vi.ground_truth(ppl_vi.Target.of(funnel)))
    (found,) = structure.non_centring
    assert (found.site, found.scale) == ("x", "scale")
    assert found.nats == pytest.approx(
        1.0, abs=0.15
    )  # of 2,000 points, log variances to 4 * sqrt(1/2000), heavier tails
    assert structure.correlation < 0.05
    assert structure.num_modes == 1


def test_a_linear_change_is_worth_nothing_to_a_normal_with_full_covariance() -> None:
    """b ~ Normal(a, 2) has a non-centred form, b = a + 2 e, which is a linear map."""

    def chain() -> None:
        a = pyro.sample("a", dist.Normal(0.5, 1.0))
        pyro.sample("b", dist.Normal(a, 2.0))

    structure = structure_of(ppl_vi.ground_truth(ppl_vi.Target.of(chain)))
    (found,) = structure.non_centring
    assert (found.site, found.scale) == ("b", "")
    assert found.nats == pytest.approx(0.0, abs=1e-9)
    assert structure.correlation == pytest.approx(math.log(5 / 4) / 2, abs=0.05)  # of 2,000 points of a rule


def test_what_correlations_are_worth_by_hand() -> None:
    target = correlated_gaussian.target()
    truth = ppl_vi.ground_truth(target)
    u = truth.draws(20_000)["z"].numpy()
    exact = -np.linalg.slogdet(np.corrcoef(u.T))[1] / 2
    structure = structure_of(truth)
    assert structure.correlation == pytest.approx(exact, abs=0.1)
    assert structure.non_centring == ()


# ---- status


def test_a_status_speaks_of_the_replicas_and_calls_no_bad_optimum_a_success() -> None:
    def replicas(*ends: tuple[str, float]) -> list[dict[str, Any]]:
        return [{"status": status, "stop_reason": "", "start_gap": gap} for status, gap in ends]

    good, bad, unfinished = ("converged", 0.0), ("converged", 0.5), ("not_converged", 0.5)
    for ends, text in {
        (good, good, bad): "2/3 converged",
        (good, bad): "1/2 far from best",
        (bad, bad): "2/2 far from best",
        (unfinished, unfinished, good): "2/3 not converged",
        (good,): "converged",
        (("converged", 0.009),): "converged",  # negligible
    }.items():
        assert status_of(row("a", 0.1, replicas=replicas(*ends))) == text
    assert (
        others_of(row("a", 0.1, replicas=replicas(good, good, bad))) == "a: of 3 replicas 2 converged, 1 far from best"
    )
    assert others_of(row("a", 0.1, replicas=replicas(good, good))) == ""
    lost = row("a", 0.1, replicas=replicas(bad, bad), start_gap_error=0.6)
    assert status_of(lost) == "2/2 converged"  # the gap is lost in its error
    leaking = row("a", 0.1, replicas=replicas(good, unfinished, good), support_mismatch="site 'z': ...")
    assert status_of(leaking) == "2/3 leaks mass"
    assert status_of(record("a", None, status="skipped")) == "skipped"
