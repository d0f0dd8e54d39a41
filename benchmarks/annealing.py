"""How far bounds on log p(x) by annealing are from log p(x) by quadrature, for VAEs of 8x8 digits with two latents.

    python -m benchmarks.annealing [--num-points N] [--num-epochs N] [--seed N]

A Bernoulli and a Gaussian VAE are trained briefly. `ground_truth` computes log p(x) of test digits by quadrature. The
importance-weighted bound and annealed importance sampling (AIS), with more and more temperatures, bound it from below.
The table shows how far the bounds are from log p(x), and whether their standard errors account for that.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ppl_vi import cli

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from models.vae import VAE

TEMPERATURES = (30, 100, 300, 1000)  # how many temperatures annealing takes, in one row of the table each
NUM_PARTICLES = 50  # of the importance-weighted bound, IWAE-50
HEADINGS = ("likelihood", "bound", "mean", "± error", "lowest", "highest", "in s.e., rms", "chains", "ms a point")


@dataclass(frozen=True, eq=False)
class Row:
    """One bound at `N` data points whose truth is trusted.

    Attributes:
        likelihood: the likelihood of the VAE.
        bound: the name of the bound.
        difference: the bound minus log p(x), nats, `(N,)`.
        std_error: the standard error that the bound itself states, nats, `(N,)`.
        effective_chains: the effective number of chains that carry the weight, averaged over data points; None for a
            bound without chains.
        seconds: how long the bound took, for all points together.
    """

    likelihood: str
    bound: str
    difference: np.ndarray
    std_error: np.ndarray
    effective_chains: float | None
    seconds: float

    @property
    def mean_error(self) -> float:
        """Standard error of the mean difference, from the standard errors that the bound itself states, nats."""
        return float((self.std_error**2).sum() ** 0.5 / len(self.std_error))

    @property
    def root_mean_square(self) -> float:
        """Root mean square of the differences in standard errors: 1 where the standard errors are the whole error."""
        return float(((self.difference / self.std_error) ** 2).mean() ** 0.5)


def trained(likelihood: str, num_epochs: int, seed: int) -> tuple[VAE, Tensor]:
    """A VAE in double precision, and the test digits."""

    from models.images import binarise, dequantise, load
    from models.vae import VAE
    from ppl_vi.guides.amortized import AMORTIZED
    from ppl_vi.svi.minibatch import TrainingSettings, train, untrained

    images = load("digits", data_dir=None, seed=0)
    parts = images.train, images.test
    if likelihood == "bernoulli":
        x, held_out = (binarise(part, seed + i) for i, part in enumerate(parts))
    else:
        x, held_out = (dequantise(part, 17, seed + i) for i, part in enumerate(parts))
    module = untrained(lambda: VAE(x.shape[1], AMORTIZED["full"](2), likelihood=likelihood), seed=seed)
    settings = TrainingSettings(num_epochs=num_epochs, lr=1e-2, seed=seed)
    return train(module, x, held_out, settings).module.double(), held_out


def rows(likelihood: str, num_points: int, num_epochs: int, seed: int) -> Iterator[Row]:
    """Every bound at the first test digits."""
    import torch

    from models.vae import target
    from ppl_vi.metrics.decoder.gaps import iwae
    from ppl_vi.truth import Annealing, annealed_bound, ground_truth

    module, x = trained(likelihood, num_epochs, seed)
    problems = target(module, x[:num_points])
    truth = ground_truth(problems)
    kept = truth.trusted
    exact = truth.log_evidence[kept]
    began = time.perf_counter()
    with torch.no_grad():
        local = module.encoder(problems.args[0])
    value, error = (part.numpy()[kept] for part in iwae(problems, module.head, local, NUM_PARTICLES, 20, seed))
    yield Row(likelihood, f"IWAE-{NUM_PARTICLES}", value - exact, error, None, time.perf_counter() - began)
    for num in TEMPERATURES:
        began = time.perf_counter()
        found = annealed_bound(problems, Annealing(num), seed=seed)
        chains = float(found.effective_chains[kept].mean())
        difference, text = found.log_evidence[kept] - exact, f"AIS, {num} temperatures"
        yield Row(likelihood, text, difference, found.std_error[kept], chains, time.perf_counter() - began)


def cells(row: Row) -> list[str]:
    """A line of the table."""
    from ppl_vi.report.numbers import MISSING, short

    return [
        row.likelihood,
        row.bound,
        short(float(row.difference.mean()), 3),
        short(row.mean_error, 2),
        short(float(row.difference.min()), 3),
        short(float(row.difference.max()), 3),
        f"{row.root_mean_square:.1f}",
        MISSING if row.effective_chains is None else f"{row.effective_chains:.1f}",
        f"{1000 * row.seconds / len(row.difference):.0f}",
    ]


def program(arguments: argparse.Namespace) -> int:
    """Prints the table."""
    import torch
    from rich import box
    from rich.table import Table

    from ppl_vi.report import table

    torch.set_num_threads(1)
    sizes: dict[str, Any] = {name: getattr(arguments, name) for name in ("num_points", "num_epochs", "seed")}
    all_rows = [row for likelihood in ("bernoulli", "gaussian") for row in rows(likelihood, **sizes)]
    num = min(len(row.difference) for row in all_rows)
    title = f"bound - log p(x), nats, at {num} certified digits; 2 latents, 16 chains"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, heading in enumerate(HEADINGS):
        shown.add_column(heading, justify="left" if i < 2 else "right")
    for row in all_rows:
        shown.add_row(*cells(row))
    table.terminal().print(shown)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="annealing", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--num-points", type=cli.whole(1), default=40, metavar="N", help="test digits (40)")
    found.add_argument("--num-epochs", type=cli.whole(1), default=30, metavar="N", help="of training (30)")
    cli.add_seed(found)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
