"""What Pyro costs a VAE: one SVI step with Trace_ELBO against the same step written in plain PyTorch.

    python -m benchmarks.vae_speed [--rounds N]

Both sides have the same networks, one draw a data point, Adam, one thread and single precision, and take turns round by
round. Reported: the median time of a step, its range over rounds, and the median of the ratios within rounds. Absolute
times are hints; the ratio is the figure.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_vi import cli, storage

if TYPE_CHECKING:
    import torch

OUT = Path("results/vae_speed")
PROBLEMS = {  # pixels, widths, batch
    "digits 8x8, hidden 64 64, batch 64": (64, (64, 64), 64),
    "28x28, hidden 400, batch 128": (784, (400,), 128),
    "28x28, hidden 400 400, batch 256": (784, (400, 400), 256),
}
STEPS = 20  # a round
LATENTS = 2
Step = Callable[[], object]


def pyro_step(module: Any, x: torch.Tensor) -> Step:
    """A step of `ppl_vi.svi.amortized.train`."""
    import torch
    from pyro.infer import Trace_ELBO

    from ppl_vi.svi.amortized import gradient_step

    optimiser, elbo = torch.optim.Adam(module.parameters(), lr=1e-3), Trace_ELBO()
    return lambda: gradient_step(module, elbo, optimiser, x)


def plain_step(module: Any, x: torch.Tensor) -> Step:
    """The same estimator by hand: a draw, log p(x | z), log p(z) - log q(z | x)."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)

    def step() -> None:
        optimiser.zero_grad()
        loc, log_scale = module.encoder(x).chunk(2, -1)
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        cross = binary_cross_entropy_with_logits(module.decoder(z), x, reduction="sum")
        log_ratio = ((noise.square() - z.square()) / 2 + log_scale).sum()
        ((cross - log_ratio) / len(x)).backward()
        optimiser.step()

    return step


def measure(step: Step) -> float:
    """Milliseconds a step."""
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - began) / STEPS * 1e3


def program(arguments: argparse.Namespace) -> int:
    """Measures, shows."""
    import copy

    import torch
    from rich import box
    from rich.table import Table

    from models.vae import VAE
    from ppl_vi.guides.amortized import AMORTIZED
    from ppl_vi.report import files, table
    from ppl_vi.state import isolated
    from ppl_vi.svi.result import versions

    cli.writable_folder("--out", arguments.out)
    torch.set_num_threads(1)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("VAE, diagonal guide", "plain PyTorch", "range", "Pyro", "range", "ratio"):
        shown.add_column(heading, justify="left" if heading.startswith("VAE") else "right")
    records = []
    for name, (pixels, hidden, batch) in PROBLEMS.items():
        with isolated(torch.float32, seed=0):
            x = torch.bernoulli(torch.rand(batch, pixels))
            module = VAE(pixels, AMORTIZED["diagonal"](LATENTS), hidden=hidden)
            plain, ours = plain_step(copy.deepcopy(module), x), pyro_step(copy.deepcopy(module), x)
            measure(plain), measure(ours)  # warm
            rounds = [(measure(plain), measure(ours)) for _ in range(arguments.rounds)]
        by_side = list(zip(*rounds, strict=True))
        ratio = statistics.median(b / a for a, b in rounds)
        cells = [text for side in by_side for text in (f"{statistics.median(side):.2f} ms", _range(side))]
        shown.add_row(name, *cells, f"{ratio:.2f}")
        medians = [statistics.median(side) for side in by_side]
        records.append(
            {"problem": name, "plain_ms": medians[0], "pyro_ms": medians[1], "ratio": ratio, "threads": 1}
            | {"rounds": arguments.rounds, "versions": versions()}
        )
    table.terminal().print(shown)
    storage.write_text(arguments.out / "records.json", files.to_json(records))
    return 0


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="vae_speed", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--rounds", type=cli.whole(1), default=15, metavar="N", help=f"of {STEPS} steps a side (15)")
    cli.add_out(found, OUT)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
