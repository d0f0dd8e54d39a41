"""Runs a program from its arguments to its exit code."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from ppl_vi.cli.codes import SIGNALLED, USAGE
from ppl_vi.cli.parsing import UsageError
from ppl_vi.runtime import garbage, result_folder, signals, verbosity
from ppl_vi.runtime.outputs import UNWRITTEN, noting_failures, one_line, reason_of, tell_results
from ppl_vi.runtime.plain_text import encodable_output


def run(
    program: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parses the arguments and runs a program; returns its exit code.

    It is 2 for a usage error, 3 where a truth is uncertified, 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP.
    """
    with encodable_output():
        arguments = parser.parse_args(argv)
        with verbosity.speaking(getattr(arguments, "verbosity", verbosity.NORMAL)):
            return _run(program, parser, arguments)


def _run(
    program: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> int:
    """Runs a program with its arguments; the exit code."""
    garbage.all_kept_at_exit()
    with signals.handled(parser.prog):
        try:
            with noting_failures() as failed, result_folder.collecting():
                try:
                    with signals.working():
                        code = program(arguments)
                except UsageError:  # as where no guide could be compared, which is known at the end
                    tell_results()
                    raise
                if sys.stdout is not None:
                    sys.stdout.flush()
                if code < SIGNALLED:
                    tell_results()
            return code or (UNWRITTEN if failed else 0)
        except (Exception, KeyboardInterrupt) as error:
            # a library may have made another error of a signal's exception
            if not isinstance(error, KeyboardInterrupt) and not signals.has_come():
                return _told(parser.prog, error)
        print(f"{parser.prog}: {signals.word()}, nothing was finished", file=sys.stderr)
        return signals.exit_code()


def _told(program: str, error: Exception) -> int:
    """Tells the user of an error in one line, if it is one that the user can mend; the exit code."""
    if isinstance(error, UsageError):
        if verbosity.is_verbose() and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        print(one_line(f"{program}: error: {error}"), file=sys.stderr)
        return USAGE
    if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
        _silence(sys.stdout)
        return 0
    if isinstance(error, OSError):  # as where the tables go to a full disk
        what = f" '{error.filename}'" if error.filename else ""
        print(one_line(f"{program}: error: can't read or write{what}: {reason_of(error)}"), file=sys.stderr)
        _silence(sys.stdout)
        return UNWRITTEN
    raise error


def _silence(stream: Any) -> None:
    """Lets a stream that can't be written to lead nowhere, so that what it still holds is not tried again."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
