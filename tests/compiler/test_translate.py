"""The vectors' functions against SciPy, mpmath and torch; translated graphs against torch's own operations."""

import ctypes
import math
import shutil
from collections.abc import Callable
from functools import cache

import mpmath
import numpy as np
import pytest
import scipy.special as sp
import torch
from torch import Tensor

from ppl_vi.compiler import toolchain
from ppl_vi.compiler.kernel import kernel_source
from ppl_vi.compiler.trace import trace
from ppl_vi.compiler.translate import Signature, translate
from ppl_vi.compiler.values import Loop, UnsupportedError
from ppl_vi.compiler.vectors import prelude

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")

DTYPES = (torch.float32, torch.float64)


def grid(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 4001)


def powers(low: float, high: float) -> np.ndarray:
    return np.geomspace(low, high, 4001)


def both(values: np.ndarray) -> np.ndarray:
    return np.concatenate([-values, values])


# arguments and the truth; errors are counted in units of the last place, on top of what rounding the argument does
UNARY: dict[str, tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]] = {
    "exponential": (grid(-103, 88.5), np.exp),
    "logarithm": (np.concatenate([powers(1e-37, 1e37), grid(0.9, 1.1)]), np.log),
    "log_of_1_plus": (np.concatenate([both(powers(1e-30, 0.99)), powers(1, 1e30)]), np.log1p),
    "exp_minus_1": (both(powers(1e-30, 80)), np.expm1),
    "sigmoid": (grid(-80, 80), sp.expit),
    "hyperbolic_tangent": (both(powers(1e-30, 50)), np.tanh),
    "square_root": (powers(1e-37, 1e37), np.sqrt),
    "erf": (both(powers(1e-20, 8)), sp.erf),
    "erfc": (grid(-8, 8), sp.erfc),
    "erfcx": (np.concatenate([grid(-8, 8), powers(1, 1e10)]), sp.erfcx),
    "log_ndtr": (grid(-1000, 5), sp.log_ndtr),
    "erfinv": (np.concatenate([grid(-0.999, 0.999), both(powers(1e-20, 0.5))]), sp.erfinv),
    "log_gamma": (powers(1e-20, 1e10), sp.gammaln),
    "digamma": (np.concatenate([powers(1e-10, 1e10), grid(-3.9, -3.1)]), sp.digamma),
    "trigamma": (powers(1e-10, 1e10), lambda x: sp.polygamma(1, x)),
}
PLACES = 40.0


@cache
def functions(dtype: torch.dtype, is_plain: bool = False) -> ctypes.CDLL:
    """All functions; `is_plain` without the instructions that only some processors have."""
    lines = ["#undef __AVX512F__"] * is_plain + [prelude(dtype, 100)]
    for name in [*UNARY, "ndtri"]:
        lines.append(
            f'extern "C" void call_{name}(const Real* x, Real* out, int64_t num)'
            f" {{ for (int64_t i = 0; i < num; i += LANES) store({name}(load(x + i)), out + i); }}"
        )
    lines.append(
        'extern "C" void call_gamma(const Real* a, const Real* x, Real* out, int64_t num)'
        " { for (int64_t i = 0; i < num; i += LANES)"
        " store(standard_gamma_grad(load(a + i), load(x + i)), out + i); }"
    )
    return toolchain.library("\n".join(lines))


def call(name: str, *arguments: Tensor, is_plain: bool = False) -> Tensor:
    """The function of whole vectors, the last filled up."""
    num = len(arguments[0])
    arguments = tuple(torch.nn.functional.pad(a, (0, -num % 16), value=0.5) for a in arguments)
    out = torch.empty_like(arguments[0])
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (*arguments, out)]
    getattr(functions(out.dtype, is_plain), f"call_{name}")(*pointers, ctypes.c_int64(len(out)))
    return out[:num]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("lanes")))
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(UNARY))
def test_functions_are_scipys(name: str, dtype: torch.dtype) -> None:
    points, truth = UNARY[name]
    x = torch.tensor(points, dtype=dtype)
    exact = x.double().numpy()
    want = truth(exact)
    eps = torch.finfo(dtype).eps
    moved = np.abs(truth(exact * (1 + eps)) - truth(exact * (1 - eps)))  # by one place of the argument
    scale = 1.0 if name in ("log_gamma", "digamma") else 0.0  # near their zeros the error is absolute
    tiny = torch.finfo(dtype).tiny
    allowed = PLACES * (eps * (np.abs(want) + scale) + tiny) + 4 * moved
    error = np.abs(call(name, x).double().numpy() - want)
    worst = int(np.argmax(error / allowed))
    assert error[worst] <= allowed[worst], (exact[worst], want[worst], error[worst])


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_quantiles_are_mpmaths(dtype: torch.dtype) -> None:
    """Also far in the tail. Near the median the error is absolute."""
    p = torch.tensor([1e-30, 1e-12, 1e-5, 0.01, 0.2, 0.4999, 0.5, 0.7, 0.97, 0.9999], dtype=dtype)
    with mpmath.workdps(60):
        want = [float(mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(q) - 1)) for q in p.double().tolist()]
    torch.testing.assert_close(
        call("ndtri", p), torch.tensor(want, dtype=dtype), rtol=10 * torch.finfo(dtype).eps,
        atol=10 * torch.finfo(dtype).eps,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_of_gamma_draws_are_torchs(dtype: torch.dtype) -> None:
    """By each of its formulas, many of them in one vector, and the density's own where they are as good."""
    generator = torch.Generator().manual_seed(2)
    a = torch.exp(torch.rand(20_000, generator=generator, dtype=torch.float64) * 12 - 5)
    x = a * torch.exp(2 * torch.randn(20_000, generator=generator, dtype=torch.float64))
    a, x = (value.clamp(1e-3, 1e4).to(dtype) for value in (a, x))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(call("gamma", a, x), torch._standard_gamma_grad(a, x), rtol=tolerance, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_are_as_torchs(dtype: torch.dtype) -> None:
    inf, nan = math.inf, math.nan
    x = torch.tensor([0.0, -0.0, inf, -inf, nan, -1.0, 1e-45 if dtype == torch.float32 else 5e-324], dtype=dtype)
    for name, function in (
        ("exponential", torch.exp), ("logarithm", torch.log), ("log_of_1_plus", torch.log1p),
        ("exp_minus_1", torch.expm1), ("sigmoid", torch.sigmoid), ("hyperbolic_tangent", torch.tanh),
        ("square_root", torch.sqrt), ("erf", torch.erf), ("erfc", torch.erfc), ("erfcx", torch.special.erfcx),
        ("ndtri", torch.special.ndtri),
    ):  # fmt: skip
        torch.testing.assert_close(call(name, x), function(x), equal_nan=True, rtol=1e-6, atol=1e-30, msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_processors_have_the_same_functions(dtype: torch.dtype) -> None:
    """Up to some roundings: with and without the instructions of AVX-512, which do several steps at once."""
    inf, nan, tiny = math.inf, math.nan, torch.finfo(dtype).tiny
    edges = torch.tensor(
        [0.0, -0.0, inf, -inf, nan, -1.0, tiny, tiny / 8, 1 / tiny, 0.75, 1.5, 1.4999999, 3.0], dtype=dtype
    )
    wide = torch.exp(torch.linspace(-80, 80, 4001, dtype=torch.float64)).to(dtype)
    both = torch.linspace(-100, 100, 4001, dtype=torch.float64).to(dtype)
    x = torch.cat([edges, -edges, wide, both])
    for name in ("exponential", "logarithm", "log_of_1_plus", "exp_minus_1", "sigmoid"):
        ours, plain = call(name, x), call(name, x, is_plain=True)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(ours, plain, rtol=8 * eps, atol=8 * tiny, equal_nan=True, msg=name)


# ---- translated graphs


def run(function: Callable[[Tensor, Tensor], Tensor], size: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """`function` of parameters and noise, by a step that puts its values where the parameters were, and by torch."""
    replicas, dtype = noise.shape[0], noise.dtype

    def step(rate: Tensor, theta: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        value = function(theta, draws).reshape(-1) * rate
        return value, value.sum()

    theta = torch.randn((1, replicas, size), generator=torch.Generator().manual_seed(4), dtype=dtype)
    made = kernel_source(step, replicas, num_scalars=1, carried=[theta[0, 0]], noise=[noise[0]])
    scalars = torch.ones((1, 1), dtype=dtype)
    (after,), (total,) = made.compile()((1, replicas), scalars=scalars, carried=[theta], noise=[noise[None, None]])
    want = torch.stack([function(theta[0, r], noise[r]).reshape(-1) for r in range(replicas)])
    torch.testing.assert_close(total[0, 0], after[0].sum(-1))
    return after[0], want


def in_tiles(t: Tensor, n: Tensor) -> Tensor:
    """Products, factors and solutions of 6 and 7 rows and columns, which tiles of 4 by 4 do not fit."""
    root = torch.tril(t.repeat(5)[:49].reshape(7, 7)) / 3 + torch.eye(7, dtype=t.dtype)
    factor = torch.linalg.cholesky_ex(root @ root.mT)[0]
    solved = torch.linalg.solve_triangular(factor, n[0].repeat(4)[:42].reshape(7, 6), upper=False)
    other = torch.linalg.solve_triangular(factor.mT, n[0].cos().repeat(4)[:42].reshape(6, 7), upper=True, left=False)
    return (other @ solved).reshape(3, 12).sum(0)


INDEX = torch.tensor([2, 0, 2, 1])
GRAPHS: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {  # 12 parameters, noise (1, 12)
    "arithmetic": (12, lambda t, n: torch.where(t > n[0], t.exp(), -2 * n[0]) / (1 + t.square())),
    "scaled differences": (12, lambda t, n: torch.rsub(t, n[0], alpha=3) + torch.sub(t, n[0], alpha=2) - 5 * n[0].add(
        t, alpha=0.5)),
    "broadcast": (12, lambda t, n: t.reshape(3, 4) * n.reshape(4, 3)[:, 1] + t.reshape(3, 4)[:, :1]),
    "matrices": (12, lambda t, n: (t.reshape(3, 4) @ n.reshape(4, 3) @ t.reshape(3, 4))),
    "triangles": (12, lambda t, n: (torch.tril(t.reshape(3, 4), -1) + torch.triu(n.reshape(3, 4), 1))),
    "joined": (12, lambda t, n: torch.cat([n[0, 3:9].flip(0), t[::2]])),
    "padded": (12, lambda t, n: torch.nn.functional.pad(t.reshape(3, 4)[:, 2:] * n[0, :2], (1, 1), value=1.5)),
    "sums": (12, lambda t, n: t.reshape(3, 4).sum(0).repeat(3) + n.mean() + t.reshape(3, 4).amax(1).repeat(4)),
    "cumulative": (12, lambda t, n: torch.cumsum(t.reshape(3, 4), 0) - torch.cumsum(n.reshape(3, 4), 1)),
    "softmax": (12, lambda t, n: torch.softmax(t.reshape(3, 4), -1) + torch.logsumexp(n.reshape(3, 4), 0)),
    "gathered": (12, lambda t, n: t.reshape(4, 3)[:, INDEX[:3]] + n[0, INDEX].repeat(3).reshape(4, 3)),
    "added at places": (12, lambda t, n: n[0].scatter_add(0, torch.tensor([1, 5, 5, 0]), t[:4]).index_put(
        (INDEX,), t[4:8], accumulate=True)),
    "counted and gathered": (12, lambda t, n: t.reshape(3, 4).gather(1, (n[0, :9].reshape(3, 3) > t[:3]).sum(
        1, keepdim=True).clamp(max=3).expand(3, 4)) + (n[0, :4] < 0).sum() % 3),
    "counts wrapped round": (12, lambda t, n: t[:5].gather(0, ((n.reshape(12, 1) > t[:3]).sum(1) - 1) % 5)),
    "added where counted": (12, lambda t, n: torch.zeros(3, 4, dtype=t.dtype).scatter_add(
        1, torch.stack([(n.reshape(3, 4) > 0).sum(1) - 1, (n.reshape(3, 4) < t[:4]).sum(1) - 1], 1).clamp(min=0),
        t.reshape(4, 3).mT[:, :2])),
    "joined one by one": (12, lambda t, n: torch.stack([t.exp(), n[0]], 1)[:6].reshape(-1)),
    "cholesky": (4, lambda t, n: torch.linalg.cholesky_ex(
        n.reshape(3, 4)[:2].mT @ n.reshape(3, 4)[:2] + torch.diag_embed(1 + t.square()))[0].sum(0)),
    "solved": (12, lambda t, n: torch.linalg.solve_triangular(
        torch.eye(3, dtype=t.dtype) * 2 + torch.tril(n[0, :9].reshape(3, 3)).square(), t.reshape(3, 4), upper=False)),
    "solved from above": (12, lambda t, n: torch.linalg.solve_triangular(
        torch.eye(3, dtype=t.dtype) * 2 + torch.triu(n[0, :9].reshape(3, 3)).square(), t.reshape(4, 3), upper=True,
        left=False)),
    "in tiles": (12, in_tiles),
    "matrices of few different numbers": (12, lambda t, n: torch.linalg.solve_triangular(torch.linalg.cholesky_ex(
        torch.eye(4, dtype=t.dtype) * (2 + t[0].square()) + n[0, 0].square())[0], t.reshape(4, 3), upper=False)),
    "spread and summed": (12, lambda t, n: (
        (t[:2].exp() * torch.tensor([1.0, 2.0, 1.0], dtype=t.dtype)[:, None]).repeat(2, 1)[:, :, None].expand(6, 2, 2)
        * torch.where(torch.tensor([True, False]), n[0, 1], t[3]).exp().log1p()).sum(2)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(GRAPHS))
def test_translated_graphs_are_torchs(name: str) -> None:
    """Of 21 fits: two full vectors and one that is not."""
    size, function = GRAPHS[name]
    noise = torch.randn((21, 1, 12), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    got, want = run(function, size, noise)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_what_a_plate_repeats_is_computed_once() -> None:
    """Logarithms of two rates among 20 data, wherever the change between them lies: two, and not 400."""
    change = torch.arange(20)[:, None] >= torch.arange(20)

    def rates(t: Tensor, n: Tensor) -> Tensor:
        return torch.where(change, t[0].exp(), t[1].exp()).log1p().sum(1)[:12] + n[0]

    theta, noise = torch.ones(12, dtype=torch.float64), torch.ones(1, 12, dtype=torch.float64)
    graph = trace(lambda t, n: (rates(t, n).sum(),), (theta, noise))
    signature = Signature(num_scalars=0, num_carried=0, num_fixed=1, num_data=0, num_noise=1)
    loops = [item for item in translate(graph, signature, torch.float64).items if isinstance(item, Loop)]
    assert [loop.num for loop in loops if "log_of_1_plus" in loop.text] == [2]
    got, want = run(rates, 12, torch.randn((5, 1, 12), generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_step_may_have_more_numbers_than_a_process_has_stack() -> None:
    """Four arrays of 60,000 numbers of eight fits are 15 MB, where a process has 8: it had ended without a word."""
    noise = torch.randn((8, 1, 12), generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def function(t: Tensor, n: Tensor) -> Tensor:
        total = t[0] * n[0].repeat(5000)
        for _ in range(4):
            total = torch.cumsum(total, 0) / 100
        return total[::5000] + t

    got, want = run(function, 12, noise)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_what_has_no_translation_is_named() -> None:
    noise = torch.zeros(2, 1, 12)
    for function, name in (
        (lambda t, n: t.reshape(3, 4)[:, t[:2].argsort()], "sort"),
        (lambda t, n: torch.linalg.eigh(t[:4].reshape(2, 2))[0].repeat(6), "linalg_eigh"),
        (lambda t, n: t.double().float(), "gives torch.float64"),
        (lambda t, n: t[(n > 0).sum(0)], "an index that depends on values"),
        (lambda t, n: t.gather(0, torch.stack([(n > 0).sum(), torch.tensor(1)]).repeat(6)), "counts and constants"),
        (lambda t, n: t.repeat(3).gather(0, (n > 0).sum(0)), "one of 36 by a count"),
    ):
        with pytest.raises(UnsupportedError, match=name):
            run(function, 12, noise)
