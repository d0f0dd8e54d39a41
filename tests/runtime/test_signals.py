"""What signals do to a program, in real processes that get real signals."""

import signal
import subprocess
import sys

import pytest

# Signals that are ignored in the background or under nohup.
HEARD = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
BEGIN = """
import os, signal, sys, time
from ppl_vi.runtime import signals

def come(name=sys.argv[1]):
    os.kill(os.getpid(), getattr(signal, name))

signals.take_over("tried")
"""
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
WORDS = {"SIGINT": "interrupted", "SIGTERM": "ended by SIGTERM", "SIGHUP": "ended by SIGHUP"}
each_signal = pytest.mark.parametrize("name", CODES)


def ended(script: str, name: str, before: str = "") -> tuple[int, str, str]:
    """The exit code, output and errors of a script that sends itself the signal by `come()`."""
    command = [sys.executable, "-c", HEARD + before + BEGIN + script, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


@each_signal
def test_while_it_is_starting_a_program_ends_at_once(name: str) -> None:
    script = """
class Swallows:
    def __del__(self):
        come()
Swallows()
print("went on", flush=True)
"""
    assert ended(script, name) == (CODES[name], "", f"tried: {WORDS[name]}, nothing was finished\n")


@each_signal
def test_while_it_is_working_a_program_is_interrupted_wherever_it_is(name: str) -> None:
    script = """
try:
    with signals.working():
        exec("come()")
except KeyboardInterrupt:
    print(signals.word())
    sys.exit(signals.exit_code())
"""
    assert ended(script, name) == (CODES[name], f"{WORDS[name]}\n", "")


@each_signal
def test_what_a_destructor_swallows_is_raised_again(name: str) -> None:
    script = """
class Swallows:
    def __del__(self):
        come()
try:
    with signals.working():
        Swallows()
        time.sleep(20)
except KeyboardInterrupt:
    sys.exit(signals.exit_code())
"""
    assert ended(script, name) == (CODES[name], "", "")


def test_what_a_users_code_swallows_is_raised_again() -> None:
    script = """
def greedy():
    try:
        come()
        time.sleep(20)
    except BaseException:
        time.sleep(20)
try:
    with signals.working():
        greedy()
except KeyboardInterrupt:
    sys.exit(signals.exit_code())
"""
    assert ended(script, "SIGTERM") == (143, "", "")


@each_signal
def test_what_is_being_saved_is_saved_first(name: str) -> None:
    script = """
with signals.saving(last=True):
    try:
        with signals.working():
            with signals.saving():
                come()
                print("a row")
            print("went on")
    except KeyboardInterrupt:
        come()
        print("the table")
come()
print("went on")
"""
    script = script.replace('"the table")', '"the table", flush=True)')
    assert ended(script, name) == (CODES[name], "a row\nthe table\n", "")


def test_saving_that_hangs_is_ended_by_another_signal() -> None:
    script = """
signals.PATIENCE_SECONDS = 0.2
with signals.saving():
    come()
    time.sleep(0.3)
    come()
    time.sleep(20)
"""
    assert ended(script, "SIGINT") == (130, "", "")


def test_what_was_ignored_before_stays_ignored() -> None:
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    script = "come()\ncome('SIGTERM')"
    assert ended(script, "SIGHUP", before)[0] == 143


def test_a_block_puts_the_handlers_back() -> None:
    from ppl_vi.runtime import signals

    before = [signal.getsignal(one) for one in signals.SIGNALS]
    hook = sys.unraisablehook
    with signals.handled("tried"):
        assert signal.getsignal(signal.SIGTERM) is not before[1]
        with pytest.raises(KeyboardInterrupt), signals.working():
            signal.raise_signal(signal.SIGTERM)
        assert (signals.exit_code(), signals.has_come()) == (143, True)
    assert [signal.getsignal(one) for one in signals.SIGNALS] == before
    assert sys.unraisablehook is hook
