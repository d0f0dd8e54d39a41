"""The systems that `benchmarks.ppls` compares: which function fits, which family, which packages it needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks import ppls_fits
from benchmarks.ppls_fits import Snapshot
from ppl_vi.adapters import stan

Fit = Callable[[str, str, str], Iterator[Snapshot]]
SETTINGS = ("default", "common")


@dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes:
        fit: a function of the model's name, the setting and the family.
        family: Pyro's name of the Gaussian family that it searches; "" where it does not search one.
        packages: the modules that it needs.
        density: whose copy of the models it fits, a key of `DENSITIES`; "" is the zoo's own Pyro models.
        has_common: whether it can be run at the common setting, Adam with a fixed step size.
        note: what its default is.
        missing: tells why it can't be run, in a line, or ""; of what is no module of Python.
    """

    fit: Fit
    family: str
    packages: tuple[str, ...] = ()
    density: str = ""
    has_common: bool = True
    note: str = ""
    missing: Callable[[], str] = str

    def absent(self) -> str:
        """Why it can't be run here; "" where it can."""
        packages = [package for package in self.packages if importlib.util.find_spec(package) is None]
        return f"not installed: {', '.join(packages)}" if packages else self.missing()


MEAN_FIELD, FULL_RANK = "AutoNormal", "AutoMultivariateNormal"
PYMC, EXTRAS = ("pymc",), ("pymc", "pymc_extras")
STAN_NOTE = "rstan::vb: 1 draw, a step size that it chooses, until the ELBO changes by less than 1%"
SYSTEMS: dict[str, System] = {
    "ppl_vi AutoNormal": System(ppls_fits.ppl_vi_fit, MEAN_FIELD, has_common=False, note="ppl_vi.fit's own"),
    "Pyro AutoNormal": System(ppls_fits.pyro_fit, MEAN_FIELD, note="Adam 0.0005, 1 draw, 5000 steps: its tutorial's"),
    "NumPyro AutoNormal": System(
        ppls_fits.numpyro_fit,
        MEAN_FIELD,
        ("numpyro",),
        "numpyro",
        note="Adam 0.0005, 1 draw, 2000 steps: SVI's example",
    ),
    "PyMC ADVI": System(
        ppls_fits.pymc_fit, MEAN_FIELD, PYMC, "pymc", note="adagrad_window 0.001, 1 draw, 10,000 steps"
    ),
    "PyMC DADVI": System(ppls_fits.dadvi_fit, MEAN_FIELD, EXTRAS, "pymc", False, "30 fixed draws, trust-ncg"),
    "ppl_vi AutoMultivariateNormal": System(ppls_fits.ppl_vi_fit, FULL_RANK, has_common=False, note="ppl_vi.fit's own"),
    "NumPyro AutoMultivariateNormal": System(
        ppls_fits.numpyro_fit, FULL_RANK, ("numpyro",), "numpyro", note="Adam 0.0005, 1 draw, 2000 steps: SVI's example"
    ),
    "PyMC full-rank ADVI": System(
        ppls_fits.pymc_fit, FULL_RANK, PYMC, "pymc", note="adagrad_window 0.001, 1 draw, 10,000 steps"
    ),
    "BlackJAX mean field": System(
        ppls_fits.blackjax_fit,
        MEAN_FIELD,
        ("blackjax", "numpyro"),
        "numpyro",
        note="100 draws; Adam 0.01 is ours, as it has none",
    ),
    "BlackJAX Pathfinder": System(
        ppls_fits.blackjax_pathfinder_fit,
        "",
        ("blackjax", "numpyro"),
        "numpyro",
        False,
        "one path, 200 draws for the ELBO",
    ),
    "PyMC Pathfinder": System(
        ppls_fits.pathfinder_fit, "", EXTRAS, "pymc", False, "4 paths, 1000 draws resampled by importance"
    ),
    "Stan ADVI": System(ppls_fits.stan_fit, MEAN_FIELD, (), "stan", False, STAN_NOTE, stan.missing),
    "Stan full-rank ADVI": System(ppls_fits.stan_fit, FULL_RANK, (), "stan", False, STAN_NOTE, stan.missing),
}


def numpyro_density(model: str) -> Callable:
    """log p(x, z) of NumPyro's copy of a model."""
    from benchmarks.ppls_models import data_of
    from benchmarks.ppls_numpyro_models import NUMPYRO_MODELS
    from ppl_vi.adapters.numpyro import log_joint

    return log_joint(NUMPYRO_MODELS[model], data_of(model))


def pymc_density(model: str) -> Callable:
    """log p(x, z) of PyMC's copy of a model."""
    from benchmarks.ppls_pymc_models import pymc_model
    from ppl_vi.adapters.pymc import log_joint

    return log_joint(pymc_model(model))


def stan_density(model: str) -> Callable:
    """log p(x, z) of Stan's copy of a model."""
    from benchmarks.ppls_stan_models import stan_model

    return stan.log_joint(*stan_model(model))


DENSITIES: dict[str, Callable[[str], Callable]] = {
    "numpyro": numpyro_density,
    "pymc": pymc_density,
    "stan": stan_density,
}
