"""What `ppl-vi` and the programs in `benchmarks/` share: options, checks, progress, output and Ctrl-C.

A program reads its arguments, checks all of them before it computes anything, shows a bar while it computes, writes its
records after each family that is finished, and prints tables and draws figures at the end. What the user asks for and
can't be done is one line (`UsageError`). Torch and Pyro are imported only once the arguments have been read, so that
`--help` and a bad number are answered at once.
"""

from __future__ import annotations

from ppl_vi.cli.bars import followed, training_bar
from ppl_vi.cli.checks import (
    check_comparison,
    check_device,
    check_fitting,
    check_guides,
    check_outputs,
    writable_file,
    writable_folder,
)
from ppl_vi.cli.codes import FAILED, UNCERTIFIED, USAGE
from ppl_vi.cli.comparing import compare_command, loading, run_comparison
from ppl_vi.cli.figures import drawn, interrupted, write_figure
from ppl_vi.cli.guides import POINT_MASS, chosen_guides, guides_among, list_guides, prepared, settings_of, woken
from ppl_vi.cli.imports import imported, modules_from_here
from ppl_vi.cli.options import (
    DEVICES,
    FULL,
    QUICK,
    add_comparison_options,
    add_fit_options,
    add_full,
    add_html,
    add_memory,
    add_out,
    add_run_options,
    add_seed,
    add_store,
)
from ppl_vi.cli.page import write_page
from ppl_vi.cli.parsing import Parser, UsageError, add_command, all_parsers, draws, finite, positive, step_size, whole
from ppl_vi.cli.records import show_records, write_records
from ppl_vi.cli.running import run
from ppl_vi.cli.workers import num_workers, num_workers_within

__all__ = [
    "DEVICES",
    "FAILED",
    "FULL",
    "POINT_MASS",
    "QUICK",
    "UNCERTIFIED",
    "USAGE",
    "Parser",
    "UsageError",
    "add_command",
    "add_comparison_options",
    "add_fit_options",
    "add_full",
    "add_html",
    "add_memory",
    "add_out",
    "add_run_options",
    "add_seed",
    "add_store",
    "all_parsers",
    "check_comparison",
    "check_device",
    "check_fitting",
    "check_guides",
    "check_outputs",
    "chosen_guides",
    "compare_command",
    "drawn",
    "draws",
    "finite",
    "followed",
    "guides_among",
    "imported",
    "interrupted",
    "list_guides",
    "loading",
    "modules_from_here",
    "num_workers",
    "num_workers_within",
    "positive",
    "prepared",
    "run",
    "run_comparison",
    "settings_of",
    "show_records",
    "step_size",
    "training_bar",
    "whole",
    "woken",
    "writable_file",
    "writable_folder",
    "write_figure",
    "write_page",
    "write_records",
]
