"""How a batch of fits ended: after their steps, or where a guide was given as it is and takes none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vi.svi.running import RunningFit
from ppl_vi.svi.status import Status

NO_STEPS = "as given: no steps were taken"


@dataclass(frozen=True, eq=False)
class EndedFit:
    """Fits of `B` problems, `R` replicas each, of `D` parameters.

    Attributes:
        theta: the parameters that the guide has in the end, `(B, R, D)`.
        trajectory: the parameters that were noted, `(T, B, R, D)`; without entries where no steps were taken.
        history: what a `Fit` has under the same names of its engine and its steps.
    """

    theta: Tensor
    trajectory: Tensor
    history: dict[str, Any]


def ended_fit(fit: RunningFit) -> EndedFit:
    """The end of fits that have taken their steps."""
    history = {
        "engine": fit.setup.engine_name,
        "engine_reason": fit.setup.engine_reason,
        "steps": np.array(fit.steps, dtype=np.int64),
        "elbo_history": np.stack(fit.bounds),
        "status": fit.status.astype(np.str_),
        "stop_reason": fit.stop_reason.astype(np.str_),
        "num_steps": fit.num_steps,
        "predicted_gain": fit.gain,
    }
    return EndedFit(fit.theta, torch.stack(fit.trajectory), history)


def as_given(theta: Tensor) -> EndedFit:
    """Fits that stay at the parameters `theta` `(B, R, D)` that they were given with."""
    shape = theta.shape[:2]
    history = {
        "engine": "",
        "engine_reason": "",
        "steps": np.empty(0, dtype=np.int64),
        "elbo_history": np.empty((0, *shape)),
        "status": np.full(shape, str(Status.AS_GIVEN)),
        "stop_reason": np.full(shape, NO_STEPS),
        "num_steps": np.zeros(shape, dtype=np.int64),
        "predicted_gain": np.full(shape, np.inf),
    }
    return EndedFit(theta, theta.new_empty(0), history)
