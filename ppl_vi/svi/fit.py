"""`fit`: fits a guide family to every problem of a target by SVI.

This file checks the arguments and puts the result together. `ppl_vi.svi.setup` chooses the engine, `ppl_vi.svi.rounds`
takes the steps, and `ppl_vi.svi.finishing` says what the fit is scored by.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppl_vi.guides import Family
from ppl_vi.guides.given import GivenGuide
from ppl_vi.guides.own import family_of, has_nothing_to_fit, is_fitted, name_of
from ppl_vi.numerics.vmapping import draws_outside_sites, indexes_by_mask
from ppl_vi.runtime.display import following
from ppl_vi.runtime.memory import allowing, bytes_of
from ppl_vi.runtime.names import check_start
from ppl_vi.runtime.provenance import versions
from ppl_vi.runtime.stages import Callback, stage
from ppl_vi.svi.ended import EndedFit, as_given, ended_fit
from ppl_vi.svi.finishing import finish
from ppl_vi.svi.learning import learned_target
from ppl_vi.svi.objectives import Objective, find_objective
from ppl_vi.svi.optimisers import method_of
from ppl_vi.svi.optimisers.pathfinder import start_on_paths
from ppl_vi.svi.program import Program
from ppl_vi.svi.result import Fit
from ppl_vi.svi.rounds import fit_program
from ppl_vi.svi.setup import (
    TOLERANCE,
    Strategy,
    UnsuitableModelError,
    find_how_draws_are_run,
)
from ppl_vi.svi.start import centre_parameters, is_placeable, placed_parameters, start_guide, start_parameters
from ppl_vi.svi.start_points import start_points
from ppl_vi.svi.support import SupportMismatchError, mismatch
from ppl_vi.svi.validation import validate
from ppl_vi.target.arguments import BoundModel
from ppl_vi.target.isolation import one_at_a_time
from ppl_vi.target.posing import posed
from ppl_vi.target.target import Target
from ppl_vi.target.witness import refuse_changed, witness
from ppl_vi.truth.modes import Modes

BATCH_NORM = "Batch norm got a batched tensor"  # in the error of `vmap` for a batch normalisation in training mode
NO_CONTINUOUS_LATENT = "all latents are discrete and are summed out, so that there is nothing to fit a guide to"
# By which a guide that takes no steps is measured.
ELBO_STRATEGY = Strategy(find_objective("trace_elbo"), num_steps=0, num_particles=1, lr=1.0, seed=0)


class UnsuitableObjectiveError(ValueError):
    """The objective can't be used with this guide; the message says why."""


@one_at_a_time()
def fit(
    target: Target | Callable[..., Any],
    family: Family | GivenGuide | str,
    args: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    objective: str | Objective = "trace_elbo",
    engine: str = "auto",
    num_steps: int = 1000,
    num_particles: int | Literal["auto"] = "auto",
    num_replicas: int = 1,
    lr: float = 0.2,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    max_memory: float | str | None = None,
    allow_support_mismatch: bool = False,
    modes: tuple[Modes, ...] = (),
    start: str = "mode",
    progress: Callback | bool = False,
) -> Fit:
    """Fits a guide family to every problem of a target by SVI.

    Adam takes steps in rounds, each twice as long as the one before, with step sizes relative to each parameter's
    curvature where the round starts (`ppl_vi.svi.rounds`). Within a round the step size falls to a fiftieth, and the
    last half of the iterates is averaged. From the second round on, every fit is then checked for what it could still
    gain nearby (`ppl_vi.svi.stopping`). A fit has converged when that is at most `tolerance`, or before the last round
    at most a quarter of it. Replicas start around the target's mode, or around all of those that are given, spread out
    by the curvature there in unconstrained space, and have noise of their own.

    Where the model has parameters of its own, stated by `pyro.param` or `pyro.module`, they are learned first, together
    with the guide's, by maximising the ELBO (`ppl_vi.svi.learning`). They are then frozen, and the guide is fitted to
    the frozen model, which is the target of the result: `ground_truth(fit(...).target)` is its truth.

    A guide that is fitted already, as `ppl_vi.fitted(guide)` says, is taken as it is: no steps are taken, there is one
    replica, the histories are empty, and the status is "as_given". So it is with `num_steps=0`, where a family stays
    where its replicas start. An autoguide that is given as an object, without `ppl_vi.fitted`, is fitted from the
    values that it has: the first replica starts there, and the others where those of its class do. Other guides start
    in all replicas at their own values.

    Where a plate subsamples its data, the steps of a target that `Target.of` made take all of its rows. Those of a
    target of many problems take a part, as the model says.

    Args:
        target: one problem or many, or a Pyro model, which poses one problem with `args` and `kwargs`.
        family: a guide family (a function from a model to a guide), or its name; or a guide that has values, as an
            autoguide or a `PyroModule`, and anything that `ppl_vi.fitted` gives.
        args, kwargs: the arguments of a model, as `Target.of` takes them.
        objective: what SVI maximises: the name of an objective, as `ppl_vi.svi.objectives.OBJECTIVES` lists them, or an
            `Objective`. "renyi:ALPHA" and "iwae:K" take a number.
        engine: "compiled" takes the steps of all fits as machine code, "batched" the same steps operation by operation,
            "pyro" takes them by Pyro's own `SVI`, one fit at a time, and "auto" takes the fastest that can be had (see
            `ppl_vi.svi.engines.choice.choose`).
        num_steps: the most steps that are taken; 0 measures guides as they are.
        num_particles: draws of the guide in each step. "auto" begins with 16 that are spread evenly, and takes more, up
            to 256, from the round on where their noise would keep fits from the tolerance; steps then also go along
            the principal axes of the curvature. It is 256 independent draws for objectives that depend on the number,
            and 64 by Pyro's own SVI.
        num_replicas: independent fits of each problem.
        lr: the size of Adam's first step, as a multiple of the size that each parameter's own curvature gives; at most
            100.
        tolerance: how much a converged fit may still gain nearby, nats.
        seed: the seed of the initial values and the noise.
        max_memory: what the steps and checks may take at once, as a text such as "4GB" or in GiB; None is half of the
            free memory. A batch that needs more is computed in chunks of replicas, to the same numbers but for
            rounding. What the fit keeps, above all its history, comes on top.
        allow_support_mismatch: fit a guide although it puts mass where the posterior has none.
        modes: where replicas start, for each problem, as `Truth.modes` has them: more than half of the replicas start
            around modes in proportion to their mass, the others around the modes that are left. () is the one mode that
            the target itself finds.
        start: "mode", as `modes` says, or "pathfinder": replicas of a family that can be placed start at the normals
            that `ppl_vi.svi.optimisers.pathfinder` takes, each at the end of a path of its own.
        progress: True shows how far the fit has come, on standard error or in a notebook; a function is called with
            each `ppl_vi.Stage`, and what it raises ends the fit and is raised from here.

    Raises:
        UnsuitableModelError: "compiled" or "batched" was asked for, and the model or guide can't be run for many draws
            at once; or the model's density is random, or it has no continuous latent.
        SupportMismatchError: the guide puts mass where the posterior has none.
        UnsuitableObjectiveError: the objective can't be used with this guide.
        LearningError: the model's own parameters could not be learned.
        NoModeError: a Laplace approximation was asked for, and a fit did not end at a mode.
        ValueError: an argument is out of range, there is too little memory for a single replica, or the model has
            become another function during the fit.
    """
    began = time.perf_counter()
    target = posed(target, args, kwargs)
    _check_modes(modes, target)
    strategy = Strategy(find_objective(objective), num_steps, num_particles, lr, seed, tolerance)
    max_bytes = bytes_of(max_memory)
    validate(strategy, engine, num_replicas)
    check_start(start)
    if isinstance(target.model, BoundModel) and not target.dim:
        raise UnsuitableModelError(f"{target.name}: {NO_CONTINUOUS_LATENT}")
    name, family = _named(family, target, num_steps)
    stays = is_fitted(family)
    num_replicas = 1 if stays else num_replicas
    told = following(progress, name.rpartition(":")[2])
    with told, allowing(max_bytes), _known_errors_explained(target.name):
        if target.learnable is not None:
            target = learned_target(target, family, name.rpartition(":")[2], strategy, num_replicas, engine)
            family = family_of(target, family)
        with stage("choosing starts"):
            guide = start_guide(family, target, num_replicas, seed, modes)
            _ = witness(target)
            support_mismatch = mismatch(target, guide)
            if support_mismatch and not allow_support_mismatch:
                raise SupportMismatchError(support_mismatch)
        if has_nothing_to_fit(guide):
            stays, num_replicas = True, 1
        with target.isolated(seed):
            program = Program(target, guide)
            initial = start_parameters(family, target, guide, program.layout, num_replicas, seed, modes)
            if start != "mode" and not stays:
                initial = _on_paths(family, program, strategy, num_replicas, modes)
            if num_steps == 0 or stays:
                find_how_draws_are_run(program, ELBO_STRATEGY)
                ended = as_given(initial)
            else:
                strategy = _checked(program, strategy, family)
                centre = partial(centre_parameters, family, target, guide, program.layout, seed, modes)
                ended = _ended(program, strategy, family, initial, centre, engine)
        scored, parameters = finish(program, ended.theta)
        refuse_changed(target)
    return _result(ended, strategy, name, family, (program, scored), parameters, support_mismatch or "", began)


def _checked(program: Program, strategy: Strategy, family: Family) -> Strategy:
    """The strategy, with the number of draws that it stands for where a method has its own.

    Raises:
        UnsuitableObjectiveError: the objective or the method can't be used with this guide.
    """
    method = method_of(family, strategy.objective.name)
    reason = method.unsuitable(program, strategy) if method else strategy.objective.unsuitable(program)
    if reason:
        raise UnsuitableObjectiveError(f"{method.name if method else strategy.objective.name}: {reason}")
    return method.strategy(strategy) if method else strategy


def _on_paths(
    family: Family, program: Program, strategy: Strategy, num_replicas: int, modes: tuple[Modes, ...]
) -> Tensor:
    """The initial parameters of replicas that start where Pathfinder's paths end, `(B, R, D)`.

    Raises:
        ValueError: the family's members can't be placed.
    """
    target, guide = program.target, program.guide
    if not is_placeable(family, guide):
        raise ValueError("start='pathfinder' needs a guide that takes its initial location: leave start at 'mode'")
    otherwise = start_points(target, num_replicas, strategy.seed, modes)[0]
    with stage("choosing starts by paths"):
        at = start_on_paths(target, otherwise, strategy)
    return placed_parameters(family, target, guide, program.layout, at, strategy.seed)


def _ended(
    program: Program,
    strategy: Strategy,
    family: Family,
    initial: Tensor,
    centre: Callable[[], Tensor],
    engine: str,
) -> EndedFit:
    """The end of fits that start at `initial` `(B, R, D)`: by the method that is asked for, or by Adam's steps.

    `centre` gives the parameters where Adam's replicas start on average, `(B, 1, D)`.
    """
    method = method_of(family, strategy.objective.name)
    if method is None:
        return ended_fit(fit_program(program, strategy, initial, centre(), engine))
    with stage(method.stage):
        return method.fit(program, strategy, initial)


def _named(family: Family | GivenGuide | str, target: Target, num_steps: int) -> tuple[str, Family]:
    """The name of a family, and the family."""
    found = family_of(target, family, as_it_is=num_steps == 0)
    return family if isinstance(family, str) else name_of(found), found


@contextmanager
def _known_errors_explained(name: str) -> Iterator[None]:
    """Raises some of torch's errors again, with a message that says what is wrong with the model of this name."""
    try:
        yield
    except RuntimeError as error:
        if indexes_by_mask(error):
            raise UnsuitableModelError(
                f"{name}: the model or guide indexes by a mask of drawn values, which can't be done for many "
                "draws at once: choose by torch.where"
            ) from error
        if BATCH_NORM in str(error):
            raise UnsuitableModelError(
                f"{name}: a batch normalisation is in training mode, in which each draw would change its running "
                "means: call net.eval() beforehand"
            ) from error
        if not draws_outside_sites(error):
            raise
        raise UnsuitableModelError(
            f"{name}: the model or guide draws random numbers that are neither latent nor a plate's subsample, so that "
            "its density is random: a network with dropout wants net.eval(), and one that is made in each run is made "
            "once, outside"
        ) from error


def _result(
    ended: EndedFit,
    strategy: Strategy,
    family_name: str,
    family: Family,
    programs: tuple[Program, Program],
    parameters: dict[str, Tensor],
    support_mismatch: str,
    began: float,
) -> Fit:
    fitted, scored = programs
    history, trajectory, initial = ended.history, ended.trajectory, {}
    if scored.layout == fitted.layout and len(trajectory):
        initial = fitted.layout.unflatten(trajectory[0])
    else:  # where another guide is scored than was fitted, its parameters have taken no steps
        trajectory = torch.empty(0, dtype=fitted.target.dtype)
        history = history | {"steps": np.empty(0, dtype=np.int64)}
    return Fit(
        target=fitted.target,
        family_name=family_name,
        family=family,
        objective=(strategy if history["engine"] else ELBO_STRATEGY).objective.name,
        seed=strategy.seed,
        seconds=time.perf_counter() - began,
        num_particles=strategy.num_particles,
        lr=strategy.lr,
        parameters=parameters,
        scope=dict.fromkeys(parameters, "per_problem"),
        initial=initial,
        trajectory=trajectory,
        **history,
        support_mismatch=support_mismatch,
        versions=versions(),
        program=scored,
    )


def _check_modes(modes: tuple[Modes, ...], target: Target) -> None:
    """Refuses modes of another target.

    Raises:
        ValueError: there are modes of another number of problems, or in another number of dimensions.
    """
    if modes and [one.peak.shape[1] for one in modes] != [target.dim] * target.num_problems:
        raise ValueError(
            f"modes must be those of a truth of the target, for each of its {target.num_problems} problems in "
            f"{target.dim} dimensions; got {len(modes)} in {modes[0].peak.shape[1]}"
        )
