"""Learns a model's own parameters by SVI, and freezes them: empirical Bayes, decoders.

The ELBO is maximised over the parameters of the model and of the guide together. It is a lower bound of log p(x) as a
function of the model's parameters, and its optimum is that of log p(x) itself where the guide's family contains the
posterior. Each replica learns values of its own; those of the replica with the highest ELBO are kept. A model with
these values has no parameters left to learn, and is measured like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vi.guides import Family, RefusedFamilyError
from ppl_vi.guides.given import GivenGuide
from ppl_vi.guides.own import is_fitted
from ppl_vi.svi.ended import NO_STEPS
from ppl_vi.svi.finishing import is_laplace
from ppl_vi.svi.objectives import find_objective
from ppl_vi.svi.program import Layout, Program, flat_parameters
from ppl_vi.svi.rounds import fit_program
from ppl_vi.svi.running import RunningFit
from ppl_vi.svi.setup import Strategy
from ppl_vi.svi.start import centre_parameters, start_guide, start_parameters
from ppl_vi.svi.status import Status
from ppl_vi.svi.support import SupportMismatchError, mismatch
from ppl_vi.target.freezing import frozen_target
from ppl_vi.target.learned import Learned
from ppl_vi.target.statements import StatedFunction, parameters_of
from ppl_vi.target.target import Target

# Each replica's ELBO is averaged over this last part of its steps to find the highest one. The last round has about
# half of the steps, and its second half is steady; a larger share counts steps in which the parameters still moved.
COMPARED_SHARE = 0.25
# The learning rates that are tried, relative to the one asked for, until not every replica diverges. A parameter of the
# model can lead to where it has no density, as where a covariance matrix can't be factorised.
STEP_SHARES = (1.0, 0.1, 0.01)


class LearningError(ValueError):
    """The parameters of a model could not be learned; the message says why."""


class _Joint(nn.Module):
    """A guide that also holds the parameters of the model, after its own, so that both are fitted together.

    Args:
        guide: the guide.
        model: the model as a module.
    """

    def __init__(self, guide: nn.Module, model: StatedFunction) -> None:
        super().__init__()
        self.guide, self.model = guide, model

    def forward(self, *args: Any) -> Any:
        """Runs the guide."""
        return self.guide(*args)


def learned_target(
    target: Target,
    family: Family,
    name: str,
    strategy: Strategy,
    num_replicas: int,
    engine: str,
) -> Target:
    """The target whose model has the parameters that are learned together with a guide's, by maximising the ELBO.

    A guide that is measured as it is learns nothing: the model then has the values that its parameters have already.

    Args:
        target: a target whose model has parameters to be learned.
        family: the guide's family.
        name: what the result says the guide is called.
        strategy: how the fits are made; the objective is the ELBO, whichever it has.
        num_replicas, engine: as `ppl_vi.svi.fit.fit` takes them.

    Raises:
        RefusedFamilyError: the family has no ELBO, as a Laplace approximation has none.
        SupportMismatchError: the guide puts mass where the posterior has none, so that the ELBO is -inf.
        LearningError: every replica diverged, the guide and the model share a parameter, or the guide is measured as it
            is and there is no value of a parameter of the model.
    """
    assert target.learnable is not None
    parameters = target.learnable.parameters
    if strategy.num_steps == 0 or is_fitted(family):
        values = _values_as_they_are(parameters, getattr(family, "given", None), target)
        return frozen_target(target, Learned(values, name, str(Status.AS_GIVEN), NO_STEPS))
    strategy = replace(strategy, objective=find_objective("trace_elbo"))
    guide = start_guide(family, target, num_replicas, strategy.seed)
    if is_laplace(guide):
        raise RefusedFamilyError(
            "a Laplace approximation has no ELBO by which the model's parameters could be learned: fit another guide "
            "first, and this one to that fit's target"
        )
    outside = mismatch(target, guide)
    if outside:
        raise SupportMismatchError(outside)
    _refuse_shared(guide, parameters, target.name)
    layout, own = Layout.of(guide), flat_parameters(Layout.of(parameters), parameters)
    initial = start_parameters(family, target, guide, layout, num_replicas, strategy.seed)
    centre = centre_parameters(family, target, guide, layout, strategy.seed)
    initial, centre = (torch.cat([part, own.expand(*part.shape[:-1], -1)], -1) for part in (initial, centre))
    with target.isolated(strategy.seed):
        program = Program(target, _Joint(guide, parameters), target.learnable.model)
        with _left_as_they_were(parameters):
            running, remark = _fitted(program, strategy, initial, centre, engine)
        best = _best_replica(running, target.name)
        values = program.call(running.theta[0, best], lambda _: parameters_of(parameters))
    status = str(running.status.astype(np.str_)[0, best])
    return frozen_target(target, Learned(values, name, status, f"{running.stop_reason[0, best]}{remark}"))


def _fitted(
    program: Program, strategy: Strategy, initial: Tensor, centre: Tensor, engine: str
) -> tuple[RunningFit, str]:
    """The fit, with smaller steps where every replica diverged, and a remark on that."""
    for lr in (share * strategy.lr for share in STEP_SHARES):
        running = fit_program(program, replace(strategy, lr=lr), initial, centre, engine)
        if bool((running.status[0] != Status.DIVERGED).any()):
            break
    return running, "" if lr == strategy.lr else f"; with lr={lr:g}, since all replicas diverged with larger steps"


def _values_as_they_are(model: StatedFunction, given: GivenGuide | None, target: Target) -> dict[str, Tensor]:
    """The parameters of a model as a guide's user has them: in Pyro's parameter store, or in the file in its place.

    Raises:
        LearningError: there is no value of a parameter.
    """
    values, stored = parameters_of(model), {} if given is None else given.stored
    for name in model.values:
        is_of_network = name in model.leaves and (given is None or given.file is None)
        if name in stored and not is_of_network:
            values[name] = stored[name].value(target.dtype).to(target.device)
        elif given is not None and given.needs_values and not is_of_network:
            where = f"the file {given.file}" if given.file else "Pyro's parameter store"
            raise LearningError(
                f"{target.name}: the guide '{given.name}' is to be measured as it is, and {where} has no value of the "
                f"model's parameter '{name}'"
            )
    return values


def _refuse_shared(guide: nn.Module, model: StatedFunction, name: str) -> None:
    """Refuses a parameter that the guide and the model both state, which in Pyro is one and the same.

    Raises:
        LearningError: there is such a parameter.
    """
    stated = {own for part in guide.modules() if isinstance(part, StatedFunction) for own in part.values}
    both = sorted(stated & set(model.values))
    if both:
        raise LearningError(
            f"{name}: the model and the guide both state the parameter '{both[0]}', and share it in Pyro; here each "
            "has its own: give one of them another name"
        )


@contextmanager
def _left_as_they_were(parameters: nn.Module) -> Iterator[None]:
    """Puts the values back that parameters had before, since Pyro's own SVI writes to them."""
    before = {name: value.clone() for name, value in parameters.state_dict().items()}
    try:
        yield
    finally:
        parameters.load_state_dict(before)


def _best_replica(running: RunningFit, name: str) -> int:
    """The replica with the highest ELBO, of those that did not diverge.

    Raises:
        LearningError: all have.
    """
    kept = np.flatnonzero(running.status[0] != Status.DIVERGED)
    if not len(kept):
        raise LearningError(f"{name}: the model's parameters could not be learned: {running.stop_reason[0, 0]}")
    bounds = np.stack(running.bounds)[:, 0]
    return int(max(kept, key=lambda replica: _last_mean(bounds[:, replica])))


def _last_mean(bounds: np.ndarray) -> float:
    """The mean of the last of the bounds `(num_steps,)` of the steps that a fit took; those of other steps are nan."""
    taken = bounds[~np.isnan(bounds)]
    return float(taken[-max(1, round(COMPARED_SHARE * len(taken))) :].mean())
