"""Sweeps on a Dask cluster: real schedulers and workers as processes of this machine, at 127.0.0.1 alone."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ppl_vi
from models import exponential_normal
from ppl_vi.sweeps import cluster
from ppl_vi.sweeps.cluster import ClusterError, Deployer, cluster_of, reach
from ppl_vi.sweeps.results import load_results
from tests.sweeps.conftest import MODEL, PLAN, ROOT, Run, command, environment
from tests.sweeps.test_kills import descendants, is_part_of, rows_of, wait_for_tasks

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


# ---- what names a cluster


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('deployer = "distributed.LocalCluster"', Deployer(Path(), "distributed.LocalCluster")),
        (
            'deployer = "a.b:C"\nscale = 3\n[adapt]\nmaximum = 9\n[arguments]\ncores = 1',
            Deployer(Path(), "a.b:C", {"cores": 1}, 3, {"maximum": 9}),
        ),
    ],
)
def test_a_file_names_a_deployer(tmp_path: Path, text: str, found: Deployer) -> None:
    file = tmp_path / "slurm.toml"
    file.write_text(text)
    read = cluster_of(file)
    assert (read.file, read.path, read.arguments) == (file, found.path, found.arguments)
    assert (read.scale, read.adapt) == (found.scale, found.adapt)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deployer = 3", "deployer: expected a text, got 3"),
        ('deployer = "LocalCluster"', "expected deployer = "),
        ("scale = 3", "expected deployer = "),
        ('deployer = "a.B"\nscale = true', "scale: expected a whole number, got True"),
        ('deployer = "a.B"\ncores = 1', "unknown entry 'cores'; there are deployer, arguments, scale, adapt"),
        ("deployer", "is no TOML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "slurm.toml"
    file.write_text(text)
    with pytest.raises(ClusterError, match=message) as caught:
        cluster_of(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("no_such_module.Cluster", {}, "no_such_module.Cluster can't be started: ModuleNotFoundError"),
        ("collections.Nothing", {}, "collections.Nothing can't be started: AttributeError"),
        ("types.SimpleNamespace", {"scale": 3}, "can't be started: TypeError: 'int' object is not callable"),
    ],
)
def test_a_deployer_that_can_not_start_is_one_line(path: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ClusterError, match=message), Deployer(Path("a.toml"), path, arguments, scale=2).started():
        pass


def test_what_is_no_cluster_is_told() -> None:
    with pytest.raises(ClusterError, match="expected the address of a Dask scheduler"):
        cluster_of("localhost")
    with pytest.raises(ClusterError, match="can't read 'nowhere.toml'"):
        cluster_of("nowhere.toml")
    assert cluster_of("tcp://127.0.0.1:8786") == "tcp://127.0.0.1:8786"
    with pytest.raises(ClusterError, match="it has no host and port"):
        reach("tcp://127.0.0.1")


def test_without_distributed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ClusterError, match=r"pip install 'ppl_vi\[cluster\]'"):
        cluster_of("tcp://127.0.0.1:8786")


def test_a_scheduler_that_is_not_there_is_one_line_at_once(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began = time.process_time()
    done = run("sweep", "plan.toml", "--cluster", f"tcp://127.0.0.1:{port}")
    assert time.process_time() - began < 1
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ppl-vi: error: no Dask scheduler answers at 'tcp://127.0.0.1:{port}'")
    assert done.stderr.count("\n") == 1
    both = run("sweep", "plan.toml", "--cluster", f"tcp://127.0.0.1:{port}", "--workers", "2")
    assert "expected --workers or --cluster, got both" in both.stderr


# ---- a real cluster


def dask(*arguments: str, **more: str) -> subprocess.Popen[bytes]:
    """A command of Dask's, as the leader of a session of its own."""
    settings = {
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",  # so that a fit that kills needs four workers, not eight
        "DASK_DISTRIBUTED__ADMIN__LOG_FORMAT": "%(message)s",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments],
        env=environment() | settings | more, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


class Cluster:
    """A scheduler and two workers, which are started again when they die, in a folder without the user's model."""

    def __init__(self, folder: Path) -> None:
        file = str(folder / "scheduler.json")
        near = ("--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", file)
        self.scheduler = dask("scheduler", "--port", "0", *near)
        self.nannies = dask(
            "worker", *near, "--nthreads", "1", "--nworkers", "2", "--local-directory", str(folder / "local")
        )
        until = time.monotonic() + 60
        while not Path(file).exists():
            assert time.monotonic() < until, "the scheduler does not start"
            time.sleep(0.05)
        time.sleep(0.1)


        self.address = json.loads(Path(file).read_text())["address"]

    def workers(self) -> list[int]:
        """The processes that do the work."""
        return [pid for pid in descendants(self.nannies.pid) if b"spawn_main" in cmdline(pid)]

    def end(self) -> None:
        """Kills all of it."""
        for process in (self.nannies, self.scheduler):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("cluster"))
    yield found
    found.end()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """The rows of a sweep in one process of this machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "toy_model.py").write_text(MODEL)
    (folder / "plan.toml").write_text(PLAN)
    done = subprocess.run(
        command("sweep", "plan.toml", "--workers", "1"), cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return rows_of(folder / "plan.db")


@on_linux
@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing(
    folder: Path, dask_cluster: Cluster, undisturbed: dict[Any, Any]
) -> None:
    """The workers have no module `toy_model`: its code is sent. The rows are those of a sweep without a cluster."""
    process = subprocess.Popen(
        command("sweep", "plan.toml", "--cluster", dask_cluster.address),
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_tasks(folder / "plan.db", process, 6)
    before = rows_of(folder / "plan.db")
    victims = dask_cluster.workers()
    assert len(victims) == 2
    os.kill(random.Random(1).choice(victims), signal.SIGKILL)
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "48 fits are in plan.db, 48 of them new" in shown
    assert len(undisturbed) == 48
    assert 6 <= len(before) < 48
    assert is_part_of(before, undisturbed)
    assert rows_of(folder / "plan.db") == undisturbed


class Deadly:
    """A family whose process is killed, except in the process that made it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.__name__ = "deadly"

    def __call__(self, model: Any) -> Any:
        if os.getpid() != self.pid:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("in the process of the tests")


@on_linux
@pytest.mark.slow
def test_a_fit_that_kills_its_workers_is_recorded_and_the_others_go_on(tmp_path: Path, dask_cluster: Cluster) -> None:
    entries: dict[str, Any] = {
        "models": {"toy": exponential_normal.target([0.5, 1.5])}, "guides": ["lognormal", Deadly()], "num_steps": 40,
        "engine": "batched", "num_draws": 50, "seed": range(2), "block": 1,
    }  # fmt: skip
    rows = list(ppl_vi.sweep(**entries, file=tmp_path / "a.db", cluster=dask_cluster.address))
    by_guide = {guide: [row for row in rows if row["guide"] == guide] for guide in ("lognormal", "deadly")}
    assert {row["status"] for row in by_guide["deadly"]} == {"killed"}
    assert by_guide["deadly"][0]["reason"].startswith("2 workers of the cluster died one after the other")
    local = {"guides": ["lognormal"], "file": tmp_path / "b.db"}
    expected = list(ppl_vi.sweep(**(entries | local)))
    assert [without_seconds(row) for row in in_order(by_guide["lognormal"])] == [
        without_seconds(row) for row in in_order(expected)
    ]
    assert len(load_results(tmp_path / "a.db")) == 8


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["problem"], row["seed"]))


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.endswith("_seconds")}
