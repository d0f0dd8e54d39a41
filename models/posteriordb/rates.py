"""Few numbers: rates, an unknown number of surveys, capture and recapture, sea cows, and the age of bones.

- Rate_1 to Rate_5, Survey: Lee and Wagenmakers (2013), Bayesian cognitive modeling, chapters 3 and 6.
- M0, Mb, Mt: sizes of a population from captures. Kéry and Schaub (2012), Bayesian population analysis using WinBUGS,
  chapter 6. Animals that were never seen are padded rows, which belong to the population with probability omega.
- dugongs, bones: Spiegelhalter, Thomas, Best and Gilks (1996), BUGS 0.5 examples, volume 2.

Rates are conjugate: with a Beta(1, 1) prior, the integral of the likelihood is a beta function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import integrate, special
from torch import Tensor

from models.posteriordb.posterior import Posterior, tensors


def one_rate(n: Tensor, k: Tensor) -> None:
    """All successes k `(m,)` of trials n `(m,)` with one probability."""
    theta = pyro.sample("theta", dist.Beta(1.0, 1.0))
    pyro.sample("k", dist.Binomial(n, theta).to_event(1), obs=k)


def two_rates(n: Tensor, k: Tensor) -> None:
    """Each with its own."""
    theta1 = pyro.sample("theta1", dist.Beta(1.0, 1.0))
    theta2 = pyro.sample("theta2", dist.Beta(1.0, 1.0))
    pyro.sample("k", dist.Binomial(n, torch.stack([theta1, theta2], -1)).to_event(1), obs=k)


def rate_and_prior(n: Tensor, k: Tensor) -> None:
    """A rate, and another of which nothing is seen."""
    pyro.sample("thetaprior", dist.Beta(1.0, 1.0))
    one_rate(n, k)


def rate_evidence(n: np.ndarray, k: np.ndarray) -> float:
    """log p(k) with one rate for all, nats."""
    choices = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return float(choices.sum() + special.betaln(1 + k.sum(), 1 + (n - k).sum()))


def two_rates_evidence(n: np.ndarray, k: np.ndarray) -> float:
    """log p(k) with a rate for each, nats."""
    return sum(rate_evidence(n[i : i + 1], k[i : i + 1]) for i in range(len(n)))


def survey(k: Tensor, most: int) -> None:
    """Returned surveys k `(m,)` of the same unknown number, which is summed out: 1 to `most`, all alike."""
    theta = pyro.sample("theta", dist.Uniform(0.0, 1.0))
    n = torch.arange(float(k.max()), most + 1, dtype=k.dtype)
    choices = torch.lgamma(n + 1) - torch.lgamma(k[:, None] + 1) - torch.lgamma(n - k[:, None] + 1)
    log_p = choices + k[:, None] * theta.log() + (n - k[:, None]) * torch.log1p(-theta)
    pyro.factor("likelihood", log_p.sum(0).logsumexp(0) - torch.log(torch.tensor(float(most), dtype=k.dtype)))


def survey_evidence(k: np.ndarray, most: int) -> float:
    """log p(k), nats: a beta function for each number of surveys."""
    each = [rate_evidence(np.full(len(k), float(n)), k) for n in range(int(k.max()), most + 1)]
    return float(special.logsumexp(each) - np.log(most))


def padded(log_seen: Tensor, log_unseen: Tensor, omega: Tensor, num_unseen: int) -> None:
    """The likelihood of padded rows, from log p of all rows with captures and of one row without, if it is real."""
    real = omega.log() + log_unseen
    pyro.factor("unseen", num_unseen * torch.logaddexp(real, torch.log1p(-omega)))
    pyro.factor("seen", log_seen)


def same_for_all(y: Tensor) -> None:
    """One probability of capture p."""
    omega, p = (pyro.sample(name, dist.Uniform(0.0, 1.0)) for name in ("omega", "p"))
    captures, trials = y.sum(-1), y.shape[-1]
    seen = captures[captures > 0]
    log_seen = len(seen) * omega.log() + dist.Binomial(float(trials), p).log_prob(seen).sum()
    padded(log_seen, trials * torch.log1p(-p), omega, int((captures == 0).sum()))


def by_occasion(y: Tensor) -> None:
    """A probability of capture for each occasion, p `(T,)`."""
    omega = pyro.sample("omega", dist.Uniform(0.0, 1.0))
    p = pyro.sample("p", dist.Uniform(torch.zeros(y.shape[-1]), 1.0).to_event(1))
    seen = y[y.sum(-1) > 0]
    log_seen = len(seen) * omega.log() + dist.Bernoulli(p).log_prob(seen).sum()
    padded(log_seen, torch.log1p(-p).sum(-1), omega, len(y) - len(seen))


def by_behaviour(y: Tensor) -> None:
    """Probability p, and c right after a capture."""
    omega, p, c = (pyro.sample(name, dist.Uniform(0.0, 1.0)) for name in ("omega", "p", "c"))
    seen = y[y.sum(-1) > 0]
    after = torch.cat([torch.zeros_like(seen[:, :1]), seen[:, :-1]], -1)
    log_seen = len(seen) * omega.log() + dist.Bernoulli(p + after * (c - p)).log_prob(seen).sum()
    padded(log_seen, y.shape[-1] * torch.log1p(-p), omega, len(y) - len(seen))


def same_for_all_evidence(y: np.ndarray) -> float:
    """log p(y) of `same_for_all`, nats: closed in p given how many of the unseen are real.

    The number of real rows among the unseen is summed, each with beta functions in omega and in p.
    """
    captures, trials = y.sum(-1), y.shape[-1]
    seen = captures[captures > 0]
    unseen, total = len(captures) - len(seen), seen.sum()
    choices = (special.gammaln(trials + 1) - special.gammaln(seen + 1) - special.gammaln(trials - seen + 1)).sum()
    real = np.arange(unseen + 1)
    ways = special.gammaln(unseen + 1) - special.gammaln(real + 1) - special.gammaln(unseen - real + 1)
    omega = special.betaln(1 + len(seen) + real, 1 + unseen - real)
    p = special.betaln(1 + total, 1 + trials * (len(seen) + real) - total)
    return float(choices + special.logsumexp(ways + omega + p))


def sea_cows(x: Tensor, y: Tensor) -> None:
    """Length y by age x."""
    alpha, beta = (pyro.sample(name, dist.Normal(0.0, 1000.0)) for name in ("alpha", "beta"))
    lam = pyro.sample("lambda", dist.Uniform(0.5, 1.0))
    tau = pyro.sample("tau", dist.Gamma(1e-4, 1e-4))
    with pyro.plate("data", len(y)):
        pyro.sample("Y", dist.Normal(alpha - beta * lam**x, tau.rsqrt()), obs=y)


def bones(gamma: Tensor, delta: Tensor, num_grades: Tensor, grade: Tensor) -> None:
    """Ages `(children,)`, by the grade that each bone has reached `(children, bones)`, -1 where it is not known.

    Grade g or less has the probability 1 - invlogit(delta (theta - gamma_g)), for each of the bone's grades but its
    last.
    """
    theta = pyro.sample("theta", dist.Normal(0.0, 36.0).expand([len(grade)]).to_event(1))
    more = torch.sigmoid(delta[:, None] * (theta[:, None, None] - gamma))  # (children, bones, 4)
    grades = torch.arange(1, gamma.shape[-1] + 1)
    more = torch.where(grades < num_grades[:, None], more, 0.0)
    edges = torch.cat([torch.ones_like(more[..., :1]), more, torch.zeros_like(more[..., :1])], -1)
    p = edges[..., :-1] - edges[..., 1:]
    known = grade > 0
    chosen = p.gather(-1, (grade.clamp(min=1) - 1)[..., None])[..., 0]
    pyro.factor("grades", torch.where(known, chosen, 1.0).log().sum())


def bones_evidence(gamma: np.ndarray, delta: np.ndarray, num_grades: np.ndarray, grade: np.ndarray) -> float:
    """log p, nats: each child's age is an integral of its own, by SciPy's quadrature."""

    def of_child(grades: np.ndarray) -> float:
        def log_likelihood(theta: float) -> float:
            total = 0.0
            for j, g in enumerate(grades):
                if g < 0:
                    continue
                upper = 1.0 if g == 1 else special.expit(delta[j] * (theta - gamma[j, g - 2]))
                lower = 0.0 if g == num_grades[j] else special.expit(delta[j] * (theta - gamma[j, g - 1]))
                total += np.log(upper - lower)
            return float(total - theta**2 / (2 * 36**2) - np.log(36 * np.sqrt(2 * np.pi)))

        grid = np.linspace(-60, 120, 1801)
        values = np.array([log_likelihood(theta) for theta in grid])
        top, peak = values.max(), grid[values.argmax()]
        relative = {"epsabs": 0, "epsrel": 1e-10, "limit": 500}
        ends = (peak - 60, peak + 60)
        mass, _ = integrate.quad(lambda t: np.exp(log_likelihood(t) - top), *ends, points=[peak], **relative)
        return float(top + np.log(mass))

    with np.errstate(divide="ignore"):
        return sum(of_child(row) for row in grade)


def rates(raw: Mapping[str, Any], model: Callable[..., None]) -> Posterior:
    """The posterior of one of the models of rates."""
    d = tensors(raw)
    keys = ("n", "k") if "n" in d else ("n1", "k1", "n2", "k2")
    n = torch.stack([d[key] for key in keys if key.startswith("n")])
    k = torch.stack([d[key] for key in keys if key.startswith("k")])
    evidence = two_rates_evidence if model is two_rates else rate_evidence
    return Posterior(model, (n, k), exact=partial(evidence, n.numpy(), k.numpy()))


def surveys(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `survey`."""
    k, most = tensors(raw)["k"], int(raw["nmax"])
    return Posterior(survey, (k, most), exact=partial(survey_evidence, k.numpy(), most))


def captures(raw: Mapping[str, Any], model: Callable[..., None]) -> Posterior:
    """The posterior of one of the models of captures."""
    y = tensors(raw)["y"]
    exact = partial(same_for_all_evidence, y.numpy()) if model is same_for_all else None
    return Posterior(model, (y,), exact=exact)


def dugongs(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `sea_cows`."""
    d = tensors(raw)
    return Posterior(sea_cows, (d["x"], d["Y"]))


def ages(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `bones`."""
    d = tensors(raw)
    args = (d["gamma"], d["delta"], d["ncat"].long(), d["grade"].long())
    exact = partial(bones_evidence, *(value.numpy() for value in args))
    return Posterior(bones, args, exact=exact, exact_by="quadrature over each child's age")


POSTERIORS: dict[str, Callable[[Mapping[str, Any]], Posterior]] = {
    "Rate_1_data-Rate_1_model": partial(rates, model=one_rate),
    "Rate_2_data-Rate_2_model": partial(rates, model=two_rates),
    "Rate_3_data-Rate_3_model": partial(rates, model=one_rate),
    "Rate_4_data-Rate_4_model": partial(rates, model=rate_and_prior),
    "Rate_5_data-Rate_5_model": partial(rates, model=one_rate),
    "Survey_data-Survey_model": surveys,
    "M0_data-M0_model": partial(captures, model=same_for_all),
    "Mb_data-Mb_model": partial(captures, model=by_behaviour),
    "Mt_data-Mt_model": partial(captures, model=by_occasion),
    "dugongs_data-dugongs_model": dugongs,
    "bones_data-bones_model": ages,
}
