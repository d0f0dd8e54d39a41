"""Where the command `ppl-vi` starts: signals are handled before the rest is imported, which takes a while."""

from __future__ import annotations

from ppl_vi.runtime import signals


def main() -> int:
    """Runs the command line in a process that ends with it; returns the exit code."""
    signals.take_over("ppl-vi")
    from ppl_vi.__main__ import main as program

    return program()
