"""The most memory that a process holds, measured in a process of its own."""

import os
import subprocess
import sys

import pytest

from ppl_vi.runtime.memory import STATUS_FILE

pytestmark = pytest.mark.skipif(not STATUS_FILE.exists(), reason="the peak of a process is read from /proc")

BEGIN = """
import pyro
import pyro.distributions as dist
import torch
import ppl_vi
from ppl_vi.runtime.memory import status_bytes
torch.set_num_threads(1)
"""
END = """
print(status_bytes("VmHWM") / 1e9)
"""
# One latent, whose truth is computed at hundreds of points at once.
COINS = """
flips = (torch.arange(300_000) % 10 < 3).double()
def coins(flips):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("flips", len(flips)):
        pyro.sample("flip", dist.Bernoulli(p), obs=flips)
target = ppl_vi.Target.of(coins, (flips,))
found = ppl_vi.truth.quadrature.one_number.quadrature_truth(target)
exact = torch.lgamma(torch.tensor([90_002.0, 210_002.0, 300_004.0, 2.0, 2.0, 4.0], dtype=torch.float64))
exact = float(exact @ torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
assert abs(found.log_evidence[0] - exact) < 1e-6, (found.log_evidence[0], exact)
"""
# Sixty-two latents, whose nodes and draws are many numbers.
GROUPS = """
values = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
def groups(values):
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    spread = pyro.sample("spread", dist.HalfNormal(2.0))
    with pyro.plate("groups", len(values)):
        each = pyro.sample("each", dist.Normal(mean, spread))
        pyro.sample("value", dist.Normal(each[..., None], 1.0).to_event(1), obs=values)
target = ppl_vi.Target.of(groups, (values,))
fit = ppl_vi.fit(target, "AutoNormal", num_steps=64, num_replicas=4)
from ppl_vi.metrics.sampled.noise_rules import noise_rules, scored_nodes
from ppl_vi.metrics.sampled.importance import weights
assert weights(fit).log.shape == (1, 4, 10_000)
nodes = scored_nodes(fit, fit.theta, noise_rules(fit.program.latent_draws, 2**14, 1))
assert nodes.log_joint.shape == (1, 4, 8, 2**14)
"""


def peak(body: str) -> float:
    """The most that a process held that ran this, in GB."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", BEGIN + body + END], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return float(found.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "most"),
    [
        # At the 514 points of a rule together, values of the data's length would take 1.2 GB each.
        (COINS, 1.0),
        # The slope of each draw's map alone would take 1.2 GB, and the nodes with their copies more than that.
        (GROUPS, 1.4),
    ],
    ids=["coins", "groups"],
)
def test_a_process_holds_little(body: str, most: float) -> None:
    assert peak(body) < most


def test_the_peak_is_what_the_process_held() -> None:
    """268 million numbers of a byte each, and what torch and Pyro take."""
    assert 0.4 < peak("held = torch.ones(2**28, dtype=torch.uint8)") < 1.2
