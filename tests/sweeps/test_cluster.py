"""Sweeps on a Dask cluster: real schedulers and workers as processes of this machine, at 127.0.0.1 alone."""

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
