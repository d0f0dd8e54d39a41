"""How a batch of fits ended: after their steps, or where a guide was given as it is and takes none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.svi.running import RunningFit
from ppl_vi.svi.status import Status

NO_STEPS = "as given: no steps were taken"


@dataclass(frozen=True, eq=False)
class EndedFit:
    """Fits of `B` problems, `R` replicas each, of `D` parameters; see `ppl_vi.svi.result.Fit` for each of these.

    Attributes:
        theta: the parameters that the guide has in the end, `(B, R, D)`.
        engine: the name of the engine; "" where no steps were taken.
        engine_reason, steps, elbo_history, status, stop_reason, num_steps, predicted_gain: as a `Fit` has them.
        trajectory: the parameters that were noted, `(T, B, R, D)`; without entries where no steps were taken.
    """

    theta: Tensor
    engine: str
    engine_reason: str
    steps: list[int]
    trajectory: Tensor
    elbo_history: np.ndarray
    status: np.ndarray
    stop_reason: np.ndarray
    num_steps: np.ndarray
    predicted_gain: np.ndarray


def ended_fit(fit: RunningFit) -> EndedFit:
    """The end of fits that have taken their steps."""
    return EndedFit(
        theta=fit.theta,
        engine=fit.setup.engine_name,
        engine_reason=fit.setup.engine_reason,
        steps=fit.steps,
        trajectory=torch.stack(fit.trajectory),
        elbo_history=np.stack(fit.bounds),
        status=fit.status,
        stop_reason=fit.stop_reason,
        num_steps=fit.num_steps,
        predicted_gain=fit.gain,
    )


def as_given(theta: Tensor) -> EndedFit:
    """Fits that stay at the parameters `theta` `(B, R, D)` that they were given with."""
    shape = theta.shape[:2]
    return EndedFit(
        theta=theta,
        engine="",
        engine_reason="",
        steps=[],
        trajectory=theta.new_empty(0),
        elbo_history=np.empty((0, *shape)),
        status=np.full(shape, Status.AS_GIVEN, dtype=object),
        stop_reason=np.full(shape, NO_STEPS, dtype=object),
        num_steps=np.zeros(shape, dtype=np.int64),
        predicted_gain=np.full(shape, np.inf),
    )
