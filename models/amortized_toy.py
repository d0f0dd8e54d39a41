"""The toy model with an encoder: one network that maps each x to the parameters of a guide for z.

The model is that of `models.exponential_normal`. The guide may be of any family that can be fitted to it: one of this
package, one of Pyro's autoguides, or a family of the user's. `ppl_vi.svi.program.Program` makes the guide a pure
function of one vector of unconstrained parameters, and the encoder gives that vector for each x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.func import vmap

from models.vae import perceptron
from ppl_vi.guides import Family
from ppl_vi.svi.finishing import finished
from ppl_vi.svi.program import Program
from ppl_vi.svi.randomness import pseudo_random
from ppl_vi.svi.start import build_guide
from ppl_vi.svi.support import mismatch
from ppl_vi.target.target import Target

INPUT_SCALE = 3.0  # The encoder sees x divided by this, so that observations from -3 to 6 lie within -1 to 2.

Law = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class AmortizedToy(PyroModule):
    """Model and guide of a batch of observations, for `ppl_vi.svi.minibatch.train`.

    Args:
        target: a target of one problem; the guides of all x start from its mode and curvature.
        family: the family of the guide.
        hidden: widths of the encoder's layers.

    Raises:
        ValueError: the family's members can't be amortized: they have no density, or one with mass where the model has
            none, or their draws have no path for gradients.
    """

    def __init__(self, target: Target, family: Family, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        guide = finished(build_guide(family, target), target, 0)
        program = Program(target, guide)
        complaint = mismatch(target, guide) or program.unsupported_density() or program.missing_path()
        if complaint:
            raise ValueError(complaint)
        self._law = _law(program)
        self.register_buffer("start", program.initial.clone())
        self.encoder = perceptron([1, *hidden, program.layout.size])

    def theta(self, x: Tensor) -> Tensor:
        """The guide's parameters as one vector: `(B,)` to `(B, P)`."""
        return self.start + self.encoder(x[:, None] / INPUT_SCALE)

    def model(self, x: Tensor, num_data: int | None = None, alpha: float = 1.0) -> None:
        """A mini-batch of observations `(M,)` out of `num_data`; the prior counts `alpha` times."""
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)):
            with poutine.scale(scale=alpha):
                z = pyro.sample("z", dist.Exponential(torch.ones_like(x)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor, num_data: int | None = None, alpha: float = 1.0) -> None:
        """q(z | x): a draw that carries its log density, along which gradients flow."""
        pyro.module("encoder", self.encoder)
        with poutine.block():  # the sites inside of `_law` are not sites of this guide
            z, log_guide = self._law(self.theta(x), x)
        with pyro.plate("data", num_data or len(x), subsample_size=len(x)), poutine.scale(scale=alpha):
            pyro.sample("z", dist.Delta(z, log_density=log_guide))


def _law(program: Program) -> Law:
    """The function from members theta `(M, P)` and observations `(M,)` to draws z and their log q, `(M,)` each.

    It is a function because training copies the module that holds it: the copies then share the function, and the
    program is not copied.
    """
    name = program.target.latents[0].name

    def law(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        noise = pseudo_random(program.latent_draws, (len(x),), torch.default_generator)
        latents, log_guide = vmap(lambda one, row, drawn: program.drawn(one, (row,), drawn))(theta, x, noise)
        return latents[name], log_guide

    return law
