"""The command `ppl-vi results`: shows, exports, watches, merges and compares files of results."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ppl_vi import cli
from ppl_vi.runtime.files import replace_file, write_text
from ppl_vi.runtime.outputs import reason_of, why_not_file
from ppl_vi.sweeps.checks import StoreError
from ppl_vi.sweeps.store import is_written

WATCH_SECONDS = 1.0
VERBS = ("merge", "diff")
EXAMPLES = """examples:
  ppl-vi results sweep.db
  ppl-vi results sweep.db --where "guide = 'gamma' and lr < 0.1" --csv -o gamma.csv
  ppl-vi results sweep.db --watch
  ppl-vi results merge a.db b.db -o all.db
  ppl-vi results diff before.db after.db"""
HEADINGS = {
    "model": "model", "guide": "guide", "objective": "objective", "lr": "lr", "num_steps": "steps",
    "num_particles": "draws", "fits": "fits", "reverse_kl": "reverse KL, median", "least": "least", "most": "most",
    "seconds": "seconds", "statuses": "status",
}  # fmt: skip


def add_results(commands: Any) -> None:
    """Adds the command `results`."""
    text = "what sweeps have found: FILE, merge A B -o C, or diff A B"
    parser = cli.add_command(commands, "results", text, EXAMPLES)
    parser.add_argument("what", nargs="+", metavar="FILE", help="a file of results; merge or diff and files")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="all rows as CSV")
    form.add_argument("--json", action="store_true", help="all rows as JSON")
    form.add_argument("--parquet", action="store_true", help="all rows as a Parquet file, for which pyarrow is needed")
    form.add_argument("--watch", action="store_true", help="how far the sweep is that writes to the file")
    parser.add_argument("--where", default="", metavar="SQL", help="a condition, such as \"guide = 'gamma'\"")
    parser.add_argument("--stale", action="store_true", help="also rows of an earlier model, guide or version")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="where it is written (standard output)")
    parser.add_argument("--metric", default="reverse_kl", metavar="NAME", help="what diff compares (reverse_kl)")
    parser.add_argument("--least", type=cli.positive, default=1e-3, help="the least difference that counts (0.001)")
    parser.set_defaults(program=results_program)


def results_program(arguments: argparse.Namespace) -> int:
    """Does what is asked for; the exit code, which is 1 where `diff` finds something worse."""
    verb, *files = arguments.what if arguments.what[0] in VERBS else ("show", *arguments.what)
    try:
        if verb == "merge":
            return _merge(files, arguments.out)
        if verb == "diff":
            return _diff(files, arguments)
        if len(files) > 1:
            raise cli.UsageError(f"expected one file, got {len(files)}; merge puts several into one")
        return _watch(Path(files[0])) if arguments.watch else _show(Path(files[0]), arguments)
    except StoreError as error:
        raise cli.UsageError(str(error)) from error


def _show(file: Path, arguments: argparse.Namespace) -> int:
    from ppl_vi.sweeps import results

    stale = 0 if arguments.stale else results.num_stale(file)
    if arguments.parquet:
        _write_parquet(file, arguments)
    elif arguments.csv or arguments.json:
        names, rows = results.table_of(file, arguments.where, arguments.stale)
        _write((as_csv if arguments.csv else as_json)(names, rows), arguments.out)
    else:
        _write(as_table(results.summary(file, arguments.where, arguments.stale)), arguments.out)
    if stale:
        print(f"{stale:,} rows are stale: of an earlier model, guide or version; --stale shows them", file=sys.stderr)
    return 0


def _write(text: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.write(text)
        return
    _check(out)
    write_text(out, text)


def _check(out: Path) -> None:
    if why := why_not_file(out):
        raise cli.UsageError(f"--out: {why}")


def _write_parquet(file: Path, arguments: argparse.Namespace) -> None:
    from ppl_vi.sweeps.results import load_results

    if arguments.out is None:
        raise cli.UsageError("--parquet: expected -o FILE, since it is no text")
    if find_spec("pyarrow") is None:
        raise cli.UsageError("--parquet needs pyarrow, which is not installed: pip install pyarrow, or take --csv")
    _check(arguments.out)
    frame = load_results(file, arguments.where, arguments.stale).astype({"num_particles": str})
    content = io.BytesIO()
    frame.to_parquet(content, engine="pyarrow")
    try:
        replace_file(arguments.out, lambda out: out.write(content.getvalue()))
    except OSError as error:
        raise cli.UsageError(f"can't write '{arguments.out}': {reason_of(error)}") from error


def as_csv(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The rows as CSV; numbers that do not exist are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()


def as_json(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The rows as strict JSON, a dict each; infinite numbers are the strings "inf" and "-inf"."""
    found = [{name: _plain(value) for name, value in zip(names, row, strict=True)} for row in rows]
    return json.dumps(found, allow_nan=False, indent=1, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def as_table(found: Sequence[dict[str, Any]]) -> str:
    """The summary as aligned text, with the reasons of what has no scores below it."""
    cells = [list(HEADINGS.values()), *([_cell(row[name]) for name in HEADINGS] for row in found)]
    text = _aligned(cells)
    reasons = [f"{row['guide']} on {row['model']}: {reason}\n" for row in found for reason in row["reasons"]]
    return text + "".join(dict.fromkeys(reasons))


def _aligned(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]]) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{number:,} {name}" for name, number in value.items())
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def clock(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _watch(file: Path) -> int:
    """Shows how far a sweep is, until it has ended or Ctrl-C."""
    from ppl_vi.sweeps.results import progress_of

    moves = sys.stdout.isatty()
    while True:
        done, planned, rate = progress_of(file)
        left = f" · {rate:,.3g}/s · {clock((planned - done) / rate)} left" if rate and done < planned else ""
        print(f"{done:,} of {planned:,} fits{left}", end="\r" if moves else "\n", flush=True)
        if done >= planned or not is_written(file):
            ended = "" if done >= planned else "no sweep is writing to it: the same command goes on from there"
            print(ended, end="\n" if moves or ended else "")
            return 0
        time.sleep(WATCH_SECONDS)


def _merge(files: Sequence[str], out: Path | None) -> int:
    from ppl_vi.sweeps.results import merge

    if len(files) < 2 or out is None:
        raise cli.UsageError("expected merge A B … -o C")
    counts = merge(files, out)
    print(f"{counts['tasks']:,} tasks are in {out}; {counts['common']:,} were in several of the files")
    if counts["different"]:
        print(f"{counts['different']:,} of these have other numbers there; those of the first file stay")
    return 0


def _diff(files: Sequence[str], arguments: argparse.Namespace) -> int:
    from ppl_vi.sweeps.differences import differences

    if len(files) != 2:
        raise cli.UsageError("expected diff A B")
    found = differences(files[0], files[1], arguments.metric, arguments.least)
    counts = {
        verdict: sum(one.verdict == verdict for one in found) for verdict in dict.fromkeys(v.verdict for v in found)
    }
    print(f"{arguments.metric}: " + (", ".join(f"{n:,} {verdict}" for verdict, n in counts.items()) or "nothing"))
    told = [one for one in found if one.verdict != "same"]
    if told:
        shown = [name for name in told[0].group if len({one.group[name] for one in told}) > 1 or name == "guide"]
        head = ["", *shown, "before", "after", "std. error", "fits", "lost"]
        rows = [
            [one.verdict, *(_cell(one.group[name]) for name in shown), _cell(one.before), _cell(one.after),
             _cell(one.std_error), f"{one.num_before}, {one.num_after}", f"{one.lost_before}, {one.lost_after}"]
            for one in told
        ]  # fmt: skip
        sys.stdout.write(_aligned([head, *rows]))
    return int(any(one.verdict == "worse" for one in found))
