"""`--store` of `compare`, the toy and the zoo: their fits as a sweep, in a file of sweeps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ppl_vi import cli
from ppl_vi.sweeps.commands import sweep_program

if TYPE_CHECKING:
    from ppl_vi.comparison.comparison import FitSettings

# What concerns the tables and figures of a comparison, or needs fits that are not in a file of sweeps.
LEFT_OUT = {"as_is": "--as-is", "json": "--json", "full_table": "--full", "no_plots": "--no-plots"}


def check_store(arguments: argparse.Namespace) -> None:
    """Refuses options that do not go with `--store`.

    Raises:
        UsageError: there is one.
    """
    given = [option for name, option in LEFT_OUT.items() if getattr(arguments, name, None)]
    given += ["--out"] if arguments.out_is_given else []
    given += ["--device cuda"] if getattr(arguments, "device", "cpu") != "cpu" else []
    if given:
        raise cli.UsageError(
            f"--store goes without {', '.join(given)}: 'ppl-vi results {arguments.store}' shows and exports what the "
            "file has"
        )


def sweep_into_store(
    arguments: argparse.Namespace, models: Sequence[Any], guides: Sequence[str], settings: FitSettings
) -> int:
    """Runs the fits of a comparison as a sweep into the file of `--store`; the exit code.

    Replicas are seeds from `settings.seed` on, in the batches of every sweep.

    Args:
        arguments: the options of `cli.add_store`, `cli.add_html` and `cli.add_memory`.
        models: entries of a plan.
        guides: families, or guides as `"module:attribute"`.
        settings: how they are fitted.
    """
    return sweep_program(
        argparse.Namespace(
            what=models,
            args=None,
            guides=list(guides),
            objective=[settings.objective],
            lr=[settings.lr],
            num_steps=[settings.num_steps],
            num_particles=[settings.num_particles],
            seed=[f"{settings.seed}:{settings.seed + settings.num_replicas}"],
            num_draws=settings.num_draws,
            engine=settings.engine,
            block=None,
            exclude=None,
            file=arguments.store,
            workers=cli.num_workers_within(arguments.max_memory, cli.num_workers(len(guides) * len(models), "cpu")),
            cluster=None,
            retry=False,
            html=arguments.html,
            dry_run=False,
        )
    )
