"""Guides for a positive latent against the exact posterior of the smallest model that needs one.

    python -m benchmarks.toy_posterior [--quick] [--x X ...] [--guides NAME ...]

The model is `models.exponential_normal`: z ~ Exponential(1), x | z ~ Normal(z, 1). Each family is fitted by SVI to each
observation in several independent replicas, and measured against the truth. Tables go to standard output; tables,
records and figures are written to results/toy_posterior/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppl_vi import cli
from ppl_vi.sweeps.stored import check_store, sweep_into_store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ppl_vi.comparison.comparison import Comparison
    from ppl_vi.target.target import Target

OUT = Path("results/toy_posterior")
X = (1.5, 0.0)
QUICK_GUIDES = ("truncated_normal", "lognormal", "gamma", "AutoNormal", "normal", cli.POINT_MASS)
# Beyond it neighbouring numbers in double precision are as far apart as the posterior is wide, or its rounding alone
# leaves no digit of log p(x).
MAX_X = 1e15
AROUND = 5.0  # beyond the observations, in the figure over many x
NUM_X = 121  # so that the figure's curves are smooth, and so is the corner where the posterior leaves 0


def observation(text: str) -> float:
    """An observation whose posterior double precision can tell from others."""
    value = cli.finite(text)
    if abs(value) > MAX_X:
        raise argparse.ArgumentTypeError(f"must lie between {-MAX_X:g} and {MAX_X:g}, got {text}")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="toy_posterior", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--x", type=observation, nargs="+", default=X, metavar="X", help="observations (1.5 and 0)")
    cli.add_comparison_options(found, OUT, QUICK_GUIDES)
    return found


def figures(comparison: Comparison) -> dict[str, Figure]:
    """The exact posterior and evidence over many observations."""
    import numpy as np

    from models.exponential_normal import target
    from ppl_vi.report import plots
    from ppl_vi.truth import ground_truth

    x = np.linspace(min(comparison.labels) - AROUND, max(comparison.labels) + AROUND, NUM_X)
    return {"posterior_over_x": plots.posterior_over_x(x, ground_truth(target(x.tolist())), comparison.labels)}


def program(arguments: argparse.Namespace) -> int:
    """Compares the families as asked."""
    x = tuple(dict.fromkeys(arguments.x))
    if arguments.store is not None and not arguments.list_guides:
        return _store(arguments, x)

    def make_target() -> Target:
        from models.exponential_normal import target

        return target(x)

    return cli.compare_command(arguments, make_target, x, QUICK_GUIDES, figures)


def _store(arguments: argparse.Namespace, x: tuple[float, ...]) -> int:
    """The same fits as a sweep."""
    check_store(arguments)
    cli.check_fitting(arguments)
    with cli.loading():
        default = QUICK_GUIDES if arguments.quick else None
        guides, settings = cli.chosen_guides(arguments.guides, default), cli.settings_of(arguments)
    models = [{"target": "models.exponential_normal:target", "args": (x,)}]
    return sweep_into_store(arguments, models, guides, settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
