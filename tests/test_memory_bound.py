"""What a bound on memory does to a comparison: the numbers stay, and what does not fit is told."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vi
from ppl_vi import __main__ as command
from ppl_vi.comparison.comparison import FitSettings
from ppl_vi.comparison.run import compare_one
from ppl_vi.model_comparison import begun
from ppl_vi.runtime.memory import MemoryBoundError, allowing, status_bytes

X = torch.randn(400, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = (torch.rand(400, generator=torch.Generator().manual_seed(2), dtype=torch.float64) < 0.6).double()


def logistic(x: torch.Tensor, y: torch.Tensor) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def above(num_bytes: float) -> float:
    """A bound in GiB that leaves so many bytes to this process."""
    return (status_bytes("VmRSS") + num_bytes) / 2**30


def test_results_do_not_depend_on_the_bound() -> None:
    options = {"num_steps": 40, "num_replicas": 2, "num_draws": 2000, "engine": "batched"}
    wide, tight = (
        ppl_vi.compare(logistic, ["AutoNormal"], (X, Y), max_memory=above(room), **options).records()[0]
        for room in (4e9, 3e7)
    )
    assert tight["status"] == wide["status"]
    for name in ("elbo", "log_evidence", "reverse_kl", "family_gap", "optimization_gap", "forward_kl", "mean_error"):
        assert tight[name] == pytest.approx(wide[name], rel=1e-7, abs=1e-9), name


def test_a_truth_that_does_not_fit_is_refused() -> None:
    target = ppl_vi.Target.of(logistic, (X, Y))
    said = r"^a gradient of the log joint of 'logistic' at one point takes about 0.08 MB of memory, and 0.05 MB"
    with allowing(5e4), pytest.raises(MemoryBoundError, match=said):
        ppl_vi.ground_truth(target)


def test_a_fit_that_does_not_fit_is_a_failed_row() -> None:
    settings = FitSettings(num_steps=40, num_particles=2**14, num_replicas=2, engine="batched")
    comparison = begun(logistic, ["AutoNormal"], (X, Y), settings)
    entry = compare_one(comparison, "AutoNormal", max_bytes=status_bytes("VmRSS") + 1e8)
    assert entry.records[0]["status"] == "failed"
    said = entry.records[0]["reason"]
    assert said.startswith("a step of one replica of one problem with 16384 draws at once takes about")
    assert "100 MB may be taken" in said or "99" in said


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        ("4XB", "argument --max-memory: expected an amount of memory such as 500MB, 4GB or 4GiB, got '4XB'"),
        ("1MB", "--max-memory: 1 MB of memory may be taken, and Python with its libraries and the data takes"),
    ],
)
def test_a_bad_bound_is_one_line(amount: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = command.main(["compare", "tests.test_memory_bound:logistic", "--no-plots", "--max-memory", amount])
    except SystemExit as error:
        code = error.code
    assert code == 2
    errors = capsys.readouterr().err.splitlines()
    assert said in errors[-1]
