"""Trials of faults that come from outside: signals, killed processes, threads, and models that end the program.

Each class of trial is a function of the number of trials, a seed and a folder to work in. It yields one line for each
trial: "" where all is well, else what went wrong. `benchmarks.faults` runs them.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Seconds that a run may take; one that takes longer hangs.
LIMIT_SECONDS = 100.0
# Seconds that processes may take to end after the one that started them: the server may be importing torch just then.
ORPHAN_SECONDS = 30.0
# Python itself takes a moment to start; from when SIGTERM is caught on, the program answers for what happens.
START_SECONDS = 30.0
# Four guides that take about half a second longer each than the fit, and a model with the truth in closed form.
MODULE = """
import time
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

X = torch.tensor([0.5, 1.5])


def model(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def one(model):
    time.sleep(0.2)
    return AutoNormal(model)


def two(model):
    time.sleep(0.6)
    return AutoNormal(model)


def three(model):
    time.sleep(1.0)
    return AutoNormal(model)


def four(model):
    time.sleep(0.4)
    return AutoNormal(model)
"""
GUIDES = tuple(f"toy:{name}" for name in ("one", "two", "three", "four"))
FEW = ("--num-steps", "30", "--num-replicas", "2", "--no-plots")
LOG_EVIDENCE = -0.5 * (2 * math.log(2 * math.pi) + math.log(3) + 2.5 - 4 / 3)  # x ~ Normal(0, I + 11') of 0.5 and 1.5


@dataclass(frozen=True)
class Ended:
    """A run that has ended: its exit code as a shell gives it, what it printed, and its records by guide."""

    code: int
    out: str
    err: str
    records: dict[str, dict[str, object]]


class Run:
    """The command line at work on the toy, in a session of its own, by which its processes are known."""

    def __init__(self, folder: Path, *options: str, command: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "toy.py").write_text(MODULE)
        self.folder = folder
        compare = ("-m", "ppl_vi", "compare", "toy:model", "--args", "toy:X", "--guides", *GUIDES, *FEW, *options)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *(command or compare)],
                cwd=folder, stdout=out, stderr=err, env=os.environ | {"PYTHONPATH": path},
                start_new_session=True, restore_signals=True, preexec_fn=_default_signals,
            )  # fmt: skip

    def ready(self) -> None:
        """Waits until the program handles its signals."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{self.process.pid}/status").read_text())
            if caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
                return
            time.sleep(0.002)

    def processes(self) -> list[int]:
        """The processes of the session that are still running."""
        return [pid for pid, session, state in _all_processes() if session == self.process.pid and state != "Z"]

    def workers(self) -> list[int]:
        """The processes that work on guides: each has a group of its own."""
        return [pid for pid in self.processes() if pid != self.process.pid and _group(pid) == pid]

    def records(self) -> dict[str, dict[str, object]]:
        """The records that are written by now, by guide; a file that is no JSON is an error."""
        file = self.folder / "results" / "records.json"
        return {one["guide"]: one for one in json.loads(file.read_text())} if file.exists() else {}

    def ended(self) -> Ended:
        """Waits for the end."""
        code = self.process.wait(LIMIT_SECONDS)
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        return Ended(128 - code if code < 0 else code, out, err, self.records())

    def orphans(self) -> list[str]:
        """Waits until no process of the session is left; those that do not end."""
        until = time.monotonic() + ORPHAN_SECONDS
        while self.processes() and time.monotonic() < until:
            time.sleep(0.05)
        return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:80] for pid in self.processes()]

    def end(self) -> None:
        """Kills whatever is left."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


def _default_signals() -> None:
    """A shell lets jobs in the background ignore Ctrl-C, which they hand on to their children."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_DFL)


def _all_processes() -> Iterator[tuple[int, int, str]]:
    """Process, session and state of every process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        yield int(folder.name), int(session), state


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def _wrong_values(records: dict[str, dict[str, object]]) -> list[str]:
    """Rows whose log evidence is not that of the closed form."""
    return [
        f"{guide}: log evidence {record['log_evidence']}"
        for guide, record in records.items()
        if abs(float(str(record["log_evidence"])) - LOG_EVIDENCE) > 1e-6
    ]


def _traceback(ended: Ended) -> list[str]:
    """The first line of a traceback, if there is one."""
    both = ended.out + ended.err
    found = re.search(r"Traceback.*|Exception ignored.*|BrokenProcessPool.*", both)
    return [f"shows '{found[0]}' … '{both.strip().splitlines()[-1]}'"] if found else []


def signals_at_random_moments(num: int, seed: int, folder: Path) -> Iterator[str]:
    """Ctrl-C, SIGTERM, SIGHUP and kill -9, at any moment, to the program alone or, as `timeout` does, to its group."""
    chance = random.Random(seed)
    began = time.monotonic()
    ended = Run(folder / "whole").ended()
    whole = time.monotonic() - began
    if set(ended.records) != set(GUIDES):
        raise RuntimeError(f"the run without a fault fails: {ended.err}")
    for trial in range(num):
        signum = chance.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL))
        to_group, moment = chance.random() < 0.5, chance.uniform(0, whole)
        found, _ = signal_when(folder / f"{trial}", after(moment), signum, to_group)
        yield f"{signum.name} after {moment:.2f} s{' to the group' * to_group}: {found}" if found else ""


def after(seconds: float) -> Callable[[Run], bool]:
    """Whether so many seconds have passed since this was asked for the first time."""
    began: list[float] = []

    def is_over(_: Run) -> bool:
        began.append(time.monotonic())
        return began[-1] - began[0] >= seconds

    return is_over


def signal_when(
    folder: Path, moment: Callable[[Run], bool], signum: signal.Signals, to_group: bool = False
) -> tuple[str, set[str]]:
    """What is wrong after a signal that comes at a moment after the program has begun, and the guides that it keeps."""
    run = Run(folder)
    try:
        run.ready()
        while not moment(run) and run.process.poll() is None:
            time.sleep(0.005)
        reported = set(run.records())
        if run.process.poll() is None:
            (os.killpg if to_group else os.kill)(run.process.pid, signum)
        return "; ".join(_wrong(run, signum, reported)), set(run.records())
    finally:
        run.end()


def _wrong(run: Run, signum: signal.Signals, reported: set[str]) -> list[str]:
    ended = run.ended()
    wrong = _traceback(ended) + _wrong_values(ended.records)
    whole = set(ended.records) == set(GUIDES)
    if ended.code != 128 + signum and not (ended.code == 0 and whole):
        wrong.append(f"exit code {ended.code} with {len(ended.records)} rows: {ended.err.strip().splitlines()[-1:]}")
    if not reported <= set(ended.records):
        wrong.append(f"{reported - set(ended.records)} were reported, and lost")
    missing = [guide for guide in ended.records if guide not in ended.out]
    if missing and signum != signal.SIGKILL:
        wrong.append(f"{missing} are in the records, and not in the table")
    return wrong + [f"orphan: {one}" for one in run.orphans()]


def killed_workers(num: int, seed: int, folder: Path) -> Iterator[str]:
    """A worker is killed at any moment while guides are fitted: its guide is fitted again, and no row is lost."""
    chance = random.Random(seed)
    for trial in range(num):
        run = Run(folder / f"{trial}")
        try:
            while not run.workers() and run.process.poll() is None:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 4))
            victims = run.workers()
            if victims:
                os.kill(chance.choice(victims), chance.choice((signal.SIGKILL, signal.SIGTERM)))
            ended = run.ended()
            wrong = _traceback(ended) + _wrong_values(ended.records)
            wrong += [f"exit code {ended.code}"] if ended.code else []
            wrong += [f"{guide} is missing" for guide in GUIDES if guide not in ended.records or guide not in ended.out]
            wrong += [f"{guide} failed: {one['reason']}" for guide, one in ended.records.items() if one["elbo"] is None]
            yield "; ".join(wrong + [f"orphan: {one}" for one in run.orphans()])
        finally:
            run.end()


# Ctrl-C in `ppl_vi.compare`: the finished rows are in the exception, and the caller's settings are as they were.
IN_PYTHON = """
import json, os, pyro, torch, numpy, random
import ppl_vi, toy
ppl_vi.compare
torch.manual_seed(3); numpy.random.seed(3); random.seed(3)
pyro.param("mine", torch.tensor(2.5))
told = []
def state():
    return (str(torch.get_default_dtype()), pyro.settings.get(), torch.get_rng_state().tolist(), random.getstate(),
            str(numpy.random.get_state()), os.getcwd(), torch.get_num_threads(), torch.is_grad_enabled(),
            float(pyro.param("mine")), list(pyro.get_param_store()), torch.cumprod.__module__)
def follow(stage):
    if stage.name == "comparison":
        told.append(stage.done)
before = state()
guides = {name: getattr(toy, name) for name in ("one", "two", "three", "four")}
print("ready", flush=True)
try:
    found = ppl_vi.compare(toy.model, guides, (toy.X,), num_steps=30, num_replicas=2, num_draws=500, progress=follow)
except ppl_vi.ComparisonInterruptedError as stop:
    found = stop.comparison
except KeyboardInterrupt:
    found = None
kept = [] if found is None else [entry.guide for entry in found.entries]
lost = max([0, *told]) - len(kept)
print(json.dumps({"lost": lost, "same": state() == before}))
"""


def interrupts_in_python(num: int, seed: int, folder: Path) -> Iterator[str]:
    """Ctrl-C at any moment in `ppl_vi.compare` costs no finished guide and none of the caller's settings."""
    chance = random.Random(seed)
    for trial in range(num):
        run = Run(folder / f"{trial}", command=("-c", IN_PYTHON))
        try:
            while "ready" not in (run.folder / "out").read_text() and run.process.poll() is None:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 8))
            if run.process.poll() is None:
                run.process.send_signal(signal.SIGINT)
            ended = run.ended()
            told = ended.out.splitlines()[-1]
            good = ended.code == 0 and json.loads(told) == {"lost": 0, "same": True}
            yield "" if good else f"code {ended.code}: {told[:200]} {ended.err[-300:]}"
        finally:
            run.end()
