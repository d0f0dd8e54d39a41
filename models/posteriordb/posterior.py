"""What a port of one of posteriordb's posteriors is: a Pyro model with its data, and how it stands to Stan's.

The latent sites are named as Stan's parameters, so that `by_name` finds posteriordb's names for them, unless a port
says otherwise. All densities are normalised: log p(x) has the constants that Stan's `~` drops. An improper prior is
kept as it is by `flat`, and `Posterior.constant` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from ppl_vi.target.sites import Latents
from ppl_vi.target.target import Target

Quantities = Callable[[Latents], dict[str, Tensor]]
Draws = Mapping[str, Tensor]
LEADING = 2  # axes in front of a site's own: problem and point


def by_name(latents: Latents) -> dict[str, Tensor]:
    """Numbers `(B, S)` by the names of posteriordb: a site `beta` `(B, S, 2)` gives `beta[1]` and `beta[2]`."""
    found = {}
    for name, value in latents.items():
        places = product(*(range(size) for size in value.shape[LEADING:]))
        numbers = value.reshape(*value.shape[:LEADING], -1).unbind(-1)
        for index, number in zip(places, numbers, strict=True):
            label = f"{name}[{','.join(str(i + 1) for i in index)}]" if index else name
            found[label] = number
    return found


def numbered(name: str, value: Tensor) -> dict[str, Tensor]:
    """`name[1]`, `name[2]`, ... of a vector `(B, S, n)`, each `(B, S)`."""
    return {f"{name}[{i + 1}]": value[..., i] for i in range(value.shape[-1])}


def stacked(*numbers: Tensor) -> Tensor:
    """Draws `(S,)` of several numbers as one vector `(1, S, n)`."""
    return torch.stack(numbers, -1)[None]


@dataclass(frozen=True, eq=False)
class Posterior:
    """A port of one of posteriordb's posteriors.

    Attributes:
        model: the Pyro model.
        args: its arguments.
        constant: what log p(x) is known up to, in words, such as "flat prior of beta"; "" where every prior is proper.
        note: how the model is written where that is not as in Stan's, and the constant between the two; "" where it is.
        quantities: latents `(B, S, *site.shape)` to the numbers of posteriordb by name, `(B, S)`.
        latents: its inverse, from draws `(S,)` by name to latents `(1, S, *site.shape)`; None where each site is named
            as in posteriordb.
        exact: computes log p(x), up to `constant`, in another way, nats; None where there is none.
        exact_by: how that is done.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    constant: str = ""
    note: str = ""
    quantities: Quantities = by_name
    latents: Callable[[Draws], Latents] | None = None
    exact: Callable[[], float] | None = None
    exact_by: str = "closed form"

    def target(self, name: str) -> Target:
        """The posterior as a `Target` of one problem, in double precision."""
        return Target.of(self.model, self.args, name=name)


def stated(name: str, where: Any, log_density: Callable[[Tensor], Tensor | float]) -> Tensor:
    """A latent of a prior that is stated by its log density alone, on the support of the distribution `where`.

    `where` is a rough guess at where the posterior is. Its density is divided out by `pyro.factor`, so that it decides
    nothing but where searches begin.
    """
    value = pyro.sample(name, where)
    pyro.factor(f"{name}_prior", log_density(value) - where.log_prob(value))
    return value


def flat(name: str, where: Any) -> Tensor:
    """A latent of density 1 on the support of the distribution `where`: an improper prior where that has no end.

    `where` is a rough guess at where the posterior is, as `stated` takes it. log p(x) is then log of the integral of
    the likelihood times 1.
    """
    return stated(name, where, lambda value: 0.0)


def tensors(data: Mapping[str, Any]) -> dict[str, Tensor]:
    """Data as tensors in double precision."""
    return {name: torch.as_tensor(np.asarray(value, dtype=np.float64)) for name, value in data.items()}
