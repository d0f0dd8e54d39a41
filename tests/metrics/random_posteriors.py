"""Random posteriors of one to four modes over one or two numbers, and the best Gaussian of each by brute force.

    python -m tests.metrics.random_posteriors

measures the family gap of AutoNormal and AutoMultivariateNormal for all of them, and says how many are within 1e-3 nats
of the best of 200 independent starts, and how many are marked as upper bounds.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import optimize
from torch import Tensor

import ppl_vi

NUM_POSTERIORS, NUM_STARTS = 200, 200
PRIOR_SD, TOLERANCE = 6.0, 1e-3
FAMILIES = ("AutoNormal", "AutoMultivariateNormal")
NUM_ADAM_STEPS = 250  # which bring the starts near their optima; the lowest are then polished by L-BFGS
NUM_POLISHED = 3


@dataclass(frozen=True)
class Mixture:
    """A likelihood that is a mixture of Gaussians: shares `(K,)`, means `(K, D)` and factors `(K, D, D)`."""

    share: Tensor
    loc: Tensor
    factor: Tensor

    @property
    def dim(self) -> int:
        return self.loc.shape[1]

    def log_prob(self, z: Tensor) -> Tensor:
        """At points `(..., D)`."""
        inverse = torch.linalg.inv(self.factor)
        white = (z @ inverse.mT.movedim(0, 1).flatten(1)).unflatten(-1, (len(self.share), -1))
        white = white - (inverse @ self.loc[..., None])[..., 0]
        log_det = torch.diagonal(self.factor, dim1=-2, dim2=-1).log().sum(-1)
        parts = self.share.log() - white.square().sum(-1) / 2 - log_det - self.dim / 2 * math.log(2 * math.pi)
        return parts.logsumexp(-1)

    def log_joint(self, z: Tensor) -> Tensor:
        """At points `(..., D)`, with the prior's density."""
        prior = -z.square().sum(-1) / (2 * PRIOR_SD**2) - self.dim * math.log(PRIOR_SD * math.sqrt(2 * math.pi))
        return self.log_prob(z) + prior

    def log_evidence(self) -> float:
        """In closed form: each component's mean is Gaussian with the prior's variance added to the component's."""
        covariance = self.factor @ self.factor.mT + PRIOR_SD**2 * torch.eye(self.dim, dtype=torch.float64)
        marginal = torch.distributions.MultivariateNormal(torch.zeros(self.dim, dtype=torch.float64), covariance)
        return float((self.share.log() + marginal.log_prob(self.loc)).logsumexp(0))


def random_mixture(seed: int) -> Mixture:
    """One or two dimensions and one to four components, all by the seed."""
    rng = np.random.default_rng([seed, 16])
    dim, num = 1 + seed % 2, 1 + (seed // 2) % 4
    share = rng.dirichlet(np.ones(num))
    factor = np.tril(rng.normal(0, 0.6, (num, dim, dim)), -1) + np.eye(dim)
    factor = factor * np.exp(rng.uniform(math.log(0.2), math.log(1.5), (num, dim, 1)))
    return Mixture(*(torch.from_numpy(part) for part in (share, rng.uniform(-5, 5, (num, dim)), factor)))


def posterior(mixture: Mixture) -> ppl_vi.Target:
    """The model whose likelihood is the mixture."""

    def model() -> None:
        zero = torch.zeros(mixture.dim, dtype=torch.float64)
        z = pyro.sample("z", dist.Normal(zero, PRIOR_SD).to_event(1))
        pyro.factor("x", mixture.log_prob(z))

    return ppl_vi.Target.of(model, (), name="random mixture")


def unpacked(theta: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Means and factors of Gaussians `(N, P)`: a mean, logarithms of the diagonal, and what stands below it."""
    loc, log_diagonal, below = theta[:, :dim], theta[:, dim : 2 * dim], theta[:, 2 * dim :]
    factor = torch.diag_embed(log_diagonal.exp())
    if below.shape[1]:
        row, column = torch.tril_indices(dim, dim, -1)
        factor = factor.index_put((torch.arange(len(theta))[:, None], row, column), below)
    return loc, factor


def divergence(mixture: Mixture, theta: Tensor, nodes: Tensor, weight: Tensor) -> Tensor:
    """KL(q || p) of Gaussians `(N, P)` by standard normal nodes and weights, `(N,)`."""
    loc, factor = unpacked(theta, mixture.dim)
    expected = mixture.log_joint(loc[:, None] + nodes @ factor.mT) @ weight
    entropy = torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1) + mixture.dim / 2 * (1 + math.log(2 * math.pi))
    return mixture.log_evidence() - expected - entropy


def hermite(num: int, dim: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights for expectations under a standard normal."""
    x, w = np.polynomial.hermite_e.hermegauss(num)
    axes = [torch.from_numpy(x)] * dim
    weight = torch.cartesian_prod(*[torch.from_numpy(w / w.sum())] * dim).reshape(-1, dim).prod(1)
    return torch.cartesian_prod(*axes).reshape(-1, dim), weight


def trapezoid(num: int, dim: int) -> tuple[Tensor, Tensor]:
    """A fine lattice, by which the answer is measured."""
    x = torch.linspace(-8.5, 8.5, num, dtype=torch.float64)
    points = torch.cartesian_prod(*[x] * dim).reshape(-1, dim)
    weight = (-points.square().sum(1) / 2).exp()
    return points, weight / weight.sum()


def best_by_brute_force(mixture: Mixture, diagonal: bool, seed: int, num_starts: int) -> float:
    """The lowest KL(q || p) of Gaussians that so many independent starts reach, nats."""
    generator, dim = torch.Generator().manual_seed(seed), mixture.dim
    below = 0 if diagonal else dim * (dim - 1) // 2
    start = torch.randn(num_starts, 2 * dim + below, generator=generator, dtype=torch.float64)
    start[:, :dim] *= 4
    start[:, dim : 2 * dim] = 0.7 * start[:, dim : 2 * dim] - 0.3
    nodes, weight = hermite(160 if dim == 1 else 14, dim)
    theta = start.clone().requires_grad_()
    adam = torch.optim.Adam([theta], lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, 0.985)
    for _ in range(NUM_ADAM_STEPS):
        adam.zero_grad()
        divergence(mixture, theta, nodes, weight).sum().backward()
        adam.step()
        schedule.step()
    fine = trapezoid(1201 if dim == 1 else 121, dim)
    # The few nodes of the descent are exploited where a component is narrow: the fine lattice puts the ends in order.
    value = torch.cat([divergence(mixture, few, *fine) for few in theta.detach().split(20)])
    return min(_polished(mixture, theta.detach()[k], fine) for k in value.topk(NUM_POLISHED, largest=False).indices)


def _polished(mixture: Mixture, start: Tensor, rule: tuple[Tensor, Tensor]) -> float:
    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.from_numpy(x)[None].requires_grad_()
        value = divergence(mixture, theta, *rule)[0]
        return float(value.detach()), torch.autograd.grad(value, theta)[0][0].numpy()

    return float(optimize.minimize(objective, start.numpy(), jac=True, method="L-BFGS-B", options={"ftol": 1e-13}).fun)


@dataclass(frozen=True)
class Measured:
    """A family gap beside the best of all starts, nats."""

    seed: int
    family: str
    num_modes: int
    gap: float
    error: float
    is_bound: bool
    best: float

    @property
    def is_right(self) -> bool:
        return abs(self.gap - self.best) <= TOLERANCE + self.error

    def __str__(self) -> str:
        mark = "<=" if self.is_bound else "  "
        verdict = "" if self.is_right else "  WRONG" if not self.is_bound else "  bound only"
        away = self.gap - self.best
        return f"{self.seed:4d} {self.family:24s} {self.num_modes} {mark}{self.gap:.6f} {away:+.1e}{verdict}"


def measured(seed: int, num_starts: int = NUM_STARTS) -> list[Measured]:
    """Both families for the posterior of a seed. Fits are short, since the family gap must not depend on them."""
    mixture = random_mixture(seed)
    target = posterior(mixture)
    truth = ppl_vi.ground_truth(target)
    found = []
    for family in FAMILIES:
        fitted = ppl_vi.fit(target, family, num_steps=40, num_particles=16, num_replicas=2, modes=truth.modes)
        card = ppl_vi.score(fitted, truth, num_draws=1000)
        gap = card.scores["family_gap"]
        best = best_by_brute_force(mixture, family == "AutoNormal", seed, num_starts)
        error = float(gap.error[0, 0] + 3 * gap.std_error[0, 0])
        is_bound = bool(card.best and card.best.bounds[0])
        found.append(Measured(seed, family, len(truth.modes[0]), float(gap.value[0, 0]), error, is_bound, best))
    return found


def main(first: int = 0, last: int = NUM_POSTERIORS) -> None:
    """Prints a line for each posterior and family, and the sums."""
    torch.set_num_threads(1)
    rows = []
    for seed in range(first, last):
        for row in measured(seed):
            rows.append(row)
            print(row, flush=True)
    bounds = sum(row.is_bound for row in rows)
    wrong = sum(not row.is_right and not row.is_bound for row in rows)
    print(f"{len(rows)} gaps: {sum(row.is_right for row in rows)} right, {bounds} marked as bounds, {wrong} wrong")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
