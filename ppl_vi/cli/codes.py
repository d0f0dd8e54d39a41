"""Exit codes."""

from __future__ import annotations

FAILED = 1
# Exit codes: 2 by convention for wrong arguments, and 3 where a truth is uncertified, so that what rests on it must not
# be relied on.
USAGE, UNCERTIFIED = 2, 3
SIGNALLED = 128  # exit codes from here on are those after a signal
