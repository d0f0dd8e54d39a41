"""Code that others could plant, for `benchmarks.faults`: it must never be run."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from benchmarks.faults_trials import Trials

STRANGER = 12_345  # a user that is nobody here
NAMES = (
    "planted:family", "planted:Family.of", "planted", "planted:", ":family", "os:getcwd", "sys:exit", "builtins:input",
    "builtins:exec", "subprocess:run", "AutoDelta", "AutoGuideList", "ppl_vi.cli:main", "__main__:main", "",
)  # fmt: skip


def planted_families(trials: Trials) -> None:
    """Saved fits whose header names code; a module of that name writes a file when it is imported."""
    import numpy as np

    from models.exponential_normal import target as toy
    from ppl_vi.runtime.archives import packed, read_arrays, unsealed
    from ppl_vi.svi.fit import fit
    from ppl_vi.svi.result import Fit

    target, path, sprung = toy([1.5]), trials.folder / "fit.npz", trials.folder / "sprung"
    (trials.folder / "planted.py").write_text(f"from pathlib import Path\nPath({str(sprung)!r}).touch()\n")
    fit(target, "gamma", num_steps=2).save(path)
    arrays = read_arrays(unsealed(path.read_bytes())[0])
    header = json.loads(arrays["header"].tobytes())
    sys.path.insert(0, str(trials.folder))
    try:
        for name in NAMES:
            text = json.dumps(header | {"family": name})
            path.write_bytes(packed(arrays | {"header": np.frombuffer(text.encode(), dtype=np.uint8)}))
            trials.expect_refusal(f"family '{name}'", lambda: Fit.load(path, target), ValueError)
            if sprung.exists():
                trials.wrong.append(f"family '{name}': its module was imported")
                sprung.unlink()
    finally:
        sys.path.remove(str(trials.folder))


def _open_to_all(folder: Path) -> None:
    folder.chmod(0o777)


def _open_to_group(folder: Path) -> None:
    folder.chmod(0o770)


def _open_parent(folder: Path) -> None:
    folder.parent.chmod(0o777)


def _open_by_link(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))
    folder.with_name("elsewhere").chmod(0o777)


def _given_away(folder: Path) -> None:
    os.chown(folder, STRANGER, STRANGER)


def _given_parent(folder: Path) -> None:
    os.chown(folder.parent, STRANGER, STRANGER)


def _given_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.chown(path, STRANGER, STRANGER)


def _open_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        path.chmod(0o777)


# How others could have come to put their code into a cache; the later ones can be tried by root alone.
WAYS: tuple[Callable[[Path], None], ...] = (_open_to_all, _open_to_group, _open_parent, _open_by_link, _open_files)
WAYS_OF_ROOT = (_given_away, _given_parent, _given_files)


def planted_caches(trials: Trials) -> None:
    """Libraries and kept Python code with the right digests, in caches to which others have come in every way."""
    from ppl_vi.compiler import toolchain
    from ppl_vi.compiler.inductor import CACHE_VARIABLE
    from ppl_vi.runtime.environment import environment

    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    for number, way in enumerate((*WAYS, *(WAYS_OF_ROOT if is_root else ()))):
        for plant in (_library, _python):
            cache = trials.folder / f"{way.__name__}_{plant.__name__}"
            with environment({CACHE_VARIABLE: str(cache)}):
                try:
                    is_run = plant(number, way)
                except toolchain.NoCompilerError:
                    trials.tell("left out, no compiler")
                    continue
            what = f"{plant.__name__[1:]}, {way.__name__[1:]}"
            trials.tell("run" if is_run else "not run", f"{what}: planted code was run" if is_run else "")


def _library(number: int, way: Callable[[Path], None]) -> bool:
    """Plants a library of another answer; whether that is what one gets."""
    from ppl_vi.compiler import inductor, toolchain

    right, compiler = f'extern "C" int answer() {{ return {number}; }}', toolchain.compiler()
    path = toolchain._cache_path(compiler, right)
    made = path.with_suffix(".made")
    toolchain.build(compiler, 'extern "C" int answer() { return 666; }', made)
    made.replace(path)
    way(inductor.cache_folder() / toolchain.LIBRARIES)
    answer: int = toolchain.library(right).answer()
    return answer != number


def _python(number: int, way: Callable[[Path], None]) -> bool:
    """Plants Python code as `inductor_cache` keeps it; whether it is run."""
    from ppl_vi.compiler import inductor, inductor_cache

    folder, key = inductor.private_folder(inductor.KEPT), f"{number:032}"
    entry, sprung = folder / key, inductor.cache_folder().with_suffix(".sprung")
    shutil.rmtree(entry, ignore_errors=True)
    entry.mkdir(mode=0o700)
    code = f"from pathlib import Path\nPath({str(sprung)!r}).touch()\ncall = print\n"
    digests = {inductor_cache.CODE_FILE: sha256(code.encode()).hexdigest()}
    for name, text in ((inductor_cache.CODE_FILE, code), (inductor_cache.DIGESTS_FILE, json.dumps(digests))):
        (entry / name).write_text(text)
        (entry / name).chmod(0o600)
    way(inductor.cache_folder() / inductor.KEPT)
    inductor_cache.load(inductor.private_folder(inductor.KEPT), key)
    return sprung.exists()
