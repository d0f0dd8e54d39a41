"""The options that several programs have."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ppl_vi.cli.parsing import draws, engine, folder, memory, step_size, whole
from ppl_vi.runtime.names import STARTS

DEVICES = ("cpu", "cuda")
FULL: dict[str, Any] = {"num_steps": 1000, "num_particles": "auto", "num_replicas": 16, "num_draws": 10_000}
QUICK: dict[str, Any] = {"num_steps": 300, "num_particles": "auto", "num_replicas": 4, "num_draws": 2000}


def add_comparison_options(
    parser: argparse.ArgumentParser,
    out: Path,
    quick_guides: Sequence[str],
    guides: Sequence[str] = ("all",),
    full: dict[str, Any] = FULL,
) -> None:
    """Adds the options of a program that compares guide families on one target.

    Args:
        parser: gets the options.
        out: the default folder of `--out`.
        quick_guides: the families that `--quick` compares.
        guides: the families that are compared by default.
        full: the default counts of steps, particles, replicas and draws, without `--quick`.
    """
    few = ", ".join(quick_guides)
    parser.add_argument(
        "--guides", nargs="+", metavar="NAME", help=f"families, or all ({', '.join(guides)}, with --quick {few})"
    )
    parser.add_argument("--list-guides", action="store_true", help="list the families and exit")
    add_full(parser)
    add_fit_options(parser, full, QUICK)
    add_memory(parser)
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where to compute (cpu)")
    add_run_options(parser, out, "few families, steps and replicas")
    add_html(parser)
    add_store(parser)


def add_fit_options(parser: argparse.ArgumentParser, full: dict[str, Any], quick: dict[str, Any]) -> None:
    """Adds the options that say how guides are fitted.

    Args:
        parser: gets the options.
        full: the default counts of steps, particles, replicas and draws.
        quick: those with `--quick`, or the same where there is no such option.
    """
    parser.set_defaults(full=full)

    def count(name: str, text: str, kind: Callable[[str], Any]) -> None:
        default = f"{full[name]}" if full[name] == quick[name] else f"{full[name]}, with --quick {quick[name]}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=f"{text} ({default})")

    parser.add_argument(
        "--objective", default="trace_elbo", metavar="NAME", help="trace_elbo, stl, renyi:0.5, iwae:8 …"
    )
    count("num_steps", "SVI steps at most, or 0 for guides as they are", whole(0))
    count("num_particles", "draws a step, or auto: few at first, more where their noise is what is left", draws)
    count("num_replicas", "independent fits of each problem", whole(1))
    count("num_draws", "draws of each fit for k-hat, ESS and importance sampling", whole(2))
    parser.add_argument("--lr", type=step_size, default=0.2, metavar="F", help="Adam's first step size (0.2)")
    parser.add_argument("--start", choices=STARTS, default="mode", help="where replicas start (mode)")
    parser.add_argument(
        "--engine",
        type=engine,
        metavar="NAME",
        default="auto",
        help="steps as machine code (compiled), operation by operation (batched), by Pyro's SVI, one fit at a time "
        "(pyro), or the fastest of these (auto)",
    )


def add_run_options(parser: argparse.ArgumentParser, out: Path, quick: str) -> None:
    """Adds the options of every program that writes records and figures; `quick` says what `--quick` has less of."""
    add_seed(parser)
    parser.add_argument("--quick", action="store_true", help=f"a look in seconds: {quick}")
    add_out(parser, out)
    parser.add_argument("--json", metavar="FILE", help="the records here, too; - is standard output, and only them")
    parser.add_argument("--no-plots", action="store_true", help="write no figures")


def add_html(parser: argparse.ArgumentParser) -> None:
    """Adds `--html`."""
    parser.add_argument("--html", action="store_true", help="write report.html, one page with everything")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Adds `--store`."""
    text = "put the fits into a file of sweeps, and compute only what it does not have; tables and --out are left out"
    parser.add_argument("--store", type=Path, metavar="FILE", help=text)


def add_full(parser: argparse.ArgumentParser) -> None:
    """Adds `--full`."""
    text = "print all columns, not six (table.txt has all)"
    parser.add_argument("--full", dest="full_table", action="store_true", help=text)


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Adds `--max-memory`."""
    text = "what all processes may hold together, such as 500MB, 4GB or 4GiB (half of what is free)"
    parser.add_argument("--max-memory", type=memory, metavar="SIZE", help=text)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Adds `--seed`."""
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of initial values and noise (0)")


def add_out(parser: argparse.ArgumentParser, out: Path) -> None:
    """Adds `--out`."""
    text = f"folder for what is written ({out})"
    parser.add_argument("--out", type=folder, default=out, metavar="DIR", help=text, action=_Given)
    parser.set_defaults(out_is_given=False, whose=parser.prog, unlisted_is_own=True)


class _Given(argparse.Action):
    """Stores an option's value, and under `..._is_given` that the user named it."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, values)
        setattr(namespace, f"{self.dest}_is_given", True)
