"""A Dask scheduler and workers as processes of this machine, started by Dask's own commands, at 127.0.0.1 alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60.0
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Cluster:
    """A scheduler and workers of one thread each, which are started again when they die.

    Args:
        folder: where they write; modules in it are not found by them.
        num_workers: how many.
        allowed_failures: Dask's setting of that name, of the scheduler.
    """

    def __init__(self, folder: Path, num_workers: int = 2, allowed_failures: int = 3) -> None:
        file = folder / "scheduler.json"
        near = ("--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file))
        settings = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(allowed_failures)}
        self.scheduler = _dask(settings, "scheduler", "--port", "0", *near)
        self.nannies = _dask(
            settings, "worker", *near, "--nthreads", "1", "--nworkers", str(num_workers),
            "--local-directory", str(folder / "local"),
        )  # fmt: skip
        self.address = _address(file)

    def workers(self) -> list[int]:
        """The processes that do the work."""
        return [pid for pid in descendants(self.nannies.pid) if b"spawn_main" in _command_of(pid)]

    def end(self) -> None:
        """Kills all of it."""
        for process in (self.nannies, self.scheduler):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def started(folder: Path, num_workers: int = 2, allowed_failures: int = 3) -> Iterator[Cluster]:
    """A cluster that is ended at the end of the block."""
    cluster = Cluster(folder, num_workers, allowed_failures)
    try:
        yield cluster
    finally:
        cluster.end()


def _dask(settings: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    """One of Dask's commands, as the leader of a session of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | settings,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _address(file: Path) -> str:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        try:
            return str(json.loads(file.read_text())["address"])
        except (OSError, ValueError):  # it is not there yet, or not yet whole
            time.sleep(0.05)
    raise RuntimeError("the scheduler does not start")


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have; needs /proc."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    found, layer = [], [pid]
    while layer:
        layer = [child for child, parent in parents.items() if parent in layer]
        found += layer
    return found


def processor_seconds(pid: int) -> float:
    """What a process has computed so far, in seconds of a processor; needs /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
