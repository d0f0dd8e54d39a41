"""Faults of the command line, for `benchmarks.faults`: outputs that are no plain files, and bad arguments."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

from benchmarks.faults_trials import Trials

MAX_REFUSAL_SECONDS = 1.0  # of processor time
TOY = ("--quick", "--guides", "exponential", "--x", "1.5", "--no-plots")

# Arguments that are refused, by program.
REFUSED: tuple[tuple[str, ...], ...] = (
    *(("benchmarks.toy_posterior", "--x", text) for text in ("1_0", "٣", "１", "nan", "inf", "1e999", "0x1", "")),
    *(("benchmarks.toy_posterior", "--num-steps", text) for text in ("1_0", "٣", "-1", "1.5", "1e3", "9" * 5000)),
    *(("benchmarks.toy_posterior", "--lr", text) for text in ("0", "-1", "1e300", "1_0", "nan", "²")),
    *(("benchmarks.toy_posterior", "--objective", text) for text in ("elbow", "renyi:1", "renyi:0_5", "iwae:٣")),
    *(("benchmarks.toy_posterior", "--guides", text) for text in ("lognorml", "nowhere:guide", "os:", ":x")),
    *(("benchmarks.toy_posterior", "--json", text) for text in ("", "/", "/nowhere/a.json", "a" * 300, "a/../b/c")),
    *(("benchmarks.toy_posterior", "--out", text) for text in ("", "/dev/null", "/dev/null/a", "b" * 300)),
    *(("benchmarks.toy_posterior", "--max-memory", text) for text in ("0", "-2", "1_0")),
    ("benchmarks.toy_posterior", "--seed", "-1"),
    ("benchmarks.toy_posterior", "--engine", "steam"),
    ("benchmarks.toy_posterior", "--no-such-option"),
    ("benchmarks.toy_posterior", "--objective", "iwae:8", "--num-particles", "12"),
    ("benchmarks.vae", "--guides", "diagonl"),
    ("benchmarks.vae", "--data", "nowhere.npy"),
    ("benchmarks.vae", "--data", "cats"),
    ("benchmarks.vae", "--sigma", "0"),
    ("benchmarks.zoo", "--models", "half_norml"),
    ("benchmarks.zoo", "--guides", "lognorml"),
    ("benchmarks.amortized_toy", "--range", "3", "2"),
    ("benchmarks.speed", "--engines", "steam"),
    ("ppl_vi", "compare", "nowhere:model"),
    ("ppl_vi", "compare", "os"),
    ("ppl_vi", "compare"),
)  # fmt: skip


def bad_numbers(trials: Trials) -> None:
    """Each is refused in one line with exit code 2 and in less than a second of processor time."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}
    for module, *arguments in REFUSED:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=trials.folder, env=environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        is_one_line = len(_told(done.stderr)) == 1 and not done.stdout
        is_good = (done.returncode, is_one_line) == (2, True) and seconds < MAX_REFUSAL_SECONDS
        what = f"{module} {' '.join(arguments):.60}: code {done.returncode}, {seconds:.1f} s, {done.stderr[-200:]}"
        trials.tell("refused in one line, in under a second" if is_good else "other", "" if is_good else what)


def odd_outputs(trials: Trials) -> None:
    """The toy with `--json` at each of them: the table is printed or the path refused, and nothing else is replaced."""
    from benchmarks.toy_posterior import main

    folder = trials.folder
    (folder / "file").write_text("old")
    (folder / "link").symlink_to("file")
    (folder / "dangling").symlink_to("made")
    (folder / "circle").symlink_to("circle")
    (folder / "device").symlink_to("/dev/null")
    os.mkfifo(folder / "pipe")
    # each with the exit codes that are right: written (0), not written (1), refused (2)
    expected: dict[str, int] = {
        "/dev/null": 0, "/dev/full": 1, "device": 0, "pipe": 0, "link": 0, "dangling": 0, "file": 0, "new": 0,
        "a b\nc": 0, "\N{SNOWMAN}": 0, "\udcff": 0, "-": 0, "c" * 250: 0, "circle": 2, "a\0b": 2, "d" * 300: 2, ".": 2,
        "file/a": 2, "nowhere/a": 2, "": 2,
    }  # fmt: skip
    for name, code in expected.items():
        path = name if name in ("", "-") or name.startswith("/") or "\0" in name else str(folder / name)
        if path.startswith("/dev/") and not os.access(path, os.W_OK):
            trials.tell("left out, no such device")
            continue
        before = _kind(path)
        read = _reading(folder / "pipe") if name == "pipe" else None
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            found = _code(main, [*TOY, "--out", str(folder / "out"), "--json", path])
        if read is not None:
            read.join(timeout=30)
        table = "exponential" in (err if name == "-" else out).getvalue()
        lines = 0 if name == "-" else len(_told(err.getvalue()))
        is_good = found == code and table == (code < 2) and lines == (code > 0) and before in ("none", _kind(path))
        what = f"{name[:30]!r}: code {found}, table {table}, {before} became {_kind(path)}: {err.getvalue()[-200:]}"
        outcome = ("written", "told in one line, the table printed", "refused in one line")[code]
        trials.tell(outcome if is_good else "other", "" if is_good else what)


def _told(text: str) -> list[str]:
    """The lines of standard error but those that say what is being done, or what was written."""
    return [line for line in text.splitlines() if not line.startswith(("written to ", "loading Pyro", "figures"))]


def _code(main: object, arguments: list[str]) -> object:
    assert callable(main)
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code
    except BaseException as error:  # whatever comes is what the trial looks for
        return f"{type(error).__name__}: {error}"


def _kind(path: str) -> str:
    """What stands at a path itself."""
    try:
        mode = os.lstat(path).st_mode if path else 0
    except (OSError, ValueError):
        return "none"
    kinds = ((stat.S_ISLNK, "link"), (stat.S_ISFIFO, "pipe"), (stat.S_ISCHR, "device"), (stat.S_ISREG, "file"))
    return next((name for test, name in kinds if test(mode)), "none")


def _reading(pipe: Path) -> threading.Thread:
    """Somebody who reads a pipe, for which its writer waits."""
    reader = threading.Thread(target=pipe.read_bytes, daemon=True)
    reader.start()
    return reader
