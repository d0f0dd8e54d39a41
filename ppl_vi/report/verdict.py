"""The verdict on a comparison, in words: which guide to take, its cost, which intervals are too narrow, what helps.

Each clause follows from numbers of the records, and from what the truth's points say of the posterior (`Structure`).
Where these do not carry a clause, as where guides differ by less than their errors, there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from torch.distributions import constraints

from ppl_vi.comparison.comparison import Comparison
from ppl_vi.comparison.structure import Structure, structure_of
from ppl_vi.report.advice import cause_of, mend_of
from ppl_vi.report.brief import IDEAL_COVERAGE, in_seconds, seconds_of, worst_interval
from ppl_vi.report.columns import Record, uncertainty
from ppl_vi.report.failures import in_words
from ppl_vi.report.numbers import number, short, three_digits
from ppl_vi.report.standing import NEGLIGIBLE
from ppl_vi.report.table import sort_key
from ppl_vi.runtime.showing import paragraph

# A 90% interval is too narrow if it covers less than this, by more than its error.
TOO_NARROW = IDEAL_COVERAGE - 0.05
# A reverse KL is known too badly to speak of if its error is more than NEGLIGIBLE and this share of it.
LARGEST_ERROR_SHARE = 0.5
# Two guides are equally near where their reverse KLs differ by no more than this share, and by no more than NEGLIGIBLE.
SAME_SHARE = 0.02
# Another guide is cheaper if it took less by this factor and by so many seconds: smaller differences are the machine's.
CHEAPER_FACTOR, CHEAPER_SECONDS = 1.5, 0.2
POSITIVE = (constraints.positive, constraints.nonnegative)
# Guides of which a cause is told, and those that are named beside them.
MOST_WITH_CAUSE, MOST_NAMED = 2, 3
SAYS_CAUSE = ("another start", "more steps")  # mends that tell of the cause themselves


@dataclass(frozen=True)
class NarrowInterval:
    """A guide's worst 90% interval, where it is too narrow.

    Attributes:
        guide: whose it is.
        latent: the latent number, such as `theta[3]`; "" where the record does not tell.
        coverage: the posterior's probability of it.
        cause: what keeps the guide from a better one: "family", "start", "optimization", "objective" or "".
    """

    guide: str
    latent: str
    coverage: float
    cause: str


@dataclass(frozen=True)
class Verdict:
    """What a comparison says, in words and as fields. `print` shows the words.

    Attributes:
        text: the verdict; "" where the numbers carry none, for the `reason`.
        best: the guide that is nearest to the posterior; of several that are equally near, the one that took least
            time. None where there is none.
        tied: the other guides that are equally near.
        reverse_kl: its reverse KL, nats.
        reverse_kl_error: what that may be off by: its numerical error and two standard errors, nats.
        seconds: what its fit cost.
        narrow: the intervals that are too narrow, of the guides from the nearest to the farthest.
        mend: what would bring the best guide nearer: "nothing", "another start", "more steps", "another objective",
            "another fit" (of another guide), "non-centred form", "full covariance", "another family", or "".
        site: the site that a non-centred form is for, or "".
        mend_nats: what the mend is worth, nats; None where that was not measured.
        reason: why there is no verdict, or why nothing can be trusted; "" otherwise.
    """

    text: str
    best: str | None = None
    tied: tuple[str, ...] = ()
    reverse_kl: float | None = None
    reverse_kl_error: float | None = None
    seconds: float | None = None
    narrow: tuple[NarrowInterval, ...] = ()
    mend: str = ""
    site: str = ""
    mend_nats: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return paragraph(self.text or f"No verdict: {self.reason}.")


def verdict_of(
    records: Sequence[Record],
    structure: Callable[[], Structure] = Structure,
    positive: Set[str] = frozenset(),
) -> Verdict:
    """The verdict on the records of one problem.

    Args:
        records: one for each guide.
        structure: gives what the truth's points say of the posterior; it is called only where that is needed.
        positive: the sites of positive numbers.
    """
    rows = sorted(records, key=sort_key)
    if any(row["uncertified"] for row in rows):
        why = in_words(next(row["grade_reason"] for row in rows if row["uncertified"]))
        return Verdict(f"Nothing here can be trusted, because the truth is uncertified: {why}.", reason=why)
    measured = [row for row in rows if math.isfinite(number(row["reverse_kl"]))]
    leaks = _leaks(rows, positive)
    if not measured:
        return Verdict(leaks, reason="no guide has a finite reverse KL")
    error = uncertainty(measured[0], "reverse_kl")
    if error > max(NEGLIGIBLE, LARGEST_ERROR_SHARE * number(measured[0]["reverse_kl"])):
        known = f"the reverse KL of {measured[0]['guide']} is known to ± {short(error, 1)} nats only"
        return Verdict(leaks, reason=known)
    nearest = [row for row in measured if row is measured[0] or are_tied(measured[0], row)]
    best = min(nearest, key=_cost) if len(nearest) > 1 else measured[0]
    rest = [row for row in measured if not any(row is one for one in nearest)]
    narrow = [(row, found) for row in [*nearest, *rest] if (found := narrow_interval(row)) is not None]
    mend = mend_of(best, rest, any(row is best for row, _ in narrow), structure)
    price = _price(best, rest)
    told = best["guide"] if len(nearest) == 1 and not price else ""
    intervals = _narrow(narrow, told, best["guide"] if mend.kind in SAYS_CAUSE else "")
    sentences = (_choice(best, nearest, len(rows)), price, intervals, leaks, mend.text)
    return Verdict(
        " ".join(filter(None, sentences)),
        best["guide"],
        tuple(row["guide"] for row in nearest if row is not best),
        number(best["reverse_kl"]),
        uncertainty(best, "reverse_kl"),
        None if math.isnan(seconds_of(best)) else seconds_of(best),
        tuple(found for _, found in narrow),
        mend.kind,
        mend.site,
        mend.nats,
    )


def are_tied(one: Record, other: Record) -> bool:
    """Whether two guides are equally near: by their errors or their replicas' spread, or as the difference is nothing.

    It is nothing where it is at most `NEGLIGIBLE` and `SAME_SHARE` of the reverse KL.
    """
    a, b = number(one["reverse_kl"]), number(other["reverse_kl"])
    errors = [uncertainty(row, "reverse_kl") for row in (one, other)]
    noise = sum(error for error in errors if not math.isnan(error))
    if abs(a - b) <= max(noise, min(NEGLIGIBLE, SAME_SHARE * min(a, b))):
        return True
    (low_a, high_a), (low_b, high_b) = _range(one), _range(other)
    return low_a <= b <= high_a and low_b <= a <= high_b


def _range(row: Record) -> tuple[float, float]:
    """The smallest and the largest reverse KL of a row's replicas, nan where there are none."""
    values = [number(replica.get("reverse_kl")) for replica in row["replicas"]]
    return min(values, default=math.nan), max(values, default=math.nan)


def narrow_interval(row: Record) -> NarrowInterval | None:
    """The interval of a row that is narrowest, where that is too narrow."""
    latent, covered, error = worst_interval(row)
    if not covered + (0.0 if math.isnan(error) else error) < TOO_NARROW:
        return None
    return NarrowInterval(row["guide"], latent, covered, cause_of(row)[0])


def _distance(row: Record) -> str:
    value, error = number(row["reverse_kl"]), uncertainty(row, "reverse_kl")
    if abs(value) <= error:
        return f"within {short(error, 1)} nats of the posterior"
    return f"{three_digits(value)} nats from the posterior"


def _after(row: Record) -> str:
    return "" if math.isnan(seconds_of(row)) else f" after {in_seconds(seconds_of(row))}"


def _cost(row: Record) -> float:
    """The seconds by which guides that are equally near are ordered: those without a time come last."""
    return math.inf if math.isnan(seconds_of(row)) else seconds_of(row)


def _choice(best: Record, nearest: Sequence[Record], num_rows: int) -> str:
    """Which guide to take and what it costs."""
    if len(nearest) > 1:
        names = listed([best["guide"], *(row["guide"] for row in nearest if row is not best)], "or")
        return f"Take {names}, which are equally near: {_distance(best)}{_after(best)} with {best['guide']}."
    if num_rows == 1:
        return f"{best['guide']} is {_distance(best)}{_after(best)}."
    return f"Take {best['guide']}: {_distance(best)}{_after(best)}."


def listed(names: Sequence[str], last: str = "and") -> str:
    """Names as a list in words: `a, b and c`, of more than `MOST_NAMED` only the first."""
    shown = [*names[:MOST_NAMED], *([f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {last} {shown[-1]}"


def _price(best: Record, rest: Sequence[Record]) -> str:
    """What the best guide wins against the nearest of those that took less time."""
    seconds = seconds_of(best)
    cheaper = [
        row
        for row in rest
        if seconds_of(row) * CHEAPER_FACTOR <= seconds and seconds - seconds_of(row) >= CHEAPER_SECONDS
    ]
    if not cheaper:
        return ""
    other = min(cheaper, key=lambda row: number(row["reverse_kl"]))
    won = number(other["reverse_kl"]) - number(best["reverse_kl"])
    if won <= NEGLIGIBLE:
        return f"{other['guide']} took {in_seconds(seconds_of(other))} and is {short(won, 1)} nats farther."
    more = seconds - seconds_of(other)
    return (
        f"That is {three_digits(won)} nats nearer than {other['guide']} for {in_seconds(more)} more, "
        f"{short(won / more, 2)} nats a second."
    )


def _narrow(narrow: Sequence[tuple[Record, NarrowInterval]], told: str, explained: str) -> str:
    """Whose intervals are too narrow, for which latent, and why.

    The guide `told` is that of the sentence before, and that of `explained` has its cause told below.
    """
    guides: dict[str, list[str]] = {}  # by what is said of them, which may be the same of several
    for row, found in narrow:
        cause = "" if found.guide == explained else cause_of(row)[1]
        of = f" of {found.latent}" if found.latent else ""
        said = f"90% interval{of} covers {100 * found.coverage:.0f}%{cause and f': {cause}'}."
        guides.setdefault(said, []).append(found.guide)
    sentences = []
    for said, names in list(guides.items())[:MOST_WITH_CAUSE]:
        whose = "Its" if names == [told] else f"{names[0]}'s" if len(names) == 1 else f"With {listed(names)} the"
        sentences.append(f"{whose} {said}")
    more = [name for names in list(guides.values())[MOST_WITH_CAUSE:] for name in names]
    return " ".join([*sentences, *([f"Too narrow as well: {listed(more)}."] if more else [])])


def _leaks(rows: Sequence[Record], positive: Set[str]) -> str:
    """Which guides have mass where the model has none, at which site, and which families fit."""
    leaking = [row for row in rows if row["support_mismatch"]]
    if not leaking:
        return ""
    what, _, families = leaking[0]["support_mismatch"].partition("; families that fit: ")
    site = what.partition("site '")[2].partition("'")[0]
    fitting = f"take a family that fits, such as {listed(families.split(', '), 'or')}" if families else ""
    mend = ", or ".join(filter(None, [f"write {site} in log form" if site in positive else "", fitting]))
    names, each = listed([row["guide"] for row in leaking]), "it puts" if len(leaking) == 1 else "they put"
    leak = f"Don't take {names}: {each} mass where the model has none{site and f', at {site}'}."
    return f"{leak} {mend[0].upper()}{mend[1:]}." if mend else leak


def verdict_on(comparison: Comparison, problem: int = 0) -> Verdict:
    """The verdict on one problem of a comparison."""
    return verdict_of(
        [entry.records[problem] for entry in comparison.entries],
        lambda: structure_of(comparison.truth, problem),
        {site.name for site in comparison.target.latents if site.support in POSITIVE},
    )
