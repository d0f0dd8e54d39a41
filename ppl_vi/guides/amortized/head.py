"""What turns an encoder's outputs into a guide's distribution."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Head(nn.Module):
    """From `num_outputs` unconstrained numbers a data point to a distribution over `num_latents` real latents.

    The numbers are the *local* parameters: the encoder predicts them, and the family's best member for one data point
    is sought over them freely. Parameters of the head itself, if there are any, are shared by all data points.

    Attributes:
        summary: one line for a list.
        num_latents: `D`.
        num_outputs: numbers a data point.
        num_components: of a mixture that `holding` can be asked for.
    """

    summary: str = ""
    num_components: int = 1

    def __init__(self, num_latents: int, num_outputs: int) -> None:
        super().__init__()
        self.num_latents = num_latents
        self.num_outputs = num_outputs

    def forward(self, local: Tensor) -> Any:
        """Local parameters `(..., num_outputs)` to a distribution of batch shape `(...)` and event shape `(D,)`."""
        raise NotImplementedError(f"{type(self).__name__} makes no distribution of its local parameters")

    def draw(self, local: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """`num` draws of each distribution and their log densities: `(..., num, D)` and `(..., num)`, nats.

        All that bounds on log p(x) ask of a family; the random state is torch's own.
        """
        law = self(local)
        z = law.sample((num,))  # a flow has just seen it, so its density takes no inversion
        return z.movedim(0, -2), law.log_prob(z).movedim(0, -1)

    @property
    def is_mixture(self) -> bool:
        """Whether it has `components`: then its ELBO and its best member are computed by quadrature."""
        return type(self).components is not Head.components

    def components(self, local: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The distribution as a mixture of Gaussians: log weights `(..., K)`, locs `(..., K, D)` and Cholesky
        factors of the covariances `(..., K, D, D)`.

        The best member for one data point is sought over these by quadrature; a family that is no such mixture raises
        `NotImplementedError`, and has no family gap.
        """
        raise NotImplementedError(f"{type(self).__name__} is no mixture of Gaussians: its best member is not computed")

    def holding(self, log_weights: Tensor, locs: Tensor, scale_trils: Tensor) -> Tensor:
        """Local parameters of the mixture with these components: `components` the other way round.

        Shapes `(..., K)`, `(..., K, D)` and `(..., K, D, D)` to `(..., num_outputs)`; K is `num_components`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not tell the parameters of given components")

    def initial(self, loc: Tensor, precision: Tensor) -> Tensor:
        """Local parameters near Normal(loc, precision^-1), where the search for the best member may start.

        `(..., D)` and `(..., D, D)` to `(..., num_outputs)`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say where the search for its best member may start")
