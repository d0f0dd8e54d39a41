"""How many processes share the work."""

from __future__ import annotations

from ppl_vi.cli.parsing import UsageError
from ppl_vi.runtime.memory import MemoryBoundError, bounded, num_sharing
from ppl_vi.runtime.processes import num_cores

# The most processes that share the families. Each holds torch and Pyro in memory, so more of them need more memory.
MAX_WORKERS = 2


def num_workers(num_jobs: int, device: str) -> int:
    """How many processes share the jobs: at most one for each core, and one alone where there is one accelerator."""
    return min(num_cores(), MAX_WORKERS, num_jobs) if device == "cpu" else 1


def num_workers_within(max_bytes: float | None, most: int) -> int:
    """How many processes, at most `most`, have enough memory where all together may hold so many bytes.

    Raises:
        UsageError: this process holds more already.
    """
    try:
        with bounded(max_bytes):
            return num_sharing(max_bytes, most)
    except MemoryBoundError as error:
        raise UsageError(f"--max-memory: {error}") from error
