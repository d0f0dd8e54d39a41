"""Reference draws that were computed before, in the user's cache folder.

One file holds the draws of one problem. Its name is a hash of all that the draws depend on: the target, its log density
(the operations that it comes down to, and its values at a few points), the settings, the seed, and the versions of the
libraries. Each file carries a digest
of its own content (`ppl_vi.runtime.archives`), so that a damaged one is noticed and computed again. A folder to which
others could write is not used, since the draws in it could be theirs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vi.runtime.archives import DamagedFileError, check_array, content_of, packed, read_arrays, unsealed
from ppl_vi.runtime.caches import is_usable
from ppl_vi.runtime.files import replace_file
from ppl_vi.runtime.provenance import versions
from ppl_vi.runtime.stages import stage
from ppl_vi.target.fingerprint import fingerprint
from ppl_vi.target.log_density import Density
from ppl_vi.target.target import Target
from ppl_vi.truth.result import Check

NUM_PROBES = 8  # points at which the log density is compared, so that another model of the same name is told apart
# Part of every file's name. Raise it whenever the draws, the checks or their wording change: the files of an earlier
# revision are then not found any more.
REVISION = 13

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SavedReference:
    """The draws and the log evidence of one problem.

    Attributes:
        method: how they were drawn, as a table shows it.
        u: the draws in unconstrained space, `(S, D)`, chain after chain.
        log_weight: logs of their weights, which sum to 1, `(S,)`.
        log_evidence: log p(x), nats.
        std_error: its standard error, nats.
        checks: all of them, failed ones too.
        reason: why the draws can't be trusted, or "".
    """

    method: str
    u: Tensor
    log_weight: Tensor
    log_evidence: float
    std_error: float
    checks: tuple[Check, ...]
    reason: str


def folder() -> Path:
    """`ppl_vi/truths` in `$XDG_CACHE_HOME` or `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "ppl_vi" / "truths"


def cached_reference(
    target: Target, density: Density, problem: int, settings: dict[str, Any], compute: Callable[[], SavedReference]
) -> SavedReference:
    """The draws from the cache folder; if they are not there, they are computed and saved.

    A file that can't be read is computed again. If the folder can't be written to, the draws are not saved.

    Args:
        target: whose posterior the draws are from.
        density: its log density in unconstrained space.
        problem: which of the target's problems.
        settings: all else that the draws depend on.
        compute: computes the draws.
    """
    with stage("looking for saved draws"):
        path = folder() / f"{_key(target, density, problem, settings)}.npz"
        found = _read(path, density.dim) if is_usable(path.parent) else None
    if found is not None:
        return found
    computed = compute()
    if not is_usable(path.parent):
        return computed
    try:
        replace_file(path, lambda file: file.write(packed(_arrays(computed))))
    except OSError as error:
        _log.info("reference draws can't be saved in %s: %s", path.parent, error)
    return computed


def _key(target: Target, density: Density, problem: int, settings: dict[str, Any]) -> str:
    """The name of the file.

    Values at a few points would not tell two densities apart of which one has a narrow mode elsewhere. So the digest of
    the density's operations is part of the name, where there is one.
    """
    points = torch.randn(NUM_PROBES, density.dim, generator=torch.Generator().manual_seed(0), dtype=density.dtype)
    with torch.no_grad():
        probes = [f"{value:.10g}" for value in density(points).tolist()]
    known = [fingerprint(target), problem, probes, density.digest(), settings]
    everything = [REVISION, *known, versions("arviz-stats", "scikit-learn")]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:32]


def _arrays(found: SavedReference) -> dict[str, np.ndarray]:
    """The draws and, as bytes of JSON, everything else."""
    header = {
        "method": found.method,
        "log_evidence": found.log_evidence,
        "std_error": found.std_error,
        "checks": [(check.name, check.error, check.tolerance) for check in found.checks],
        "reason": found.reason,
    }
    held = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    return {"u": found.u.numpy(), "log_weight": found.log_weight.numpy(), "header": held}


def _read(path: Path, dim: int) -> SavedReference | None:
    """What the file holds; None where there is no file, or a damaged one."""
    try:
        archive, has_digest = unsealed(content_of(path))
        if not has_digest:
            raise DamagedFileError("it has no digest")
        arrays = read_arrays(archive)
        header, log_weight = json.loads(arrays["header"].tobytes()), arrays["log_weight"]
        check_array("u", arrays["u"], log_weight.dtype, (log_weight.size, dim))
        check_array("log_weight", log_weight, log_weight.dtype, (log_weight.size,))
        header["checks"] = tuple(Check(*check) for check in header["checks"])
        return SavedReference(u=torch.from_numpy(arrays["u"]), log_weight=torch.from_numpy(log_weight), **header)
    except FileNotFoundError:
        return None
    except Exception as error:  # what a damaged file holds may raise errors of many kinds
        _log.info("reference draws are computed again, because %s is damaged: %s", path, error)
        return None
