"""The command `ppl-vi completion`: a script with which a shell completes commands, options, names and files."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from typing import Any

from ppl_vi import cli
from ppl_vi.runtime import names

SHELLS = ("bash", "zsh", "fish")
TEXT = "a script with which a shell completes commands, options and names"
EXAMPLES = """examples:
  ppl-vi completion bash > ~/.local/share/bash-completion/completions/ppl-vi
  ppl-vi completion zsh > ~/.zfunc/_ppl-vi
  ppl-vi completion fish > ~/.config/fish/completions/ppl-vi.fish"""
# What follows an option or an argument, by its metavar or name; anything else is the user's to type.
WORDS = {
    "guides": (*names.FAMILIES, "all"),
    "objective": names.OBJECTIVES,
    "engine": names.ENGINES,
}
FILES, FOLDERS = ("FILE", "PLAN.toml | MODULE:MODEL"), ("DIR",)


def add(commands: Any, whole: argparse.ArgumentParser) -> None:
    """Adds the command to those of a parser, the whole of which it completes."""
    parser = cli.add_command(commands, "completion", TEXT, EXAMPLES)
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to read the script")
    parser.set_defaults(program=completion_program, whole=whole)


def completion_program(arguments: argparse.Namespace) -> int:
    """Prints the script; the exit code."""
    if find_spec("shtab") is None:
        raise cli.UsageError("completion needs shtab, which is not installed: pip install shtab")
    import shtab

    for parser in cli.all_parsers(arguments.whole):
        for action in parser._actions:
            _complete(action, shtab)
    sys.stdout.write(shtab.complete(arguments.whole, arguments.shell))
    return 0


def _complete(action: argparse.Action, shtab: Any) -> None:
    """Tells shtab what follows an option or an argument."""
    kind: Any = None
    if action.dest in WORDS and not action.choices:
        kind = shtab.cmd(f"printf '%s\\n' {' '.join(WORDS[action.dest])}")
    elif action.metavar in FILES or (action.dest == "file" and action.option_strings):
        kind = shtab.FILE
    elif action.metavar in FOLDERS:
        kind = shtab.DIRECTORY
    if kind is not None:
        action.complete = kind  # type: ignore[attr-defined]
