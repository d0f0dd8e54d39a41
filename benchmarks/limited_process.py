"""A function of a module in a process of its own, with limits on its processor time and memory.

A posterior that crashes, loops or takes all memory then costs itself alone. The child, `python -m MODULE ARGS`, prints
one JSON value as its last line. Where it fails, what it said last is the reason.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A child that waits for a compiler or for a busy machine takes more seconds by the clock than of its processor.
PATIENCE = 4.0
HARD_STOP = 5  # processor seconds after the limit at which the kernel kills what does not stop


@dataclass(frozen=True)
class Outcome:
    """What came of a child.

    Attributes:
        value: what it printed; None if it failed.
        status: "answered", "failed", "out of time" or "out of memory".
        reason: its words if it failed, else "".
        seconds: processor time, user and system, of the child and of what it started.
    """

    value: Any
    status: str
    reason: str
    seconds: float


def limit_this_process(seconds: float, memory: float) -> None:
    """Limits this process to processor seconds and to bytes of memory of its own.

    Past the first the kernel sends SIGXCPU, past the second memory is refused.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + HARD_STOP))
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))


def used_seconds() -> float:
    """Processor seconds of this process and of the processes that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run(
    module: str,
    arguments: Sequence[str],
    *,
    seconds: float,
    memory: float,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Runs `python -m module arguments`, which limits itself to `--seconds` and `--bytes`, and reads its last line.

    The child has this process's environment, one thread, and the variables of `environment`.
    """
    command = [sys.executable, "-m", module, *arguments, "--seconds", str(seconds), "--bytes", str(int(memory))]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {}),
    ) as child:  # fmt: skip
        began = time.monotonic()
        try:
            out, err = child.communicate(timeout=PATIENCE * seconds)
            late = False
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            out, err = child.communicate()
            late = True
        except BaseException:  # such as Ctrl-C, which a child in a session of its own does not get
            os.killpg(child.pid, signal.SIGKILL)
            raise
    return _outcome(out, err, child.returncode, late, time.monotonic() - began, seconds)


def _outcome(out: str, err: str, code: int, late: bool, wall: float, seconds: float) -> Outcome:
    if code == 0 and not late:
        answer = json.loads(out.strip().splitlines()[-1])
        return Outcome(answer["value"], "answered", "", answer["seconds"])
    if late or code in (-signal.SIGXCPU, -signal.SIGKILL):
        what = f"stopped after {PATIENCE * seconds:g} s by the clock" if late else f"stopped after {seconds:g} s"
        return Outcome(None, "out of time", what, min(wall, seconds))
    said = err.strip().splitlines() or [f"the process ended with exit code {code}"]
    memory = any(word in err for word in ("MemoryError", "bad_alloc", "not enough memory", "can't allocate memory"))
    return Outcome(None, "out of memory" if memory else "failed", said[-1], wall)


def answer(value: Any) -> None:
    """Prints a child's value with its processor seconds, for `run` to read."""
    print(json.dumps({"value": value, "seconds": used_seconds()}, allow_nan=False), flush=True)
