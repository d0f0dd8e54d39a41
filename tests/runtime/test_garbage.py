"""Tests of what programs keep from Python's search for garbage."""

import subprocess
import sys

PROGRAM = """
import gc
from ppl_vi.runtime import garbage

found = []
gc.callbacks.append(lambda phase, info: found.append(phase))
with garbage.imports_kept():
    import torch
assert not found, "garbage was looked for during the import"
assert gc.isenabled() and gc.get_freeze_count() > 100_000, gc.get_freeze_count()
before = gc.get_freeze_count()
with garbage.imports_kept():
    [[number] for number in range(10_000)]
assert gc.get_freeze_count() == before, "what was made after the import of torch is kept as well"
import atexit
kept = [[number] for number in range(1000)]
atexit.register(lambda: print("frozen at exit:", gc.get_freeze_count() >= before + 1000))
garbage.all_kept_at_exit()
garbage.all_kept_at_exit()
"""


def test_imports_are_not_looked_through_for_garbage() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "frozen at exit: True\n")
