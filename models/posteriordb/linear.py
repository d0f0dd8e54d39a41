"""Linear regressions of known design and unknown noise: y ~ Normal(X beta, sigma).

- kidiq, kidiq_with_mom_work: test scores of three- and four-year-old children; earnings: income and height; mesquite:
  the leaves of mesquite bushes; sesame: who watched Sesame Street. Gelman and Hill (2006), Data analysis using
  regression and multilevel/hierarchical models, chapters 3 to 5 and 10.
- nes: party identification in the National Election Study, in eight years. The same, chapter 4.
- sblrc, sblri: simulated, with correlated and with independent columns.
- kilpisjarvi: summer temperatures in Lapland. Vehtari, Bayesian data analysis demonstrations.
- radon_pooled: radon in houses. Gelman and Hill (2006), chapter 12.
- arK: an autoregression of five lags, whose design is the series itself.

The priors are those of Stan's models in posteriordb, the flat ones included. Given sigma all is normal, so that
log p(y) is an integral over sigma alone, which `by_quadrature` does; with flat priors of both it is a closed form,
`flat_evidence`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.posteriordb.linear_evidence import (
    LogPrior,
    by_quadrature,
    flat_evidence,
    flat_given_sigma,
    half_cauchy,
    half_normal,
    normal_given_sigma,
)
from models.posteriordb.posterior import Posterior, flat, tensors

FLAT_BOTH = "flat priors of the coefficients and of sigma > 0"


def scales(X: Tensor, y: Tensor) -> Tensor:
    """What the coefficients may be in size, `(F,)`: ten standard deviations of y over each column's size."""
    return 10 * y.std() / X.square().mean(0).sqrt()


def likelihood(X: Tensor, y: Tensor, beta: Tensor, sigma: Tensor) -> None:
    """Observations `(N,)` of mean X beta."""
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def flat_regression(X: Tensor, y: Tensor) -> None:
    """Coefficients and noise both flat; X `(N, F)`, y `(N,)`."""
    beta = flat("beta", dist.Normal(torch.zeros(X.shape[-1]), scales(X, y)).to_event(1))
    likelihood(X, y, beta, flat("sigma", dist.HalfCauchy(y.std())))


def flat_coefficients(X: Tensor, y: Tensor) -> None:
    """Flat coefficients, and noise of the standard half Cauchy of scale 2.5."""
    beta = flat("beta", dist.Normal(torch.zeros(X.shape[-1]), scales(X, y)).to_event(1))
    likelihood(X, y, beta, pyro.sample("sigma", dist.HalfCauchy(2.5)))


def normal_priors(X: Tensor, y: Tensor) -> None:
    """Coefficients Normal(0, 10), noise HalfNormal(10)."""
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([X.shape[-1]]).to_event(1))
    likelihood(X, y, beta, pyro.sample("sigma", dist.HalfNormal(10.0)))


def line(x: Tensor, y: Tensor, alpha_prior: Any, beta_prior: Any) -> None:
    """A line with flat noise; the priors are pairs of mean and standard deviation."""
    alpha = pyro.sample("alpha", dist.Normal(*alpha_prior))
    beta = pyro.sample("beta", dist.Normal(*beta_prior))
    sigma = flat("sigma", dist.HalfCauchy(y.std()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def radon_pooled(floor: Tensor, log_radon: Tensor) -> None:
    """All houses on one line."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    sigma_y = pyro.sample("sigma_y", dist.HalfNormal(1.0))
    with pyro.plate("houses", len(log_radon)):
        pyro.sample("log_radon", dist.Normal(alpha + beta * floor, sigma_y), obs=log_radon)


def autoregression(X: Tensor, y: Tensor) -> None:
    """Lagged values X `(N, K)` and what followed, y `(N,)`."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([X.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    pyro.sample("y", dist.Normal(alpha + X @ beta, sigma).to_event(1), obs=y)


def columns(*parts: Tensor | float) -> Tensor:
    """A design `(N, F)` of columns `(N,)`; a number is a constant column."""
    like = next(part for part in parts if isinstance(part, Tensor))
    return torch.stack([part + torch.zeros_like(like) for part in parts], -1)


def with_flat_priors(X: Tensor, y: Tensor) -> Posterior:
    """The posterior of `flat_regression`."""
    return Posterior(flat_regression, (X, y), FLAT_BOTH, exact=partial(flat_evidence, X.numpy(), y.numpy()))


def with_flat_coefficients(X: Tensor, y: Tensor) -> Posterior:
    """The posterior of `flat_coefficients`."""
    exact = partial(by_quadrature, partial(flat_given_sigma, X.numpy(), y.numpy()), half_cauchy(2.5), float(y.std()))
    return Posterior(flat_coefficients, (X, y), "flat priors of the coefficients", exact=exact, exact_by=BY_QUADRATURE)


BY_QUADRATURE = "closed form given sigma, and quadrature over sigma"


def _conjugate(X: Tensor, y: Tensor, mean: Any, sd: Any, prior: LogPrior) -> dict[str, Any]:
    ones = np.ones(X.shape[-1])
    given = partial(normal_given_sigma, X.numpy(), y.numpy(), ones * np.asarray(mean), ones * np.asarray(sd))
    return {"exact": partial(by_quadrature, given, prior, float(y.std())), "exact_by": BY_QUADRATURE}


def kidiq(raw: Mapping[str, Any], which: str) -> Posterior:
    """Scores of children by their mothers' schooling and IQ."""
    d = tensors(raw)
    school, iq = d["mom_hs"], d["mom_iq"]
    parts = {"momhs": (school,), "momiq": (iq,), "momhsiq": (school, iq), "interaction": (school, iq, school * iq)}
    return with_flat_coefficients(columns(1.0, *parts[which]), d["kid_score"])


def kidiq_work(raw: Mapping[str, Any], which: str) -> Posterior:
    """The same, with the predictors centred in one way or another, or by the mothers' work."""
    d = tensors(raw)
    school, iq, work = d["mom_hs"], d["mom_iq"], d["mom_work"]
    if which == "mom_work":
        return with_flat_priors(columns(1.0, *((work == k).double() for k in (2, 3, 4))), d["kid_score"])
    a, b = {
        "interaction_c": (school - school.mean(), iq - iq.mean()),
        "interaction_c2": (school - 0.5, iq - 100),
        "interaction_z": ((school - school.mean()) / (2 * school.std()), (iq - iq.mean()) / (2 * iq.std())),
    }[which]
    return with_flat_priors(columns(1.0, a, b, a * b), d["kid_score"])


def earnings(raw: Mapping[str, Any], which: str) -> Posterior:
    """Earnings, or their logarithm, by height and sex."""
    d = tensors(raw)
    earn, height, male = d["earn"], d["height"], d["male"]
    z = (height - height.mean()) / height.std()
    parts = {
        "earn_height": (height,),
        "log10earn_height": (height,),
        "logearn_height": (height,),
        "logearn_height_male": (height, male),
        "logearn_interaction": (height, male, height * male),
        "logearn_interaction_z": (z, male, z * male),
        "logearn_logheight_male": (height.log(), male),
    }
    y = {"earn_height": earn, "log10earn_height": earn.log10()}.get(which, earn.log())
    return with_flat_priors(columns(1.0, *parts[which]), y)


def mesquite(raw: Mapping[str, Any], which: str) -> Posterior:
    """The weight of a bush's leaves, or its logarithm, by the bush's measures."""
    d = tensors(raw)
    one, two, canopy, total, density, group = (
        d[k] for k in ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    )
    volume, area, shape = (one * two * canopy).log(), (one * two).log(), (one / two).log()
    parts = {
        "mesquite": (one, two, canopy, total, density, group),
        "logmesquite": (one.log(), two.log(), canopy.log(), total.log(), density.log(), group),
        "logmesquite_logva": (volume, area, group),
        "logmesquite_logvas": (volume, area, shape, total.log(), density.log(), group),
        "logmesquite_logvash": (volume, area, shape, total.log(), group),
        "logmesquite_logvolume": (volume,),
    }
    y = d["weight"] if which == "mesquite" else d["weight"].log()
    return with_flat_priors(columns(1.0, *parts[which]), y)


def nes(raw: Mapping[str, Any]) -> Posterior:
    """Party identification by ideology, race, age, schooling, sex and income."""
    d = tensors(raw)
    ages = ((d["age_discrete"] == k).double() for k in (2, 3, 4))
    X = columns(1.0, d["real_ideo"], d["race_adj"], *ages, d["educ1"], d["gender"], d["income"])
    return with_flat_priors(X, d["partyid7"])


def simulated(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `normal_priors`."""
    d = tensors(raw)
    return Posterior(normal_priors, (d["X"], d["y"]), **_conjugate(d["X"], d["y"], 0.0, 10.0, half_normal(10.0)))


def kilpisjarvi(raw: Mapping[str, Any]) -> Posterior:
    """Temperature by year."""
    d = tensors(raw)
    alpha, beta = (float(d["pmualpha"]), float(d["psalpha"])), (float(d["pmubeta"]), float(d["psbeta"]))
    second = _conjugate(columns(1.0, d["x"]), d["y"], (alpha[0], beta[0]), (alpha[1], beta[1]), lambda sigma: 0.0)
    return Posterior(line, (d["x"], d["y"], alpha, beta), "flat prior of sigma > 0", **second)


def sesame(raw: Mapping[str, Any]) -> Posterior:
    """Who watched, by who was encouraged to."""
    d = tensors(raw)
    return with_flat_priors(columns(1.0, d["encouraged"]), d["watched"])


def radon(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `radon_pooled`."""
    d = tensors(raw)
    x, y = d["floor_measure"], d["log_radon"]
    return Posterior(radon_pooled, (x, y), **_conjugate(columns(1.0, x), y, 0.0, 10.0, half_normal(1.0)))


def ark(raw: Mapping[str, Any]) -> Posterior:
    """The posterior of `autoregression`."""
    y, K = tensors(raw)["y"], int(raw["K"])
    X, now = torch.stack([y[K - lag : -lag] for lag in range(1, K + 1)], -1), y[K:]
    second = _conjugate(columns(1.0, *X.unbind(-1)), now, 0.0, 10.0, half_cauchy(2.5))
    return Posterior(autoregression, (X, now), **second)


POSTERIORS: dict[str, Callable[[Mapping[str, Any]], Posterior]] = {
    **{f"kidiq-kidscore_{w}": partial(kidiq, which=w) for w in ("momhs", "momiq", "momhsiq", "interaction")},
    **{
        f"kidiq_with_mom_work-kidscore_{w}": partial(kidiq_work, which=w)
        for w in ("interaction_c", "interaction_c2", "interaction_z", "mom_work")
    },
    **{
        f"earnings-{w}": partial(earnings, which=w)
        for w in (
            "earn_height",
            "log10earn_height",
            "logearn_height",
            "logearn_height_male",
            "logearn_interaction",
            "logearn_interaction_z",
            "logearn_logheight_male",
        )
    },
    **{
        f"mesquite-{w}": partial(mesquite, which=w)
        for w in (
            "mesquite",
            "logmesquite",
            "logmesquite_logva",
            "logmesquite_logvas",
            "logmesquite_logvash",
            "logmesquite_logvolume",
        )
    },
    **{f"nes{year}-nes": nes for year in (1972, 1976, 1980, 1984, 1988, 1992, 1996, 2000)},
    "sblrc-blr": simulated,
    "sblri-blr": simulated,
    "kilpisjarvi_mod-kilpisjarvi": kilpisjarvi,
    "sesame_data-sesame_one_pred_a": sesame,
    "radon_mn-radon_pooled": radon,
    "radon_all-radon_pooled": radon,
    "arK-arK": ark,
}
