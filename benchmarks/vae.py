"""A variational autoencoder whose ELBO gap is split into what the guide's family and what its encoder can't do.

    python -m benchmarks.vae [--quick] [--data digits|mnist|PATH] [--guides diagonal full ...]

Trains a VAE for each guide family, computes log p(x) of every scored data point by certified quadrature over the
latent, and finds the family's best member for each point. Tables go to standard output; tables, records and figures
are written to results/vae/. With more than 3 latents log p(x) is bounded by annealed importance sampling instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.vae_arguments import check_data, parser, size
from benchmarks.vae_records import bounded_points, bounds_record, points, record
from benchmarks.vae_scoring import Bounded, Job, score
from benchmarks.vae_training import load_data, preparation, train_guide
from ppl_vi import cli
from ppl_vi.runtime import signals
from ppl_vi.runtime.names import AMORTIZED
from ppl_vi.runtime.outputs import write_output_text

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from models.images import Images
    from ppl_vi.report.decoder_plots import Portrait
    from ppl_vi.svi.minibatch import Trained


@dataclass(frozen=True, eq=False)
class Scored:
    """A job that is done.

    Attributes:
        record: what the table shows of it.
        points: one record of each data point.
        portrait: what its figures need; None where there are only bounds.
    """

    record: dict[str, Any]
    points: tuple[dict[str, Any], ...]
    portrait: Portrait | None = None


def program(arguments: argparse.Namespace) -> int:
    """Trains a VAE for each guide family, scores each on both splits of the data, shows and writes what was found."""
    if arguments.list_guides:
        list_guides()
        return 0
    guides = _checked(arguments)
    with cli.loading():
        images, train_x, test_x = load_data(arguments)
    from ppl_vi.runtime.processes import wake

    try:
        wake(cli.num_workers(2 * len(guides), arguments.device), "ppl_vi.report.decoder_plots")
        trained = {guide: train_guide(arguments, guide, images, train_x, test_x) for guide in guides}
    except KeyboardInterrupt:
        mend = f"--resume goes on from the checkpoints in {arguments.out}"
        print(f"{signals.word()} while training: {mend}", file=sys.stderr)
        return signals.exit_code()
    jobs = jobs_of(arguments, trained, images, train_x, test_x)
    finished: list[Scored] = []
    with signals.saving(last=True):
        try:
            with signals.working():
                for finished in _scored(jobs, arguments):
                    _write(finished, arguments)
        except KeyboardInterrupt:
            if finished:
                _write(finished, arguments)  # the last time may have been cut short
                _show(finished, arguments)
            return cli.interrupted(len(finished), len(jobs), "guides and splits were scored", arguments)
        _show(finished, arguments)
        portraits = [one.portrait for one in finished if one.portrait is not None]
        return cli.drawn(lambda: write_figures(portraits, trained, arguments.out), arguments)


def list_guides() -> None:
    """Prints each amortized family with one line."""
    from rich.console import Console

    from ppl_vi.guides.amortized import AMORTIZED

    lines = [f"{name:10} {family(2).summary}" for name, family in AMORTIZED.items()]
    Console().out("\n".join(lines), highlight=False)


def jobs_of(
    arguments: argparse.Namespace,
    trained: dict[str, Trained],
    images: Images,
    train_x: torch.Tensor,
    test_x: torch.Tensor,
) -> list[Job]:
    """What is to be scored: each guide on the first test points and on half as many of the training data."""
    num_test = size(arguments, "num_points")
    splits = (
        ("train", train_x, images.train_labels, (num_test + 1) // 2),
        ("test", test_x, images.test_labels, num_test),
    )
    return [
        Job(
            guide=guide,
            split=split,
            trained=run,
            x=x[:num],
            labels=None if labels is None else labels[:num].numpy(),
            shape=images.shape,
            seed=arguments.seed,
            num_temperatures=size(arguments, "num_temperatures"),
            preparation=preparation(arguments, images),
        )
        for guide, run in trained.items()
        for split, x, labels, num in splits
    ]


def _checked(arguments: argparse.Namespace) -> list[str]:
    """The families asked for, each once.

    Raises:
        UsageError: an argument asks for what can't be done.
    """
    guides = cli.guides_among(arguments.guides, AMORTIZED)
    check_data(arguments.data)
    arguments.whose = f"vae on {arguments.data}, {arguments.likelihood}, latents: {arguments.latent_dim}"
    cli.check_outputs(arguments)
    cli.check_device(arguments.device)
    return guides


def _scored(jobs: Sequence[Job], arguments: argparse.Namespace) -> Iterator[list[Scored]]:
    """Yields, after each job that is done, all that are done so far in the order of `jobs`; processes share them."""
    from ppl_vi.runtime.processes import shared

    done: dict[tuple[str, str], Scored] = {}
    results = shared(score, jobs, cli.num_workers(len(jobs), arguments.device))
    for result in cli.followed(results, len(jobs), "scoring"):
        if isinstance(result, Bounded):
            key = result.job.guide, result.job.split
            done[key] = Scored(bounds_record(result, arguments), tuple(bounded_points(result)))
        else:
            key = result.guide, result.split
            done[key] = Scored(record(result, arguments), tuple(points(result)), result)
        yield [done[job.guide, job.split] for job in jobs if (job.guide, job.split) in done]


def _write(finished: Sequence[Scored], arguments: argparse.Namespace) -> None:
    from ppl_vi.report import files

    cli.write_records([one.record for one in finished], arguments)
    if arguments.per_point:
        each = [point for one in finished for point in one.points]
        write_output_text(arguments.out / "points.json", files.to_json(each))


def _show(finished: Sequence[Scored], arguments: argparse.Namespace) -> None:
    from ppl_vi.report import decoder_table

    records = [one.record for one in finished]
    write_output_text(arguments.out / "table.txt", decoder_table.as_text(records))
    cli.show_records(records, arguments, decoder_table.show)
    cli.write_page(records, arguments)


def write_figures(portraits: list[Portrait], trained: dict[str, Trained], out: Path) -> None:
    """Writes the training curves and the figures of the guides whose gaps are certified."""
    from ppl_vi.report import decoder_gap_plots, decoder_plots

    figures = {"training": decoder_gap_plots.training_curves(trained)}
    if portraits:
        figures["gaps"] = decoder_gap_plots.bars(portraits)
        figures["gap_histograms"] = decoder_gap_plots.gap_histograms(portraits)
        figures["gap_against_evidence"] = decoder_gap_plots.gap_against_evidence(portraits)
    for portrait in portraits:
        if portrait.split != "test":
            continue
        figures[f"reconstructions_{portrait.guide}"] = decoder_plots.reconstructions(portrait)
        if portrait.target.dim >= 2:
            figures[f"latent_space_{portrait.guide}"] = decoder_plots.latent_space(portrait)
            figures[f"manifold_{portrait.guide}"] = decoder_plots.manifold(portrait)
        if portrait.target.dim == 2:
            figures[f"worst_points_{portrait.guide}"] = decoder_plots.worst_points(portrait)
    for name, figure in figures.items():
        cli.write_figure(out / f"{name}.png", figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
