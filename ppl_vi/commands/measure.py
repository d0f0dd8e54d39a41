"""The command `ppl-vi measure`: draws of any system against a model's exact posterior."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_vi import cli
from ppl_vi.commands import begin
from ppl_vi.runtime import garbage, signals
from ppl_vi.runtime.display import following
from ppl_vi.runtime.outputs import write_output_text
from ppl_vi.runtime.stages import stage

if TYPE_CHECKING:
    from ppl_vi.measuring.measurement import Measurement

ENDINGS = (".csv", ".nc", ".npz")
# Functions by which a variable may become a latent site, by name: of torch, in which they are differentiated.
FUNCTIONS = ("exp", "log", "sigmoid", "softplus", "square", "sqrt", "reciprocal", "tanh")
TEXT = "draws of any system against a model's exact posterior"
DETAILS = """Measures draws that another system has made against the exact posterior of a Pyro model.

Draws are read from Stan's CSV files, one a chain, from an .nc of ArviZ with a group
posterior, or from an .npz with an array (chain, draw, *shape) for each latent site. A
variable log_q in the file is log q of each draw; then the reverse KL is known as well.
The exit code is 2 where the draws or the model can't be used, and 3 where the truth is
uncertified."""
EXAMPLES = """examples, for a file my_model.py in the current folder that has `model` and `data`:
  ppl-vi measure my_model:model --args my_model:data --draws draws.nc
  ppl-vi measure my_model:model --args my_model:data --draws chain_1.csv chain_2.csv --names slope=beta
  ppl-vi measure my_model:model --args my_model:data --draws vb.npz --transforms log_sigma=sigma:exp --html page.html"""


def add(commands: Any) -> None:
    """Adds the command to those of a parser."""
    parser = cli.add_command(commands, "measure", TEXT, EXAMPLES, DETAILS)
    begin.add_model(parser)
    parser.add_argument("--draws", nargs="+", metavar="FILE", help="one .nc, .npz or .csv, or a .csv for each chain")
    pairs = "what the model calls a variable of the draws"
    parser.add_argument("--names", nargs="+", metavar="THEIRS=OURS", default=[], help=pairs)
    made = f"a variable of which a function makes the model's site, one of {', '.join(FUNCTIONS)}"
    parser.add_argument("--transforms", nargs="+", metavar="THEIRS=OURS:FUNCTION", default=[], help=made)
    parser.add_argument("--label", default="", metavar="NAME", help="what the draws are called (the file's name)")
    cli.add_seed(parser)
    parser.add_argument("--json", metavar="FILE", help="the record here; - is standard output, and only it")
    parser.add_argument("--html", metavar="FILE", help="one page with everything here")
    parser.set_defaults(program=measure_program)


def measure_program(arguments: argparse.Namespace) -> int:
    """Measures the draws and tells what was found; the exit code."""
    names, transforms = _check(arguments)
    with cli.modules_from_here(), following(True):
        found = _measured(arguments, names, transforms)
    return _told(found, arguments)


def _check(arguments: argparse.Namespace) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Refuses what can be refused before torch is imported; the names and the transforms.

    Raises:
        UsageError: an argument is missing or wrong.
    """
    if arguments.model is None:
        raise cli.UsageError("name the model as package.module:attribute")
    if not arguments.draws:
        raise cli.UsageError("name the draws by --draws FILE, one .nc, .npz or .csv, or a .csv for each chain")
    for path in map(Path, arguments.draws):
        if not path.is_file():
            raise cli.UsageError(f"--draws: there is no file '{path}'")
        if path.suffix.lower() not in ENDINGS:
            raise cli.UsageError(f"--draws: expected a file {', '.join(ENDINGS)}, got '{path}'")
    for option, path in (("--json", arguments.json), ("--html", arguments.html)):
        if path is not None and path != "-":
            cli.writable_file(option, path)
    names = _pairs("--names", arguments.names)
    transforms = {}
    for theirs, text in _pairs("--transforms", arguments.transforms).items():
        ours, _, function = text.partition(":")
        if function not in FUNCTIONS:
            raise cli.UsageError(
                f"--transforms: expected THEIRS=OURS:FUNCTION with a function of {', '.join(FUNCTIONS)}, "
                f"got '{theirs}={text}'"
            )
        transforms[theirs] = (ours, function)
    return names, transforms


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """The pairs THEIRS=OURS of an option."""
    pairs = {}
    for text in given:
        theirs, equals, ours = text.partition("=")
        if not (theirs and equals and ours):
            raise cli.UsageError(f"{option}: expected THEIRS=OURS, got '{text}'")
        pairs[theirs] = ours
    return pairs


def _measured(
    arguments: argparse.Namespace, names: Mapping[str, str], transforms: Mapping[str, tuple[str, str]]
) -> Measurement:
    with signals.starting(), garbage.imports_kept(), stage("loading Pyro and the model"):
        model = cli.imported("model", arguments.model)
        given = cli.imported("--args", arguments.args) if arguments.args else ()
        args, kwargs = begin.arguments_of(model, given)
        import torch

        from ppl_vi.approximations.matching import matched
        from ppl_vi.approximations.reading import approximation_of
        from ppl_vi.measuring.measurement import measurement_of
        from ppl_vi.model_comparison import target_of
        from ppl_vi.truth import ground_truth

        functions = {name: getattr(torch, name, torch.nn.functional.softplus) for name in FUNCTIONS}
    made = {theirs: (ours, functions[name]) for theirs, (ours, name) in transforms.items()}
    try:
        target = target_of(model, args, kwargs)
        known = {site.name for site in target.latents} - set(names)
        found, remarks = approximation_of(list(map(Path, arguments.draws)), name=arguments.label, known=known)
        draws = matched(target, found, names, made)  # before the truth, which takes longer
        return measurement_of(ground_truth(target, seed=arguments.seed), found, draws, arguments.seed, remarks)
    except Exception as error:  # a model may raise anything
        raise begin.refused(arguments.model, error) from error


def _told(found: Measurement, arguments: argparse.Namespace) -> int:
    """Prints what was measured and writes record and page; the exit code."""
    from ppl_vi.report import files

    records = files.to_json([found.record()])
    sys.stdout.write(records if arguments.json == "-" else f"{found}\n")
    if arguments.json and arguments.json != "-":
        write_output_text(Path(arguments.json), records)
    if arguments.html:
        from ppl_vi.page.render import html_of
        from ppl_vi.page.results import page_of
        from ppl_vi.report import page_data

        held = page_data.data_of(found.comparison)
        write_output_text(Path(arguments.html), html_of(page_of(held["records"], held)))
    return 0 if found.truth.trusted.all() else cli.UNCERTIFIED
