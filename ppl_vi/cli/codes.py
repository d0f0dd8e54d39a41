"""Exit codes."""

from __future__ import annotations

from ppl_vi.runtime.outputs import UNWRITTEN

FAILED = UNWRITTEN  # 1
# Exit codes: 2 by convention for wrong arguments, and 3 where a truth is uncertified, so that what rests on it must not
# be relied on.
USAGE, UNCERTIFIED = 2, 3
SIGNALLED = 128  # exit codes from here on are those after a signal

# What each exit code says, as `docs/command-line.md` has it.
MEANINGS: dict[int, str] = {
    0: "done; with `check`, every limit is kept",
    FAILED: "`check`: a limit is not kept, or it is undecided; `results diff`: something became worse; any command: an "
    "output could not be written, or ppl_vi itself has failed, with a traceback",
    USAGE: "the arguments, the model or a guide can't be used, which one line says; nothing was computed",
    UNCERTIFIED: "a truth is uncertified, so that the numbers marked with `?` must not be relied on; with `check`, "
    "also where there is no truth",
    SIGNALLED + 1: "ended by SIGHUP, as when a terminal is closed; what was finished is printed and written",
    SIGNALLED + 2: "interrupted by Ctrl-C; what was finished is printed and written",
    SIGNALLED + 15: "ended by SIGTERM; what was finished is printed and written",
}
