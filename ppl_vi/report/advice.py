"""What keeps a guide from the posterior, and what would bring it nearer: the part of the verdict that gives advice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ppl_vi.comparison.structure import NonCentring, Structure
from ppl_vi.report.brief import reverse_kl_parts
from ppl_vi.report.columns import Record, start_gaps, uncertainty
from ppl_vi.report.numbers import number, three_digits
from ppl_vi.report.standing import NEGLIGIBLE, word_of

# A part of the reverse KL is its cause where it is at least this share of it.
MAIN_SHARE = 0.5
# A non-centred form or a full covariance is advised where it is worth at least so many nats.
WORTH_NATS = 0.1
HELPS = {
    "family": "the family can't do better",
    "start": "another start would do better",
    "optimization": "more steps would do better",
    "objective": "another objective would do better",
}
BY_SVI = "a fit by SVI would do better"  # of a guide that was not fitted, or sits at the mode


@dataclass(frozen=True)
class Mend:
    """What would bring a guide nearer to the posterior.

    Attributes:
        kind: in a few words, as `Verdict.mend` has it.
        text: the sentence of the verdict.
        site: the site that it is about, or "".
        nats: what it is worth; None where that was not measured.
    """

    kind: str = ""
    text: str = ""
    site: str = ""
    nats: float | None = None


def cause_of(row: Record) -> tuple[str, str, float]:
    """The part that makes up most of a reverse KL, in one word, in words with its share, and in nats.

    All are empty, and nan, where no part does, or where the reverse KL is negligible.
    """
    total = number(row["reverse_kl"])
    parts = [(name, value) for name, _, value in reverse_kl_parts(row)]
    name, value = max(parts, key=lambda part: part[1], default=("", math.nan))
    if not (total > NEGLIGIBLE and value >= MAIN_SHARE * total and value > _error(row, name)):
        return "", "", math.nan
    helps = BY_SVI if name == "optimization" and not _seeks_the_elbo(row) else HELPS[name]
    return name, f"{helps} ({name} gap {three_digits(value)} of {three_digits(total)} nats)", value


def _seeks_the_elbo(row: Record) -> bool:
    """Whether more steps of the same kind can bring a guide nearer; those of a Laplace approximation seek the mode."""
    return bool(row["num_steps"]) and not row.get("is_laplace")


def _error(row: Record, name: str) -> float:
    error = uncertainty(row, f"{name}_gap")
    return 0.0 if math.isnan(error) else error


def mend_of(
    best: Record,
    rest: Sequence[Record],
    is_narrow: bool,
    structure: Callable[[], Structure],
) -> Mend:
    """What would bring the best guide nearer.

    Args:
        best: its record.
        rest: the records of the guides that are farther away.
        is_narrow: whether one of its intervals is too narrow.
        structure: gives what the truth's points say of the posterior.
    """
    stuck = [gap for gap in start_gaps(best) if gap > max(NEGLIGIBLE, _error(best, "start"))]
    if stuck:
        return _another_start(best, stuck)
    cause, _, nats = cause_of(best)
    unfinished = _unfinished(best, rest)
    if unfinished.kind:
        return unfinished
    more = _more_steps(best, nats) if cause == "optimization" else Mend()
    if cause in ("family", "optimization") and number(best["family_gap"]) > NEGLIGIBLE:
        found = structure()
        sites = [one for one in found.non_centring if one.nats >= WORTH_NATS]
        if sites:
            return _non_centred(sites, more.text)
        if cause == "family":
            return _for_family(best, rest, nats, found)
    if more.kind:
        return more
    if cause == "objective":
        text = (
            f"Let SVI maximise the ELBO: the optimum of {best['objective']} is {three_digits(nats)} nats farther away."
        )
        return Mend("another objective", text, nats=nats)
    if number(best["reverse_kl"]) <= NEGLIGIBLE and not is_narrow:
        whose = f" in {best['guide']}" if rest else ""
        return Mend("nothing", f"Nothing to mend{whose}.", nats=0.0)
    return Mend()


def _another_start(best: Record, stuck: Sequence[float]) -> Mend:
    num, worst = len(best["replicas"]), max(stuck)
    text = (
        f"{best['guide']} needs another start: {len(stuck)} of {num} replicas ended in a worse optimum, "
        f"{three_digits(worst)} nats farther away{' at most' if len(stuck) > 1 else ''}. Start several times and keep "
        "the highest ELBO; more steps won't help."
    )
    return Mend("another start", text, nats=worst)


def _unfinished(best: Record, rest: Sequence[Record]) -> Mend:
    """Of another guide whose family holds a member that is much nearer than the best fit, which its fit has missed."""
    total = number(best["reverse_kl"])
    if total <= NEGLIGIBLE:
        return Mend()
    nearer = [row for row in rest if number(row["family_gap"]) + _error(row, "family") < MAIN_SHARE * total]
    if not nearer:
        return Mend()
    row = min(nearer, key=lambda one: number(one["family_gap"]))
    won, gap = total - number(row["family_gap"]), three_digits(row["family_gap"], uncertainty(row, "family_gap"))
    by_cause = {"start": "another start", "objective": "the ELBO as its objective"}
    how = by_cause.get(cause_of(row)[0]) or ("more steps" if _seeks_the_elbo(row) else "a fit by SVI")
    text = (
        f"{row['guide']} could be nearer still: it is {three_digits(row['reverse_kl'])} nats away, the best member of "
        f"its family {gap}. Give it {how}."
    )
    return Mend("another fit", text, nats=won)


def _non_centred(sites: Sequence[NonCentring], more: str) -> Mend:
    """To write sites non-centred, and what else would help."""
    first, names = sites[0], " and ".join(one.site for one in sites)
    why = f" (its spread follows {first.scale})" if first.scale and len(sites) == 1 else ""
    worth = " and ".join(three_digits(one.nats) for one in sites)
    text = (
        f"Write {names} non-centred{why}, which leaves log p(x) as it is. The posterior's points say that this is "
        f"worth {worth} nats: by so much the normal with their mean and covariance comes nearer, in forward KL. No fit "
        "of it was made."
    )
    return Mend("non-centred form", " ".join(filter(None, (text, more))), first.site, first.nats)


def _for_family(
    best: Record,
    rest: Sequence[Record],
    nats: float,
    structure: Structure,
) -> Mend:
    """What helps where the family can't do better."""
    is_tried = any(row.get("is_independent") is False for row in rest)
    if structure.correlation >= WORTH_NATS and best.get("is_independent") and not is_tried:
        text = (
            "Take a guide with full covariance, such as AutoMultivariateNormal. The posterior's points say that this "
            f"is worth {three_digits(structure.correlation)} nats: by so much the normal with their covariance is "
            "nearer than the one without correlations, in forward KL. No fit of it was made."
        )
        return Mend("full covariance", text, nats=structure.correlation)
    modes = f" The posterior has {structure.num_modes} modes." if structure.num_modes > 1 else ""
    most = " at most" if best["family_gap_is_upper_bound"] else ""
    only, first = "Only", ""
    if word_of(best) == "not converged" and _seeks_the_elbo(best):
        only, first = "Beyond that, only", "More steps may help: the fit has not converged. "
    than = f" than {best['guide']}" if rest else ""
    text = (
        f"{first}{only} another family, or the model written in another way, would be nearer{than}: by "
        f"{three_digits(nats)} nats{most}."
    )
    return Mend("another family", text + modes, nats=nats)


def _more_steps(best: Record, nats: float) -> Mend:
    if not _seeks_the_elbo(best):
        whose = "the same family" if best.get("is_laplace") else best["guide"]
        return Mend("more steps", f"A fit of {whose} by SVI would win {three_digits(nats)} nats.", nats=nats)
    text = f"More steps: after {best['num_steps']:,} of them the optimiser has left {three_digits(nats)} nats."
    return Mend("more steps", text, nats=nats)
