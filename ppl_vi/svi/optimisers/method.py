"""What a way of fitting is, and how fits by a deterministic one end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.svi.ended import EndedFit
from ppl_vi.svi.program import Program
from ppl_vi.svi.setup import Strategy
from ppl_vi.svi.status import Status


@dataclass(frozen=True)
class Method:
    """A way of fitting other than Adam's steps.

    Attributes:
        name: by which it is asked for.
        stage: what somebody who follows the fit is told.
        fit: from the program, the strategy and the initial parameters `(B, R, P)` to the end of the fits.
        unsuitable: says why it can't be used with a program, or gives None where it can.
        strategy: the strategy as the result has it, with the number of draws that "auto" stands for.
    """

    name: str
    stage: str
    fit: Callable[[Program, Strategy, Tensor], EndedFit]
    unsuitable: Callable[[Program, Strategy], str | None]
    strategy: Callable[[Strategy], Strategy] = lambda strategy: strategy


@dataclass(frozen=True, eq=False)
class Ends:
    """How fits by a method ended.

    Attributes:
        theta: the parameters, `(B, R, P)`.
        bounds: the bound after every iteration, `(T, B, R)`, nats.
        gain: what was still to gain, `(B, R)`, nats.
        status: a `Status` for each fit, `(B, R)`.
        stop_reason: why each fit ended, in words, `(B, R)`.
        num_steps: the iterations of each fit, `(B, R)`.
    """

    theta: Tensor
    bounds: Tensor
    gain: Tensor
    status: np.ndarray
    stop_reason: np.ndarray
    num_steps: np.ndarray


def statuses(converged: Tensor, usable: Tensor) -> np.ndarray:
    """The status of fits of which some arrived, and some had no start from which they could go on, `(B, R)`."""
    status = np.where(converged.cpu().numpy(), str(Status.CONVERGED), str(Status.NOT_CONVERGED))
    return np.where(usable.cpu().numpy(), status, str(Status.DIVERGED))


def ended_by(engine: str, initial: Tensor, ends: Ends) -> EndedFit:
    """The end of fits that began at `initial` `(B, R, P)`, by a method whose iterations are those of `engine`."""
    history = {
        "engine": engine,
        "engine_reason": "",
        "steps": np.array([0, len(ends.bounds)], dtype=np.int64),
        "elbo_history": ends.bounds.cpu().numpy(),
        "status": ends.status.astype(np.str_),
        "stop_reason": ends.stop_reason.astype(np.str_),
        "num_steps": ends.num_steps,
        "predicted_gain": ends.gain.cpu().numpy(),
    }
    return EndedFit(ends.theta, torch.stack([initial, ends.theta]), history)
