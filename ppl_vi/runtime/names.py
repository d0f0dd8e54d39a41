"""Names and numbers as users write them, which can be told from wrong ones before torch and Pyro are imported."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable

# Pyro's autoguides that are built from a model alone and have a density, each with what it is.
ACCEPTED: dict[str, str] = {
    "AutoNormal": "independent normals in unconstrained space",
    "AutoDiagonalNormal": "independent normals in unconstrained space, one vector",
    "AutoMultivariateNormal": "a normal with full covariance in unconstrained space",
    "AutoLowRankMultivariateNormal": "a normal with low-rank-plus-diagonal covariance in unconstrained space",
    "AutoIAFNormal": "one inverse autoregressive flow in unconstrained space",
    "AutoGaussian": "a normal whose precision follows the model's structure, in unconstrained space",
    "AutoStructured": "normals with linear dependencies in unconstrained space",
    "AutoNormalMessenger": "independent normals in unconstrained space, as an effect handler",
    "AutoHierarchicalNormalMessenger": "normals that follow the prior's parameters, as an effect handler",
    "AutoRegressiveMessenger": "the prior, shifted and scaled in unconstrained space, as an effect handler",
}

# Pyro's other autoguides, each with why it is refused.
REFUSED: dict[str, str] = {
    "AutoDelta": "a point mass has no density, so no KL to the posterior",
    "AutoDiscreteParallel": "for discrete latents, summed out in parallel",
    "AutoCallable": "wraps a guide function: name that function instead",
    "AutoContinuous": "abstract",
    "AutoGuide": "abstract",
    "AutoMessenger": "abstract",
    "AutoNormalizingFlow": "needs an init_transform_fn: wrap it in a function of the model",
    "AutoGuideList": "a composite: build it in a function of the model",
}

# The names in `ppl_vi.guides.FAMILIES`, in `ppl_vi.guides.amortized.AMORTIZED` and in
# `ppl_vi.svi.objectives.OBJECTIVES`, in the same order, which a test compares.
FAMILIES = (
    "truncated_normal", "lognormal", "softplus_normal", "gamma", "weibull", "exponential", "half_normal",
    "folded_normal", "lognormal_mixture", "spline_flow", "normal", "laplace", "linear_response", "pathfinder",
    *ACCEPTED,
)  # fmt: skip
AMORTIZED = ("diagonal", "full", "mixture", "flow")
OBJECTIVES: dict[str, str] = {  # with what each is
    "trace_elbo": "the ELBO, by the gradient along the reparameterized path",
    "score_function": "the ELBO, by the score function, which needs no reparameterization",
    "stl": "the ELBO, by the path derivative alone (sticking the landing)",
    "trace_mean_field_elbo": "the ELBO with the KL of each latent from its prior in closed form",
    "tail_adaptive": "a tail-adaptive f-divergence",
    "renyi": "the Renyi bound of alpha, as renyi:0.5",
    "iwae": "the importance-weighted bound of K draws, as iwae:8",
    "dadvi": "the ELBO on a few fixed draws, by Newton's method (deterministic ADVI)",
    "natural_gradient": "the ELBO, by natural-gradient steps (the Bayesian learning rule)",
}

ENGINES = ("auto", "compiled", "batched", "pyro")
STARTS = ("mode", "pathfinder")

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf(inity)?|nan)", re.ASCII | re.IGNORECASE)
WHOLE_NUMBER = re.compile(r"[+-]?\d{1,30}", re.ASCII)  # longer ones are beyond any count, and slow to read

# The largest size of Adam's first step, in the units that each parameter's curvature gives. A good one is below 1; from
# some hundreds on the first step leads where no density is finite, and all that follows is lost.
MAX_LR = 100.0


def number(text: str) -> float:
    """A number in plain digits; Python's own `float` also takes 1_0 for ten, and the digits of other scripts.

    Raises:
        ValueError: it is none.
    """
    if not NUMBER.fullmatch(text):
        raise ValueError(f"expected a number, got '{text}'")
    return float(text)


def whole_number(text: str) -> int:
    """A whole number in plain digits.

    Raises:
        ValueError: it is none.
    """
    if not WHOLE_NUMBER.fullmatch(text):
        raise ValueError(f"expected a whole number, got '{text}'")
    return int(text)


def unknown(name: str, known: Iterable[str]) -> str:
    """The message that there is no guide of this name, with the known names nearest to it."""
    return f"unknown guide '{name}'{meant(name, known)}"


def meant(name: str, known: Iterable[str]) -> str:
    """What may follow the complaint that a name is unknown: the known names nearest to it; "" where none is near."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def with_colon(name: str) -> str:
    """A path such as `module.attribute` or `module.py:attribute` as it was meant, `module:attribute`; "" for others."""
    module, colon, attribute = name.partition(":")
    if not colon:
        module, _, attribute = name.rpartition(".")
    module = module.removesuffix(".py").replace("/", ".")
    meant = f"{module}:{attribute}"
    return meant if all(map(str.isidentifier, f"{module}.{attribute}".split("."))) and meant != name else ""


def guide_and_file(text: str) -> tuple[str, str]:
    """A guide of one's own and, where `package.module:attribute=file` names one, the file of its values; else ""."""
    path, _, file = text.partition("=") if ":" in text.partition("=")[0] else (text, "", "")
    return path, file


def in_module(guide: str, module: str) -> str:
    """A guide as `module:attribute`, where it is given by its name in that module alone.

    Families, and "all" of them, stay as they are.
    """
    name = guide.partition("=")[0]
    return guide if ":" in name or name in (*FAMILIES, *REFUSED, "all") else f"{module}:{guide}"


def check_family(name: str) -> None:
    """Checks that a family of this name can be looked for.

    Raises:
        ValueError: there is none, with the names nearest to it.
    """
    if ":" not in name and name not in FAMILIES and name not in REFUSED:
        path = with_colon(name) if "." in name else ""
        complaint = f"unknown guide '{name}'; did you mean {path}?" if path else unknown(name, [*FAMILIES, *REFUSED])
        raise ValueError(f"{complaint} (--list-guides shows all; package.module:attribute names your own)")


def check_engine(name: str) -> None:
    """Checks that there is an engine of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in ENGINES:
        raise ValueError(f"unknown engine '{name}'; there are {', '.join(ENGINES)}{meant(str(name), ENGINES)}")


def check_start(name: str) -> None:
    """Checks that there is a start of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in STARTS:
        raise ValueError(f"unknown start '{name}'; there are {' and '.join(STARTS)}{meant(str(name), STARTS)}")


def objective_of(text: str) -> tuple[str, float | None]:
    """The name of an objective such as "renyi:0.5", and the number that follows it.

    Raises:
        ValueError: the name is unknown, or what follows the colon is no argument of that objective.
    """
    name, *arguments = text.split(":")
    if name not in OBJECTIVES:
        there = f"there are {', '.join(OBJECTIVES)} (renyi:ALPHA, iwae:K)"
        raise ValueError(f"unknown objective '{text}'; {there}{meant(name, OBJECTIVES)}")
    if not arguments:
        return name, None
    if len(arguments) > 1 or name not in ("renyi", "iwae"):
        raise ValueError(f"objective '{name}' takes no such argument: '{text}'")
    try:
        value = number(arguments[0]) if name == "renyi" else whole_number(arguments[0])
    except ValueError as error:
        raise ValueError(f"objective '{text}': {error}") from error
    if name == "renyi" and (not math.isfinite(value) or value == 1):
        raise ValueError(f"alpha must be finite and not 1 (alpha = 1 is 'trace_elbo'), got {value}")
    if name == "iwae" and value < 1:
        raise ValueError(f"K must be at least 1, got {value}")
    return name, value
