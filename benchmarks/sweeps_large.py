"""One large sweep by the command line, as a user runs it: time, memory, the file, and the page of it in a browser."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ppl_vi import cli

LOOK_SECONDS = 0.2

PLAN = """models = [{{target = "models.exponential_normal:target", args = [{x}]}}]
guides = {guides}
seed = "0:{seeds}"
"""


def large(arguments: argparse.Namespace, folder: Path) -> list[Sequence[str]]:
    """The sweep of all problems and seeds, and its page."""
    num = arguments.num_problems
    x = [-2 + 6 * i / max(1, num - 1) for i in range(num)]
    plan = folder / "plan.toml"
    plan.write_text(PLAN.format(x=x, guides=arguments.guides, seeds=arguments.num_seeds))
    wall, processor, most = _took("sweep", str(plan))
    page = folder / "report.html"
    page_wall, _, _ = _took("report", str(plan.with_suffix(".db")), "-o", str(page))
    fits = len(arguments.guides) * num * arguments.num_seeds
    return [
        ("fits", f"{fits:,}"),
        ("wall s", f"{wall:.1f}"),
        ("processor s", f"{processor:.1f}"),
        ("GB of all processes together, at most", f"{most / 1e9:.2f}"),
        ("MB of the file", f"{plan.with_suffix('.db').stat().st_size / 1e6:.1f}"),
        ("s to write the page", f"{page_wall:.1f}"),
        ("MB of the page", f"{page.stat().st_size / 1e6:.2f}"),
        ("s to open it in chromium", _opened(page)),
    ]


def _took(*command: str) -> tuple[float, float, float]:
    """Seconds by the clock and of processors of a command, and the most bytes of all its processes together."""
    began, seconds, most = time.perf_counter(), dict[int, float](), 0.0
    here = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"))))}
    process = subprocess.Popen([sys.executable, "-m", "ppl_vi", *command], env=here, stdout=sys.stderr)
    while process.poll() is None:
        found = _family(process.pid)
        seconds |= {pid: spent for pid, (spent, _) in found.items()}
        most = max(most, sum(held for _, held in found.values()))
        time.sleep(LOOK_SECONDS)
    if process.returncode:
        raise cli.UsageError(f"'ppl-vi {' '.join(command)}' ended with {process.returncode}")
    return time.perf_counter() - began, sum(seconds.values()), most


def _family(parent: int) -> dict[int, tuple[float, float]]:
    """Seconds of processors and resident bytes of a process and all below it, by Linux's /proc.

    Pages that several processes share count for each.
    """
    parents, found = dict[int, int](), dict[int, tuple[float, float]]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            ticks, pages = int(fields[11]) + int(fields[12]), int(fields[21])
            found[int(path.parent.name)] = ticks / os.sysconf("SC_CLK_TCK"), float(pages * os.sysconf("SC_PAGE_SIZE"))
    own = {parent}
    while more := {pid for pid, above in parents.items() if above in own} - own:
        own |= more
    return {pid: found[pid] for pid in own if pid in found}


def _opened(page: Path) -> str:
    """Seconds until a browser has loaded the page and run its scripts; why it is not known where there is none."""
    browser = shutil.which("chromium")
    if browser is None:
        return "no chromium here"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return "no playwright here"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = opened.new_page()
        began = time.perf_counter()
        tab.goto(page.as_uri(), wait_until="load", timeout=120_000)
        tab.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
        took = time.perf_counter() - began
        opened.close()
    return f"{took:.2f}"
