"""How soon programs answer: the first line before anything is imported that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")

ROOT = Path(__file__).resolve().parent.parent
FIRST_LINE_SECONDS, HELP_SECONDS = 1.0, 0.5  # processor seconds, which do not depend on what else the machine does
PROGRAMS = {
    "ppl_vi": ["compare", "tests.test_start:nothing"],
    "benchmarks.toy_posterior": ["--quick"],
    "benchmarks.zoo": ["--quick"],
    "benchmarks.vae": ["--quick"],
}
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processor time is read from /proc")


def processor_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def at_first_line(command: list[str]) -> tuple[str, float]:
    """The first that a program shows in a terminal, and the processor seconds that it has used by then."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=theirs) as running:
        try:
            os.close(theirs)
            shown = b""
            while b"loading" not in shown:
                shown += os.read(ours, 1000)
            return shown.decode(errors="replace"), processor_seconds(running.pid)
        finally:
            running.kill()
            os.close(ours)


@needs_proc
@pytest.mark.parametrize("module", PROGRAMS)
def test_the_first_line_comes_within_a_second(module: str, tmp_path: Path) -> None:
    shown, seconds = at_first_line([sys.executable, "-m", module, *PROGRAMS[module], "--out", str(tmp_path)])
    assert "loading Pyro and the model" in shown
    assert seconds < FIRST_LINE_SECONDS


@needs_proc
@pytest.mark.parametrize("module", PROGRAMS)
def test_the_first_line_comes_within_a_second_in_a_pipe(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", module, *PROGRAMS[module], "--out", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            assert running.stderr.readline() == "loading Pyro and the model\n"
            assert processor_seconds(running.pid) < FIRST_LINE_SECONDS
        finally:
            running.kill()


@needs_proc
@pytest.mark.parametrize("module", PROGRAMS)
def test_help_comes_within_half_a_second(module: str) -> None:
    script = "import os, sys\n" + (
        f"from {module}{'.__main__' if module == 'ppl_vi' else ''} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    t = os.times()\n    print(t.user + t.system)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage" in done.stdout
    assert float(done.stdout.splitlines()[-1]) < HELP_SECONDS
