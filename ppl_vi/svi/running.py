"""The state of a batch of fits while it runs: each fit's parameters and status, and the histories recorded so far."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ppl_vi.svi.curvature import Preconditioner
from ppl_vi.svi.diagnosis import culprit
from ppl_vi.svi.setup import Setup
from ppl_vi.svi.status import Status

# A fit is checked more than once, and each check may find a bound that is too small. Before the last round a fit
# therefore stops only where the bound is at most this share of the tolerance.
EARLY_TOLERANCE_SHARE = 0.2


@dataclass
class RunningFit:
    """Fits of `B` problems, `R` replicas each, of `D` parameters.

    Attributes:
        setup: what stays the same.
        theta: the parameters of each fit: the average of the last round in which it ran, or the last finite ones of a
            fit that diverged, `(B, R, D)`.
        preconditioner: how far a step of size 1 moves the parameters.
        num_particles: the draws of a step.
        status: a `Status` for each fit, `(B, R)`.
        stop_reason: why each fit stopped or did not stop, in words, `(B, R)`.
        num_steps: the steps that each fit has taken, `(B, R)`.
        gain: the most that each fit could still gain nearby, nats, `(B, R)`.
        bounds: the bounds of each step that was taken, `(B, R)`, nats.
        steps: the steps after which the parameters were noted.
        trajectory: the parameters that were noted, `(B, R, D)`.
        step_work, check_work: what the steps and the gradients of the checks have cost so far, see `Setup.work`.
        is_checked: whether the last round ended with a check of the fits that ran.
    """

    setup: Setup
    theta: Tensor
    preconditioner: Preconditioner
    num_particles: int
    status: np.ndarray
    stop_reason: np.ndarray
    num_steps: np.ndarray
    gain: np.ndarray
    bounds: list[np.ndarray] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    trajectory: list[Tensor] = field(default_factory=list)
    step_work: float = 0.0
    check_work: float = 0.0
    is_checked: bool = False

    @staticmethod
    def start(setup: Setup, theta: Tensor, preconditioner: Preconditioner) -> RunningFit:
        """Fits before their first step, at `theta` `(B, R, D)`."""
        shape = theta.shape[:2]
        return RunningFit(
            setup=setup,
            theta=theta,
            preconditioner=preconditioner,
            num_particles=setup.num_particles,
            status=np.full(shape, Status.NOT_CONVERGED, dtype=object),
            stop_reason=np.full(shape, "", dtype=object),
            num_steps=np.zeros(shape, dtype=np.int64),
            gain=np.full(shape, np.inf),
            steps=[0],
            trajectory=[theta],
        )

    @property
    def num_steps_taken(self) -> int:
        """The steps that have been taken in all."""
        return len(self.bounds)

    @property
    def is_running(self) -> np.ndarray:
        """Which fits have neither converged nor diverged, `(B, R)`."""
        return np.asarray(self.status == Status.NOT_CONVERGED)

    @property
    def running_replicas(self) -> Tensor:
        """The numbers of the replicas that run in any problem."""
        return torch.from_numpy(np.flatnonzero(self.is_running.any(0)))

    @property
    def is_last(self) -> bool:
        """Whether all steps have been taken."""
        return self.num_steps_taken >= self.setup.strategy.num_steps

    @property
    def gain_limit(self) -> float:
        """What a fit may still gain at most if it is to stop here, nats."""
        return self.setup.strategy.tolerance * (1.0 if self.is_last else EARLY_TOLERANCE_SHARE)

    @property
    def is_stepped(self) -> np.ndarray:
        """Which fits take steps, `(B, R)`: those that run, and, where leaving them out saves nothing, the converged."""
        return self.is_running if self.setup.takes_fits_one_by_one else np.asarray(self.status != Status.DIVERGED)

    def note(self, theta: Tensor) -> None:
        """Adds the parameters `(B, R, D)` after the last step to the trajectory."""
        self.steps.append(self.num_steps_taken)
        self.trajectory.append(theta)

    def mark_diverged(
        self, problem: int, replica: int, num_steps: int, theta: Tensor, noise: tuple[Tensor, ...]
    ) -> None:
        """Notes that a step of one fit left the finite numbers, and what in it did.

        Args:
            problem, replica: which fit.
            num_steps: the steps that it had taken then, the last one included.
            theta: its parameters before that step, `(D,)`.
            noise: of that step, for each draw `(P, *shape)`.
        """
        program, at = self.setup.program, (problem, replica)
        self.status[at] = Status.DIVERGED
        self.num_steps[at] = num_steps
        where = culprit(program, self.setup.strategy.objective, theta, program.target.row(problem), noise)
        self.stop_reason[at] = f"diverged at step {num_steps}: {where}"
        self.theta = self.theta.clone()
        self.theta[at] = theta

    def end_round(self, average: Tensor) -> None:
        """Takes the averages of a round's iterates, `(B, R, D)`, for the parameters of those fits that run."""
        is_running = torch.as_tensor(self.is_running, device=average.device)
        self.theta = torch.where(is_running[..., None], average, self.theta)
        self.num_steps[self.is_running] = self.num_steps_taken
        self.note(self.theta)

    def take(self, theta: Tensor, gain: np.ndarray) -> None:
        """Moves the fits that run to `theta` `(B, R, D)`, and stops them, where no more is to gain than the limit.

        Args:
            theta: other parameters than those where the last round ended.
            gain: the most that each fit could still gain near them, nats, `(B, R)`.
        """
        is_better = self.is_running & (gain <= self.gain_limit)
        self.theta = torch.where(torch.as_tensor(is_better, device=theta.device)[..., None], theta, self.theta)
        self.trajectory[-1] = self.theta
        self.stop_converged(np.where(is_better, gain, self.gain))

    @property
    def _why_unbounded(self) -> str:
        if not self.is_checked:
            return "not checked: that would cost more than its share of the steps; more particles or steps pay for it"
        return "no bound on what is to gain: the loss is not curved upwards, or too unevenly"

    def stop_converged(self, gain: np.ndarray) -> None:
        """Stops the fits that have converged, by the most that each could still gain nearby, nats, `(B, R)`."""
        is_running, strategy = self.is_running, self.setup.strategy
        limit = self.gain_limit
        self.gain[is_running] = gain[is_running]
        for at in zip(*np.nonzero(is_running), strict=True):
            is_bounded = np.isfinite(gain[at])
            bound = f"at most {gain[at]:.1e} nats to gain nearby" if is_bounded else self._why_unbounded
            reason = f"{bound} (tolerance {strategy.tolerance:g})"
            if gain[at] <= limit:
                self.status[at] = Status.CONVERGED
            elif self.is_last:
                reason = f"all {strategy.num_steps} steps taken; {reason}"
            self.stop_reason[at] = reason
