"""A model's latent sites, found by running it with several seeds, and what makes a model unsuitable.

A model that can't be used is refused here, before anything is computed, with a message that names the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.distributions.transforms import biject_to
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints
from torch.overrides import TorchFunctionMode

from ppl_vi.target.arguments import BoundModel
from ppl_vi.target.enumeration import FACTOR_NAME, UnsuitableSiteError, masks_of
from ppl_vi.target.factorising import Factorising
from ppl_vi.target.isolation import isolated
from ppl_vi.target.mistakes import MistakeError, innermost, is_improper, refuse_changing
from ppl_vi.target.supports import LatentSite, MovingSupport, ends, same_support

Row = tuple[Any, ...]
# The seeds of the runs that show whether sites, shapes and supports depend on drawn values. A model that decides by its
# first draw takes both branches: with these seeds first draws lie on both sides of the median.
SEEDS = (0, 4, 6, 1)
# Distributions of angles, whose density is periodic along the whole line.
ANGLE_DISTRIBUTIONS = ("VonMises", "SineBivariateVonMises", "SineSkewed")
# Pyro appends this to the name of a site with an `obs_mask` for the latent that holds its missing entries.
UNOBSERVED_SUFFIX = "_unobserved"
IMPROPER_PRIOR = "{name}: site '{site}' has an improper prior, so there is no evidence: give it a proper one"


class SiteReached(Messenger):
    """Remembers the site that is being run.

    Attributes:
        site: its name.
        fn: its distribution.
    """

    site = ""
    fn: Any = None

    def _pyro_sample(self, msg: Any) -> None:
        self.site, self.fn = msg["name"], msg["fn"]


# What torch calls the functions that factorise matrices.
FACTORISATIONS = {"cholesky", "linalg_cholesky", "linalg_cholesky_ex"}


class Largest(NamedTuple):
    """How large the tensors are that torch computes.

    Attributes:
        numbers: of the largest floating-point tensor. Where a discrete latent is summed out, these are more than the
            data, because the density of the data is computed for each value of that latent.
        factored: of the largest matrix that is factorised, 0 without any.
    """

    numbers: int
    factored: int

    @property
    def is_matrix(self) -> bool:
        """Whether the largest tensor is a matrix that is factorised, as the covariance of a Gaussian process is."""
        return self.numbers == self.factored


def largest_tensors(function: Callable[[], object]) -> Largest:
    """The sizes of the largest tensors that a function computes."""
    with torch.no_grad(), _Sizes() as sizes:
        function()
    return Largest(sizes.size, sizes.factored)


class _Sizes(TorchFunctionMode):
    size, factored = 1, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.is_floating_point():
            self.size = max(self.size, found.numel())
        if getattr(func, "__name__", "") in FACTORISATIONS and isinstance(args[0], Tensor):
            self.factored = max(self.factored, args[0].numel())
        return found


def run_model(model: Callable[..., Any], row: Row, dtype: torch.dtype, name: str, seed: int = 0) -> Trace:
    """One run of a model with the log density of every site.

    Raises:
        ValueError: the model raised an error; the message says at which site.
    """
    with isolated(dtype, seed=seed), model_errors_explained(name, dtype), Factorising() as factorising:
        trace = poutine.trace(model).get_trace(*row)
        trace.compute_log_prob()
    return factorising.marked(trace)


@contextmanager
def model_errors_explained(name: str, dtype: torch.dtype) -> Iterator[None]:
    """Raises what a model raises as a `ValueError` of one line that names the model and the site it had reached."""
    with SiteReached() as reached:
        try:
            yield
        except SystemExit as error:
            where = f"at or after site '{reached.site}'" if reached.site else "before its first sample site"
            raise ValueError(
                f"{name}: the model leaves Python by SystemExit({error.code}) {where}: let it return, or raise an error"
            ) from error
        except (UnsuitableSiteError, MistakeError) as error:
            said = str(error).splitlines()[0]  # Pyro adds a table
            raise ValueError(f"{name}: {said}") from error
        except Exception as error:  # a user's model may raise anything
            if is_improper(reached.fn):
                raise ValueError(IMPROPER_PRIOR.format(name=name, site=reached.site)) from error
            raise ValueError(f"{name}: {raised_by('the model', error, reached.site, dtype)}") from error


def raised_by(function: str, error: Exception, site: str, dtype: torch.dtype) -> str:
    """Says in one line what a model or a guide raised, where, and what may mend it.

    Args:
        function: how to call the model or guide.
        error: what it raised.
        site: the last sample site or plate that it had reached, or "".
        dtype: the dtype of its data.
    """
    said, *_ = str(error).split("Trace Shapes:")  # Pyro adds a table
    lines = [line for line in said.splitlines() if line.strip()] or [""]
    said = " ".join(line.strip() for line in lines[:2])
    where = f"at or after site '{site}'" if site else "before its first sample site"
    hint = ""
    if any(words in said for words in ("same dtype", "expected scalar type", "Float did not match Double")):
        own = f"make {function}'s own tensors with torch.tensor(..., dtype=x.dtype), its networks by net.double()"
        hint = f"; the data come as {dtype}: {own}, without .float() on what they are given"
    elif "Multiple sample sites" in said:
        hint = ": give each site and plate a name of its own"
    elif any(words in said for words in ("must match", "Shape mismatch", "inconsistent tensor size")):
        hint = f": do the data have the shape that {function} takes? (A plate takes all of its rows here, so give all.)"
    return f"{function} raised {type(error).__name__} {where}: {said}{hint}".removesuffix(": ")


def latent_sites(
    model: Callable[..., Any], first: Row, last: Row, dtype: torch.dtype, name: str
) -> tuple[LatentSite, ...]:
    """The latent sites of a model, found by running it on two rows of data and with several seeds.

    There are none where all latents were discrete and have been summed out.

    Args:
        model: a Pyro model.
        first, last: two rows of arguments, or the same one twice.
        dtype: of the computation.
        name: the target's, for messages.

    Raises:
        ValueError: the model has no latent site, a discrete one, an improper prior, parameters, a log density that is
            nan, data outside their distribution's support, latents of another dtype, or sites or supports that depend
            on drawn values; or it raises an error.
    """
    traces = [run_model(model, last if seed else first, dtype, name, seed=seed) for seed in SEEDS]
    if not isinstance(model, BoundModel):  # which was tried before it was prepared
        with model_errors_explained(name, dtype):
            refuse_changing(model, traces[0], first, dtype)
    one, *others = ({n: node for n, node in trace.nodes.items() if _is_site(node)} for trace in traces)
    for other in others:
        if list(one) != list(other):
            odd = next(iter(set(one) ^ set(other)), next(iter(one), ""))
            raise ValueError(
                f"{name}: site '{odd}' is drawn in some runs only, or in another order: draw all in every run"
            )
    other = others[0]
    for trace in traces:
        for node in trace.nodes.values():
            _refuse_parameter(node, name)
            if _is_site(node):
                _refuse_nan(node, name)
    sites = []
    for site, node in one.items():
        if node["is_observed"]:
            _refuse_outside(node, other[site], name)
        else:
            _refuse_latent(node, other[site], name, first is last)
            _refuse_dtype(node, name, dtype)
            moves = not same_support(node["fn"].support, other[site]["fn"].support)
            support = MovingSupport(node["fn"].support) if moves else node["fn"].support
            sites.append(LatentSite(site, support, node["value"].shape))
    if not sites and FACTOR_NAME not in one:
        raise ValueError(f"{name}: the model has no latent sample site: there is nothing to infer")
    return tuple(sites)


def _is_masked(node: Any) -> bool:
    """Whether a mask leaves out some of a site's density, which is one way to write a flat prior in Pyro."""
    return any(not bool(mask.all()) for mask in masks_of(node))


def _is_site(node: Any) -> bool:
    return node["type"] == "sample" and not poutine.util.site_is_subsample(node)


def _refuse_parameter(node: Any, name: str) -> None:
    if node["type"] == "param" and node["value"].requires_grad:
        raise ValueError(
            f"{name}: the model has a parameter '{node['name']}', which can't be learned for many problems at once: "
            "pose one problem by Target.of, whose fit learns it, or give the parameter a prior"
        )


def refuse_learned_supports(trace: Trace, name: str) -> None:
    """Refuses a latent whose support moves with the model's own parameters: guides keep to that of their first run.

    Raises:
        ValueError: there is such a latent.
    """
    for site, node in trace.nodes.items():
        if not _is_site(node) or node["is_observed"]:
            continue
        support = node["fn"].support
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        if any(isinstance(held, Tensor) and held.requires_grad for held in vars(support).values()):
            raise ValueError(
                f"{name}: the support of site '{site}' moves with the model's own parameters, which are learned: draw "
                "it on a fixed one and map it, Uniform(a, b) as a + (b - a) * Uniform(0, 1)"
            )


def _refuse_nan(node: Any, name: str) -> None:
    if not bool(node["log_prob"].isnan().any()):
        return
    value = node["value"]
    if node["is_observed"] and isinstance(value, Tensor) and bool(value.isnan().any()):
        raise ValueError(f"{name}: site '{node['name']}': the data hold nan: leave such points out, or mask them")
    raise ValueError(
        f"{name}: site '{node['name']}' has log density nan at a draw from the prior: look at the parameters of its "
        f"{type(node['fn']).__name__}"
    )


def _refuse_outside(node: Any, other: Any, name: str) -> None:
    """Refuses data outside of their support, where most of Pyro's densities are finite while validation is off.

    Shares between 0 and 1 are let through for a Bernoulli that does not validate, as VAEs take grey pixels.
    """
    try:
        support, again = node["fn"].support, other["fn"].support
    except NotImplementedError:
        return
    if not same_support(support, again):
        return
    value, fn = node["value"], node["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if isinstance(fn, dist.Bernoulli) and vars(fn).get("_validate_args") is False:
        support = constraints.unit_interval
    inside = support.check(value)
    if not bool(torch.as_tensor(inside).all()):
        raise ValueError(
            f"{name}: site '{node['name']}': data outside of the support {support} of its {type(node['fn']).__name__}"
        )


def _refuse_latent(node: Any, other: Any, name: str, one_problem: bool) -> None:
    site, support = node["name"], node["fn"].support
    if support.is_discrete:
        raise ValueError(
            f"{name}: site '{site}' is discrete; SVI needs continuous latents: sum it out of the model, as "
            "Target.of does"
        )
    if site.endswith(UNOBSERVED_SUFFIX) and _is_masked(node):
        raise ValueError(
            f"{name}: site '{site.removesuffix(UNOBSERVED_SUFFIX)}' has an obs_mask, and other sites depend on what is "
            "missing. It makes latents of the data that are there, too, without a density: draw what is missing at a "
            "site of its own"
        )
    if is_improper(node["fn"]) or _is_masked(node):
        raise ValueError(IMPROPER_PRIOR.format(name=name, site=site))
    _refuse_without_a_map(node, name)
    if node["value"].shape != other["value"].shape:
        shapes = tuple(node["value"].shape), tuple(other["value"].shape)
        raise ValueError(f"{name}: site '{site}' has shape {shapes[0]} in one run and {shapes[1]} in another")
    if same_support(support, other["fn"].support) or (one_problem and ends(support) and ends(other["fn"].support)):
        return
    raise ValueError(
        f"{name}: the support of site '{site}' moves with "
        + ("other latents and is no interval" if one_problem else "other latents or with the problem")
        + ": draw it on a fixed one and map it, Uniform(a, b) as a + (b - a) * Uniform(0, 1)"
    )


def _refuse_dtype(node: Any, name: str, dtype: torch.dtype) -> None:
    """Refuses a latent of another dtype: only `Target.of` converts the tensors that a model holds."""
    found = node["value"].dtype
    if found != dtype:
        raise ValueError(
            f"{name}: site '{node['name']}' draws numbers of {found}, the target computes with {dtype}: make the "
            f"tensors of its {type(innermost(node['fn'])).__name__} with dtype={dtype}, or the target by Target.of"
        )


def _refuse_without_a_map(node: Any, name: str) -> None:
    kind, site = type(innermost(node["fn"])).__name__, node["name"]
    if kind in ANGLE_DISTRIBUTIONS:
        raise ValueError(
            f"{name}: site '{site}' is an angle: a {kind} repeats itself along the line, so that there is no posterior "
            "in unconstrained space: draw it within (-pi, pi), Uniform with the density by pyro.factor"
        )
    try:
        biject_to(node["fn"].support)
    except NotImplementedError:
        raise ValueError(
            f"{name}: site '{site}': Pyro has no map from unconstrained space to the support {node['fn'].support} of a "
            f"{kind}: draw what it is made of, as scales and LKJCholesky for a covariance"
        ) from None
