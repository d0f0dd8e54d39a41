"""What an encoder costs on the toy posterior: one network for all x, compared with the best guide for each x.

    python -m benchmarks.amortized_toy [--quick] [--guides NAME ...] [--range LOW HIGH]

The model is `models.exponential_normal`. For each family (Pyro's autoguides and your own included) an encoder, which
maps x to the guide's parameters, is trained by SVI on observations x from a range. At each x of a grid, quadrature then
splits log p(x) - ELBO into the family gap and the amortization gap. Tables go to standard output; tables, records and a
figure are written to results/amortized_toy/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_vi import cli

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from rich.console import Console

    from models.amortized_toy import AmortizedToy

MAX_PANELS_ACROSS = 4
OUT = Path("results/amortized_toy")
GUIDES = ("truncated_normal", "lognormal", "gamma")
RANGE = (-3.0, 6.0)
FULL = {"num_epochs": 150, "num_x": 37}
QUICK = {"num_epochs": 20, "num_x": 10}
NUM_DATA = 8192  # observations an epoch; every epoch draws new ones
BATCH_SIZE = 512  # observations a step, with one draw of the guide for each
FIGURES = (
    "x", "log_evidence", "total", "total_error", "family_gap", "family_gap_error", "family_gap_is_upper_bound",
    "amortization",
)  # fmt: skip
NUM_STEPS = 400  # SVI steps of the fits from which the search for each x's best member starts


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="amortized_toy", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--guides", nargs="+", default=GUIDES, metavar="NAME", help=f"families ({', '.join(GUIDES)})")
    found.add_argument("--list-guides", action="store_true", help="list the families and exit")
    found.add_argument("--range", type=cli.finite, nargs=2, default=RANGE, metavar="X", help="of observations (-3 6)")
    text = f"{FULL['num_epochs']}, with --quick {QUICK['num_epochs']}"
    found.add_argument(
        "--num-epochs", type=cli.whole(1), metavar="N", help=f"epochs of {NUM_DATA} observations ({text})"
    )
    found.add_argument("--lr", type=cli.positive, default=3e-3, metavar="F", help="Adam's step size (0.003)")
    cli.add_run_options(found, OUT, "few epochs and observations")
    return found


def program(arguments: argparse.Namespace) -> int:
    """Trains, scores, shows."""
    from rich.console import Console

    if arguments.list_guides:
        cli.list_guides(Console())
        return 0
    if not arguments.range[0] < arguments.range[1]:
        raise cli.UsageError(
            f"--range: expected two numbers in order, got {arguments.range[0]:g} {arguments.range[1]:g}"
        )
    cli.check_outputs(arguments)
    cli.check_guides(arguments.guides)
    guides = cli.chosen_guides(arguments.guides, GUIDES)
    modules = {guide: _module(arguments, guide) for guide in guides}
    records = [one for guide, module in modules.items() for one in gaps(arguments, guide, module)]
    cli.write_records(records, arguments)
    cli.show_records(records, arguments, _show)
    if not any(record["reason"] is None for record in records):
        return 1
    return cli.drawn(lambda: cli.write_figure(arguments.out / "gaps_over_x.png", figure(records)), arguments)


def gaps(arguments: argparse.Namespace, guide: str, module: AmortizedToy | str) -> list[dict[str, Any]]:
    """One record an x: the gap of the encoder's guide, of the family's best, and their difference.

    Args:
        arguments: of the command line.
        guide: the family's name.
        module: with an untrained encoder; or why there is none, which is then the one record.
    """
    import numpy as np
    import torch

    from models.exponential_normal import target
    from ppl_vi.guides import MULTIMODAL
    from ppl_vi.metrics.exact.best_member import best_member
    from ppl_vi.metrics.exact.divergence import reverse_kl
    from ppl_vi.metrics.exact.grid import quadrature_grid
    from ppl_vi.svi.fit import fit
    from ppl_vi.truth import ground_truth

    if isinstance(module, str):
        return [{"guide": guide, "reason": module, **dict.fromkeys(FIGURES), "seed": arguments.seed}]
    size = QUICK if arguments.quick else FULL
    module = _trained(arguments, guide, module, arguments.num_epochs or size["num_epochs"])
    x = np.linspace(arguments.range[0], arguments.range[1], size["num_x"])
    problems = target(x.tolist())
    truth = ground_truth(problems)
    fitted = fit(problems, guide, num_steps=NUM_STEPS, num_replicas=2, seed=arguments.seed)
    with torch.no_grad():
        theta = module.theta(problems.args[0])
    total = reverse_kl(quadrature_grid(fitted, truth, theta[:, None]))
    best = best_member(fitted, truth, reverse_kl(quadrature_grid(fitted, truth)), upper_bound=guide in MULTIMODAL)
    return [
        {
            "guide": guide,
            "reason": None,
            "x": float(x[b]),
            "log_evidence": float(truth.log_evidence[b]),
            "total": float(total.value[b, 0]),
            "total_error": float(total.error[b, 0]),
            "family_gap": float(best.divergence.value[b, 0]),
            "family_gap_error": float(best.divergence.error[b, 0]),
            "family_gap_is_upper_bound": best.upper_bound or not bool(best.converged[b]),
            "amortization": float(total.value[b, 0] - best.divergence.value[b, 0]),
            "seed": arguments.seed,
        }
        for b in range(len(x))
    ]


def _module(arguments: argparse.Namespace, guide: str) -> AmortizedToy | str:
    """An untrained encoder of a family's parameters, or why there can be none."""
    from models.amortized_toy import AmortizedToy
    from models.exponential_normal import target
    from ppl_vi.comparison.run import refusal
    from ppl_vi.guides import find_family

    refused = refusal(guide)
    if refused:
        return refused
    middle = target([sum(arguments.range) / 2])
    try:
        with middle.isolated(arguments.seed):
            return AmortizedToy(middle, find_family(guide))
    except ValueError as error:
        return str(error)


def _trained(arguments: argparse.Namespace, guide: str, module: AmortizedToy, num_epochs: int) -> AmortizedToy:
    import torch

    from ppl_vi.svi.minibatch import TrainingSettings, train

    settings = TrainingSettings(
        num_epochs=num_epochs, batch_size=BATCH_SIZE, lr=arguments.lr, patience=num_epochs, seed=arguments.seed
    )
    low, high = arguments.range

    def observations(epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(arguments.seed + 1000 * epoch)
        return low + (high - low) * torch.rand(NUM_DATA, generator=generator, dtype=torch.float64)

    held_out = torch.linspace(low, high, 256, dtype=torch.float64)
    with cli.training_bar(guide, num_epochs) as told:
        trained: AmortizedToy = train(module, observations, held_out, settings, progress=told).module
    return trained


def _show(records: Sequence[dict[str, Any]], console: Console) -> None:
    from rich import box
    from rich.table import Table

    from ppl_vi.report.numbers import three_digits

    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    shown.add_column("guide, nats")
    for heading in ("x", "total gap", "family gap", "amortization gap"):
        shown.add_column(heading, justify="right")
    refused: list[str] = []
    for guide in dict.fromkeys(record["guide"] for record in records):
        rows = [record for record in records if record["guide"] == guide]
        if rows[0]["reason"] is not None:
            refused.append(f"{guide}: {rows[0]['reason']}")
            continue
        for record in rows[:: max(1, len(rows) // 6)]:
            bound = "≤" if record["family_gap_is_upper_bound"] else ""
            shown.add_row(
                guide,
                f"{record['x']:g}",
                three_digits(record["total"], record["total_error"]),
                bound + three_digits(record["family_gap"], record["family_gap_error"]),
                three_digits(record["amortization"], record["total_error"] + record["family_gap_error"]),
            )
    if shown.row_count:
        console.print(shown)
    for line in refused:
        console.print(line, style="dim", highlight=False)


def figure(records: Sequence[dict[str, Any]]) -> Figure:
    """Family gap and amortization gap over x, on top of each other; a panel for each guide."""
    from ppl_vi.report.numbers import short, three_digits
    from ppl_vi.report.style import PART_COLORS, Grid, legend, legend_height, page, plain

    guides = list(dict.fromkeys(record["guide"] for record in records if record["reason"] is None))
    labels = ["family gap: no member of the family is nearer", "amortization gap: one encoder for all x"]
    heading = "How far the encoders' guides are from the posterior at each x, and why"
    grid = Grid(MAX_PANELS_ACROSS, (2.9, 2.2), (0.25, 0.6), left=0.75, below=0.5)
    refused = [f"{record['guide']}: {record['reason']}" for record in records if record["reason"] is not None]
    above = legend_height(labels, 2)
    made = page(len(guides), grid, heading, refused, names=("x", "gap [nats]"), above=above, share=True)
    for axes, guide in zip(made.panels, guides, strict=True):
        rows = [record for record in records if record["guide"] == guide]
        x, family, amortization = ([record[name] for record in rows] for name in ("x", "family_gap", "amortization"))
        colors = [PART_COLORS["family"], PART_COLORS["amortization"]]
        areas = axes.stackplot(x, family, amortization, colors=colors, linewidth=0)
        worst = max(rows, key=lambda record: record["family_gap"])
        most = f"at most {three_digits(worst['family_gap'], worst['family_gap_error'])} + {short(max(amortization), 2)}"
        axes.set_title(f"{guide}\n{most} nats", fontsize=9, parse_math=False)
        axes.margins(x=0)
        plain(axes, label_size=8)
    if guides:
        legend(made.figure, areas, labels, made.top, 2)
    return made.figure


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
