"""q(z | x) = sum_k w_k Normal(loc_k, L_k L_k'), K = 4; local parameters: the logits of w, then K times `Full`'s."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.special import ndtr

from ppl_vi.guides.amortized.full import Full
from ppl_vi.guides.amortized.head import Head

NUM_COMPONENTS = 4  # K; more components bring the best member nearer, and give its search more local optima
# Standard deviations between the initial locs and their middle: the components start apart, yet their mixture has a
# single mode.
START_DISTANCE = 0.8


class GaussianMixture(TorchDistribution):
    """A mixture of Gaussians with any covariances whose draws have a path for gradients.

    A component is chosen and drawn from; the draw is then differentiated implicitly in all parameters, the weights
    included. One coordinate after another keeps its conditional cdf,

        F(z_d | z_<d) = sum_k w_k(z_<d) Phi(e_kd),   e_k = L_k^-1 (z - loc_k),   w_k(z_<d) ~ w_k Normal(z_<d; k),

    so that dz_d = -dF(z_d | z_<d) / q(z_d | z_<d), where the change of F includes that of z_<d. Second derivatives are
    not those of any path.

    Source: Figurnov, Mohamed and Mnih (2018), Implicit reparameterization gradients.

    Args:
        logits: unnormalised log weights, `(..., K)`.
        locs: `(..., K, D)`.
        scale_trils: lower Cholesky factors of the covariances, `(..., K, D, D)`.
    """

    has_rsample = True
    arg_constraints = {
        "logits": constraints.real_vector,
        "locs": constraints.independent(constraints.real, 2),
        "scale_trils": constraints.independent(constraints.lower_cholesky, 1),
    }
    support = constraints.real_vector

    def __init__(self, logits: Tensor, locs: Tensor, scale_trils: Tensor, validate_args: bool | None = None) -> None:
        self.logits, self.locs, self.scale_trils = logits, locs, scale_trils
        super().__init__(logits.shape[:-1], locs.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: GaussianMixture | None = None) -> GaussianMixture:
        """The same mixture for every index of `batch_shape`."""
        batch_shape = torch.Size(batch_shape)
        return GaussianMixture(
            self.logits.expand(batch_shape + self.logits.shape[-1:]),
            self.locs.expand(batch_shape + self.locs.shape[-2:]),
            self.scale_trils.expand(batch_shape + self.scale_trils.shape[-3:]),
            validate_args=False,
        )

    @property
    def mean(self) -> Tensor:
        """`(..., D)`."""
        return (self.logits.softmax(-1)[..., None] * self.locs).sum(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, nats: `(..., D)` to `(...)`."""
        if self._validate_args:
            self._validate_sample(value)
        weights = self.logits.log_softmax(-1)
        whitened: list[Tensor] = []
        for i, z in enumerate(value.unbind(-1)):
            whitened.append(self._whiten(i, z, whitened))
            weights = weights + self._log_density(i, whitened[i])
        return weights.logsumexp(-1)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draws of shape `sample_shape + batch_shape + (D,)`."""
        fixed = self.sample(sample_shape)
        log_weights = self.logits.log_softmax(-1)
        path: list[Tensor] = []
        whitened: list[Tensor] = []
        for i, z in enumerate(fixed.unbind(-1)):
            at_fixed = self._whiten(i, z, whitened)
            joint = log_weights + self._log_density(i, at_fixed)
            conditional = log_weights.softmax(-1)
            # above the middle the survival function, of the same derivative, loses fewer digits
            below = (conditional * ndtr(at_fixed)).sum(-1)
            above = (conditional * ndtr(-at_fixed)).sum(-1)
            cdf = torch.where(below < above, below, -above)
            density = (joint.logsumexp(-1) - log_weights.logsumexp(-1)).exp().detach()
            path.append(z - (cdf - cdf.detach()) / density)
            # what follows is conditional on a coordinate that moves
            whitened.append(self._whiten(i, path[i], whitened))
            log_weights = log_weights + self._log_density(i, whitened[i])
        return torch.stack(path, -1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """The same draws without their path."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            weights = self.logits.softmax(-1)
            uniform = torch.rand(shape[:-1], dtype=weights.dtype, device=weights.device)
            last = weights.shape[-1] - 1
            chosen = (uniform[..., None] > weights.cumsum(-1)).sum(-1).clamp(max=last)
            one = (chosen[..., None] == torch.arange(last + 1, device=weights.device)).to(weights.dtype)
            noise = torch.randn(shape, dtype=weights.dtype, device=weights.device)
            loc = (one[..., None] * self.locs).sum(-2)
            scale_tril = (one[..., None, None] * self.scale_trils).sum(-3)
            return loc + (scale_tril @ noise[..., None])[..., 0]

    def _whiten(self, i: int, z: Tensor, before: list[Tensor]) -> Tensor:
        """Coordinate i of `L_k^-1 (z - loc_k)`, `(..., K)`, given those before it: forward substitution."""
        rest = z[..., None] - self.locs[..., i]
        for j, value in enumerate(before):
            rest = rest - self.scale_trils[..., i, j] * value
        return rest / self.scale_trils[..., i, i]

    def _log_density(self, i: int, whitened: Tensor) -> Tensor:
        """log density of z's coordinate i in each component, given the coordinates before it."""
        return -whitened.square() / 2 - math.log(2 * math.pi) / 2 - self.scale_trils[..., i, i].log()


class Mixture(Head):
    """Four Gaussians with any covariances: multimodal, skewed or bent posteriors."""

    summary = f"mixture of {NUM_COMPONENTS} Gaussians with full covariance"
    num_components = NUM_COMPONENTS

    def __init__(self, num_latents: int) -> None:
        component = Full(num_latents)
        super().__init__(num_latents, NUM_COMPONENTS * (1 + component.num_outputs))
        self.component = component

    def forward(self, local: Tensor) -> GaussianMixture:
        """Local parameters `(..., K (1 + D + D (D + 1) / 2))`."""
        return GaussianMixture(*self.split(local))

    def split(self, local: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `(..., K)`, locs `(..., K, D)` and Cholesky factors `(..., K, D, D)`."""
        logits, rest = local[..., :NUM_COMPONENTS], local[..., NUM_COMPONENTS:]
        return logits, *self.component.split(rest.reshape(*rest.shape[:-1], NUM_COMPONENTS, -1))

    def components(self, local: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All of them."""
        logits, locs, scale_trils = self.split(local)
        return logits.log_softmax(-1), locs, scale_trils

    def holding(self, log_weights: Tensor, locs: Tensor, scale_trils: Tensor) -> Tensor:
        """Any."""
        return torch.cat([log_weights, self.component.packed(locs, scale_trils).flatten(-2)], -1)

    def initial(self, loc: Tensor, precision: Tensor) -> Tensor:
        """Equal weights, locs in pairs to both sides of the middle, an axis a pair; mean and covariance as asked."""
        scale_tril = torch.linalg.cholesky(torch.linalg.inv(precision))
        offsets = self._offsets().to(loc)
        # what the locs' spread adds to the covariance, each component gives up
        narrowed = scale_tril * (1 - offsets.square().mean(0)).sqrt()
        locs = loc[..., None, :] + offsets @ scale_tril.mT
        each = torch.cholesky_inverse(narrowed)[..., None, :, :].expand(*locs.shape, -1)
        logits = torch.zeros_like(locs[..., 0])
        return torch.cat([logits, self.component.initial(locs, each).flatten(-2)], -1)

    def _offsets(self) -> Tensor:
        """Where the locs start, in standard deviations, `(K, D)`: no two alike, their mean 0, axes uncorrelated."""
        offsets = torch.zeros(NUM_COMPONENTS, self.num_latents)
        for k in range(NUM_COMPONENTS):
            turn, axis = divmod(k // 2, self.num_latents)
            offsets[k, axis] = (-1) ** k * START_DISTANCE / (1 + turn)
        return offsets
