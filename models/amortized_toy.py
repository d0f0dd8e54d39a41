"""The toy model with an encoder: x -> the parameters of a guide for z, one network for all x.

The model is that of `models.exponential_normal`. The guide is any mean-field form of `ppl_vi.guides.POSITIVE`; its
parameters come out of the network in unconstrained space, each added to what the form would start from.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import transform_to

from models.vae import perceptron
from ppl_vi.guides.mean_field import Form

UNIT = 3.0  # of x, for the network's input


class AmortizedToy(PyroModule):
    """Model and guide of a batch of observations, for `ppl_vi.svi.amortized.train`.

    Args:
        form: the guide's family.
        hidden: widths of the encoder's layers.
    """

    def __init__(self, form: Form, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.form = form
        start = form.initial(torch.tensor(0.0), torch.tensor(0.5))
        self.shapes = {name: value.shape for name, value in start.items()}
        unconstrained = [transform_to(form.constraints[name]).inv(start[name]).reshape(-1) for name in self.shapes]
        self.register_buffer("start", torch.cat(unconstrained))
        self.encoder = perceptron([1, *hidden, len(self.start)])

    def unconstrained(self, x: Tensor) -> dict[str, Tensor]:
        """The guide's parameters in unconstrained space: `(B,)` to `(B, *shape)` each."""
        flat = self.start + self.encoder(x[:, None] / UNIT)
        parts = flat.split([shape.numel() for shape in self.shapes.values()], -1)
        return {
            name: part.reshape(len(x), *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def model(self, x: Tensor, num_data: int | None = None, alpha: float = 1.0) -> None:
        """Observations `(M,)` out of `num_data`."""
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
            with poutine.scale(scale=alpha):
                z = pyro.sample("z", dist.Exponential(torch.ones_like(x)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor, num_data: int | None = None, alpha: float = 1.0) -> None:
        """q(z | x)."""
        pyro.module("encoder", self.encoder)
        values = self.unconstrained(x)
        constrained = {name: transform_to(self.form.constraints[name])(value) for name, value in values.items()}
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)), poutine.scale(scale=alpha):
            pyro.sample("z", self.form.distribution(**constrained))
