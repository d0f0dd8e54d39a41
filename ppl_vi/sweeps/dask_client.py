"""A sweep's connection to a Dask cluster, and what is checked before anything is sent there."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

import cloudpickle
from distributed import Client

from ppl_vi.sweeps.cluster import CONNECT_SECONDS, ClusterError, Deployer, reach
from ppl_vi.sweeps.dask_mapper import DaskMapper
from ppl_vi.sweeps.keys import all_versions, is_users_module
from ppl_vi.sweeps.remote import require, several_threads

# Seconds between two looks whether a worker is there.
LOOK_SECONDS = 0.2


@contextmanager
def on_cluster(cluster: Any) -> Iterator[DaskMapper]:
    """A mapper that lets a cluster do the work; the connection is closed at the end.

    Args:
        cluster: as `ppl_vi.sweeps.cluster.cluster_of` gives it; a connected `distributed.Client` is left open.

    Raises:
        ClusterError: the cluster can't be reached or used.
    """
    with _quiet():
        if isinstance(cluster, Client):
            with checked(cluster) as mapper:
                yield mapper
        elif isinstance(cluster, Deployer):
            with cluster.started() as started, _connected(started) as client, checked(client) as mapper:
                yield mapper
        else:
            with _connected(cluster) as client, checked(client) as mapper:
                yield mapper


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out Dask's own log and warnings, of lost workers and of versions: what matters is told by the sweep."""
    names = [name for name in list(logging.Logger.manager.loggerDict) if name.split(".")[0] == "distributed"]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _connected(cluster: Any) -> Iterator[Client]:
    if isinstance(cluster, str):
        reach(cluster)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions, which are looked at below
            client = Client(cluster, timeout=CONNECT_SECONDS, set_as_default=False)
    except Exception as error:  # whatever it may meet that is no scheduler
        what = f"'{cluster}'" if isinstance(cluster, str) else f"{type(cluster).__name__}"
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ClusterError(f"no Dask scheduler answers at {what}: {first}") from error
    try:
        yield client
    finally:
        with suppress(Exception):  # as where the scheduler is gone
            client.close(timeout=2)


@contextmanager
def checked(client: Client) -> Iterator[DaskMapper]:
    """The mapper of a cluster whose workers are fit for the work."""
    try:
        workers = _workers(client)
        for address, worker in workers.items():
            if worker["nthreads"] != 1:
                raise ClusterError(several_threads(address, worker["nthreads"]))
        expected = all_versions()
        for address, error in client.run(require, expected, on_error="return").items():
            if isinstance(error, ModuleNotFoundError):
                raise ClusterError(f"the worker at {address} has no {error.name}: install ppl_vi there")
            if error is not None:
                raise ClusterError(f"the worker at {address}: {error}")
    except (OSError, TimeoutError) as error:
        raise ClusterError(f"the cluster does not answer: {error}") from error
    with _code_travels():
        yield DaskMapper(client, expected)


def _workers(client: Client) -> dict[str, Any]:
    """The workers by address, once there are any."""
    told = False
    while not (workers := client.scheduler_info(n_workers=-1)["workers"]):
        if not told:
            address, told = client.scheduler_info()["address"], True
            print(f"waiting for workers of {address}; 'dask worker {address} --nthreads 1' starts one", file=sys.stderr)
        time.sleep(LOOK_SECONDS)
    found: dict[str, Any] = workers
    return found


@contextmanager
def _code_travels() -> Iterator[None]:
    """Lets the code of the user's modules be sent, which workers then need not have."""
    registered: list[ModuleType] = []
    before = cloudpickle.list_registry_pickle_by_value()
    for name, module in list(sys.modules.items()):
        if name not in ("__main__", "__mp_main__", *before) and is_users_module(module):
            cloudpickle.register_pickle_by_value(module)
            registered.append(module)
    try:
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)
