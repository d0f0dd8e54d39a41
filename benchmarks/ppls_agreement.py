"""The same family fitted by three systems: NumPyro's AutoNormal and PyMC's mean-field ADVI beside ppl_vi's AutoNormal.

    python -m benchmarks.ppls_agreement [--models NAME ...]

Each is fitted until its optimiser's noise is below what the comparison resolves: 5,000 steps of Adam with 50 draws,
whose step size falls from 0.05 to 0.0005. `ppl_vi.measure` then tells the reverse KL, and the error of each mean and
standard deviation, with standard errors. Fits of the same optimum differ by no more than these. A table is written to
results/ppls_agreement/.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ppls_models import MODELS, data_of
from ppl_vi import cli
from ppl_vi.runtime.outputs import write_output_text

if TYPE_CHECKING:
    from ppl_vi.approximations.approximation import Approximation
    from ppl_vi.measuring.measurement import Measurement

OUT = Path("results/ppls_agreement")
CHOSEN = ("gamma_poisson", "robust_regression", "eight_schools_non_centred")  # the first has a closed form
STEPS, PARTICLES, FIRST_RATE, LAST_RATE = 5000, 50, 0.05, 0.0005
HEADINGS = ("model", "system", "reverse KL", "worst mean error, sd", "worst sd ratio", "largest difference, std errors")


def rate(step: Any) -> Any:
    """Adam's step size, which falls geometrically."""
    return FIRST_RATE * (LAST_RATE / FIRST_RATE) ** (step / STEPS)


def numpyro_fit(model: str) -> Approximation:
    """NumPyro's AutoNormal."""
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    from benchmarks.ppls_numpyro_models import NUMPYRO_MODELS
    from ppl_vi.adapters.numpyro import approximation

    jax.config.update("jax_enable_x64", True)
    data, guide = data_of(model), AutoNormal(NUMPYRO_MODELS[model])
    svi = SVI(NUMPYRO_MODELS[model], guide, numpyro.optim.Adam(rate), Trace_ELBO(num_particles=PARTICLES))
    found = svi.run(jax.random.PRNGKey(0), STEPS, *data, progress_bar=False)
    return approximation(guide, found.params, data)


def pymc_fit(model: str) -> Approximation:
    """PyMC's mean-field ADVI."""
    import pymc as pm
    from pytensor import shared

    from benchmarks.ppls_pymc_models import pymc_model
    from ppl_vi.adapters.pymc import approximation

    size = shared(FIRST_RATE)
    found = pm.fit(
        STEPS, method="advi", model=pymc_model(model), random_seed=0, obj_n_mc=PARTICLES, progressbar=False,
        obj_optimizer=pm.adam(learning_rate=size), callbacks=[lambda _, __, step: size.set_value(rate(step))],
    )  # fmt: skip
    return approximation(found)


PEERS: dict[str, tuple[str, Callable[[str], Approximation]]] = {
    "NumPyro AutoNormal": ("numpyro", numpyro_fit),
    "PyMC ADVI": ("pymc", pymc_fit),
}


def measurements_of(model: str) -> dict[str, Measurement | str]:
    """Each system's fit, measured; ours is the first. In place of one that is not installed it says so."""
    import ppl_vi
    from models import ZOO

    truth = ppl_vi.ground_truth(ZOO[model]())
    found: dict[str, Measurement | str] = {
        "ppl_vi AutoNormal": ppl_vi.measure(truth, ppl_vi.fit(truth.target, "AutoNormal"))
    }
    for name, (package, fit) in PEERS.items():
        absent = importlib.util.find_spec(package) is None
        found[name] = f"not installed: {package}" if absent else ppl_vi.measure(truth, fit(model))
    return found


def differences(ours: Measurement, theirs: Measurement) -> dict[str, float]:
    """By how many standard errors two measurements differ: in the reverse KL, and in each number's mean and sd."""
    assert ours.marginals is not None
    assert theirs.marginals is not None
    pairs = {"reverse_kl": (ours.scores["reverse_kl"], theirs.scores["reverse_kl"])}
    for score in ("mean_error", "sd_ratio"):
        each = zip(ours.marginals.names, ours.marginals.scores[score], theirs.marginals.scores[score], strict=True)
        pairs |= {f"{score} of {name}": (one, other) for name, one, other in each}
    return {
        name: float(other.value[0, 0] - one.value[0, 0]) / math.hypot(one.std_error[0, 0], other.std_error[0, 0])
        for name, (one, other) in pairs.items()
    }


def rows_of(model: str) -> list[list[str]]:
    """The table's rows of one model."""
    from ppl_vi.metrics.draws.scorecard import told_of

    found = measurements_of(model)
    ours, rows = next(iter(found.values())), []
    assert not isinstance(ours, str)
    for name, one in found.items():
        if isinstance(one, str):
            rows.append([model, name, one, *["—"] * 3])
            continue
        told = [told_of(one.scores[score]) for score in ("reverse_kl", "mean_error", "sd_ratio")]
        rows.append([model, name, *told, "—" if one is ours else _largest(differences(ours, one))])
    return rows


def _largest(apart: Mapping[str, float]) -> str:
    name, size = max(apart.items(), key=lambda pair: abs(pair[1]))
    return f"{abs(size):.1f}: {name.replace('_', ' ')}"


def program(arguments: argparse.Namespace) -> int:
    """Fits, measures, shows and writes."""
    from benchmarks.speed_whole import markdown, show

    cli.writable_folder("--out", arguments.out)
    cells = [row for model in arguments.models for row in rows_of(model)]
    show("The same family fitted by three systems", HEADINGS, cells)
    write_output_text(arguments.out / "table.md", markdown(HEADINGS, cells))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="ppls_agreement", description=(__doc__ or "").splitlines()[0])
    found.add_argument(
        "--models", nargs="+", metavar="NAME", choices=MODELS, default=CHOSEN, help=f"{', '.join(CHOSEN)}"
    )
    cli.add_out(found, OUT)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
