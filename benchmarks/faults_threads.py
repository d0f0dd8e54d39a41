"""Trials of threads: several call the public functions at random moments, and some of their models fail.

Each call must give what it gives alone, to the last bit, or fail as it fails alone. Once all have ended, the settings
and the random states of the process are those from before.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from ppl_vi.svi.fit import fit
from ppl_vi.target.target import Target
from ppl_vi.truth import ground_truth

MAX_THREADS = 4
MAX_DELAY_SECONDS = 0.2  # about as long as one of the calls takes
X = torch.tensor([0.5, 1.5])


def _model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _leaves(x: Tensor) -> None:
    torch.set_default_dtype(torch.float64)
    pyro.param("left", torch.tensor(1.0))
    raise SystemExit(5)


def _fails(x: Tensor) -> None:
    _model(x)
    torch.manual_seed(99)
    raise KeyError("weight")


def _fitted() -> object:
    return fit(Target.of(_model, (X,)), AutoNormal, num_steps=20, num_replicas=2, seed=1).theta.tolist()


def _evidence() -> object:
    return ground_truth(Target.of(_model, (X,))).log_evidence.tolist()


CALLS: dict[str, Callable[[], object]] = {
    "a fit": _fitted,
    "a truth": _evidence,
    "a model that raises": lambda: Target.of(_fails, (X,)),
    "a model that exits": lambda: Target.of(_leaves, (X,)),
}


def _outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except (Exception, SystemExit) as error:  # the failing models' own, which are compared with those of a call alone
        return type(error).__name__, str(error)


def _state() -> dict[str, object]:
    """What belongs to the whole process."""
    return {
        "default dtype": torch.get_default_dtype(),
        "Pyro's settings": pyro.settings.get(),
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(np.random.get_state()),
        "Python's random state": random.getstate(),
        "parameter store": {name: value.tolist() for name, value in pyro.get_param_store().items()},
        "number of threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "folder": os.getcwd(),
    }


def calls_in_threads(num: int, seed: int, folder: Path) -> Iterator[str]:
    """Several threads at once; the folder is not used."""
    chance, alone = random.Random(seed), {name: _outcome(call) for name, call in CALLS.items()}
    for _ in range(num):
        names = [chance.choice(list(CALLS)) for _ in range(chance.randint(2, MAX_THREADS))]
        delays = [chance.uniform(0, MAX_DELAY_SECONDS) for _ in names]
        before, found = _state(), dict[int, object]()
        threads = [
            threading.Thread(target=_work, args=(found, *each)) for each in enumerate(zip(names, delays, strict=True))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = _state()
        wrong = [f"{name} gave {found.get(i)}" for i, name in enumerate(names) if found.get(i) != alone[name]]
        wrong += [f"{name} is not put back" for name, value in before.items() if after[name] != value]
        yield f"{', '.join(names)}: {'; '.join(wrong)}" if wrong else ""


def _work(found: dict[int, object], number: int, given: tuple[str, float]) -> None:
    name, delay = given
    time.sleep(delay)
    found[number] = _outcome(CALLS[name])
