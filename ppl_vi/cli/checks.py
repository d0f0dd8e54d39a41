"""Refuses what can't be done before anything is computed."""

from __future__ import annotations

import argparse
import glob
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from ppl_vi.cli.parsing import UsageError
from ppl_vi.runtime import names, result_folder
from ppl_vi.runtime.outputs import why_not_file, why_not_folder

CUDA_DRIVERS = ("/dev/nv*", "/dev/kfd", "/dev/dxg")  # one of these is there on Linux where torch can find a CUDA device


def check_device(device: str) -> None:
    """Refuses a device that is not there.

    Raises:
        UsageError: torch finds no such device.
    """
    if device == "cpu":
        return
    missing = "--device cuda: torch finds no CUDA device here"
    if sys.platform == "linux" and not any(map(glob.glob, CUDA_DRIVERS)):
        raise UsageError(missing)  # without the seconds that importing torch takes
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(missing)


def writable_folder(option: str, folder: Path) -> None:
    """Creates a folder if it is missing, and tries to write to it.

    Raises:
        UsageError: the folder can't be created or written to.
    """
    if why := why_not_folder(folder):
        raise UsageError(f"{option}: {why}")


def writable_file(option: str, path: str) -> None:
    """Refuses a file that can't be written, as far as that can be told beforehand.

    Raises:
        UsageError: it can't be written.
    """
    if why := why_not_file(Path(path)) if path else "expected a file, got ''":
        raise UsageError(f"{option}: {why}")


def check_outputs(arguments: argparse.Namespace) -> None:
    """Refuses outputs that could not be written, before anything is computed.

    Where the default folder holds another model's results, `arguments.out` becomes another folder, and one line says
    so once something is written. `arguments.whose` is the model that the results are of.

    Raises:
        UsageError: an output can't be written, or would replace another model's results.
    """
    _claim(arguments)
    writable_folder("--out", arguments.out)
    if arguments.json == "-" and sys.stdout is None:
        raise UsageError("--json: standard output is closed")
    if arguments.json is None or arguments.json == "-":
        return
    writable_file("--json", arguments.json)


def _claim(arguments: argparse.Namespace) -> None:
    """Chooses the folder for the results.

    Raises:
        UsageError: the user named a folder that holds another model's results.
    """
    try:
        arguments.out, said = result_folder.claimed(
            arguments.out,
            arguments.whose,
            given=arguments.out_is_given,
            unlisted_is_own=arguments.unlisted_is_own,
        )
    except result_folder.OtherResultsError as error:
        raise UsageError(f"--out: {error}") from error
    results = result_folder.current()
    results.folder, results.whose, results.why_here = arguments.out, arguments.whose, said


def check_comparison(arguments: argparse.Namespace) -> None:
    """Refuses what can be refused before torch and Pyro are imported, which takes seconds.

    Raises:
        UsageError: an option asks for what can't be done.
    """
    check_fitting(arguments)
    check_outputs(arguments)


def check_fitting(arguments: argparse.Namespace) -> None:
    """The same of the options of `add_fit_options` and `--guides`.

    Raises:
        UsageError: an option asks for what can't be done.
    """
    check_guides(arguments.guides)
    try:
        _, number = names.objective_of(arguments.objective)
    except ValueError as error:
        raise UsageError(str(error)) from error
    num = getattr(arguments, "num_particles", None)
    if arguments.objective.startswith("iwae:") and isinstance(num, int) and num % int(number or 1):
        raise UsageError(f"num_particles must be a multiple of K = {number} for iwae, got {num}")
    check_device(arguments.device)


def check_guides(given: Sequence[str] | None) -> None:
    """Refuses names of families of which there can be none.

    Raises:
        UsageError: there is none.
    """
    try:
        for name in given or ():
            if name != "all":
                _check_guide(name)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_guide(name: str) -> None:
    """Checks a family's name, or that there is such a module as a name of one's own begins with, and its file."""
    name, file = names.guide_and_file(name)
    names.check_family(name)
    if ":" not in name:
        return
    module, _, attribute = name.partition(":")
    package = module.partition(".")[0]
    if not package or not attribute:
        raise ValueError(f"guide '{name}': expected package.module:attribute")
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        meant = names.with_colon(name)
        hint = f"; did you mean {meant}?" if meant else ""
        raise ValueError(f"guide '{name}' can't be imported: No module named '{package}'{hint}")
    if file and not Path(file).is_file():
        raise ValueError(f"guide '{name}': there is no file '{file}' with its values")
