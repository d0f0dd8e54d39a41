"""What `benchmarks.speed` measures: problems, their guides, one start and one learning rule for every engine.

Every guide starts at 0 in unconstrained space with standard deviation 0.1, and every engine takes Adam's steps with the
constants of `ppl_vi.svi.engines.adam` and the step sizes of `rates`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import autoguide
from pyro.infer.autoguide.initialization import init_to_uniform

from models import eight_schools, exponential_normal, gaussian, logistic_regression
from ppl_vi.guides import Family
from ppl_vi.guides.gamma import gamma
from ppl_vi.guides.lognormal import lognormal
from ppl_vi.guides.mean_field import Form
from ppl_vi.guides.truncated_normal import truncated_normal
from ppl_vi.target.target import Target

OBSERVATION = 1.5  # the toy's x
START_SCALE = 0.1  # the initial standard deviation of every guide in unconstrained space
FORMS: dict[str, Form] = {"lognormal": lognormal, "gamma": gamma, "truncated_normal": truncated_normal}  # its guides
RATE, SLOWING = 0.1, 20.0  # Adam's step size, and after how many steps it has fallen to 1 / sqrt(2) of it


def rates(first: int, num_steps: int) -> np.ndarray:
    """Adam's step sizes `RATE / sqrt(1 + t / SLOWING)` of steps t = `first` (from 0) on, `(num_steps,)`.

    They fall slowly enough to get anywhere and fast enough for the noise to die out, whatever the number of steps.
    """
    return RATE / np.sqrt(1 + np.arange(first, first + num_steps) / SLOWING)


@dataclass(frozen=True)
class Problem:
    """A target and the guides to fit to it.

    Attributes:
        target: from its size and dtype; size counts points or dimensions, and is nothing to those of one size.
        size: by default.
        guides: families by name.
        replicas: numbers of independent fits that are measured.
    """

    target: Callable[[int, torch.dtype], Target]
    size: int
    guides: dict[str, Family]
    replicas: tuple[int, ...] = (1, 1000, 10_000)


def function_guide(form: Form) -> Family:
    """A family of the toy's guides as a user would write one: a function with `pyro.param` and `pyro.sample`."""

    def family(model: Callable[..., Any]) -> Callable[..., Any]:
        def guide(*args: torch.Tensor) -> None:
            values = {
                name: pyro.param(name, value.clone(), constraint=form.constraints[name])
                for name, value in initial(form, torch.get_default_dtype()).items()
            }
            pyro.sample("z", form.distribution(**values))

        return guide

    return family


def initial(form: Form, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The start of a guide of the toy, by parameter."""
    return form.initial(torch.zeros((), dtype=dtype), torch.full((), START_SCALE, dtype=dtype))


def _auto(*names: str) -> dict[str, Family]:
    start: dict[str, Any] = {"init_loc_fn": init_to_uniform(radius=0.0), "init_scale": START_SCALE}
    return {name: partial(getattr(autoguide, name), **start) for name in names}


PROBLEMS: dict[str, Problem] = {
    "toy": Problem(
        target=lambda size, dtype: exponential_normal.target([OBSERVATION], dtype),
        size=1,
        guides={name: function_guide(form) for name, form in FORMS.items()},
        replicas=(1, 1000, 10_000, 100_000),
    ),
    "eight_schools": Problem(
        target=lambda size, dtype: eight_schools.target(dtype=dtype),
        size=8,
        guides=_auto("AutoNormal", "AutoMultivariateNormal"),
    ),
    "logistic_regression": Problem(
        target=lambda size, dtype: logistic_regression.target(size, dtype=dtype),
        size=20,
        guides=_auto("AutoNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal")
        | {"AutoIAFNormal": autoguide.AutoIAFNormal},
    ),
    "gaussian": Problem(
        target=lambda size, dtype: gaussian.target(size, dtype=dtype), size=10, guides=_auto("AutoNormal")
    ),
}
