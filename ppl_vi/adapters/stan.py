"""Stan's ADVI: an `Approximation` from its CSV file, which CmdStan and R's rstan write; and rstan, run by Rscript.

ADVI fits a Gaussian of unconstrained numbers u. The file has draws z of it, of few digits, and with each `log_g__`,
which is -|noise|^2 / 2: log q(u) without its constants, a quadratic function of u. Its coefficients, found by least
squares in the unconstrained numbers of our model, tell mean and covariance. Draws are then made anew, in full precision
and with log q(z) = log q(u) - log |dz/du|.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import copyfile, which
from typing import Any

import numpy as np
import torch

from ppl_vi.approximations.approximation import Approximation, Draws
from ppl_vi.approximations.files import read_files
from ppl_vi.approximations.matching import matched
from ppl_vi.numerics.quadratic import gaussian_through
from ppl_vi.target.target import Target

KERNEL = "log_g__"
MAX_RESIDUAL = 0.01  # nats, a root mean square: six digits of a number 0.01 of its size wide leave less
MIN_DIFFERENT = 50  # values of a number among the draws; of fewer its width can't be told
ALGORITHMS = ("meanfield", "fullrank")
# Debian's R package of Boost is empty, and its headers are where compilers look.
COMPILE = r"""
suppressMessages(library(rstan))
given <- commandArgs(TRUE)
setwd(given[1])
if (rstan_options("boost_lib") == "") rstan_options(boost_lib = "/usr/include", boost_lib2 = "/usr/include")
spent <- function() sum(proc.time()[c(1, 2, 4, 5)])
began <- spent()
program <- stan_model("model.stan", auto_write = TRUE)
compiled <- spent()
data <- read_rdump("data.R")
"""
FIT = r"""
fit <- vb(program, data = data, algorithm = given[2], seed = as.integer(given[3]),
          output_samples = as.integer(given[4]), refresh = 0, importance_resampling = FALSE, sample_file = "vb.csv")
cat(spent() - compiled, compiled - began, as.character(packageVersion("rstan")), file = "told")
"""
EVALUATE = r"""
fit <- suppressMessages(sampling(program, data = data, chains = 0))
points <- read_rdump("points.R")
num <- dim(points[[1]])[1]
one <- function(i) lapply(points, function(site) {
  value <- matrix(site, nrow = num)[i, ]
  if (length(dim(site)) > 1) array(value, dim(site)[-1]) else value
})
at <- function(i) log_prob(fit, unconstrain_pars(fit, one(i)), adjust_transform = FALSE)
cat(format(sapply(seq_len(num), at), digits = 17), sep = "\n", file = "densities")
"""


@dataclass(frozen=True)
class Fitted:
    """What `advi` has done.

    Attributes:
        csv: the file that Stan has written.
        seconds: of processor time that the fit took.
        compile_seconds: of processor time before it: the program is translated to C++ and compiled.
        system: such as "rstan 2.21.7".
    """

    csv: Path
    seconds: float
    compile_seconds: float
    system: str


def approximation(
    csv: str | Path,
    target: Target,
    *,
    names: Mapping[str, str] | None = None,
    num_draws: int = 10_000,
    seed: int = 0,
    name: str = "Stan ADVI",
    system: str = "",
    seconds: float | None = None,
) -> Approximation:
    """Draws, with log q of each, of the Gaussian that Stan's ADVI has found.

    Where the file has no `log_g__`, as CmdStan's had none before 2.20, there are its own draws alone, and log q is
    unknown.

    Args:
        csv: the file, of at least as many draws as the Gaussian has coefficients, 1 + D + D (D + 1) / 2.
        target: our model of the same latents, whose unconstrained numbers are Stan's, but for an affine map.
        names: what the target calls a variable of the file, `{"theirs": "ours"}`.
        num_draws, seed: of the draws.
        name, system: what tables call it, and what made it.
        seconds: what the fit took.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not fit the model's sites, has too few draws or digits, or `log_g__` is no quadratic
            function of the model's unconstrained numbers.
    """
    draws = read_files([Path(csv)], {KERNEL, *(site.name for site in target.latents)} - set(names or {})).draws
    kernel = draws.pop(KERNEL, None)
    found = matched(target, Approximation(draws), names)
    if kernel is None:
        own = {key: value.cpu().numpy() for key, value in found.latents.items()}
        return Approximation(own, None, name, system, seconds)
    u = target.unconstrain({key: value[0] for key, value in found.latents.items()}).cpu().numpy()
    loc, scale = _gaussian(Path(csv).name, target, u, kernel[0])
    noise = np.random.default_rng(seed).standard_normal((num_draws, len(loc)))
    latents, log_jacobian = target.constrain(torch.from_numpy(loc + noise @ scale.T).to(target.device))
    constant = np.log(np.diag(scale)).sum() + len(loc) * np.log(2 * np.pi) / 2
    log_q = -(noise**2).sum(1) / 2 - constant - log_jacobian.cpu().numpy()
    anew = {key: value.cpu().numpy()[None] for key, value in latents.items()}
    return Approximation(anew, log_q[None], name, system, seconds)


def _gaussian(file: str, target: Target, u: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and Cholesky factor of the Gaussian of draws `(N, D)`, whose log density is `kernel` but for a constant."""
    different = min(len(np.unique(one)) for one in u.T)
    if different < min(MIN_DIFFERENT, len(u)):
        raise ValueError(
            f"{file}: a number has {different} different values in {len(u)} draws: Stan's Gaussian is narrower than "
            "the file's digits; write more of them (CmdStan's sig_figs), or see whether the fit has failed"
        )
    gaussian = gaussian_through(u, kernel, MAX_RESIDUAL)
    if gaussian is None:
        raise ValueError(
            f"{file}: {KERNEL} must be a quadratic function of the unconstrained numbers of '{target.name}', to "
            f"{MAX_RESIDUAL} nats; it is not: the file has too few digits (CmdStan's sig_figs), or Stan constrains "
            "these latents in another way"
        )
    return gaussian


@cache
def missing() -> str:
    """Why Stan can't be run here, in a line; "" where R and its package rstan are installed."""
    if which("Rscript") is None:
        return "Stan's ADVI is run by R's package rstan: R is not installed, there is no Rscript"
    asked = ["Rscript", "-e", "quit(status = !requireNamespace('rstan', quietly = TRUE))"]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        return "Stan's ADVI is run by R's package rstan, which is not installed (r-cran-rstan in Debian)"
    return ""


def advi(
    program: str,
    data: Mapping[str, Any],
    csv: str | Path,
    *,
    algorithm: str = "meanfield",
    num_draws: int = 1000,
    seed: int = 0,
) -> Fitted:
    """Fits by `rstan::vb` at its defaults, and writes Stan's CSV file, which `approximation` reads.

    A program is compiled once in a process.

    Args:
        program: a Stan program.
        data: by name, numbers and arrays.
        csv: the file to write.
        algorithm: "meanfield" or "fullrank".
        num_draws: how many draws the file has.
        seed: of the fit.

    Raises:
        RuntimeError: R or rstan is missing, or the fit failed, in R's last words.
        ValueError: there is no such algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f'algorithm must be "meanfield" or "fullrank"; got {algorithm!r}')
    folder = _run(program, data, FIT, algorithm, str(seed), str(num_draws))
    copyfile(folder / "vb.csv", csv)
    seconds, compile_seconds, version = (folder / "told").read_text().split()
    return Fitted(Path(csv), float(seconds), float(compile_seconds), f"rstan {version}")


def log_joint(program: str, data: Mapping[str, Any]) -> Callable[[Draws], np.ndarray]:
    """log p(x, z) of a Stan program, nats, as a function of latents `{site: (N, *shape)}` that returns `(N,)`.

    The latents are on their own supports, and no Jacobian is added: what `ppl_vi.same_density` compares, called with
    `vectorised=True`. Stan leaves out constants of `z ~ normal(0, 1)`; `target += normal_lpdf(z | 0, 1)` has them.

    Raises:
        RuntimeError: when it is called: R or rstan is missing or fails, in R's last words.
    """

    def of_points(latents: Draws) -> np.ndarray:
        (_folder(program) / "points.R").write_text(_dumped(latents))
        return np.loadtxt(_run(program, data, EVALUATE) / "densities", ndmin=1)

    return of_points


def _run(program: str, data: Mapping[str, Any], script: str, *arguments: str) -> Path:
    """Runs a script of R in the program's folder, which is returned."""
    if missing():
        raise RuntimeError(missing())
    folder = _folder(program)
    for file, text in (("data.R", _dumped(data)), ("script.R", COMPILE + script)):
        (folder / file).write_text(text)
    command = ["Rscript", str(folder / "script.R"), str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise RuntimeError(f"rstan failed: {' '.join(words[-3:])[:300]}")
    return folder


@cache
def _made(program: str) -> tempfile.TemporaryDirectory[str]:
    """A folder of the program's own, where rstan finds it compiled; it goes with the process."""
    made = tempfile.TemporaryDirectory(prefix="stan-")
    (Path(made.name) / "model.stan").write_text(program)
    return made


def _folder(program: str) -> Path:
    return Path(_made(program).name)


def _dumped(data: Mapping[str, Any]) -> str:
    """Data in R's dump format, arrays in column-major order."""
    return "".join(f"{key} <- {_value(np.asarray(value))}\n" for key, value in data.items())


def _value(value: np.ndarray) -> str:
    whole = value.dtype.kind in "biu"
    numbers = ", ".join(f"{int(one)}" if whole else repr(float(one)) for one in value.ravel(order="F"))
    if value.ndim == 0:
        return numbers
    return f"structure(c({numbers}), .Dim = c({', '.join(map(str, value.shape))}))"
