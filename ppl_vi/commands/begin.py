"""How `compare` and `check` begin: the model and guides that the user names, and the truth."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ppl_vi import cli
from ppl_vi.runtime import garbage, signals
from ppl_vi.runtime.stages import stage

if TYPE_CHECKING:
    from ppl_vi.model_comparison import ModelComparison
    from ppl_vi.target.target import Target

WORKERS_MODULES = ("ppl_vi.model_comparison",)  # what the processes that share the guides import
AS_IS = "measure guides of your own, named MODULE:GUIDE, with the values that they have, without fitting them"


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the model and its arguments to a parser."""
    parser.add_argument("model", metavar="MODULE:MODEL", nargs="?", help="a Pyro model, or a Target made of one")
    parser.add_argument(
        "--args", metavar="MODULE:DATA", help="its arguments: one value, a tuple, or a dict of them by name"
    )


def check_names(arguments: argparse.Namespace) -> None:
    """Refuses a missing model, and `--as-is` where no guide is the user's own.

    Raises:
        UsageError: there is none.
    """
    if arguments.model is None:
        raise cli.UsageError("name the model as package.module:attribute")
    if arguments.as_is and not any(":" in guide for guide in arguments.guides or ()):
        raise cli.UsageError("--as-is is about guides of your own: name one by --guides package.module:attribute")


def begun(arguments: argparse.Namespace, default: Sequence[str]) -> tuple[ModelComparison, list[str], int]:
    """The comparison with its truth, the guides that are asked for, and the number of processes that share them.

    Args:
        arguments: the options of `add_model`, `--guides`, `--as-is` and those of `cli.add_fit_options`.
        default: the guides, where none is asked for.

    Raises:
        UsageError: the model or a guide can't be used, or there is no truth; the cause is the error itself.
    """
    with signals.starting(), garbage.imports_kept(), stage("loading Pyro and the model"):
        cli.woken(arguments, default, WORKERS_MODULES)
        make_target = _named(arguments)
        guides, settings, processes = cli.prepared(arguments, default, WORKERS_MODULES)
        from ppl_vi import model_comparison
        from ppl_vi.guides.given import fitted
    with _explained(arguments):
        asked = {guide: fitted(guide) if arguments.as_is and ":" in guide else guide for guide in guides}
        target = make_target().to(arguments.device)
        return model_comparison.begun(target, asked, (), settings), guides, processes


def target_of(arguments: argparse.Namespace) -> Target:
    """The model that is named, with its arguments.

    Raises:
        UsageError: it can't be used; the cause is the error itself.
    """
    make_target = _named(arguments)
    with _explained(arguments):
        return make_target()


def _named(arguments: argparse.Namespace) -> Callable[[], Target]:
    """Imports the model and its arguments; makes the target when it is called."""
    model = cli.imported("model", arguments.model)
    args, kwargs = arguments_of(model, cli.imported("--args", arguments.args) if arguments.args else ())

    def make_target() -> Target:
        from ppl_vi.model_comparison import target_of

        return target_of(model, args, kwargs)

    return make_target


@contextmanager
def _explained(arguments: argparse.Namespace) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a model may raise anything
        raise refused(arguments.model, error) from error


def refused(model: str, error: Exception) -> cli.UsageError:
    """The error of a model that can't be used, as one line that names the model."""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    name = model.rpartition(":")[2]  # with which most of these errors begin
    return cli.UsageError(f"{model}: {kind}{str(error).removeprefix(f'{name}: ')}")


def arguments_of(model: Any, given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A model's positional and keyword arguments, as `--args` names them; a dict is what the model can take it for."""
    if isinstance(given, dict) and given and all(isinstance(name, str) for name in given):
        try:
            inspect.signature(model).bind(**given)
        except (TypeError, ValueError):
            return (given,), {}
        return (), given
    return (given if isinstance(given, tuple) else (given,)), {}
