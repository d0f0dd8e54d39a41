"""The gap of an encoder's guide, split in two: the gap of the family's best member, and what the encoder adds.

    log p(x) - ELBO(encoder)  =  [log p(x) - ELBO(best member)]  +  [ELBO(best member) - ELBO(encoder)]
                total gap     =       approximation gap          +          amortization gap

Source: Cremer, Li and Duvenaud (2018), Inference suboptimality in variational autoencoders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_vi.guides.amortized import Head
from ppl_vi.metrics.decoder.best_members import BestMembers, best_members, embed
from ppl_vi.metrics.decoder.divergences import divergences
from ppl_vi.metrics.decoder.lattice_values import CachedLattice, lattice_elbo
from ppl_vi.numerics.mixtures import GaussianMixtures
from ppl_vi.numerics.weights import check_draws, log_mean_weights
from ppl_vi.target.decoder import log_prior
from ppl_vi.target.evaluation import log_likelihood_at
from ppl_vi.target.target import Target
from ppl_vi.truth import Truth

# A latent is in use where the variance over the data of its mean under q is larger than this (Burda et al. 2016).
MIN_ACTIVITY = 0.01
# Level of the rule for a mixture's divergence from the prior, which is reported without an error.
PRIOR_KL_LEVEL = 4
# The most draws that are decoded at once, which bounds memory.
NUM_DRAWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class AmortizedScorecard:
    """The gap of an amortized guide at each of `B` data points, nats per data point, and what it is made of.

    Attributes:
        log_evidence: log p(x), `(B,)`.
        log_evidence_error: a bound on its numerical error.
        trusted: whether the truth passed every check; points that did not should not enter averages.
        elbo: of the encoder's guide.
        elbo_error: the quadrature's error of `elbo`.
        best_elbo: of the family's best member.
        best_elbo_error: the quadrature's error of `best_elbo`.
        converged: whether the search for the best member ended in an optimum.
        best: the best member's local parameters, `(B, num_outputs)`.
        reverse_kl: KL(q || p) by another rule than the ELBO's, as a check on `total`, which it equals.
        forward_kl: KL(p || q).
        total_variation: half the integral of |p - q|, between 0 and 1.
        reverse_kl_error: the numerical error of `reverse_kl`.
        forward_kl_error: that of `forward_kl`.
        total_variation_error: that of `total_variation`.
        num_particles: K of the importance-weighted bound.
        iwae: E[log mean of K weights], by Monte Carlo.
        iwae_std_error: its standard error.
        prior_kl: KL(q || Normal(0, I)).
        prior_kl_by_latent: of each latent's marginal, `(B, D)`.
        activity: variance over the data of each latent's mean under q, `(D,)`.
        best_elbo_by_family: ELBO of the best members of other families for the same problems, `(B,)` each.
        converged_by_family: whether the search for each ended in an optimum, `(B,)`.
    """

    log_evidence: np.ndarray
    log_evidence_error: np.ndarray
    trusted: np.ndarray
    elbo: np.ndarray
    elbo_error: np.ndarray
    best_elbo: np.ndarray
    best_elbo_error: np.ndarray
    converged: np.ndarray
    best: np.ndarray
    reverse_kl: np.ndarray
    forward_kl: np.ndarray
    total_variation: np.ndarray
    reverse_kl_error: np.ndarray
    forward_kl_error: np.ndarray
    total_variation_error: np.ndarray
    num_particles: int
    iwae: np.ndarray
    iwae_std_error: np.ndarray
    prior_kl: np.ndarray
    prior_kl_by_latent: np.ndarray
    activity: np.ndarray
    best_elbo_by_family: dict[str, np.ndarray]
    converged_by_family: dict[str, np.ndarray]

    @property
    def approximation_by_family(self) -> dict[str, np.ndarray]:
        """log p(x) - ELBO of other families' best members, `(B,)` each, nats: the same decoder under each family."""
        return {name: self.log_evidence - value for name, value in self.best_elbo_by_family.items()}

    @property
    def total(self) -> np.ndarray:
        """log p(x) - ELBO, `(B,)`, nats."""
        return self.log_evidence - self.elbo

    @property
    def total_error(self) -> np.ndarray:
        """The numerical error of `total`, `(B,)`, nats."""
        return self.log_evidence_error + self.elbo_error

    @property
    def approximation(self) -> np.ndarray:
        """log p(x) - ELBO of the best member, `(B,)`, nats."""
        return self.log_evidence - self.best_elbo

    @property
    def approximation_error(self) -> np.ndarray:
        """The numerical error of `approximation`, `(B,)`, nats."""
        return self.log_evidence_error + self.best_elbo_error

    @property
    def amortization(self) -> np.ndarray:
        """ELBO of the best member - ELBO, `(B,)`, nats."""
        return self.best_elbo - self.elbo

    @property
    def amortization_error(self) -> np.ndarray:
        """The numerical error of `amortization`, `(B,)`, nats."""
        return self.best_elbo_error + self.elbo_error

    @property
    def iwae_bias(self) -> np.ndarray:
        """log p(x) - IWAE-K, `(B,)`, nats, with the standard error `iwae_std_error`."""
        return self.log_evidence - self.iwae

    @property
    def num_active(self) -> int:
        """How many latents the encoder uses: a tiny gap may mean that there is none.

        Source: Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, appendix C.
        """
        return int((self.activity > MIN_ACTIVITY).sum())


def amortized_gaps(
    target: Target,
    truth: Truth,
    head: Head,
    local: Tensor,
    *,
    others: Mapping[str, Head] | None = None,
    num_particles: int = 50,
    num_repeats: int = 20,
    seed: int = 0,
) -> AmortizedScorecard:
    """Measures an amortized guide at every data point of a target.

    Args:
        target: `B` problems with one decoder.
        truth: their log evidence.
        head: the guide's family.
        local: the encoder's outputs, `(B, num_outputs)`.
        others: further families by name, whose best members are searched for, too.
        num_particles: K of the importance-weighted bound.
        num_repeats: independent estimates of it.
        seed: of its draws.

    Raises:
        ValueError: the target has no decoder or too many latents for quadrature, or a number of rows is wrong.
    """
    if not len(local) == len(truth.log_evidence) == target.num_problems:
        rows = f"{len(local)} rows of local parameters and {len(truth.log_evidence)} log evidences"
        raise ValueError(f"the target has {target.num_problems} problems, got {rows}")
    local = local.detach().to(target.dtype)
    lattice = CachedLattice(target)
    encoder = lattice_elbo(lattice, head, local, torch.arange(len(local), device=local.device))
    families = _best_of_each(lattice, {"": head, **(others or {})}, head, local)
    best = families.pop("")
    evidence = torch.as_tensor(truth.log_evidence, dtype=target.dtype, device=target.device)
    distances = divergences(target, evidence, head, local)
    bound, std_error = iwae(target, head, local, num_particles, num_repeats, seed)
    with torch.no_grad():
        mixture = GaussianMixtures(*head.components(local))
        prior_kl, by_latent, mean = mixture.prior_kl(PRIOR_KL_LEVEL), prior_kl_by_latent(mixture), mixture.mean()
    return AmortizedScorecard(
        log_evidence=truth.log_evidence,
        log_evidence_error=truth.log_evidence_error,
        trusted=truth.trusted,
        elbo=_numpy(encoder.value),
        elbo_error=_numpy(encoder.error),
        best_elbo=_numpy(best.elbo),
        best_elbo_error=_numpy(best.elbo_error),
        converged=_numpy(best.converged),
        best=_numpy(best.local),
        reverse_kl=_numpy(distances.reverse_kl),
        forward_kl=_numpy(distances.forward_kl),
        total_variation=_numpy(distances.total_variation),
        reverse_kl_error=_numpy(distances.error(distances.reverse_kl)),
        forward_kl_error=_numpy(distances.error(distances.forward_kl)),
        total_variation_error=_numpy(distances.total_variation_error),
        num_particles=num_particles,
        iwae=_numpy(bound),
        iwae_std_error=_numpy(std_error),
        prior_kl=_numpy(prior_kl),
        prior_kl_by_latent=_numpy(by_latent),
        activity=_numpy(mean.var(0, correction=0)),
        best_elbo_by_family={name: _numpy(found.elbo) for name, found in families.items()},
        converged_by_family={name: _numpy(found.converged) for name, found in families.items()},
    )


def _best_of_each(
    lattice: CachedLattice, families: Mapping[str, Head], own: Head, local: Tensor
) -> dict[str, BestMembers]:
    """The best members of several families, each searched from those of the families of fewer parameters, too.

    So a family that holds another has no worse best members. `local` are the parameters of the encoder in its `own`
    family.
    """
    found: dict[str, BestMembers] = {}
    for name in sorted(families, key=lambda name: families[name].num_outputs):
        head = families[name]
        given = local if head is own else embed(head, own, local)
        starts = [embed(head, families[poorer], members.local) for poorer, members in found.items()]
        more = torch.stack(starts, 1) if starts else None
        found[name] = best_members(lattice.target, head, given, starts=more, lattice=lattice)
    return {name: found[name] for name in families}


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


@torch.no_grad()
def iwae(
    target: Target, head: Head, local: Tensor, num_particles: int, num_repeats: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The importance-weighted bound E[log (1/K) sum_k p(x, z_k) / q(z_k)], nats.

    Args:
        target: with a decoder.
        head: the guide's family.
        local: its parameters, `(B, num_outputs)`.
        num_particles: K.
        num_repeats: independent estimates, at least 2.
        seed: of the draws.

    Returns:
        Their mean `(B,)` and its standard error `(B,)`.

    Source: Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders.
    """
    check_draws(num_particles, num_repeats)
    mixture, num = GaussianMixtures(*head.components(local)), num_particles * num_repeats
    generator = torch.Generator(local.device).manual_seed(seed)
    size, bounds = max(1, NUM_DRAWS_AT_ONCE // num), []
    for problem in torch.arange(len(local), device=local.device).split(size):
        part = mixture.rows(problem)
        z = _draw(part, num, generator)
        log_weight = log_likelihood_at(target, z, problem) + log_prior(z) - part.log_prob(z)
        bounds.append(log_mean_weights(log_weight, num_particles))
    bound = torch.cat(bounds)
    return bound.mean(-1), bound.std(-1) / math.sqrt(num_repeats)


def _draw(mixture: GaussianMixtures, num: int, generator: torch.Generator) -> Tensor:
    """Draws from mixtures, `(N, num, D)`."""
    locs = mixture.locs
    which = torch.multinomial(mixture.log_weights.exp(), num, replacement=True, generator=generator)
    noise = torch.randn(len(locs), num, locs.shape[-1], generator=generator, dtype=locs.dtype, device=locs.device)
    rows = torch.arange(len(locs), device=locs.device)[:, None]
    return locs[rows, which] + (mixture.trils[rows, which] @ noise[..., None])[..., 0]


def prior_kl_by_latent(mixture: GaussianMixtures) -> Tensor:
    """KL(q(z_d) || Normal(0, 1)) of each latent's marginal, `(B, D)`, nats.

    For one Gaussian it is (s^2 + m^2 - 1 - log s^2) / 2.
    """
    scales = mixture.trils.square().sum(-1).sqrt()
    marginals = [
        GaussianMixtures(mixture.log_weights, mixture.locs[..., d : d + 1], scales[..., d : d + 1, None])
        for d in range(scales.shape[-1])
    ]
    return torch.stack([marginal.prior_kl(PRIOR_KL_LEVEL) for marginal in marginals], -1)
