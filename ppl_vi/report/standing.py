"""How the replicas of a row ended, in a word: the check's own status would call a fit in a bad optimum a success.

A fit has converged where no nearby point is better. Another optimum may still be, or the best member of the family may
be out of its reach, which the start gap and the optimization gap tell.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from ppl_vi.report.numbers import number

Record = dict[str, Any]
# Nats by which a fit may fall short of the best member of its family and still count as having arrived there. The check
# of convergence takes 0.001, and 0.01 nats are a shift by 0.14 standard deviations in one direction.
NEGLIGIBLE = 0.01
CONVERGED, FAR, LEAKS = "converged", "far from best", "leaks mass"
ORDER = ("diverged", LEAKS, "not converged", FAR)  # of the words that are worse than others, the worst first


def shortfall(values: Record) -> float:
    """How far a row or a replica is from the best member of its family, nats; 0 where it is not known.

    What another objective has its optimum farther away is not counted: the fit has arrived where it was sent.
    """
    parts = [number(values.get(name)) for name in ("start_gap", "optimization_gap")]
    return sum(part for part in parts if not math.isnan(part))


def in_words(status: str) -> str:
    """A status as tables show it: `not converged` for `not_converged`."""
    return str(status).replace("_", " ")


def standing(replica: Record, error: float = 0.0) -> str:
    """How one replica ended: its status in words, or that it has converged far from its family's best member.

    Args:
        replica: of a record.
        error: of its gaps, nats; a shortfall within it is none.
    """
    status = in_words(replica["status"])
    return FAR if status == CONVERGED and shortfall(replica) > max(NEGLIGIBLE, error) else status


def standings(record: Record) -> Counter[str]:
    """How many of a row's replicas ended how."""
    errors = (number(record.get(f"{name}_error")) for name in ("start_gap", "optimization_gap"))
    error = sum(one for one in errors if math.isfinite(one))
    words = [standing(replica, error) for replica in record["replicas"] if "status" in replica]
    leaks = bool(record["support_mismatch"])  # an infinite reverse KL is no success, whatever SVI converged to
    return Counter(LEAKS if leaks and word in (CONVERGED, FAR) else word for word in words)


def word_of(record: Record) -> str:
    """How most replicas ended, in words, the worse where two are equally many: `converged`, or `skipped`."""
    counts = standings(record)
    if not counts:
        return in_words(record["status"])
    return max(counts, key=lambda one: (counts[one], len(ORDER) - ORDER.index(one) if one in ORDER else 0))


def status_of(record: Record) -> str:
    """The same with how many replicas these are: `4/4 converged`, `3/4 not converged`, or `skipped`."""
    counts, word = standings(record), word_of(record)
    return f"{counts[word]}/{counts.total()} {word}" if counts.total() > 1 else word


def others_of(record: Record) -> str:
    """Which replicas ended in another way than most, in words; "" where none did."""
    counts = standings(record)
    if len(counts) < 2:
        return ""
    parts = [f"{num} {word}" for word, num in counts.most_common()]
    return f"{record['guide']}: of {counts.total()} replicas {', '.join(parts)}"
