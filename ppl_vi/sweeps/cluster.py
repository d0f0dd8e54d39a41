"""On which cluster a sweep runs: a scheduler's address, a deployer of Dask's that a TOML file names, or one of Python.

Nothing here imports Dask, which need not be installed; `ppl_vi.sweeps.dask_client` does.
"""

from __future__ import annotations

import importlib
import socket
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Seconds in which a scheduler must answer.
CONNECT_SECONDS = 5.0
# What a file that names a deployer may have, and of which kind each is.
ENTRIES: dict[str, tuple[type, ...]] = {
    "deployer": (str,), "arguments": (dict,), "scale": (int, dict), "adapt": (dict,),
}  # fmt: skip
SPELLED = {str: "a text", dict: "a table", int: "a whole number"}


class ClusterError(Exception):
    """A cluster can't be used; the message is one line that says why, and what to do."""


@dataclass(frozen=True)
class Deployer:
    """A class that starts a cluster, such as `dask_jobqueue.SLURMCluster`.

    Attributes:
        file: that names it, for messages.
        path: where it is imported from.
        arguments: it is called with.
        scale: how many workers it is asked for then, or the arguments of its method `scale`; None where that is not
            called.
        adapt: the arguments of its method `adapt`; None where that is not called.
    """

    file: Path
    path: str
    arguments: dict[str, Any] = field(default_factory=dict)
    scale: int | dict[str, Any] | None = None
    adapt: dict[str, Any] | None = None

    @contextmanager
    def started(self) -> Iterator[Any]:
        """The cluster, which is closed at the end.

        Raises:
            ClusterError: it can't be started.
        """
        try:
            module, _, name = self.path.replace(":", ".").rpartition(".")
            cluster = getattr(importlib.import_module(module), name)(**self.arguments)
            if self.scale is not None:
                cluster.scale(**self.scale) if isinstance(self.scale, dict) else cluster.scale(self.scale)
            if self.adapt is not None:
                cluster.adapt(**self.adapt)
        except Exception as error:  # whatever a deployer may raise
            raise ClusterError(
                f"'{self.file}': {self.path} can't be started: {type(error).__name__}: {error}"
            ) from error
        try:
            yield cluster
        finally:
            cluster.close()


def cluster_of(given: Any) -> Any:
    """What a user means by a cluster: an address and a deployer's file are told apart, and anything else is left.

    Raises:
        ClusterError: it is neither, the file has wrong entries, or dask.distributed is not installed.
    """
    if find_spec("distributed") is None:
        raise ClusterError("a cluster needs dask.distributed, which is not installed: pip install 'ppl_vi[cluster]'")
    if not isinstance(given, str | Path):
        return given
    if "://" in str(given):
        return str(given)
    if str(given).endswith(".toml"):
        return _deployer(Path(given))
    raise ClusterError(
        f"expected the address of a Dask scheduler such as tcp://127.0.0.1:8786, or a TOML file that names a deployer, "
        f"got '{given}'"
    )


def _deployer(file: Path) -> Deployer:
    try:
        entries = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClusterError(f"can't read '{file}': {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ClusterError(f"'{file}' is no TOML: {' '.join(str(error).split())}") from error
    for name, value in entries.items():
        if name not in ENTRIES:
            raise ClusterError(f"'{file}': unknown entry '{name}'; there are {', '.join(ENTRIES)}")
        if not isinstance(value, ENTRIES[name]) or isinstance(value, bool):
            expected = " or ".join(SPELLED[kind] for kind in ENTRIES[name])
            raise ClusterError(f"'{file}': {name}: expected {expected}, got {value!r}")
    path = entries.pop("deployer", "")
    if not path.replace(":", ".").rpartition(".")[0]:
        raise ClusterError(f"'{file}': expected deployer = \"package.Class\", such as dask_jobqueue.SLURMCluster")
    return Deployer(file, path, **entries)


def reach(address: str) -> None:
    """Refuses an address at which nothing answers, at once; Dask would try again and again.

    Raises:
        ClusterError: nothing does.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
        if not (host and port):
            raise ValueError("it has no host and port")
        if parts.scheme in ("tcp", "tls"):
            socket.create_connection((host, port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ClusterError(
            f"no Dask scheduler answers at '{address}': {why}; 'dask scheduler' starts one and says its address"
        ) from error
