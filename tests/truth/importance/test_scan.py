"""The wide scan: modes that hide from searches, against closed forms, and how narrow they may be."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from ppl_vi.numerics.weights import EvidenceEstimate
from ppl_vi.target.log_density import Density
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth
from ppl_vi.truth.importance import scan, searches
from ppl_vi.truth.importance.evidence import with_unseen_mass
from ppl_vi.truth.importance.scan import narrowest, num_scanned, scanned
from ppl_vi.truth.importance.witness import run_witnesses

REAL = torch.float64


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def hiding(prior_sd, at, sd, mass):
    """A standard normal posterior beside a narrow one at `at`; the factor takes the prior away: p(x) = e^1.7."""
    z = pyro.sample("z", dist.Normal(torch.zeros(len(at), dtype=REAL), prior_sd).to_event(1))
    broad = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + math.log1p(-mass)
    narrow = dist.Normal(torch.tensor(at, dtype=REAL), sd).log_prob(z).sum(-1) + math.log(mass)
    pyro.factor("x", torch.logaddexp(broad, narrow) - dist.Normal(0.0, prior_sd).log_prob(z).sum(-1) + 1.7)


SPIKE = partial(hiding, 3.0, (0.7, -0.4), 1e-3, 1 / 3)  # within the bulk
FAR = partial(hiding, 20.0, (20.0, -30.0), 0.008, 0.3)
SIX = partial(hiding, 1.0, (2.4, -2.6, 2.2, 2.5, -2.7, 2.3), 0.2, 0.02)


@pytest.mark.parametrize("model", [SPIKE, FAR, SIX])
def test_log_evidence_has_the_mass_of_a_mode_that_no_search_reaches(model, monkeypatch):
    truth = ground_truth(Target.of(model))
    error = truth.log_evidence_error[0] + 2 * truth.log_evidence_std_error[0]
    assert truth.grade == "checked"
    assert abs(truth.log_evidence[0] - 1.7) <= error < 1e-3
    monkeypatch.setattr(searches, "scanned", lambda density, *_: torch.zeros(0, density.dim, dtype=REAL))
    blind = ground_truth(Target.of(model, name="blind"))  # another name, so that no saved draws are found
    assert abs(blind.log_evidence[0] - 1.7) > 0.015


def test_saved_draws_are_not_those_of_a_posterior_with_a_mode_elsewhere():
    """At the origin and around it the two densities are equal to the last digit."""
    here, there = (Target.of(partial(hiding, 1.0, (at,) * 4, 0.2, 0.1)) for at in (7.0, -7.0))
    first, second = ground_truth(here), ground_truth(there)
    assert second.log_evidence[0] - first.log_evidence[0] == pytest.approx(0.0, abs=5e-4)
    shares = [float(truth.expectation(lambda z: (z["z"][..., 0] < -5).double()).value[0]) for truth in (first, second)]
    assert shares == pytest.approx([0.0, 0.1], abs=0.02)


def test_slopes_of_a_normal_posterior_all_lead_to_its_mode():
    target = Target.of(partial(hiding, 3.0, (0.0, 0.0, 0.0), 1.0, 0.5))
    factor = torch.eye(3, dtype=REAL)[None]
    found = scanned(Density.of(target, 0), 3 * torch.randn(100, 3, dtype=REAL), factor[:, 0] * 0, factor, 0)
    assert found.shape == (0, 3)


def test_scans_of_costly_densities_have_fewer_points():
    assert num_scanned(Density(torch.sum, 2, REAL, torch.isfinite, width=2)) == scan.MAX_POINTS
    assert num_scanned(Density(torch.sum, 2, REAL, torch.isfinite, width=2**20)) == 31


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_narrowest_part_is_met_by_three_points_on_average(dim):
    num = 2000
    radius = narrowest(num, dim)
    assert radius < 1
    rng, each = np.random.default_rng(1), 200
    direction = rng.normal(size=(num * each // 2, dim))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    distance = scan.NEAREST * (scan.MIN_REACH / scan.NEAREST) ** rng.uniform(size=(len(direction), 1))
    center = np.zeros(dim)
    center[0] = 1.0
    hits = (np.linalg.norm(distance * direction - center, axis=1) < radius).sum() / each
    # A cone as wide as the ball, and as long, holds more than the ball: by at most the factor 2 in so few dimensions.
    assert 1.2 < hits < 3.6
    assert narrowest(10 * num, dim) < radius


def test_chains_that_must_not_leave_a_half_line_have_a_half_normal_distribution():
    density = Density(lambda u: -u.square().sum() / 2, 1, REAL, lambda u: u.isfinite().all(-1))
    generator = torch.Generator().manual_seed(0)
    ends, factor = torch.full((200, 1), 0.1, dtype=REAL), torch.eye(1, dtype=REAL)
    chains = run_witnesses(density, ends, factor, generator, lambda u: u[:, 0] > 0)
    assert float(chains.u.min()) > 0
    means = chains.u.mean((0, 2))
    off = (float(means.mean()) - stats.halfnorm.mean()) / (float(means.std()) / math.sqrt(len(means)))
    assert abs(off) < 4


def test_an_error_says_what_may_be_left_unseen():
    assert with_unseen_mass(EvidenceEstimate(1.5, 1e-14), 400) == EvidenceEstimate(1.5, 0.0025)
    assert with_unseen_mass(EvidenceEstimate(1.5, 0.01), 400) == EvidenceEstimate(1.5, 0.01)
