"""Faults of files, for `benchmarks.faults`: saved fits, checkpoints and cached draws that are damaged or made up."""

from __future__ import annotations

import io
import json
import random
import resource
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults_trials import Trials, damaged

# How much the process's memory may grow while it refuses a file of some kilobytes that claims gigabytes.
MAX_GROWTH_BYTES = 2**28
CLAIMED_BYTES = 2 * 10**9


def _saved_fit(folder: Path) -> tuple[Path, bytes, Callable[[], object]]:
    """A saved fit: its path, its content, and what loads it."""
    from models.exponential_normal import target as toy
    from ppl_vi.svi.fit import fit
    from ppl_vi.svi.result import Fit

    target, path = toy([1.5, -3.0]), folder / "fit.npz"
    fit(target, "gamma", num_steps=20, num_replicas=2, seed=4).save(path)
    return path, path.read_bytes(), lambda: Fit.load(path, target)


def damaged_fits(trials: Trials) -> None:
    """Files with one fault; members that change places, and pairs of members of one name."""
    from ppl_vi.runtime.archives import DamagedFileError

    path, content, load = _saved_fit(trials.folder)
    draw = random.Random(trials.seed)
    for number in range(trials.num):
        kind, changed = _rezipped(content, draw) if number % 4 == 0 else damaged(content, draw)
        path.write_bytes(changed)
        trials.expect_refusal(kind, load, DamagedFileError)


def _rezipped(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """The archive made anew by zip's own rules, so that its checksums are right, with the old digest."""
    kind = draw.choice(("members swapped", "a member twice", "a member compressed", "numbers changed"))
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(held, "w") as new:
        members = [(name, old.read(name)) for name in old.namelist()]
        one, other = draw.sample(range(1, len(members)), 2)  # the first is the header
        if kind == "members swapped":
            members[one], members[other] = (members[one][0], members[other][1]), (members[other][0], members[one][1])
        if kind == "numbers changed":
            name, bits = members[one]
            members[one] = name, bits[:-1] + bytes([bits[-1] ^ 1])
        new.comment = old.comment
        for name, bits in members:
            method = zipfile.ZIP_DEFLATED if kind == "a member compressed" else zipfile.ZIP_STORED
            new.writestr(name, bits, method)
        if kind == "a member twice":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zipfile's, about the name
                new.writestr(*members[one])
    return kind, held.getvalue()


def forged_fits(trials: Trials) -> None:
    """Files whose digest is right, but whose header or arrays say what can't be; and archives that claim gigabytes."""
    from ppl_vi.runtime.archives import DamagedFileError

    path, content, load = _saved_fit(trials.folder)
    draw = random.Random(trials.seed)
    for number in range(trials.num):
        kind, changed = _bomb(draw) if number % 10 == 0 else _forged(content, draw)
        path.write_bytes(changed)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        told_otherwise = any(f"header: {key} " in kind for key in ("family", "parameters", "target"))
        trials.expect_refusal(kind, load, ValueError if told_otherwise else DamagedFileError)
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        if grown > MAX_GROWTH_BYTES:
            trials.wrong.append(f"{kind}: it took {grown / 2**20:.0f} MiB to refuse {len(changed)} bytes")


# What no header of a fit can say, whatever the key.
NONSENSE: tuple[Any, ...] = (None, [], {}, [[]], 1.5, True, [1, "a"], {"a": {}}, 10**40, -(10**30))


def _forged(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    import numpy as np

    from ppl_vi.runtime.archives import packed, read_arrays, unsealed

    arrays = read_arrays(unsealed(content)[0])
    header = json.loads(arrays["header"].tobytes())
    key = draw.choice([key for key in header if key not in ("format", "version")])
    name = draw.choice([name for name in arrays if name != "header"])
    if draw.random() < 0.5:
        value = draw.choice([one for one in NONSENSE if one != header[key]])
        arrays["header"] = np.frombuffer(json.dumps(header | {key: value}).encode(), dtype=np.uint8)
        return f"header: {key} = {value!r:.30}", packed(arrays)
    array = arrays[name]
    is_text = array.dtype.kind == "U"
    others = ("S3", "S9") if is_text else ("<U3", "complex64")
    other = draw.choice(
        [
            array[:-1],
            array[None],
            *map(array.astype, others),
            array.reshape(-1)[:0],
            np.asfortranarray(array)[..., None],
        ]
    )
    return f"array: {name} {other.dtype} {other.shape}", packed(arrays | {name: other})


def _bomb(draw: random.Random) -> tuple[str, bytes]:
    """An archive of some kilobytes that claims gigabytes: by a shape, by compression, or by a size in its directory."""
    from ppl_vi.runtime.archives import sealed

    claim = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({CLAIMED_BYTES},), }}"
    head = b"\x93NUMPY\x01\x00" + (len(claim) + 1).to_bytes(2, "little") + claim.encode() + b"\n"
    kind, held = draw.choice(("shape", "compression", "directory")), io.BytesIO()
    method = zipfile.ZIP_DEFLATED if kind == "compression" else zipfile.ZIP_STORED
    with zipfile.ZipFile(held, "w", method) as archive, archive.open("header.npy", "w") as member:
        member.write(head)
        for _ in range(200 if kind == "compression" else 0):
            member.write(bytes(CLAIMED_BYTES // 2000))
    content = held.getvalue()
    if kind == "directory":
        place = content.index(b"PK\x01\x02") + 20
        content = content[:place] + CLAIMED_BYTES.to_bytes(4, "little") * 2 + content[place + 8 :]
    return f"a bomb by its {kind}", sealed(content) if draw.random() < 0.5 else content


def damaged_checkpoints(trials: Trials) -> None:
    """Checkpoints with one fault, from which a training is to go on."""
    import torch

    from models.vae import VAE
    from ppl_vi.guides.amortized import AMORTIZED
    from ppl_vi.svi.minibatch import CheckpointError, TrainingSettings, train, untrained

    data = (torch.rand(12, 5, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    vae = untrained(lambda: VAE(5, AMORTIZED["diagonal"](2), hidden=(4,)), seed=0)
    path, settings = trials.folder / "one.checkpoint", TrainingSettings(num_epochs=2, batch_size=6)

    def resumed() -> object:
        return train(vae, data, data, settings, checkpoint=path, resume=True)

    train(vae, data, data, settings, checkpoint=path)
    content, draw = path.read_bytes(), random.Random(trials.seed)
    for _ in range(trials.num):
        kind, changed = damaged(content, draw)
        path.write_bytes(changed)
        trials.expect_refusal(kind, resumed, CheckpointError)


def damaged_draws(trials: Trials) -> None:
    """Cached reference draws with one fault: they are computed again, and come out the same."""
    import torch

    from models.exponential_normal import target as toy
    from ppl_vi.runtime.environment import environment
    from ppl_vi.target.log_density import Density
    from ppl_vi.truth.chains import cache

    target = toy([1.5])
    density, drawn = Density.of(target, 0), torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    right = cache.SavedReference("chains", drawn, torch.full((50,), -3.9), -1.25, 0.01, (), "")
    computed: list[int] = []

    def compute() -> cache.SavedReference:
        computed.append(1)
        return right

    def found() -> cache.SavedReference:
        return cache.cached_reference(target, density, 0, {}, compute)

    with environment({"XDG_CACHE_HOME": str(trials.folder)}):
        found()
        (path,) = cache.folder().iterdir()
        content, draw = path.read_bytes(), random.Random(trials.seed)
        for _ in range(trials.num):
            kind, changed = damaged(content, draw)
            path.write_bytes(changed)
            computed.clear()
            back = found()
            same = torch.equal(back.u, right.u) and back.log_evidence == right.log_evidence
            trials.tell("computed again" if computed else "believed", "" if computed and same else f"{kind}: believed")
