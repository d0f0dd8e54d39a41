"""Why guides are reparameterized: how widely draws of one gradient spread by each of two estimators.

    python -m benchmarks.gradient_variance [--seed N]

One estimator differentiates along the reparameterized path from the noise to the draw, the other uses the score
function. Both are unbiased, and they differ in their spread. It is shown for the toy posterior (a lognormal guide, x =
1.5, before and after the fit) and for a VAE of 8x8 digits (diagonal guide, one mini-batch, before and after training).
A table goes to standard output, the figure to results/gradient_variance/.

Source: Kingma and Welling (2014), Auto-encoding variational Bayes, section 2.3; Ranganath et al. (2014), Black box
variational inference, for the score function.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_vi import cli

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

OUT = Path("results/gradient_variance")
NUM_DRAWS = 4000  # draws of the toy's gradient, one particle each; more of them give smoother histograms
NUM_BATCH_DRAWS = 400  # draws of the VAE's gradient on one mini-batch, each of which takes a pass through the networks
BATCH_SIZE = 64  # data points in the VAE's mini-batch
NUM_EPOCHS = 20  # epochs of the VAE's training
ESTIMATORS = ("trace_elbo", "score_function")  # the objectives that differentiate along the path and by the score


@dataclass(frozen=True, eq=False)
class Spread:
    """Draws of one component of the ELBO's gradient by both estimators.

    Attributes:
        what: the problem and the parameter, as the table names them.
        path: draws along the reparameterized path, `(S,)`.
        score: draws by the score function, `(S,)`.
    """

    what: str
    path: np.ndarray
    score: np.ndarray

    @property
    def ratio(self) -> float:
        """The variance by the score function divided by that along the path."""
        return float(self.score.var(ddof=1) / self.path.var(ddof=1))

    @property
    def disagreement(self) -> float:
        """Difference of the two means in standard errors. It is small, because both estimators are unbiased."""
        error = (self.path.var(ddof=1) / len(self.path) + self.score.var(ddof=1) / len(self.score)) ** 0.5
        return float(abs(self.path.mean() - self.score.mean()) / error)


def toy(seed: int) -> list[Spread]:
    """d ELBO / d loc of a lognormal guide of the toy posterior."""
    import torch

    from models.exponential_normal import target
    from ppl_vi.svi.engines.step import gradients
    from ppl_vi.svi.fit import fit
    from ppl_vi.svi.objectives import find_objective
    from ppl_vi.svi.randomness import pseudo_random

    problem = target([1.5])
    fitted = fit(problem, "lognormal", seed=seed)
    program = fitted.program
    draws: dict[tuple[str, str], np.ndarray] = {}
    for stage, theta in (("at the start", program.layout.flatten(fitted.initial)), ("fitted", fitted.theta)):
        for name in ESTIMATORS:
            noise = pseudo_random(program.draws, (1, NUM_DRAWS, 1), torch.Generator().manual_seed(seed))
            everywhere = theta.expand(1, NUM_DRAWS, -1)
            found, _ = gradients(program, find_objective(name), everywhere, problem.args, noise)
            draws[stage, name] = -found[0, :, 0].numpy()
    return [
        Spread(f"toy, lognormal, {stage}: d ELBO / d loc", draws[stage, ESTIMATORS[0]], draws[stage, ESTIMATORS[1]])
        for stage in ("at the start", "fitted")
    ]


def vae(seed: int) -> list[Spread]:
    """d ELBO / d (bias of the encoder's first output) for each data point, of a VAE of digits."""

    from models.images import binarise, load
    from models.vae import VAE
    from ppl_vi.guides.amortized import AMORTIZED
    from ppl_vi.svi.minibatch import TrainingSettings, train, untrained

    images = load("digits", data_dir=None, seed=0)
    x, held_out = binarise(images.train, seed), binarise(images.test, seed + 1)
    module = untrained(lambda: VAE(x.shape[1], AMORTIZED["diagonal"](2)), seed=seed)
    trained = train(module, x, held_out, TrainingSettings(num_epochs=NUM_EPOCHS, seed=seed)).module
    return [
        Spread(f"VAE, {stage}: d ELBO / d encoder bias", _drawn(one, x, True, seed), _drawn(one, x, False, seed))
        for stage, one in (("before training", module), (f"after {NUM_EPOCHS} epochs", trained))
    ]


def _drawn(module: Any, x: Any, path: bool, seed: int) -> np.ndarray:
    import copy

    import numpy as np
    import torch
    from pyro.infer import Trace_ELBO

    from ppl_vi.svi.minibatch import isolated_module
    from ppl_vi.svi.program import without_reparameterization

    module = copy.deepcopy(module).requires_grad_(True)
    bias = module.encoder[-1].bias
    guide = module.guide if path else without_reparameterization(module.guide)
    found = []
    with isolated_module(module, seed):
        for _ in range(NUM_BATCH_DRAWS):
            loss = Trace_ELBO().differentiable_loss(module.model, guide, x[:BATCH_SIZE]) / BATCH_SIZE
            found.append(-float(torch.autograd.grad(loss, bias)[0][0]))
    return np.array(found)


def figure(spreads: Sequence[Spread]) -> Figure:
    """For each problem the histograms of both estimators, on one axis."""
    import numpy as np
    from matplotlib.figure import Figure

    from ppl_vi.report.style import BLUE, DPI, ORANGE, plain

    drawn = Figure(figsize=(9.5, 6.0), dpi=DPI, layout="constrained")
    for axes, spread in zip(drawn.subplots(2, 2).flat, spreads, strict=True):
        low, high = np.quantile(np.concatenate([spread.path, spread.score]), [0.005, 0.995])
        bins = np.linspace(low, high, 61)
        for values, color, text in ((spread.score, ORANGE, "score function"), (spread.path, BLUE, "reparameterized")):
            axes.hist(values, bins, color=color, alpha=0.7, density=True, label=text)
        text = f"{spread.what}\nvariance {_times(spread.ratio)} times as large by the score function"
        axes.set_title(text, fontsize=9)
        plain(axes)
        axes.set_yticks([])
        axes.set_ylabel("density of draws", fontsize=9)
    drawn.legend(*drawn.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    drawn.supxlabel("one draw of the gradient, nats a unit of the parameter (1% of the draws lie beyond)", fontsize=10)
    return drawn


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"


def program(arguments: argparse.Namespace) -> int:
    """Draws the gradients, prints the table and writes the figure."""
    from rich import box
    from rich.table import Table

    from ppl_vi.report import table
    from ppl_vi.report.numbers import short

    cli.writable_folder("--out", arguments.out)
    spreads = [*toy(arguments.seed), *vae(arguments.seed)]
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("gradient", "mean", "sd, path", "sd, score", "variance ratio", "means differ by"):
        shown.add_column(heading, justify="left" if heading == "gradient" else "right")
    for spread in spreads:
        numbers = (spread.path.mean(), spread.path.std(ddof=1), spread.score.std(ddof=1), spread.ratio)
        shown.add_row(spread.what, *(short(float(v), 3) for v in numbers), f"{spread.disagreement:.1f} s.e.")
    table.terminal().print(shown)
    cli.write_figure(arguments.out / "gradient_variance.png", figure(spreads))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="gradient_variance", description=(__doc__ or "").splitlines()[0])
    cli.add_seed(found)
    cli.add_out(found, OUT)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
