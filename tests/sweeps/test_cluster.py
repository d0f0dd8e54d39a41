"""Sweeps on a Dask cluster: real schedulers and workers as processes of this machine, at 127.0.0.1 alone."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from distributed import KilledWorker

import ppl_vi
from benchmarks.dask_cluster import Cluster, started
from models import exponential_normal
from ppl_vi.comparison.comparison import FitSettings
from ppl_vi.sweeps import cluster, dask_mapper
from ppl_vi.sweeps.cluster import ClusterError, Deployer, cluster_of, reach
from ppl_vi.sweeps.dask_client import checked
from ppl_vi.sweeps.dask_mapper import DaskMapper
from ppl_vi.sweeps.keys import all_versions
from ppl_vi.sweeps.plan import Setting
from ppl_vi.sweeps.remote import UnfitWorkerError, require, same
from ppl_vi.sweeps.results import load_results
from ppl_vi.sweeps.tasks import Job, Outcome, Task
from tests.sweeps.conftest import Deadly, Run, command, environment
from tests.sweeps.test_kills import is_part_of, rows_of, wait_for_tasks

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


def test_the_files_of_the_page_name_deployers(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    found = []
    for text in re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        (tmp_path / "page.toml").write_text(text)
        found.append(cluster_of(tmp_path / "page.toml"))
    assert [one.path.rpartition(".")[2] for one in found] == [
        "SLURMCluster",
        "KubeCluster",
        "SSHCluster",
        "LocalCluster",
    ]
    assert found[0].scale == {"jobs": 20}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deployer = 3", "deployer: expected a text, got 3"),
        ('deployer = "LocalCluster"', "expected deployer = "),
        ("scale = 3", "expected deployer = "),
        ('deployer = "a.B"\nscale = true', "scale: expected a whole number or a table, got True"),
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


class Scaled:
    """A deployer that notes what it is told."""

    def __init__(self, **arguments: Any) -> None:
        told.append(arguments)

    def scale(self, num: int | None = None, **more: Any) -> None:
        told.append((num, more))

    def adapt(self, **more: Any) -> None:
        told.append(more)

    def close(self) -> None:
        told.append("closed")


told: list[Any] = []


@pytest.mark.parametrize(("scale", "call"), [(3, (3, {})), ({"jobs": 2}, (None, {"jobs": 2}))])
def test_a_deployer_is_started_scaled_and_closed(scale: Any, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told.clear()
    monkeypatch.setitem(sys.modules, "deployers", SimpleNamespace(Scaled=Scaled))
    with Deployer(Path("a.toml"), "deployers:Scaled", {"cores": 1}, scale, {"maximum": 9}).started():
        assert told == [{"cores": 1}, call, {"maximum": 9}]
    assert told[-1] == "closed"


def test_what_is_no_cluster_is_told() -> None:
    with pytest.raises(ClusterError, match="expected the address of a Dask scheduler"):
        cluster_of("localhost")
    with pytest.raises(ClusterError, match=r"can't read 'nowhere\.toml'"):
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


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with started(tmp_path_factory.mktemp("cluster"), allowed_failures=1) as found:
        yield found


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


@on_linux
@pytest.mark.slow
def test_a_fit_that_kills_its_workers_is_recorded_and_the_others_go_on(tmp_path: Path, dask_cluster: Cluster) -> None:
    entries: dict[str, Any] = {
        "models": {"toy": exponential_normal.target([0.5, 1.5])}, "guides": ["lognormal", Deadly()], "num_steps": 40,
        "engine": "batched", "num_draws": 50, "seed": range(1), "block": 1,
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
    assert len(load_results(tmp_path / "a.db")) == 4


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["problem"], row["seed"]))


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.endswith("_seconds")}


# ---- what is made of jobs, by a client that does them in this process


class Done:
    """A future that is done."""

    def __init__(self, value: Any, error: Exception | None = None) -> None:
        self.value, self.error, self.status = value, error, "error" if error else "finished"

    def result(self) -> Any:
        if self.error:
            raise self.error
        return self.value

    def exception(self) -> Exception | None:
        return self.error

    def add_done_callback(self, call: Any) -> None:
        call(self)


class Client:
    """Stands for a Dask client. What `fate` says of a batch's jobs happens to them.

    Attributes:
        batches: the labels of the jobs of each batch that was sent.
    """

    status = "running"

    def __init__(self, fate: Any = lambda labels: None, num_threads: int = 1) -> None:
        self.fate, self.num_threads = fate, num_threads
        self.batches: list[list[str]] = []
        self.comparisons = 0

    def nthreads(self) -> dict[str, int]:
        return dict.fromkeys(map(str, range(self.num_threads)), 1)

    def submit(self, function: Any, *arguments: Any, key: str) -> Done:
        if function is same:
            self.comparisons += 1
            return Done(same(*arguments))
        batch = cloudpickle.loads(arguments[0])
        self.batches.append([job.task.key for job in batch.jobs])
        error = self.fate(self.batches[-1])
        held = [future.result() for future in arguments[2]]
        return Done(None, error) if error else Done([cloudpickle.dumps(batch.work((j, held))) for j in batch.jobs])

    def cancel(self, futures: Any, force: bool) -> None:
        pass


SETTING = Setting("toy", "gamma", "trace_elbo", 0.2, 1000, "auto")


def jobs_of(num: int) -> list[Job]:
    comparison = b"the truth"
    settings = FitSettings(num_steps=1000, num_replicas=1)
    return [Job(Task(f"{i}", SETTING, settings, (i,), "", "", 1), "gamma", comparison, "digest") for i in range(num)]


def in_a_second(given: tuple[Job, list[bytes]]) -> Outcome:
    job, held = given
    assert (job.comparison, job.source, held) == (None, "", [b"the truth"] * len(held))
    return Outcome(job.task, "done", "", [], fit_seconds=0.75, score_seconds=0.25)


def mapped(client: Client, jobs: list[Job]) -> list[Outcome]:
    return list(DaskMapper(client, {})(in_a_second, jobs, 1, lambda job, how: Outcome(job.task, "killed", how, [])))


def test_jobs_are_put_together_by_what_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_mapper, "MIN_AHEAD", 2)
    client = Client()
    assert [one.task.key for one in mapped(client, jobs_of(100))] == [f"{i}" for i in range(100)]
    sizes = [len(batch) for batch in client.batches]
    assert sizes[:2] == [1, 1]  # nothing is known of what they cost
    assert sizes[2] == int(dask_mapper.BATCH_SECONDS)  # each takes a second
    assert max(sizes) == 10
    assert sizes[-4:] == [1] * 4  # the last are alone, so that they are shared among the workers
    assert client.comparisons == 1


def test_with_many_workers_batches_are_small() -> None:
    client = Client(num_threads=50)
    mapped(client, jobs_of(300))
    assert {len(batch) for batch in client.batches} == {1}


def killed_worker(key: str) -> KilledWorker:
    return KilledWorker(key, SimpleNamespace(address="tcp://127.0.0.1:1"), 3)


def test_the_job_that_kills_is_told_from_those_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that hold job 57 kill their worker; Dask blames two more jobs once, when they are not alone."""
    monkeypatch.setattr(dask_mapper, "MIN_AHEAD", 2)
    blamed = ["80", "81"]

    def fate(keys: list[str]) -> Exception | None:
        if len(keys) == 1 and keys[0] in blamed:
            blamed.remove(keys[0])
            return killed_worker(keys[0])
        return killed_worker(keys[0]) if "57" in keys else None

    client = Client(fate)
    blamed += ["57"]
    found = {one.task.key: one for one in mapped(client, jobs_of(100))}
    assert len(found) == 100
    assert {key for key, one in found.items() if one.status == "killed"} == {"57"}
    assert found["57"].reason == "4 workers of the cluster died one after the other at work on it"
    assert [batch for batch in client.batches if "57" in batch][-2:] == [["57"], ["57"]]


def test_a_scheduler_that_goes_is_one_line() -> None:
    with pytest.raises(ClusterError, match="the scheduler of the cluster is gone"):
        mapped(Client(lambda keys: CancelledError()), jobs_of(3))


def test_a_guide_that_can_not_be_sent_is_one_line() -> None:
    (job,) = jobs_of(1)
    with socket.socket() as unsendable, pytest.raises(ClusterError, match="can't be sent to the cluster: TypeError"):
        mapped(Client(), [replace(job, family=lambda model: unsendable)])


def test_other_versions_on_a_worker_are_one_line() -> None:
    require(all_versions())
    with pytest.raises(UnfitWorkerError, match=r"torch is .* there and 1.0 here: install the same versions"):
        require(all_versions() | {"torch": "1.0"})
    with pytest.raises(ClusterError, match="a worker of the cluster: torch is"):
        mapped(Client(lambda keys: UnfitWorkerError("torch is another")), jobs_of(1))


def test_a_worker_with_several_threads_is_one_line() -> None:
    workers = {"tcp://127.0.0.1:9": {"nthreads": 4}}
    client = SimpleNamespace(scheduler_info=lambda n_workers: {"workers": workers})
    with (
        pytest.raises(ClusterError, match=r"the worker at tcp://127.0.0.1:9 has 4 threads.*--nthreads 1"),
        checked(client),
    ):
        pass
