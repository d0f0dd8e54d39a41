"""The files of a saved comparison: how they are written, and what is checked before they are believed.

A folder holds `comparison.zip`, which has the truth with its points, the records, the scores and the curves, and a
saved fit (`ppl_vi.svi.saving`) for each guide that was fitted. Each is an archive of plain arrays with a digest, and
none holds code. The names of the fits hold a part of their digests, so that a comparison that is saved over another
never comes to lie between fits of the other, whenever it is interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ppl_vi.approximations.approximation import Approximation
from ppl_vi.comparison.comparison import Comparison, Curves, Entry, FitSettings, Signature, SomeComparison
from ppl_vi.metrics.draws.scorecard import DrawsScorecard
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.metrics.family_gap import BestMember
from ppl_vi.metrics.sampled.marginals import Marginals
from ppl_vi.metrics.scorecard import Scorecard
from ppl_vi.runtime.archives import DamagedFileError, content_of, packed, read_arrays, unsealed
from ppl_vi.runtime.files import replace_file
from ppl_vi.runtime.plain import Arrays, plain, restored
from ppl_vi.svi.result import Fit, with_learned
from ppl_vi.target.fingerprint import fingerprint
from ppl_vi.target.target import Target
from ppl_vi.truth import Check, Points, Truth
from ppl_vi.truth.quadrature.one_number import quadrature_truth

FORMAT, FORMAT_VERSION = "ppl_vi.Comparison", 1
FILE = "comparison.zip"
DIGEST_DIGITS = 12  # of a fit's digest in its name
CLASSES = {
    kind.__name__: kind
    for kind in (Approximation, BestMember, Check, Curves, Estimate, FitSettings, Marginals, Points, Signature)
}
# The attributes of a truth that are kept as they are.
TRUTH = (
    "method", "log_evidence", "log_evidence_error", "log_evidence_std_error", "checks", "reasons", "grade",
    "assumptions", "points",
)  # fmt: skip
# The attributes of what was measured of draws that are kept.
MEASURED = ("approximation", "scores", "marginals", "num_independent", "remarks", "seed", "noise")


def save(comparison: Comparison, folder: Path) -> None:
    """Writes a comparison into a folder; one that lies there already is replaced once all is written.

    Raises:
        OSError: it can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: Arrays = {}
    target, learned = comparison.target, comparison.target.learned
    entries = [_kept(entry, folder, i, arrays) for i, entry in enumerate(comparison.entries)]
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "target": fingerprint(target),
        "learned": None if learned is None else {**vars(learned), "values": list(learned.values)},
        "settings": asdict(comparison.settings),
        "labels": list(comparison.labels),
        "truth": {name: plain(getattr(comparison.truth, name), arrays) for name in TRUTH},
        "has_line": comparison.truth.line is not None,
        "entries": entries,
    }
    for i, value in enumerate(learned.values.values() if learned else ()):
        arrays[f"learned_{i}"] = value.cpu().numpy()
    content = packed({"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays})
    replace_file(folder / FILE, lambda file: file.write(content))
    for path in folder.glob("fit_*.zip"):  # of a comparison that lay here before
        if path.name not in {entry["fit"] for entry in entries}:
            path.unlink()


def _kept(entry: Entry, folder: Path, place: int, arrays: Arrays) -> dict[str, Any]:
    """An entry as the header holds it; its fit is written."""
    card, name = entry.card, None
    if card is not None:
        partial_file = folder / f".fit_{place}.zip"
        card.fit.save(partial_file)
        name = f"fit_{place}_{_digest(partial_file)}.zip"
        partial_file.replace(folder / name)
    scores = None if card is None else [plain(part, arrays) for part in (card.scores, card.best, card.marginals)]
    return {
        "guide": entry.guide,
        "records": entry.records,
        "curves": plain(entry.curves, arrays),
        "signature": plain(entry.signature, arrays),
        "scores": scores,
        "fit": name,
        "measured": entry.measured and [plain(getattr(entry.measured, part), arrays) for part in MEASURED],
    }


def _digest(path: Path) -> str:
    return sha256(content_of(path)).hexdigest()[:DIGEST_DIGITS]


def load(
    kind: type[SomeComparison], folder: Path, target: Target, families: Mapping[str, Any], import_families: bool
) -> SomeComparison:
    """Reads a comparison.

    Args:
        kind: the class of comparison that is made.
        folder: that `save` has written.
        target: the target that was compared on; what was learned of it is taken from the file.
        families: the guides, by label, that are none of this package's or Pyro's.
        import_families: whether guides that a file names as `package.module:attribute` may be imported and called.

    Raises:
        FileNotFoundError: there is no comparison in the folder.
        DamagedFileError: a file is truncated, changed, or no part of this comparison.
        ValueError: it is of another target or another version, or a guide has to be given.
    """
    path = folder / FILE
    try:
        header, arrays = _read(path)
        target = with_learned(target, header, arrays)
        if header["target"] != fingerprint(target):
            raise ValueError(f"{path} is of another model or other data: {header['target']}")
        truth = _truth(header, arrays, target)
        settings, labels = FitSettings(**header["settings"]), tuple(map(float, header["labels"]))
        make = partial(_entry, folder=folder, arrays=arrays, truth=truth, import_families=import_families)
        entries = tuple(make(held, family=families.get(held["guide"])) for held in header["entries"])
    except DamagedFileError as error:
        raise DamagedFileError(f"{path} is not a comparison saved by ppl_vi, or is damaged: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"its header is not usable: {type(error).__name__}: {error}"
        raise DamagedFileError(f"{path} is not a comparison saved by ppl_vi, or is damaged: {what}") from error
    return kind(target, truth, settings, labels, entries, dict(families))


def _read(path: Path) -> tuple[dict[str, Any], Arrays]:
    """The header and the arrays."""
    try:
        archive, _ = unsealed(content_of(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"no comparison at {path}") from None
    arrays = read_arrays(archive)
    try:
        header = json.loads(arrays.pop("header").tobytes())
    except (KeyError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"it has no header: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DamagedFileError("its header is that of something else")
    if header.get("version") != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {header.get('version')}; this ppl_vi reads {FORMAT_VERSION}")
    return header, arrays


def _truth(header: dict[str, Any], arrays: Arrays, target: Target) -> Truth:
    """The truth with its points; the line of one latent number, which is made of functions, is computed anew."""
    held = {name: restored(header["truth"][name], arrays, CLASSES, target.device) for name in TRUTH}
    points = held.pop("points")
    line = None
    if header["has_line"]:
        again = quadrature_truth(target)
        line = again.line
        error = held["log_evidence_error"] + again.log_evidence_error
        if not (np.abs(again.log_evidence - held["log_evidence"]) <= error).all():
            raise ValueError(
                f"log p(x) of '{target.name}' is {again.log_evidence}, not {held['log_evidence']} as saved"
            )
    return Truth(target=target, line=line, make_points=(lambda: points) if points else None, **held)


def _entry(
    held: dict[str, Any], *, folder: Path, arrays: Arrays, truth: Truth, family: Any, import_families: bool
) -> Entry:
    """An entry with its scored fit, where that was kept."""
    make = partial(restored, arrays=arrays, classes=CLASSES, device=truth.target.device)
    entry = Entry(held["guide"], tuple(held["records"]), make(held["curves"]), None, make(held["signature"]))
    if held.get("measured"):  # which earlier files do not have
        parts = dict(zip(MEASURED, map(make, held["measured"]), strict=False))  # without noise in earlier files
        entry = replace(entry, measured=DrawsScorecard(truth=truth, **parts))
    if held["fit"] is None:
        return entry
    path = folder / held["fit"]
    if path.parent != folder or not path.is_file() or _digest(path) != path.stem.rpartition("_")[2]:
        raise DamagedFileError(f"its fit '{held['fit']}' is missing or is another one")
    try:
        fit = Fit.load(path, truth.target, family, import_family=import_families)
    except DamagedFileError:
        raise
    except ValueError as error:
        hint = str(error).replace("by family=...", f"by guides={{'{entry.guide}': ...}}")
        raise ValueError(hint.replace("import_family=", "import_guides=")) from error
    scores, best, marginals = map(make, held["scores"])
    return replace(entry, card=Scorecard(fit, truth, scores, best, marginals))
