"""Ways of fitting normal guides, side by side: what each leaves to be gained, its moments, and its processor seconds.

    python -m benchmarks.optimisers [--models NAME ...] [--targets MODULE:NAME ...] [--strategies NAME ...]

Every strategy is run on every model of `models.ZOO`, or on targets of your own: MODULE:NAME is a `Target`, a function
that returns one, or a dict of such functions. Two tables go to standard output and to results/optimisers/table.md, with
the records in records.json: one of models, and one of the medians over models.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.zoo import MODELS
from ppl_vi import cli
from ppl_vi.runtime import signals
from ppl_vi.runtime.outputs import write_output_text

if TYPE_CHECKING:
    from ppl_vi.metrics.scorecard import Scorecard
    from ppl_vi.target.target import Target
    from ppl_vi.truth import Truth

OUT = Path("results/optimisers")
NUM_REPLICAS = 4


@dataclass(frozen=True)
class Strategy:
    """A guide, and what maximises its ELBO."""

    guide: str
    objective: str = "trace_elbo"


STRATEGIES = {
    "SVI": Strategy("AutoNormal"),
    "natural gradient": Strategy("AutoNormal", "natural_gradient"),
    "DADVI": Strategy("AutoNormal", "dadvi"),
    "DADVI + linear response": Strategy("linear_response", "dadvi"),
    "ELBO + linear response": Strategy("linear_response"),
    "Pathfinder": Strategy("pathfinder"),
    "SVI, full": Strategy("AutoMultivariateNormal"),
    "natural gradient, full": Strategy("AutoMultivariateNormal", "natural_gradient"),
}
# What Giordano, Ingram and Broderick (2024) measured, medians over regressions: the mean error in standard deviations,
# and the relative error of the standard deviations.
PUBLISHED = {"DADVI": (0.184, 0.210), "DADVI + linear response": (0.186, 0.035), "RAABBVI": (0.053, 0.182)}


@dataclass(frozen=True)
class Record:
    """One strategy on one model; medians over replicas.

    Attributes:
        model, strategy: which.
        num_latents: latent numbers.
        reverse_kl: from the posterior, nats.
        excess: the same, less that of the family's best member, nats.
        mean_error: the root mean square over latent numbers of the mean's error, in posterior standard deviations.
        sd_error: likewise of the standard deviation's relative error.
        seconds: of the processor, for all replicas, the compiler's included.
        num_steps: at most.
        converged: the share of replicas that say so.
        reason: why there are no numbers, or "".
    """

    model: str
    strategy: str
    num_latents: int
    reverse_kl: float | None = None
    excess: float | None = None
    mean_error: float | None = None
    sd_error: float | None = None
    seconds: float | None = None
    num_steps: int | None = None
    converged: float | None = None
    reason: str = ""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="optimisers", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--models", nargs="*", metavar="NAME", choices=MODELS, help="models of the zoo (all)")
    found.add_argument("--targets", nargs="+", metavar="MODULE:NAME", default=[], help="targets of your own")
    names = ", ".join(STRATEGIES)
    found.add_argument("--strategies", nargs="+", metavar="NAME", choices=list(STRATEGIES), help=f"of {names} (all)")
    found.add_argument("--num-replicas", type=cli.whole(1), default=NUM_REPLICAS, metavar="N", help="fits (4)")
    cli.add_seed(found)
    cli.add_out(found, OUT)
    found.set_defaults(json=None)
    return found


def processor_seconds() -> float:
    """What this process and those that it has waited for have taken of processors."""
    return sum(os.times()[:4])


def measured(model: str, target: Target, truth: Truth, name: str, num_replicas: int, seed: int) -> Record:
    """One strategy on one model; what fails becomes a record with the reason."""
    from ppl_vi import fit, score

    strategy, before = STRATEGIES[name], processor_seconds()
    try:
        found = fit(
            target, strategy.guide, objective=strategy.objective, num_replicas=num_replicas, seed=seed,
            allow_support_mismatch=True,
        )  # fmt: skip
        seconds = processor_seconds() - before
        card = score(found, truth)
    except (ValueError, TypeError, RuntimeError) as error:
        return Record(model, name, target.dim, reason=f"{type(error).__name__}: {error}")
    mean_error, sd_error = moment_errors(card)
    kl = card.scores["reverse_kl"].value
    return Record(
        model=model,
        strategy=name,
        num_latents=target.dim,
        reverse_kl=_median(kl),
        excess=_median(kl - card.scores["family_gap"].value),
        mean_error=_median(mean_error),
        sd_error=_median(sd_error),
        seconds=round(seconds, 3),
        num_steps=int(found.num_steps.max()),
        converged=float((found.status == "converged").mean()),
    )


def moment_errors(card: Scorecard) -> tuple[np.ndarray, np.ndarray]:
    """The errors of `Record.mean_error` and `Record.sd_error` for each problem and replica, `(B, R)` each."""
    scores: Mapping[str, Sequence[Any]]
    if card.marginals is not None:
        scores = card.marginals.scores
    else:
        known = [card.scores.get(name) for name in ("mean_error", "sd_ratio")]
        if None in known:  # the truth has no points, and there are several latent numbers
            unknown = np.full(card.fit.status.shape, np.nan)
            return unknown, unknown
        scores = {"mean_error": known[:1], "sd_ratio": known[1:]}
    mean = np.stack([one.value for one in scores["mean_error"]])
    sd = np.stack([one.value for one in scores["sd_ratio"]])
    return np.sqrt((mean**2).mean(0)), np.sqrt(((sd - 1) ** 2).mean(0))


def _median(values: np.ndarray) -> float | None:
    finite = values[~np.isnan(values)]
    return float(np.median(finite)) if len(finite) else None


def targets_of(arguments: argparse.Namespace) -> dict[str, Callable[[], Target]]:
    """What makes each target that is asked for, by the model's name.

    Raises:
        UsageError: MODULE:NAME is none.
    """
    from models import ZOO
    from ppl_vi.target.target import Target

    asked = arguments.models if arguments.models is not None else ([] if arguments.targets else MODELS)
    found: dict[str, Callable[[], Target]] = {name: ZOO[name] for name in asked}
    for path in arguments.targets:
        module, _, name = path.partition(":")
        try:
            given = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise cli.UsageError(f"--targets {path}: expected MODULE:NAME, {error}") from error
        several = given if isinstance(given, Mapping) else {name: given}
        found |= {key: (lambda one=one: one if isinstance(one, Target) else one()) for key, one in several.items()}
    return found


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if value is None else f"{value:.3g}"


def table_of_models(records: Sequence[Record], strategies: Sequence[str]) -> str:
    """Markdown: for each model and strategy how far from the family's best, the moments' errors, and the seconds."""
    lines = ["| model | " + " | ".join(strategies) + " |", "|---" * (len(strategies) + 1) + "|"]
    by_model: dict[str, dict[str, Record]] = {}
    for one in records:
        by_model.setdefault(one.model, {})[one.strategy] = one
    for model, row in by_model.items():
        lines.append(f"| {model} | " + " | ".join(_cell(row[name]) for name in strategies if name in row) + " |")
    return "\n".join(lines)


def _cell(one: Record) -> str:
    """How far from the family's best in nats, and the processor seconds."""
    return one.reason.partition(":")[0] if one.reason else f"{number(one.excess)}, {number(one.seconds)} s"


def table_of_medians(records: Sequence[Record], strategies: Sequence[str]) -> str:
    """Markdown: the medians over those models that every strategy answers, beside what was published."""
    answered = [{one.model for one in records if one.strategy == name and not one.reason} for name in strategies]
    common = set.intersection(*answered) if answered else set()
    lines = [
        f"| medians over {len(common)} models | nats above the family's best | reverse KL, nats | mean error, sd | "
        "relative sd error | processor seconds | published mean error | published sd error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = ("excess", "reverse_kl", "mean_error", "sd_error", "seconds")
    for strategy in strategies:
        rows = [one for one in records if one.strategy == strategy and one.model in common]
        values = [_median(np.array([getattr(one, name) for one in rows], float)) for name in names]
        cells = [*values, *PUBLISHED.get(strategy, (None, None))]
        lines.append(f"| {strategy} | " + " | ".join(map(number, cells)) + " |")
    for strategy in PUBLISHED.keys() - STRATEGIES.keys():
        lines.append(f"| {strategy} |" + " – |" * len(names) + "".join(f" {number(x)} |" for x in PUBLISHED[strategy]))
    return "\n".join(lines)


def program(arguments: argparse.Namespace) -> int:
    """Measures, prints the tables and writes the files."""
    import torch

    torch.set_num_threads(1)
    cli.check_outputs(arguments)
    records: list[Record] = []
    strategies, targets = arguments.strategies or list(STRATEGIES), targets_of(arguments)
    done = 0
    with signals.saving(last=True):
        try:
            with signals.working():
                for done, (model, make) in enumerate(targets.items()):  # noqa: B007
                    records += _of_model(model, make, strategies, arguments)
                    _write(records, strategies, arguments)
        except KeyboardInterrupt:
            return cli.interrupted(done, len(targets), "models were finished", arguments)
    if not records:
        raise cli.UsageError("none of the models could be measured")
    print(_tables(records, strategies))
    return 0


def _of_model(
    model: str, make: Callable[[], Target], strategies: Sequence[str], arguments: argparse.Namespace
) -> list[Record]:
    """The records of one model; none where it has no truth, which one line says."""
    from ppl_vi import UncertifiedTruthError, ground_truth

    try:
        target = make()
        truth = ground_truth(target)
    except (UncertifiedTruthError, ValueError) as error:
        print(f"{model} is not measured: {error}", file=sys.stderr)
        return []
    found = []
    for name in strategies:
        found.append(measured(model, target, truth, name, arguments.num_replicas, arguments.seed))
        print(f"{model}, {name}: {found[-1].reason or _cell(found[-1])}", file=sys.stderr)
    return found


def _tables(records: Sequence[Record], strategies: Sequence[str]) -> str:
    return "\n\n".join(table(records, strategies) for table in (table_of_medians, table_of_models))


def _write(records: Sequence[Record], strategies: Sequence[str], arguments: argparse.Namespace) -> None:
    write_output_text(arguments.out / "table.md", _tables(records, strategies) + "\n")
    write_output_text(arguments.out / "records.json", json.dumps([asdict(one) for one in records], indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    """The program as a command; the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
