"""A comparison as a pandas `DataFrame`: one row for each guide, or one for each guide and latent number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ppl_vi.metrics.table import METRICS
from ppl_vi.report.brief import worst_interval
from ppl_vi.report.columns import Record, uncertainty
from ppl_vi.report.numbers import number
from ppl_vi.report.standing import standings, status_of
from ppl_vi.report.table import sort_key

if TYPE_CHECKING:
    from pandas import DataFrame

WAYS = ("guide", "latent")


def frame_of(records: Sequence[Record], by: str) -> DataFrame:
    """The frame, the nearest guide first.

    Raises:
        ValueError: `by` is neither "guide" nor "latent".
    """
    if by not in WAYS:
        raise ValueError(f"by must be 'guide' or 'latent', got {by!r}")
    from pandas import DataFrame  # importing it takes half a second

    rows = sorted(records, key=lambda record: (record["problem"], *sort_key(record)))
    if by == "guide":
        return DataFrame([_of_guide(row) for row in rows]).set_index("guide")
    parts = [_of_latent(row, part) for row in rows for part in row["marginals"]]
    columns = None if parts else ["guide", "latent"]
    return DataFrame(parts, columns=columns).set_index(["guide", "latent"])


def _of_guide(record: Record) -> dict[str, Any]:
    """All metrics as floats, with what each may be off by as `name_error`, and for draws `name_noise` where known."""
    latent, _, _ = worst_interval(record)
    out: dict[str, Any] = {"guide": record["guide"], "status": status_of(record)}
    if record["num_problems"] > 1:
        out["problem"] = record["label"]
    out |= {"log_evidence": number(record["log_evidence"]), "num_replicas": len(record["replicas"])}
    out["num_converged"] = standings(record)["converged"]
    for name in METRICS:
        out[name], out[f"{name}_error"] = number(record[name]), uncertainty(record, name)
    out |= {f"{name}_noise": number(value) for name, value in record.get("noise", {}).items()}
    seconds, steps = number(record["seconds"]), number(record["num_steps"])
    trusted = not record["uncertified"]
    return out | {"worst_latent": latent, "seconds": seconds, "num_steps": steps, "trusted": trusted}


def _of_latent(record: Record, part: Record) -> dict[str, Any]:
    """The marginal scores of one latent number as floats."""
    scores = {name: value for name, value in part.items() if name != "name" and not name.endswith("_error")}
    out: dict[str, Any] = {"guide": record["guide"], "latent": part["name"]}
    for name, value in scores.items():
        out[name], out[f"{name}_error"] = number(value), uncertainty(part, name)
    return out
