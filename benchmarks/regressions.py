"""Deterministic ADVI beside SVI on posteriordb's regressions: errors of means and standard deviations, and time.

    python -m benchmarks.regressions --posteriordb PATH [--only NAME ...]

Giordano, Ingram and Broderick (2024), Black box variational inference with a deterministic objective, give for each
model the root mean square, over its numbers, of the mean's error in posterior standard deviations, and of the relative
error of the standard deviation, and medians of these over models. Here the reference is the published draws. Each
posterior runs in a process of its own. Records go to docs/results/regressions.json, the table into docs/autoguides.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ppl_vi
from benchmarks.limited_process import answer, limit_this_process, run, used_seconds
from benchmarks.speed_page import with_table
from benchmarks.speed_whole import markdown
from models.posteriordb import PosteriorDatabase, PosteriorDatabaseError, linear, posterior
from ppl_vi import cli
from ppl_vi.runtime.files import write_text

RECORDS, PAGE = Path("docs/results/regressions.json"), Path("docs/autoguides.md")
SECONDS, MEMORY = 200.0, 8e9
NUM_DRAWS = 10_000
# By the name in the table, a guide and an objective.
METHODS = {
    "AutoNormal, SVI": ("AutoNormal", "trace_elbo"),
    "AutoNormal, DADVI": ("AutoNormal", "dadvi"),
    "linear response, DADVI": ("linear_response", "dadvi"),
}
PUBLISHED = {
    "AutoNormal, SVI": "0.096 / 0.157 (stochastic ADVI)",
    "AutoNormal, DADVI": "0.184 / 0.210",
    "linear response, DADVI": "0.186 / 0.035",
}

Record = dict[str, Any]


def record(database: PosteriorDatabase, name: str, method: str) -> Record:
    """The errors of one method on one posterior."""
    guide, objective = METHODS[method]
    port, draws = posterior(database, name), database.reference_draws(name)
    assert draws is not None
    began = used_seconds()
    fit = ppl_vi.fit(port.target(name), guide, objective=objective, seed=0)
    seconds = used_seconds() - began
    found = port.quantities({site: value[:, 0] for site, value in fit.draw(NUM_DRAWS, 0).items()})
    right = {key: (value.mean(), value.std()) for key, value in draws.items()}
    means = [(float(found[key].mean()) - mean) / sd for key, (mean, sd) in right.items()]
    sds = [float(found[key].std()) / sd - 1 for key, (_, sd) in right.items()]
    return {
        "posterior": name,
        "method": method,
        "mean_error": float(np.sqrt(np.mean(np.square(means)))),
        "sd_error": float(np.sqrt(np.mean(np.square(sds)))),
        "seconds": seconds,
        "fit": str(fit.status[0, 0]),
    }


def medians(records: Sequence[Record]) -> str:
    """A row a method: medians over posteriors, ours beside those of the paper over its own 53 models."""
    rows = []
    for method in METHODS:
        ran = [r for r in records if r["method"] == method and "mean_error" in r]
        failed = sum(r["method"] == method for r in records) - len(ran)
        if ran:
            middle = {key: statistics.median(r[key] for r in ran) for key in ("mean_error", "sd_error", "seconds")}
            numbers = [f"{middle['mean_error']:.3f}", f"{middle['sd_error']:.3f}", f"{middle['seconds']:.1f}"]
            rows.append([method, str(len(ran)), str(failed), *numbers, PUBLISHED[method]])
    headings = ("method", "posteriors", "failed", "mean error", "sd error", "seconds", "theirs: mean / sd error")
    return markdown(headings, rows) if rows else "Not measured yet.\n"


def _measured(asked: argparse.Namespace) -> Iterator[list[Record]]:
    try:
        database = PosteriorDatabase.at(asked.posteriordb)
        named = asked.only or [name for name in linear.POSTERIORS if database.reference_name(name)]
    except PosteriorDatabaseError as error:
        raise cli.UsageError(str(error)) from error
    for name in named:
        options = ["--posteriordb", str(database.root), "--child", name]
        found = run("benchmarks.regressions", options, seconds=SECONDS, memory=MEMORY)
        lost = [{"posterior": name, "method": method, "reason": found.reason} for method in METHODS]
        yield lost if found.value is None else found.value


def _child(asked: argparse.Namespace) -> int:
    limit_this_process(asked.seconds, asked.bytes)
    torch.set_num_threads(1)
    database, found = PosteriorDatabase.at(asked.posteriordb), []
    for method in METHODS:
        try:
            found.append(record(database, asked.child, method))
        except Exception as error:  # whatever a fit raises is this method's answer
            found.append({"posterior": asked.child, "method": method, "reason": str(error).splitlines()[0]})
    answer(found)
    return 0


def program(asked: argparse.Namespace) -> int:
    """Measures what was asked for, and renews records and table."""
    if asked.child:
        return _child(asked)
    kept = json.loads(asked.records.read_text(encoding="utf-8")) if asked.records.is_file() else []
    records = {(r["posterior"], r["method"]): r for r in kept}
    for some in () if asked.table else _measured(asked):
        records |= {(r["posterior"], r["method"]): r for r in some}
        print("; ".join(f"{r['posterior']} {r['method']}: {r.get('mean_error', r.get('reason'))}" for r in some))
        in_order = [records[key] for key in sorted(records)]
        write_text(asked.records, json.dumps(in_order, indent=1, allow_nan=False) + "\n")
    page = asked.page.read_text(encoding="utf-8")
    write_text(asked.page, with_table(page, "dadvi", medians([records[key] for key in sorted(records)])))
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = cli.Parser(prog="regressions", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--posteriordb", metavar="PATH", help="a clone of posteriordb (PPL_VI_POSTERIORDB)")
    found.add_argument("--only", metavar="NAME", nargs="+", help="posteriors (the linear regressions)")
    found.add_argument("--records", type=Path, default=RECORDS, help=f"where the records go ({RECORDS})")
    found.add_argument("--page", type=Path, default=PAGE, help=f"the page whose table is renewed ({PAGE})")
    found.add_argument("--table", action="store_true", help="measure nothing: only renew the table")
    for name, kind in (("child", str), ("seconds", float), ("bytes", float)):  # for a process of one posterior
        found.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
