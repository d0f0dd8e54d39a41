"""The comparison as tables for a terminal: one problem after another, the nearest guide first."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ppl_vi.report.numbers import MISSING, nats, number, short, three_digits

Record = dict[str, Any]
WIDTH = 120  # of what is not a terminal
GAP = 2  # between columns
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
STYLES = {"diverged": "red", "failed": "red", "not converged": "yellow", "skipped": "dim"}
UPPER_BOUND = (
    "≤, ≥: the family has many optima, so its best member is the best of several local searches; its gap is at most "
    "this, what the optimiser left at least that."
)


@dataclass
class Footnotes:
    """Texts by the order in which they are first referred to."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """The superscript that refers to a text."""
        if text not in self.texts:
            self.texts.append(text)
        return str(self.texts.index(text) + 1).translate(SUPERSCRIPTS)


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        heading: its lines.
        cell: the text for a record; footnotes may be added.
        left: whether the text starts at the left.
    """

    heading: tuple[str, ...]
    cell: Callable[[Record, Footnotes], str]
    left: bool = False


def sort_key(record: Record) -> tuple[int, float, str]:
    """By reverse KL; infinite ones, then those without a number, then skipped ones last."""
    divergence = number(record["reverse_kl"])
    rank = 3 if record["status"] == "skipped" else 2 if math.isnan(divergence) else 1 if math.isinf(divergence) else 0
    return rank, divergence if rank == 0 else 0.0, record["guide"].lower()


def spread(record: Record, name: str) -> float:
    """The largest minus the smallest over replicas; nan for fewer than two."""
    values = [number(replica[name]) for replica in record["replicas"]]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return max(values) - min(values)


def uncertainty(record: Record, name: str) -> float:
    """What a score may be off by: its numerical error and two standard errors; nan where neither is known."""
    error, spread = number(record.get(f"{name}_error")), number(record.get(f"{name}_std_error"))
    return error if math.isnan(spread) else 2 * spread + (0.0 if math.isnan(error) else error)


def _metric(name: str, show: Callable[[Record], str] | None = None) -> Callable[[Record, Footnotes], str]:
    def cell(record: Record, notes: Footnotes) -> str:
        text = show(record) if show else three_digits(record[name], uncertainty(record, name))
        reason = _reason(record, name)
        return text + notes.mark(reason) if reason and ("inf" in text or text == MISSING) else text

    return cell


def _reason(record: Record, name: str) -> str:
    """Why a metric is infinite or missing; a guide that leaks mass gets one note for all that follows from it."""
    if record["support_mismatch"] and name in ("elbo", "elbo_gap", "reverse_kl", "family_gap"):
        return leak_note(record)
    return str(record["reasons"].get(name, ""))


def leak_note(record: Record) -> str:
    """What a guide outside the model's support costs, and what hides it."""
    what = record["support_mismatch"].split("; ")[0]
    note = f"{record['guide']}: {what} (leaked mass {three_digits(record['leaked_mass'])})."
    surrogate, evidence = number(record["surrogate_elbo"]), number(record["log_evidence"])
    if not math.isfinite(surrogate):
        return note
    side = "above" if surrogate > evidence else "below"
    return (
        f"{note} With validation off you would have read ELBO {nats(surrogate)}, "
        f"{side} log p(x) = {nats(evidence)}: the model's formula, continued outside its support."
    )


def _guide(record: Record, notes: Footnotes) -> str:
    remark = record["reason"] if record["status"] in ("skipped", "failed") else ""
    return record["guide"] + (notes.mark(f"{record['guide']}: {record['status']}, {remark}") if remark else "")


def _status(record: Record, notes: Footnotes) -> str:
    status = str(record["status"]).replace("_", " ")
    diverged = record["statuses"].get("diverged", 0)
    if not diverged:
        return status
    first = next(r["stop_reason"] for r in record["replicas"] if r["status"] == "diverged")
    total = len(record["replicas"])
    return status + notes.mark(f"{record['guide']}: {diverged} of {total} replicas diverged, one {first}")


def _spread(record: Record) -> str:
    value = spread(record, "reverse_kl")
    noise = 2 * uncertainty(record, "reverse_kl")
    return MISSING if math.isnan(value) else "0" if value == 0 else three_digits(value, noise)


def _bounded(name: str, sign: str) -> Callable[[Record], str]:
    def bounded(record: Record) -> str:
        text = three_digits(record[name], uncertainty(record, name))
        return bound(text, sign) if record["family_gap_is_upper_bound"] else text

    return bounded


def bound(text: str, sign: str) -> str:
    """A value that is at most, or at least, this: one below its own error `<e` is at most that, and at least 0."""
    if text in (MISSING, "inf"):
        return text
    if text.startswith("<"):
        return f"≤{text[1:]}" if sign == "≤" else "≥0"
    return sign + text


def _importance(record: Record) -> str:
    error = number(record.get("importance_log_evidence_std_error"))
    naive = number(record.get("importance_log_evidence_naive_std_error"))
    if math.isnan(number(record["importance_log_evidence"])):
        return MISSING
    shown = nats(record["importance_log_evidence"])
    if math.isinf(error):
        hint = "" if math.isnan(naive) else f" (naive {short(naive, 2)})"
        return f"{shown} ± inf{hint}"
    return shown if math.isnan(error) else f"{shown} ± {short(error, 2)}"


def _percent(name: str) -> Callable[[Record], str]:
    def percent(record: Record) -> str:
        value = number(record[name])
        return f"{100 * value:.1f}%" if math.isfinite(value) else three_digits(record[name])

    return percent


def _fixed(name: str, decimals: int) -> Callable[[Record], str]:
    def fixed(record: Record) -> str:
        value = number(record[name])
        return f"{value:.{decimals}f}" if math.isfinite(value) else three_digits(record[name])

    return fixed


def _khats(record: Record) -> str:
    few, many = number(record["khat_1000"]), number(record["khat"])
    return MISSING if math.isnan(many) else f"{MISSING if math.isnan(few) else f'{few:.2f}'}, {many:.2f}"


GUIDE = Column(("", "guide"), _guide, left=True)
COLUMNS = (
    Column(("", "status"), _status, left=True),
    Column(("", "ELBO"), _metric("elbo", lambda record: nats(record["elbo"]))),
    Column(("reverse KL", "median"), _metric("reverse_kl")),
    Column(("max-min over", "replicas"), _metric("reverse_kl", _spread)),
    Column(("family", "gap"), _metric("family_gap", _bounded("family_gap", "≤"))),
    Column(("optimiz.", "gap"), _metric("optimization_gap", _bounded("optimization_gap", "≥"))),
    Column(("forward", "KL"), _metric("forward_kl")),
    Column(("", "TV"), _metric("total_variation")),
    Column(("", "W1"), _metric("wasserstein")),
    Column(("mean", "error"), _metric("mean_error")),
    Column(("sd", "ratio"), _metric("sd_ratio")),
    Column(("coverage", "of 90%"), _metric("coverage_90", _percent("coverage_90"))),
    Column(("leaked", "mass"), _metric("leaked_mass")),
    Column(("", "k-hat"), _metric("khat", _fixed("khat", 2))),
    Column(("", "ESS"), _metric("ess", _fixed("ess", 0))),
    Column(("log p(x) by importance", "sampling ± std. error"), _metric("importance_log_evidence", _importance)),
)

# of a model of any number of latents: the worst of its numbers, errors in standard deviations of the posterior
MODEL_COLUMNS = (
    *COLUMNS[:7],
    Column(("mean", "error"), _metric("mean_error")),
    Column(("sd", "ratio"), _metric("sd_ratio")),
    Column(("covariance", "error"), _metric("relative_covariance_error")),
    Column(("", "W1"), _metric("wasserstein")),
    Column(("coverage", "of 90%"), _metric("coverage_90", _percent("coverage_90"))),
    Column(("leaked", "mass"), _metric("leaked_mass")),
    Column(("k-hat of 1,000", "and all draws"), _metric("khat", _khats)),
    Column(("", "ESS"), _metric("ess", _fixed("ess", 0))),
    Column(("", "IWAE-64"), _metric("iwae_bound", lambda record: nats(record["iwae_bound"]))),
    Column(("log p(x) by importance", "sampling ± std. error"), _metric("importance_log_evidence", _importance)),
)


def title(record: Record) -> str:
    """What is known of the problem: its log evidence with its error, and how far that can be trusted."""
    evidence, error = number(record["log_evidence"]), uncertainty(record, "log_evidence")
    text = f"log p(x) = {evidence:.6f} ± {short(error, 1) if error else '0'} nats"
    if "x" in record:
        return f"x = {record['x']:g}    {text}"
    why = f": {record['grade_reason']}" if record["grade_reason"] else ""
    return f"{record['model']}{_which(record)}    {text}, by {record['method']}, {record['grade']}{why}"


def _which(record: Record) -> str:
    """Which of its target's problems a record is of, and where they come from; "" where the target poses one."""
    if "problem" not in record:
        return ""
    several = f"the target poses {record['num_problems']} problems, numbered from 0: one for each row of its arguments"
    return f", problem {record['problem']} ({several})"


def _problem_of(record: Record) -> Any:
    return record["x"] if "x" in record else (record["model"], record.get("problem"))


def tables(records: Sequence[Record], width: int) -> Iterator[RenderableType]:
    """The problems one after another, each in as many tables as `width` asks for, and its footnotes."""
    for x in dict.fromkeys(map(_problem_of, records)):
        yield _problem(sorted((record for record in records if _problem_of(record) == x), key=sort_key), width)


def _problem(rows: list[Record], width: int) -> Group:
    notes = Footnotes()
    guides = [GUIDE.cell(row, notes) for row in rows]
    columns = MODEL_COLUMNS if "iwae_bound" in rows[0] else COLUMNS  # which only a detailed comparison has
    cells = [[column.cell(row, notes) for row in rows] for column in columns]
    parts: list[RenderableType] = [Text(title(rows[0]), style="bold"), Text("")]
    for chosen in packed(guides, columns, cells, width):
        parts.append(Padding(_table(guides, [(columns[i], cells[i]) for i in chosen]), (0, 0, 1, 0)))
    texts = [(f"{i + 1} ".translate(SUPERSCRIPTS), text) for i, text in enumerate(notes.texts)]
    if any(row["family_gap_is_upper_bound"] for row in rows):
        texts.append(("", UPPER_BOUND))
    if rows[0].get("assumptions"):
        texts.append(("", f"The truth assumes: {'; '.join(rows[0]['assumptions'])}."))
    parts.extend(Text(mark + text) for mark, text in texts)
    return Group(*parts, Text(""))


def packed(
    guides: Sequence[str], columns: Sequence[Column], cells: Sequence[Sequence[str]], width: int
) -> list[list[int]]:
    """The columns of each table, in order, as many as fit beside the guides."""
    used = first = _width(GUIDE, guides)
    groups: list[list[int]] = [[]]
    for i, (column, texts) in enumerate(zip(columns, cells, strict=True)):
        wide = GAP + _width(column, texts)
        if groups[-1] and used + wide > width:
            groups.append([])
            used = first
        groups[-1].append(i)
        used += wide
    return groups


def _width(column: Column, texts: Sequence[str]) -> int:
    return max(map(cell_len, (*column.heading, *texts)))


def _table(guides: Sequence[str], columns: Sequence[tuple[Column, Sequence[str]]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, GAP - 1, 0, 0), pad_edge=False, header_style="")
    for column in (GUIDE, *(column for column, _ in columns)):
        table.add_column("\n".join(column.heading), justify="left" if column.left else "right", no_wrap=True)
    for row in zip(guides, *(texts for _, texts in columns), strict=True):
        table.add_row(*(Text(text, style=_style(text)) for text in row))
    return table


def _style(text: str) -> str:
    return next((style for word, style in STYLES.items() if text.startswith(word)), "")


def terminal(stderr: bool = False) -> Console:
    """Where tables go: as wide as the terminal, or `WIDTH` where there is none."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=WIDTH)


def show(records: Sequence[Record], console: Console) -> None:
    """Prints the tables, as wide as the console."""
    for table in tables(records, console.width):
        console.print(table, highlight=False, markup=False, emoji=False)


def as_text(
    records: Sequence[Record], show: Callable[[Sequence[Record], Console], None] = show, width: int = WIDTH
) -> str:
    """The tables that `show` prints, without colour, for a file."""
    with io.StringIO() as sink:
        show(records, Console(file=sink, width=width, force_terminal=False, no_color=True))
        lines = sink.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"
