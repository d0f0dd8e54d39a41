"""Two threads that call the public functions at once: the second waits, and the caller's settings are put back."""

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import ppl_vi
from ppl_vi.comparison import run
from ppl_vi.target.isolation import one_at_a_time, whole_plates

X = torch.tensor([0.5, 1.5])
FEW: dict[str, Any] = {"num_steps": 20, "num_replicas": 2}


def model(x: torch.Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def settings() -> dict[str, Any]:
    """What belongs to the whole process, and so to the caller."""
    return {
        "dtype": torch.get_default_dtype(),
        "settings": pyro.settings.get(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "store": {name: value.tolist() for name, value in pyro.get_param_store().items()},
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "folder": Path.cwd(),
        "cumprod": torch.cumprod,
        "subsample": pyro.poutine.subsample_messenger.SubsampleMessenger._subsample,
    }


def comparison() -> Any:
    found = ppl_vi.compare(model, [AutoNormal, "AutoMultivariateNormal"], (X,), num_draws=300, **FEW)
    return [(record["guide"], record["status"], record["elbo"], record["reverse_kl"]) for record in found.records()]


def fitted() -> Any:
    return ppl_vi.fit(ppl_vi.Target.of(model, (X,)), AutoNormal, **FEW).theta.tolist()


def evidence() -> Any:
    return ppl_vi.ground_truth(ppl_vi.Target.of(model, (X,))).log_evidence.tolist()


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls return, or the errors that they raise, each in a thread that starts when all do."""
    start, found = threading.Barrier(len(calls)), list[Any]([None] * len(calls))

    def work(number: int) -> None:
        start.wait()
        try:
            found[number] = calls[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.slow
def test_threads_give_what_each_gives_alone_and_leave_the_caller_as_it_was() -> None:
    calls = (comparison, fitted, evidence, fitted, comparison)
    with pyro.get_param_store().scope():
        pyro.param("mine", torch.tensor([1.5, 2.5]))
        alone = [call() for call in calls]
        before = settings()
        together = at_once(*calls)
        assert settings() == before
    assert together == alone
    assert list(before["store"]) == ["mine"]


def test_two_evidences_at_once_are_the_closed_form() -> None:
    before = settings()
    found = at_once(evidence, evidence)
    covariance = torch.eye(2, dtype=torch.float64) + 1
    expected = float(dist.MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(X.double()))
    assert found == [[pytest.approx(expected, abs=1e-12)]] * 2
    assert settings() == before


def test_what_changes_a_function_for_all_waits_too() -> None:
    original = pyro.poutine.subsample_messenger.SubsampleMessenger._subsample
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with whole_plates():
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=other)
    with whole_plates():
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(10)
    left.set()
    thread.join()
    assert pyro.poutine.subsample_messenger.SubsampleMessenger._subsample is original


def test_settings_are_put_back_once_more_at_the_end_of_a_call() -> None:
    """As after a Ctrl-C that came while the gate was putting them back."""

    @one_at_a_time()
    def cut_short() -> None:
        torch.set_default_dtype(torch.float64)
        pyro.settings.set(module_local_params=True, validate_infer=False)
        pyro.get_param_store().setdefault("theirs", torch.tensor(1.0))
        torch.manual_seed(5)
        torch.set_num_threads(2)
        torch.cumprod = torch.cumsum
        os.chdir("/")
        raise KeyboardInterrupt

    before = settings()
    with pytest.raises(KeyboardInterrupt):
        cut_short()
    assert settings() == before


def leaves(model: Any) -> Any:
    raise SystemExit(5)


def wanders(model: Any) -> Any:
    os.chdir("/")
    return AutoNormal(model)


def guide_that_leaves(x: torch.Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 1.0))
    raise SystemExit(6)


@pytest.mark.slow
def test_a_guide_that_ends_the_program_is_a_failed_row_and_one_that_changes_the_folder_changes_nothing() -> None:
    before = settings()
    guides = {"leaves": leaves, "guide": guide_that_leaves, "wanders": wanders, "good": AutoNormal}
    found = ppl_vi.compare(model, guides, (X,), num_draws=300, **FEW)
    assert settings() == before
    records = {record["guide"]: record for record in found.records()}
    for name, code in (("leaves", 5), ("guide", 6)):
        assert records[name]["status"] == "failed"
        assert f"sys.exit({code})" in records[name]["reason"]
    assert records["wanders"]["elbo"] == records["good"]["elbo"] != None  # noqa: E711


class LeavesLater:
    """A model that ends the program at one of its calls."""

    def __init__(self, last: int) -> None:
        self.left = last
        self.__name__ = "leaves_later"

    def __call__(self, x: torch.Tensor) -> None:
        model(x)
        self.left -= 1
        if not self.left:
            raise SystemExit("had enough")


@pytest.mark.parametrize("last", [1, 2, 5, 9])
def test_a_model_that_ends_the_program_at_any_call_is_an_error(last: int) -> None:
    before = settings()
    with pytest.raises(Exception, match="had enough"):
        ppl_vi.ground_truth(ppl_vi.Target.of(LeavesLater(last), (X,)))
    assert settings() == before


def test_ctrl_c_keeps_the_guides_that_are_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    compare_one = run.compare_one

    def pressed(comparison: Any, guide: str, **settings: Any) -> Any:
        if guide == "second":
            raise KeyboardInterrupt
        return compare_one(comparison, guide, **settings)

    monkeypatch.setattr(run, "compare_one", pressed)
    before = settings()
    with pytest.raises(KeyboardInterrupt, match="1 of 3 guides were finished") as raised:
        ppl_vi.compare(model, dict.fromkeys(("first", "second", "third"), AutoNormal), (X,), num_draws=300, **FEW)
    assert settings() == before
    assert isinstance(raised.value, ppl_vi.ComparisonInterruptedError)
    found = raised.value.comparison
    assert [entry.guide for entry in found.entries] == ["first"]
    assert found["first"].theta.shape[:2] == (1, 2)
    assert "first" in str(found)
