"""Reference draws in the user's cache folder, found again by everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_vi.runtime.files import replace_file
from ppl_vi.runtime.provenance import versions
from ppl_vi.target.fingerprint import fingerprint
from ppl_vi.target.log_density import Density
from ppl_vi.target.target import Target
from ppl_vi.truth.result import Check

if TYPE_CHECKING:
    pass


_log = logging.getLogger(__name__)
NUM_PROBES = 8
REVISION = 6  # of what computes the draws: another one finds none of the others


def folder() -> Path:
    """`ppl_vi/truths` in `$XDG_CACHE_HOME` or `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ppl_vi" / "truths"


def kept(
    target: Target, density: Density, problem: int, settings: dict[str, Any], compute: Callable[[], SavedReference]
) -> SavedReference:
    """What the folder holds for this problem; else what is computed, and then kept.

    A file that can't be read is computed anew, and a folder that can't be written to is done without.
    """
    path = folder() / f"{_key(target, density, problem, settings)}.npz"
    found = _read(path)
    if found is not None:
        return found
    computed = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: np.savez(file, **_arrays(computed)))
    except OSError as error:
        _log.info("reference draws are not kept in %s: %s", path.parent, error)
    return computed


def _key(target: Target, density: Density, problem: int, settings: dict[str, Any]) -> str:
    """The density itself has a say, at a few points: another model of the same name is another target."""
    points = torch.randn(NUM_PROBES, density.dim, generator=torch.Generator().manual_seed(0), dtype=density.dtype)
    with torch.no_grad():
        probes = [f"{value:.10g}" for value in density(points).tolist()]
    everything = [REVISION, fingerprint(target), problem, probes, settings, versions("arviz-stats", "scikit-learn")]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:32]


def _arrays(found: SavedReference) -> dict[str, Any]:
    header = {
        "log_evidence": found.log_evidence,
        "std_error": found.std_error,
        "checks": [(check.name, check.error, check.tolerance) for check in found.checks],
        "reason": found.reason,
    }
    header["digest"] = _digest(found.u.numpy(), header)
    return {"u": found.u.numpy(), "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)}


def _digest(u: np.ndarray, header: dict[str, Any]) -> str:
    return hashlib.sha256(u.tobytes() + json.dumps(header, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> SavedReference | None:
    pass

    if not path.exists():
        return None
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            u, header = file["u"], json.loads(file["header"].tobytes())
        if header.pop("digest") != _digest(u, header):
            raise ValueError("its digest is another")
        checks = tuple(Check(*check) for check in header["checks"])
        return SavedReference(
            torch.from_numpy(u), header["log_evidence"], header["std_error"], checks, header["reason"]
        )
    except Exception as error:  # whatever a damaged zip makes of itself
        _log.info("computing reference draws again, %s is damaged: %s", path, error)
        return None


@dataclass(frozen=True, eq=False)
class SavedReference:
    """One problem's draws and log evidence.

    Attributes:
        u: `(S, D)`, chain after chain.
        log_evidence, std_error: nats.
        checks: all of them, failed ones too.
        reason: why they can't be trusted, or "".
    """

    u: Tensor
    log_evidence: float
    std_error: float
    checks: tuple[Check, ...]
    reason: str
