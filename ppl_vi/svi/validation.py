"""Checks how fits are to be made, before anything is computed."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, Literal

from ppl_vi.runtime.names import MAX_LR, check_engine
from ppl_vi.svi.engines.pyro import pyro_elbo
from ppl_vi.svi.objectives import Objective
from ppl_vi.svi.optimisers import METHODS
from ppl_vi.svi.setup import Strategy, auto_particles, group_size


def validate(strategy: Strategy, engine: str, num_replicas: int) -> None:
    """Checks how fits are to be made, before anything is computed.

    Raises:
        TypeError: a number is none.
        ValueError: a value is out of range, or the engine or the objective does not allow another.
    """
    check_engine(engine)
    particles = 1 if strategy.num_particles == "auto" else strategy.num_particles
    check_count("num_steps", strategy.num_steps, least=0)
    check_count("num_particles", particles, "a whole number or 'auto'")
    check_count("num_replicas", num_replicas)
    check_count("seed", strategy.seed, least=-(2**63))
    for what, number in (("lr", strategy.lr), ("tolerance", strategy.tolerance)):
        if not isinstance(number, Real):
            raise TypeError(f"{what} must be a number, got {number!r:.40}")
        if not number > 0 or number == float("inf"):
            raise ValueError(f"{what} must be positive and finite, got {number}")
    if strategy.lr > MAX_LR:
        raise ValueError(
            f"lr must be at most {MAX_LR:g}, a step of so many widths of the curvature, got {strategy.lr:g}"
        )
    check_objective(strategy.objective, engine, strategy.num_particles)


def check_count(what: str, value: Any, wanted: str = "a whole number", least: int = 1) -> None:
    """Checks a whole number.

    Raises:
        TypeError: it is none.
        ValueError: it is too small.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{what} must be {wanted}, got {value!r:.40}")
    if int(value) < least:
        raise ValueError(f"{what} must be at least {least}, got {value}")


def check_objective(objective: Objective, engine: str, num_particles: int | Literal["auto"]) -> None:
    """Checks whether an objective goes with an engine and a number of particles, before anything is computed.

    Raises:
        ValueError: it does not.
    """
    if objective.name in METHODS and engine != "auto":
        raise ValueError(f"engine must be 'auto' with the objective '{objective.name}', which has its own steps")
    if num_particles == "auto":
        num_particles = auto_particles(objective, engine)
    if num_particles % group_size(objective):
        raise ValueError(
            f"num_particles must be a multiple of K = {group_size(objective)} for iwae, got {num_particles}"
        )
    if engine == "pyro":
        pyro_elbo(objective, num_particles)
