"""The versions of Python and of the packages that a result depends on."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata


def versions(*more: str) -> dict[str, str]:
    """The versions that a result depends on, by package, and those of more packages if they are named."""
    packages = ("ppl_vi", "pyro-ppl", "torch", "numpy", "scipy", *more)
    found = {"python": platform.python_version()}
    return found | {package: _version(package) for package in packages}


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
