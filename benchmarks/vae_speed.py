"""What Pyro costs a VAE: one SVI step with Trace_ELBO against the same step in plain PyTorch, and in NumPyro.

    python -m benchmarks.vae_speed [--rounds N]

All libraries have the same networks and initial weights, one draw for each data point, Adam, one core and single
precision, and take turns round by round. NumPyro compiles its step before it is timed; where NumPyro isn't installed
(the extra `peers`), its rows say so. The table shows the median time of a step, its range over rounds, and the median
over rounds of the ratio to plain PyTorch. Times depend on the machine, so compare the ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_vi import cli
from ppl_vi.runtime.environment import environment
from ppl_vi.runtime.outputs import write_output_text

if TYPE_CHECKING:
    import torch

OUT = Path("results/vae_speed")
PROBLEMS = {  # by name: the number of pixels, the widths of the hidden layers, the size of a mini-batch
    "digits 8x8, hidden 64 64, batch 64": (64, (64, 64), 64),
    "28x28, hidden 400, batch 128": (784, (400,), 128),
    "28x28, hidden 400 400, batch 256": (784, (400, 400), 256),
}
STEPS_PER_ROUND = 20  # steps that one library takes before it is the next one's turn
NUM_LATENTS = 2
Step = Callable[[], object]


def pyro_step(module: Any, x: torch.Tensor) -> Step:
    """A step of `ppl_vi.svi.minibatch.train`."""
    import torch
    from pyro.infer import Trace_ELBO

    from ppl_vi.svi.minibatch import gradient_step

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


def numpyro_step(module: Any, x: torch.Tensor) -> Step:
    """The same by NumPyro's SVI, compiled, from the module's weights on.

    A step waits until its result has been computed, and returns the new state.
    """
    import jax
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO

    encoder, decoder, num_latents = _jax_layers(module.encoder), _jax_layers(module.decoder), module.num_latents

    def model(x: Any) -> None:
        layers = numpyro.param("decoder", decoder)
        with numpyro.handlers.scale(scale=1 / len(x)), numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([num_latents]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=_jax_perceptron(layers, z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        layers = numpyro.param("encoder", encoder)
        with numpyro.handlers.scale(scale=1 / len(x)), numpyro.plate("data", len(x)):
            loc, log_scale = jax.numpy.split(_jax_perceptron(layers, x), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jax.numpy.exp(log_scale)).to_event(1))

    data = jax.numpy.array(x.numpy())
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    state, update = svi.init(jax.random.PRNGKey(0), data), jax.jit(svi.update)

    def step() -> object:
        nonlocal state
        state, _ = jax.block_until_ready(update(state, data))
        return state

    return step


def _jax_layers(network: Any) -> list[tuple[Any, Any]]:
    """Copies of the weights `(inputs, outputs)` and biases of the linear layers."""
    from jax.numpy import array
    from torch import nn

    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    return [(array(one.weight.detach().T.numpy()), array(one.bias.detach().numpy())) for one in linear]


def _jax_perceptron(layers: list[tuple[Any, Any]], value: Any) -> Any:
    """`models.vae.perceptron` with these layers."""
    from jax.numpy import tanh

    *hidden, (weight, bias) = layers
    for w, b in hidden:
        value = tanh(value @ w + b)
    return value @ weight + bias


SIDES: dict[str, tuple[str, Callable[[Any, torch.Tensor], Step]]] = {
    "plain": ("plain PyTorch", plain_step),
    "pyro": ("Pyro", pyro_step),
    "numpyro": ("NumPyro, jit", numpyro_step),
}


def installed(side: str) -> bool:
    needed = ("jax", "numpyro") if side == "numpyro" else ()
    return all(importlib.util.find_spec(name) for name in needed)


@contextmanager
def one_core() -> Iterator[None]:
    """One core and thread for PyTorch and for JAX, which then computes on the CPU; JAX must not have begun before."""
    import torch

    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    cores = os.sched_getaffinity(0) if sys.platform == "linux" else set()
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        if sys.platform == "linux":
            os.sched_setaffinity(0, {max(cores)})
        with environment({"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}):
            yield
    finally:
        torch.set_num_threads(num_threads)
        if sys.platform == "linux":
            os.sched_setaffinity(0, cores)


def measure(step: Step) -> float:
    """Milliseconds a step."""
    began = time.perf_counter()
    for _ in range(STEPS_PER_ROUND):
        step()
    return (time.perf_counter() - began) / STEPS_PER_ROUND * 1e3


def rounds(pixels: int, hidden: Sequence[int], batch: int, num_rounds: int) -> dict[str, list[float]]:
    """Milliseconds a step in each round, for each side that is installed; the sides take turns."""
    import copy

    import torch

    from models.vae import VAE
    from ppl_vi.guides.amortized import AMORTIZED
    from ppl_vi.svi.minibatch import isolated_module, untrained

    def build() -> tuple[torch.Tensor, VAE]:
        x = torch.bernoulli(torch.rand(batch, pixels))
        return x, VAE(pixels, AMORTIZED["diagonal"](NUM_LATENTS), hidden=hidden)

    x, module = untrained(build, seed=0)
    with isolated_module(module, seed=0):
        steps = {side: make(copy.deepcopy(module), x) for side, (_, make) in SIDES.items() if installed(side)}
        for step in steps.values():
            measure(step)  # warm
        found = [{side: measure(step) for side, step in steps.items()} for _ in range(num_rounds)]
    return {side: [one[side] for one in found] for side in steps}


def program(arguments: argparse.Namespace) -> int:
    """Measures, shows."""
    from rich import box
    from rich.table import Table

    from ppl_vi.report import files, table
    from ppl_vi.runtime.provenance import versions

    cli.writable_folder("--out", arguments.out)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("VAE, diagonal guide", "side", "a step", "range", "ratio"):
        shown.add_column(heading, justify="left" if heading in ("VAE, diagonal guide", "side") else "right")
    with one_core():
        measured = {name: rounds(*problem, arguments.rounds) for name, problem in PROBLEMS.items()}
    records = []
    for name, times in measured.items():
        medians = {side: statistics.median(found) for side, found in times.items()}
        ratios = {
            side: statistics.median(b / a for a, b in zip(times["plain"], found, strict=True))
            for side, found in times.items()
        }
        for side, (title, _) in SIDES.items():
            cells = ["not installed", "-", "-"]
            if side in times:
                cells = [f"{medians[side]:.2f} ms", _range(times[side]), f"{ratios[side]:.2f}"]
            shown.add_row(name if side == "plain" else "", title, *cells, end_section=side == "numpyro")
        records.append(
            {"problem": name}
            | {f"{side}_ms": medians.get(side) for side in SIDES}
            | {"ratio": ratios["pyro"], "numpyro_ratio": ratios.get("numpyro"), "threads": 1}
            | {"rounds": arguments.rounds, "versions": versions("jax", "numpyro")}
        )
    table.terminal().print(shown)
    write_output_text(arguments.out / "records.json", files.to_json(records))
    return 0


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = cli.Parser(prog="vae_speed", description=(__doc__ or "").splitlines()[0])
    found.add_argument(
        "--rounds", type=cli.whole(1), default=15, metavar="N", help=f"of {STEPS_PER_ROUND} steps a side (15)"
    )
    cli.add_out(found, OUT)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return cli.run(program, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
