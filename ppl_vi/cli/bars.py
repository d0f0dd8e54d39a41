"""Bars on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ppl_vi.runtime import verbosity

# The ELBO beside the training bar is an exponential average over epochs; this is the weight of the average so far. With
# a larger one the figure lags behind, with a smaller one it jumps with the noise of each epoch.
SMOOTHING = 0.8
T = TypeVar("T")


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error, if that is a terminal. It gives a function that updates the bar."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    named = (TextColumn(name), *columns) if name else columns
    with Progress(
        *named, console=console, disable=verbosity.is_quiet() or not console.is_terminal, transient=True
    ) as bar:
        yield partial(bar.update, bar.add_task("", total=total))


@contextmanager
def training_bar(name: str, num_epochs: int) -> Iterator[Callable[[int, int, float, float], None]]:
    """A bar on standard error, if that is a terminal, with the ELBO of a data point, averaged over the last epochs.

    It gives a function of the epoch, the number of epochs, and the ELBO on the training and on the held-out data.
    """
    with _bar(name, num_epochs) as update:
        average: list[float] = []

        def told(epoch: int, num_epochs: int, train: float, held_out: float) -> None:
            now = [train, held_out]
            average[:] = [SMOOTHING * old + (1 - SMOOTHING) * new for old, new in zip(average or now, now, strict=True)]
            text = f"ELBO a data point: train {average[0]:.2f}, held out {average[1]:.2f}"
            update(completed=epoch, description=text)

        yield told


def followed(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The same items, with a bar on standard error if that is a terminal."""
    with _bar(what, total) as update:
        for item in items:
            update(advance=1)
            yield item
