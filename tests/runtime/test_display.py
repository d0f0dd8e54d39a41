"""Stages on a screen: in a terminal, in a notebook and in a pipe, and where nobody can see them."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from ppl_vi.runtime.display import Lines, following, with_times
from ppl_vi.runtime.stages import Stage, listening, stage

ROOT = Path(__file__).resolve().parent.parent.parent


def counted(num: int) -> None:
    with stage("counting", "step", num) as running:
        for _ in range(num):
            running.advance()


def test_a_line_says_how_far_how_fast_and_how_long() -> None:
    one = Stage("AutoNormal", "fitting", 400, 1000, "step", 20.0, 20.0)
    assert with_times(one, 0.0) == "AutoNormal: fitting, 400 of 1,000 steps · 20/s · 0:30 left"
    assert with_times(one, 4.5).endswith("0:25 left")
    assert with_times(one, 100.0).endswith("0:00 left")
    slow = Stage("", "comparison", 2, 3, "guide", 8192.0, 1 / 4096)
    assert with_times(slow, 0.0) == "comparison, 2 of 3 guides · 1:08:16 each · 1:08:16 left"
    assert with_times(replace(slow, rate=0.5), 0.0) == "comparison, 2 of 3 guides · 2 s each · 0:02 left"
    assert with_times(Stage("truth", "tree of bricks", 0, None, "point", 0.0, None), 3700.0) == (
        "truth: tree of bricks, 0 points · 1:01:40"
    )


def test_each_subject_has_a_line_until_its_stage_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines()
    lines.update(Stage("a", "fitting", 1, 4, "step", 1.0, None))
    lines.update(Stage("b", "scoring", 0, None, "", 1.0, None))
    assert str(lines) == "a: fitting, 1 of 4 steps · 0:01\nb: scoring · 0:01"
    lines.update(Stage("a", "fitting", 4, 4, "step", 1.0, None))
    assert str(lines) == "a: fitting, 4 of 4 steps · 0:01\nb: scoring · 0:01"
    monkeypatch.setattr("ppl_vi.runtime.display.LINGER_SECONDS", 0.0)
    assert str(lines) == "b: scoring · 0:01"


def test_in_a_pipe_a_stage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with following(True):
        counted(1)  # of the work as a whole: not told
        with listening(None, "truth"):
            counted(100)
            counted(100)
        with listening(None, "AutoNormal"):
            counted(100)
    assert capsys.readouterr() == ("", "truth: counting\nAutoNormal: counting\n")


class Gone(io.StringIO):
    """Standard error whose reader has gone."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        raise BrokenPipeError("nobody reads this")


@pytest.fixture(params=["pipe", "terminal", "closed", "none"])
def broken_stderr(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    closed = io.StringIO()
    closed.close()
    streams = {"pipe": Gone(False), "terminal": Gone(True), "closed": closed, "none": None}
    monkeypatch.setattr(sys, "stderr", streams[request.param])
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("broken_stderr")
def test_work_goes_on_where_nobody_can_see_it() -> None:
    with following(True, "me"):
        counted(3)
        time.sleep(0.3)  # long enough for the terminal to be drawn anew


class Handle:
    """What IPython's `display` gives back; notes what a notebook would show."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def update(self, data: dict[str, str], raw: bool) -> None:
        assert raw
        self.seen.append(data["text/plain"])


def test_in_a_notebook_the_lines_are_one_output_that_is_empty_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert (data, raw, display_id) == ({"text/plain": ""}, True, True)
        return Handle(seen)

    module = ModuleType("IPython.display")
    monkeypatch.setattr(module, "display", display, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("ppl_vi.runtime.display.Console", lambda: type("Notebook", (), {"is_jupyter": True}))
    with following(True, "AutoNormal"):
        counted(4)
        counted(5)
    assert seen == ["AutoNormal: counting, 0 of 4 steps · 0:00", "AutoNormal: counting, 0 of 5 steps · 0:00", ""]


IN_A_TERMINAL = """
import sys, time
from ppl_vi.runtime.display import following
from ppl_vi.runtime.stages import stage
with following(True, "AutoNormal"):
    with stage("fitting", "step", 1000) as running:
        running.at(400)
        time.sleep(0.3)
        print("result")
        print("warning", file=sys.stderr)
        running.at(500)
        time.sleep({seconds})
"""


def in_a_terminal(seconds: float, interrupt: bool) -> tuple[int, str, str]:
    """Runs the script with a terminal as its standard error; its exit code, and what it wrote to either."""
    ours, theirs = os.openpty()
    code = IN_A_TERMINAL.format(seconds=seconds)
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True
    ) as running:
        os.close(theirs)
        shown = ""
        while True:
            try:
                piece = os.read(ours, 4096).decode()
            except OSError:  # the last who had the terminal open has gone
                break
            shown += piece
            if interrupt and "500 of 1,000" in shown:
                running.send_signal(signal.SIGINT)
                interrupt = False
        os.close(ours)
        out, _ = running.communicate(timeout=60)
    return running.returncode, out, shown


def test_a_terminal_shows_a_line_and_is_left_as_it_was() -> None:
    code, out, shown = in_a_terminal(0.3, interrupt=False)
    assert (code, out) == (0, "result\n")
    assert "AutoNormal: fitting, 500 of 1,000 steps" in shown
    assert "warning\r\n" in shown
    assert (shown.count("\x1b[?25l"), shown.count("\x1b[?25h")) == (1, 1)  # the cursor is hidden, then shown
    assert shown.endswith("\x1b[2K")  # the line is erased


def test_ctrl_c_leaves_a_terminal_as_it_was() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs inherit
    try:
        code, out, shown = in_a_terminal(60.0, interrupt=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out) == (-signal.SIGINT, "result\n")
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
