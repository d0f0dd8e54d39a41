"""The randomness of a guide as an explicit argument.

A guide draws by calling torch's generators. A first run under `Recorder` lists the calls; later runs under `Replay`
take the numbers from given tensors instead. So a guide becomes a pure function, any two engines can be given the same
noise, and a quasi-random point set can stand in the place of pseudo-random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributions import dirichlet
from torch.overrides import TorchFunctionMode
from torch.quasirandom import SobolEngine

from ppl_vi.target.isolation import own_randomness

Kind = Literal["normal", "uniform", "seed"]
# A gamma draw takes the first accepted one of this many proposals. With a probability below 0.049^6 = 1.4e-8 none is
# accepted, and the draw is then not exact. Each further proposal costs another normal and another uniform number.
NUM_CANDIDATES = 6
# Fewer normal numbers than this are drawn by torch: starting numpy's faster generator would take longer than it saves.
MIN_NUMPY_NORMALS = 2048
# Torch's Sobol points lie on a grid of width 2^-SOBOL_BITS that begins at 0.
SOBOL_BITS = 30
# Torch's functions whose noise can't be given from outside.
UNSUPPORTED = {
    "bernoulli", "bernoulli_", "binomial", "geometric_", "multinomial", "poisson", "randint", "randint_like", "random_",
    "_sample_dirichlet",
}  # fmt: skip


class UnsupportedRandomnessError(TypeError):
    """The model or guide draws in a way that can't be given from outside."""


@dataclass(frozen=True)
class Draw:
    """One tensor of base noise: standard normal, uniform on [0, 1), or a seed of torch's own generators."""

    kind: Kind
    shape: torch.Size
    dtype: torch.dtype


class _StandardGammaGrad(torch.autograd.Function):
    """dz/dc of a standard gamma draw z at fixed cdf: torch's own function, with the rule for `vmap` that it lacks."""

    @staticmethod
    def forward(concentration: Tensor, value: Tensor) -> Tensor:
        return torch._standard_gamma_grad(concentration, value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        front = [x if dim is None else x.movedim(dim, 0) for x, dim in zip(inputs, in_dims, strict=True)]
        return _StandardGammaGrad.apply(*torch.broadcast_tensors(*front)), 0


class _StandardGamma(torch.autograd.Function):
    """Gamma(concentration, 1) from given noise, the first accepted of `NUM_CANDIDATES` proposals.

    The draw z is differentiated implicitly, dz/dc = -(dF/dc) / q with the cdf F and the density q, so that rejection
    leaves no bias in the gradient.

    Sources: Marsaglia and Tsang (2000), A simple method for generating gamma variables; Figurnov, Mohamed and Mnih
    (2018), Implicit reparameterization gradients.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(concentration: Tensor, normals: Tensor, uniforms: Tensor, boost: Tensor) -> Tensor:
        small = concentration < 1
        raised = torch.where(small, concentration + 1, concentration)
        d = raised - 1 / 3
        v = (1 + normals / (3 * d.sqrt())) ** 3
        positive = v > 0
        log_v = torch.where(positive, v, torch.ones_like(v)).log()
        bound = 0.5 * normals.square() + d * (1 - v + log_v)
        accepted = positive & (uniforms.log() < bound)
        earliest, *others = zip(v.unbind(0), accepted.unbind(0), strict=True)
        first = earliest[0]  # stays where none is accepted
        for candidate, taken in [*reversed(others), earliest]:  # from the last to the first, as plain arithmetic
            first = torch.where(taken, candidate, first)
        value = d * first.clamp(min=torch.finfo(v.dtype).tiny)
        return torch.where(small, value * boost ** (1 / concentration), value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        concentration, value = ctx.saved_tensors
        return upstream * _StandardGammaGrad.apply(concentration, value), None, None, None


def _shape_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Size:
    """The shape that is asked for in a call such as `torch.randn(2, 3)`, `torch.randn((2, 3))` or by `size=`."""
    size = kwargs.get("size", args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
    return torch.Size(size)


def _normal(source: _Source, *args: Any, **kwargs: Any) -> Tensor:
    mean, std = (*args, *(kwargs[k] for k in ("mean", "std") if k in kwargs))[:2]
    if not isinstance(mean, Tensor) and not isinstance(std, Tensor):
        shape = torch.Size(kwargs["size"] if "size" in kwargs else args[2])
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
    else:
        shape = torch.broadcast_shapes(*(torch.as_tensor(t).shape for t in (mean, std)))
        dtype = (mean if isinstance(mean, Tensor) else std).dtype
    return mean + std * source.take("normal", shape, dtype)


def _normal_(source: _Source, tensor: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return mean + std * source.take("normal", tensor.shape, tensor.dtype)


def _uniform_(source: _Source, tensor: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> Tensor:
    return low + (high - low) * source.take("uniform", tensor.shape, tensor.dtype)


def _exponential_(source: _Source, tensor: Tensor, lambd: float = 1.0, **_: Any) -> Tensor:
    return -torch.log1p(-source.take("uniform", tensor.shape, tensor.dtype)) / lambd


def _cauchy_(source: _Source, tensor: Tensor, median: float = 0.0, sigma: float = 1.0, **_: Any) -> Tensor:
    return median + sigma * torch.tan(math.pi * (source.take("uniform", tensor.shape, tensor.dtype) - 0.5))


def _log_normal_(source: _Source, tensor: Tensor, mean: float = 1.0, std: float = 2.0, **_: Any) -> Tensor:
    return _normal_(source, tensor, mean, std).exp()


def _factory(kind: Kind) -> Callable[..., Tensor]:
    def make(source: _Source, *args: Any, **kwargs: Any) -> Tensor:
        return source.take(kind, _shape_of(args, kwargs), kwargs.get("dtype") or torch.get_default_dtype())

    return make


def _like(kind: Kind) -> Callable[..., Tensor]:
    def make(source: _Source, tensor: Tensor, **kwargs: Any) -> Tensor:
        return source.take(kind, tensor.shape, kwargs.get("dtype") or tensor.dtype)

    return make


def _randperm(source: _Source, n: int, **kwargs: Any) -> Tensor:
    """A random order, as Pyro's plates take it for a subsample: the order of as many uniform numbers."""
    return (
        source.take("uniform", torch.Size([n]), torch.get_default_dtype())
        .argsort()
        .to(kwargs.get("dtype") or torch.int64)
    )


def _standard_gamma(source: _Source, concentration: Tensor, *_: Any, **__: Any) -> Tensor:
    shape, dtype = concentration.shape, concentration.dtype
    normals = source.take("normal", torch.Size((NUM_CANDIDATES, *shape)), dtype)
    uniforms = source.take("uniform", torch.Size((NUM_CANDIDATES, *shape)), dtype)
    boost = source.take("uniform", shape, dtype)
    return _StandardGamma.apply(concentration, normals, uniforms, boost)


class _NormalisedGammas:
    """Stands in the place of torch's `_Dirichlet`: gamma draws over their sum, which `vmap` can differentiate."""

    @staticmethod
    def apply(concentration: Tensor) -> Tensor:
        gammas = torch._standard_gamma(concentration)
        return gammas / gammas.sum(-1, keepdim=True)


# Torch's functions whose noise can be given, by name, and how each makes its result of it.
GENERATORS: dict[str, Callable[..., Tensor]] = {
    "normal": _normal,
    "normal_": _normal_,
    "uniform_": _uniform_,
    "exponential_": _exponential_,
    "cauchy_": _cauchy_,
    "log_normal_": _log_normal_,
    "randn": _factory("normal"),
    "rand": _factory("uniform"),
    "randn_like": _like("normal"),
    "rand_like": _like("uniform"),
    "_standard_gamma": _standard_gamma,
    "randperm": _randperm,
}


class _Source(TorchFunctionMode):
    """Answers the calls of torch's random generators by `take`, whatever library makes them."""

    def __enter__(self) -> Any:
        """Replaces the `autograd.Function` by which Dirichlet and Beta draw, which has no rule for `vmap`, as well."""
        self._replaced = getattr(dirichlet, "_Dirichlet", None)
        dirichlet._Dirichlet = _NormalisedGammas  # type: ignore[misc, assignment]
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        dirichlet._Dirichlet = self._replaced  # type: ignore[misc, assignment]

    def take(self, kind: Kind, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Noise of a kind: standard normal numbers, or uniform ones on [0, 1)."""
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if name in UNSUPPORTED:
            raise UnsupportedRandomnessError(f"draws by torch's '{name}', which can't be given from outside")
        if name in GENERATORS:
            return GENERATORS[name](self, *args, **kwargs)
        return self.other(name, func, args, kwargs)

    def other(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Answers the call of any other function of torch."""
        return func(*args, **kwargs)


class Recorder(_Source):
    """Lets torch draw as usual, and lists what was drawn in `draws`."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []

    def take(self, kind: Kind, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        self.draws.append(Draw(kind, torch.Size(shape), dtype))
        with torch._C.DisableTorchFunction():
            return (torch.randn if kind == "normal" else torch.rand)(shape, dtype=dtype)


class Replay(_Source):
    """Hands out given noise in the order in which it was recorded.

    Args:
        noise: one tensor for each recorded draw.
        anchor: a zero that depends on the parameters. It is added to every tensor of zeros that is made, so that code
            that scatters parameters into such a tensor in place, as Pyro's `AutoGaussian` does, can run under `vmap`.
    """

    def __init__(self, noise: Iterable[Tensor], anchor: Tensor | None = None) -> None:
        super().__init__()
        self.noise = list(noise)
        self.anchor = anchor
        self.position = 0

    def take(self, kind: Kind, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if self.position >= len(self.noise) or self.noise[self.position].shape != shape:
            raise UnsupportedRandomnessError(
                f"draws {kind} noise of shape {tuple(shape)} where its first run did not: draw {self.position}"
            )
        self.position += 1
        return self.noise[self.position - 1]

    def other(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if name == "clamp_":  # has no rule for vmap, while `clamp` has one
            return args[0].copy_(args[0].clamp(*args[1:], **kwargs))
        out = func(*args, **kwargs)
        if name in ("zeros", "new_zeros") and self.anchor is not None and out.is_floating_point():
            return out + self.anchor.to(out.dtype)
        return out


def pseudo_random(draws: Iterable[Draw], prefix: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Independent noise for each draw, `(*prefix, *draw.shape)`."""
    return tuple(_MAKERS[draw.kind](torch.Size((*prefix, *draw.shape)), draw.dtype, generator) for draw in draws)


def _uniforms(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, dtype=dtype, device=generator.device, generator=generator)


def _normals(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Standard normal numbers.

    Many of double precision on the CPU come from numpy's generator, which takes 10 ns for each where torch takes 22.
    """
    if dtype != torch.float64 or generator.device.type != "cpu" or shape.numel() < MIN_NUMPY_NORMALS:
        return torch.randn(shape, dtype=dtype, device=generator.device, generator=generator)
    seed = torch.randint(2**63 - 1, (2,), generator=generator).tolist()
    return torch.from_numpy(np.random.Generator(np.random.SFC64(seed)).standard_normal(shape))


def _seeds(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randint(2**62, shape, dtype=dtype, device=generator.device, generator=generator)


_MAKERS = {"normal": _normals, "uniform": _uniforms, "seed": _seeds}


def seeded(noise: Iterable[Tensor]) -> AbstractContextManager[None]:
    """A context in which torch's own generators are seeded by the first number of some noise."""
    return own_randomness(int(next(iter(noise)).item()))


def quasi_random(
    draws: Iterable[Draw], num_points: int, num_scrambles: int, seed: int, out_of: int | None = None
) -> tuple[Tensor, ...]:
    """Scrambled Sobol noise: `num_scrambles` independent point sets of `num_points`, `(scrambles, points, *shape)`.

    A mean over one point set is unbiased, with an error that falls faster than `num_points^(-1/2)` for smooth
    integrands; the spread over the scrambles measures it (Owen 1997, Scrambled net variance for integrals of smooth
    functions).

    Args:
        draws: what is drawn.
        num_points: the size of each point set.
        num_scrambles: how many point sets there are.
        seed: of all sets together.
        out_of: makes only the first `num_scrambles` of so many sets. None for all of them.
    """
    draws = tuple(draws)
    sizes = [draw.shape.numel() for draw in draws]
    # torch has no Sobol points of so many dimensions, and there are none of seeds
    if sum(sizes) > SobolEngine.MAXDIM or any(draw.kind == "seed" for draw in draws):
        return pseudo_random(draws, (num_scrambles, num_points), torch.Generator().manual_seed(seed))
    if sum(sizes) == 0:
        return tuple(torch.zeros((num_scrambles, num_points, *draw.shape), dtype=draw.dtype) for draw in draws)
    sets = []
    for scramble in range(num_scrambles):
        engine = SobolEngine(sum(sizes), scramble=True, seed=seed * (out_of or num_scrambles) + scramble)
        sets.append(engine.draw(num_points, dtype=torch.float64))
    uniform = torch.stack(sets) + 2.0 ** -(SOBOL_BITS + 1)  # in the middles of the grid's cells, inside (0, 1)
    out = []
    for draw, block in zip(draws, uniform.split(sizes, -1), strict=True):
        out.append(_from_uniform(draw, block).reshape(num_scrambles, num_points, *draw.shape))
    return tuple(out)


@lru_cache(maxsize=32)
def _sobol_integers(num_points: int, dim: int, seed: int) -> np.ndarray:
    """Scrambled Sobol points as integers below 2^30, `(dim, num_points)`."""
    points = SobolEngine(dim, scramble=True, seed=seed).draw(num_points, dtype=torch.float64)
    return (points * 2**SOBOL_BITS).numpy().astype(np.uint32).T.copy()


def shifted_nets(draws: Iterable[Draw], prefix: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Noise whose `P` points are independent from set to set and evenly spread within each, `(*prefix, *draw.shape)`.

    Every set is a Sobol point set whose dimensions are put in a random order and whose binary digits are shifted by
    random ones. Each point alone is uniform, so that a mean over a set is unbiased; for smooth integrands its variance
    falls faster than `1 / P`. Where there are no Sobol points of so many dimensions, or seeds are drawn, the points are
    independent.

    Sources: L'Ecuyer and Lemieux (2002), Recent advances in randomized quasi-Monte Carlo methods; Buchholz, Wenzel and
    Mandt (2018), Quasi-Monte Carlo variational inference.

    Args:
        draws: what is drawn.
        prefix: the numbers of sets along some axes, and at last the number of points `P`, a power of 2.
        generator: gives the random orders and digits.
    """
    draws = tuple(draws)
    sizes = [draw.shape.numel() for draw in draws]
    dim, num_sets, num_points = sum(sizes), math.prod(prefix[:-1]), prefix[-1]
    if not 0 < dim <= SobolEngine.MAXDIM or any(draw.kind == "seed" for draw in draws):
        return pseudo_random(draws, prefix, generator)
    seed = torch.randint(2**63 - 1, (2,), generator=generator, device=generator.device).tolist()
    random = np.random.Generator(np.random.SFC64(seed))
    points = _sobol_integers(num_points, dim, generator.initial_seed() % 2**31)
    orders = random.permuted(np.broadcast_to(np.arange(dim), (num_sets, dim)), axis=1)
    digits = random.integers(2**SOBOL_BITS, size=(num_sets, dim, 1), dtype=np.uint32)
    cells = np.bitwise_xor(points[orders], digits)
    uniform = torch.from_numpy((cells + 0.5) * 2.0**-SOBOL_BITS).mT.to(generator.device)  # the middles of the cells
    return tuple(
        _from_uniform(draw, block).reshape((*prefix, *draw.shape))
        for draw, block in zip(draws, uniform.split(sizes, -1), strict=True)
    )


def _from_uniform(draw: Draw, uniform: Tensor) -> Tensor:
    """Noise of a draw's kind from uniform numbers inside (0, 1), of the same shape."""
    values = torch.special.ndtri(uniform.contiguous()) if draw.kind == "normal" else uniform
    return values.to(draw.dtype)
