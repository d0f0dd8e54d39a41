"""A model and a guide as pure functions of the guide's parameters, one problem's data, and the noise that is drawn.

Pyro's code runs as it is: its parameters are put in place by `torch.func.functional_call`, and its draws are taken from
given noise (`ppl_vi.svi.randomness`). So its parts can be differentiated, run under `vmap`, and traced.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import biject_to, kl_divergence
from torch.func import functional_call, jacrev, vmap

from ppl_vi.compiler.many_points import AtPoints
from ppl_vi.numerics.vmapping import loop_over
from ppl_vi.svi.randomness import Draw, Recorder, Replay, UnsupportedRandomnessError, seeded
from ppl_vi.svi.whitening import Whitening
from ppl_vi.target.factorising import Factorising
from ppl_vi.target.isolation import runs_isolated, whole_plates
from ppl_vi.target.sites import Latents, off_edge
from ppl_vi.target.target import Target


class Particle(NamedTuple):
    """What one draw of the guide contributes to an objective: scalars, or one of each for many draws, nats.

    Attributes:
        log_joint: log p(x, z).
        log_guide: log q(z).
        score: the part of log q whose gradient multiplies the bound, as the score function's estimator has it; 0 for
            reparameterised sites.
        entropy: the part of log q that is differentiated along the path of the draw; log q itself for reparameterised
            sites.
    """

    log_joint: Tensor
    log_guide: Tensor
    score: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class Layout:
    """How a guide's named parameters lie in one flat vector of `size` numbers."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @staticmethod
    def of(guide: nn.Module) -> Layout:
        """The layout of the parameters of a guide that require a gradient."""
        parameters = {name: value for name, value in guide.named_parameters() if value.requires_grad}
        return Layout(tuple(parameters), tuple(value.shape for value in parameters.values()))

    @property
    def sizes(self) -> list[int]:
        """How many numbers each parameter has."""
        return [shape.numel() for shape in self.shapes]

    @property
    def size(self) -> int:
        """How many numbers all parameters have together."""
        return sum(self.sizes)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """`(..., size)` to named tensors `(..., *shape)`."""
        parts = theta.split(self.sizes, -1)
        return {
            name: part.reshape(theta.shape[:-1] + shape)
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }

    def flatten(self, parameters: dict[str, Tensor]) -> Tensor:
        """Named tensors `(..., *shape)` to `(..., size)`."""
        flat = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            value = parameters[name]
            flat.append(value.reshape((*value.shape[: value.dim() - len(shape)], -1)))
        return torch.cat(flat, -1)


def flat_parameters(layout: Layout, guide: nn.Module) -> Tensor:
    """The unconstrained parameters that a guide has now, `(size,)`, without their history for gradients."""
    return layout.flatten({name: value.detach() for name, value in guide.named_parameters()})


def load_parameters(guide: nn.Module, parameters: dict[str, Tensor]) -> None:
    """Puts unconstrained values by name into a guide, in place."""
    values = dict(guide.named_parameters())
    with torch.no_grad():
        for name, value in parameters.items():
            values[name].copy_(value)


class _Runner(nn.Module):
    """A module that runs any function of the guide, so that `functional_call` can put parameters in place meanwhile."""

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        return function(self.guide)


class NoReparameterization(Messenger):
    """Makes every site draw without a path for gradients, so that the score function's estimator is used for all."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not is_delta(msg["fn"]):
            msg["fn"] = _without_path(msg["fn"])


@cache
def _pathless(kind: Any) -> Any:
    """A subclass of a distribution's class that has no `rsample`."""

    def sample(self: Any, sample_shape: torch.Size = torch.Size()) -> Tensor:
        # a copy, since a flow recognises its own draw and gives back the inverse from a cache, without derivatives
        return kind.sample(self, sample_shape).clone()

    return type(kind)(kind.__name__, (kind,), {"has_rsample": False, "sample": sample})


def _without_path(fn: Any) -> Any:
    """The same distribution, drawn by `sample`. (Pyro's `has_rsample_` fails where `has_rsample` is a property.)"""
    copied, kind = copy(fn), fn.__class__
    copied.__class__ = _pathless(kind)
    return copied


def without_reparameterization(guide: Callable[..., Any]) -> Callable[..., Any]:
    """The same guide, whose draws have no path for gradients."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with NoReparameterization():
            return guide(*args, **kwargs)

    return run


def is_delta(fn: Any) -> bool:
    """Whether a distribution is a point mass, under any wrapping."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def guide_sites(trace: Trace) -> dict[str, Any]:
    """The sites that a guide draws, auxiliary ones included, but not observed sites and the subsamples of plates."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and not poutine.util.site_is_subsample(node)
    }


class Program:
    """One problem's ELBO and its parts as pure functions, ready for `torch.func` and for tracing.

    Args:
        target: the target whose model is fitted.
        guide: a guide built for this target; its structure and its initial values are used.
        model: the model whose log joint is taken, which may compute with the guide's parameters; by default the
            target's.

    Attributes:
        target: as given.
        guide: as given.
        model: the model.
        layout: how the guide's parameters lie in one flat vector `theta`.
        draws: the noise that guide and model draw for one particle: first the guide's, then what the model draws
            besides the latents, the subsample of a plate. It is one seed where the noise can't be given from outside.
        latent_draws: the noise that the guide draws where plates take all of their data.
        initial: the guide's initial `theta`, `(size,)`.
        local: the name of a latent that is drawn for a part of a plate's data only, or "".
        one_by_one: why model and guide can't be run for many draws at once, or "".
        over: maps a function over the first axis of its arguments, by `vmap` or else by a loop.
        evaluators: what evaluates functions of this program at many points, by name and `one_by_one`.
    """

    def __init__(self, target: Target, guide: nn.Module, model: Callable[..., Any] | None = None) -> None:
        self.target, self.guide = target, guide
        self.model = target.model if model is None else model
        self._runner = _Runner(guide)
        self.one_by_one, self.local = "", ""
        self.over: Callable[..., Callable[..., Any]] = vmap
        self.evaluators: dict[tuple[str, str], AtPoints] = {}
        self.draws: tuple[Draw, ...] = ()
        with self.isolated(seed=0):
            poutine.trace(guide).get_trace(*target.row(0))  # autoguides make their parameters in a first call
            trace = self._record(guide)
        self.layout = Layout.of(guide)
        self.initial = flat_parameters(self.layout, guide)
        self._indirect = any(is_delta(trace.nodes[site.name]["fn"]) for site in target.latents)
        sites = guide_sites(trace)
        self._beside = "" if self._indirect else next((n for n in sites if n not in _names(target)), "")
        self._auxiliary = {
            name: node["value"].shape for name, node in sites.items() if self._indirect and not is_delta(node["fn"])
        }
        # latents that the guide draws itself, as a function in a list of autoguides does, count by unconstrained values
        self._drawn_directly = {
            site.name: site
            for site in target.latents
            if site.name in self._auxiliary and site.name not in target.moving
        }
        self._auxiliary |= {name: site.unconstrained_shape for name, site in self._drawn_directly.items()}

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: everything but the evaluators, whose compiled code stays here and is found or made anew."""
        return self.__dict__ | {"evaluators": {}}

    def isolated(self, seed: int | None = None) -> AbstractContextManager[None]:
        """The gate through which the guide and the target's model are run: the target's, see `Target.isolated`."""
        return self.target.isolated(seed)

    def _record(self, guide: nn.Module) -> Trace:
        """Finds the noise that is drawn, and gives the guide's trace, with all of its plates' data."""
        row = self.target.row(0)
        try:
            with Recorder() as recorder, Factorising():
                trace = poutine.trace(guide).get_trace(*row)
                self._num_guide_draws = len(recorder.draws)
                model = poutine.trace(poutine.replay(self.model, trace=trace)).get_trace(*row)
        except UnsupportedRandomnessError as error:
            self.run_one_by_one(str(error), by_seeds=True)
            with whole_plates():
                return poutine.trace(guide).get_trace(*row)
        self.draws = tuple(recorder.draws)
        self.latent_draws = self.draws[: self._num_guide_draws]
        if not any(_is_subsampled(node) for found in (trace, model) for node in found.nodes.values()):
            return trace
        with Recorder() as recorder, whole_plates():
            whole = poutine.trace(guide).get_trace(*row)
        self.latent_draws = tuple(recorder.draws)
        for name in guide_sites(trace):
            if trace.nodes[name]["value"].shape != whole.nodes[name]["value"].shape:
                self.local = name
        return whole

    def run_one_by_one(self, reason: str, by_seeds: bool = False) -> None:
        """From here on each draw is run on its own, by a loop.

        Args:
            reason: why, for messages.
            by_seeds: whether the noise can't be given from outside, so that each draw is given a seed instead.
        """
        self.one_by_one, self.over = reason, loop_over
        if by_seeds:
            self._num_guide_draws = 0
            self.draws = self.latent_draws = (Draw("seed", torch.Size([]), torch.int64),)

    @property
    def replayable(self) -> bool:
        """Whether the noise itself can be given from outside, and not only its seed."""
        return not any(draw.kind == "seed" for draw in self.draws)

    @runs_isolated
    def call(self, theta: Tensor, function: Callable[[nn.Module], Any]) -> Any:
        """`function(guide)`, run while the guide has the parameters `theta`."""
        parameters = self.layout.unflatten(theta)
        return functional_call(self._runner, {f"guide.{k}": v for k, v in parameters.items()}, (function,))

    @runs_isolated
    def guide_trace(self, theta: Tensor, row: tuple[Tensor, ...], noise: tuple[Tensor, ...]) -> Trace:
        """One run of the guide on given noise, with its log densities; noise of the model is left over."""
        if not self.replayable:
            with seeded(noise):
                return self.call(theta, lambda guide: _scored(guide, row))
        with Replay(noise, anchor=(theta * 0).sum()) as replay:
            return self.call(theta, lambda guide: _scored(guide, row, replay))

    @runs_isolated
    def latents(self, theta: Tensor, row: tuple[Tensor, ...], noise: tuple[Tensor, ...]) -> Latents:
        """One draw of the latents from the noise of `latent_draws`."""
        with whole_plates():
            trace = self.guide_trace(theta, row, noise)
        return {site.name: trace.nodes[site.name]["value"] for site in self.target.latents}

    @runs_isolated
    def drawn(self, theta: Tensor, row: tuple[Tensor, ...], noise: tuple[Tensor, ...]) -> tuple[Latents, Tensor]:
        """One draw of the latents from the noise of `latent_draws` and log q there, nats, both with their gradients."""
        with whole_plates():
            trace = self.guide_trace(theta, row, noise)
        return {site.name: trace.nodes[site.name]["value"] for site in self.target.latents}, _log_guide(trace)

    def missing_path(self) -> str | None:
        """Says which site is drawn without a path for gradients, or gives None where each has one."""
        row = self.target.row(0)
        with self.isolated(seed=0), Recorder():
            trace = self.call(self.initial, lambda guide: _scored(guide, row))
        for name, node in guide_sites(trace).items():
            if not node["fn"].has_rsample:
                return f"site '{name}' is drawn from a {type(node['fn']).__name__}, without a path for gradients"
        return None

    @runs_isolated
    def model_trace(
        self, theta: Tensor, guide_trace: Trace, row: tuple[Tensor, ...], noise: tuple[Tensor, ...]
    ) -> Trace:
        """One run of the model on the guide's draw, with its log densities."""

        def run(_: nn.Module) -> Trace:
            with Factorising() as factorising:
                trace = poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(*row)
                trace.compute_log_prob()
            return factorising.marked(trace)

        own = noise[self._num_guide_draws :] if self.replayable else ()
        with Replay(own) if own else nullcontext():
            return self.call(theta, run)

    # ---- the particles of the objectives

    @runs_isolated
    def sample(self, theta: Tensor, row: tuple[Tensor, ...], noise: tuple[Tensor, ...]) -> Particle:
        """Pyro's `Trace_ELBO`: each site is reparameterised where it can be, else the score function is used."""
        guide_trace = self.guide_trace(theta, row, noise)
        return _particle(self.model_trace(theta, guide_trace, row, noise), guide_trace)

    @runs_isolated
    def sample_score_function(self, theta: Tensor, row: tuple[Tensor, ...], noise: tuple[Tensor, ...]) -> Particle:
        """The score function is used for all sites (Ranganath et al. 2014, Black box variational inference)."""
        with NoReparameterization():
            return self.sample(theta, row, noise)

    @runs_isolated
    def sample_path_derivative(self, theta: Tensor, row: tuple[Tensor, ...], noise: tuple[Tensor, ...]) -> Particle:
        """log q is differentiated through the draw only (Roeder et al. 2017, Sticking the landing)."""
        guide_trace = self.guide_trace(theta, row, noise)
        particle = _particle(self.model_trace(theta, guide_trace, row, noise), guide_trace)
        latents = {site.name: guide_trace.nodes[site.name]["value"] for site in self.target.latents}
        return particle._replace(entropy=self.log_guide(theta.detach(), row, latents))

    @runs_isolated
    def sample_mean_field(self, theta: Tensor, row: tuple[Tensor, ...], noise: tuple[Tensor, ...]) -> Particle:
        """Pyro's `TraceMeanField_ELBO`: the KL to the prior in closed form, the likelihood by Monte Carlo."""
        guide_trace = self.guide_trace(theta, row, noise)
        model_trace = self.model_trace(theta, guide_trace, row, noise)
        zero = theta.new_zeros(())
        likelihood, divergence = zero, zero
        for name, node in model_trace.nodes.items():
            if node["type"] == "sample" and node["is_observed"]:
                likelihood = likelihood + node["log_prob_sum"]
            elif node["type"] == "sample":
                apart = kl_divergence(guide_trace.nodes[name]["fn"], node["fn"])
                divergence = divergence + scale_and_mask(apart, node["scale"], node["mask"]).sum()
        return Particle(likelihood, divergence, zero, divergence)

    # ---- the density

    @runs_isolated
    def log_guide(self, theta: Tensor, row: tuple[Tensor, ...], latents: Latents) -> Tensor:
        """log q(z) at given latents of one problem, nats.

        Where the guide draws each latent itself, it is conditioned on them. Many of Pyro's autoguides draw auxiliary
        variables instead and map them to the latents. That map, to unconstrained space, is affine for every autoguide
        that `unsupported_density` lets through, so the auxiliary values of given latents follow from the map's value
        and slope at zero.
        """
        if not self._indirect:
            return _log_guide(self._conditioned(theta, row, latents))
        auxiliary = self._auxiliary_of(theta, row, self.target.unconstrain(latents))
        return _log_guide(self._conditioned(theta, row, self._split(auxiliary)))

    @runs_isolated
    def log_density(self, theta: Tensor, row: tuple[Tensor, ...], latents: Latents) -> Tensor:
        """log q(z) as `log_guide`, but -inf outside the guide's own support, where formulas may give anything.

        A latent that was rounded onto the edge of its support is first moved to the next number inside.
        """
        latents = off_edge(self.target.sites_at(latents), latents)
        if self._indirect:
            return self.log_guide(theta, row, latents)
        trace = self._conditioned(theta, row, latents)
        inside = torch.ones((), dtype=torch.bool, device=theta.device)
        for node in guide_sites(trace).values():
            inside = inside & node["fn"].support.check(node["value"]).all()
        return torch.where(inside, _log_guide(trace), -torch.inf)

    def _conditioned(self, theta: Tensor, row: tuple[Tensor, ...], values: Latents) -> Trace:
        """The guide's trace where its sites have given values, which count as drawn."""

        def run(guide: nn.Module) -> Trace:
            return _scored(poutine.condition(guide, data=values), row)

        anchored = Replay((), anchor=(theta * 0).sum()) if self.replayable else nullcontext()
        with anchored, whole_plates():
            trace = self.call(theta, run)
        for name in values:
            trace.nodes[name]["is_observed"] = False
        return trace

    def _split(self, auxiliary: Tensor) -> Latents:
        """Auxiliary values `(n,)` by the names of their sites."""
        sizes = [shape.numel() for shape in self._auxiliary.values()]
        parts = zip(self._auxiliary.items(), auxiliary.split(sizes, -1), strict=True)
        values = {name: part.reshape(shape) for (name, shape), part in parts}
        return values | {name: biject_to(site.support)(values[name]) for name, site in self._drawn_directly.items()}

    @runs_isolated
    def unconstrained_of(self, theta: Tensor, row: tuple[Tensor, ...], auxiliary: Tensor) -> Tensor:
        """The point of unconstrained space to which the guide maps given auxiliary values."""
        trace = self._conditioned(theta, row, self._split(auxiliary))
        return self.target.unconstrain({site.name: trace.nodes[site.name]["value"] for site in self.target.latents})

    def _auxiliary_of(self, theta: Tensor, row: tuple[Tensor, ...], unconstrained: Tensor) -> Tensor:
        """The auxiliary values that an affine guide maps to a given point of unconstrained space."""
        # zero depends on the parameters alone, so that under a `vmap` over points the slope is computed once
        zero = theta.new_zeros(unconstrained.shape[-1:]) + 0 * theta.sum()

        def position(auxiliary: Tensor) -> Tensor:
            return self.unconstrained_of(theta, row, auxiliary)

        slope = jacrev(position)(zero)
        if slope.shape[-1] == 1:
            return (unconstrained - position(zero)) / slope[..., 0]
        # likewise the inverse; what its rounding leaves is taken off by a second product
        inverse, offset = torch.linalg.inv(slope), unconstrained - position(zero)
        auxiliary = inverse @ offset
        return auxiliary + inverse @ (offset - slope @ auxiliary)

    def unsupported_density(self) -> str | None:
        """Says why log q can't be evaluated at given latents, or gives None where it can."""
        if self._beside:
            return f"the guide draws site '{self._beside}' beside the latents, so its density over these is an integral"
        if not self._indirect:
            return None
        num = sum(shape.numel() for shape in self._auxiliary.values())
        if num == 0:
            return "the guide is a point mass: it has no density"
        if num != self.target.dim:
            return f"the guide draws {num} auxiliary numbers for {self.target.dim} latent ones"
        with self.isolated(seed=0):
            point = torch.randn(num, dtype=self.target.dtype, device=self.target.device)
            try:
                image = self.unconstrained_of(self.initial, self.target.row(0), point)
            except (KeyError, NotImplementedError):  # raised by Pyro's transforms for a value that they did not make
                return "the guide has a flow without an inverse, so its density is known at its own draws alone"
            back = self._auxiliary_of(self.initial, self.target.row(0), image)
        if not torch.allclose(back, point, rtol=1e-6, atol=1e-6):
            return "the guide maps its auxiliary variables to the latents by a map that is not affine"
        return None


def _names(target: Target) -> set[str]:
    return {site.name for site in target.latents}


def _is_subsampled(node: Any) -> bool:
    """Whether a node of a trace is a plate that takes a part of its data."""
    return poutine.util.site_is_subsample(node) and node["fn"].subsample_size not in (None, node["fn"].size)


def _scored(guide: Callable[..., Any], row: tuple[Tensor, ...], replay: Replay | None = None) -> Trace:
    """A guide's trace with its log densities, computed at once: a flow's would read the parameters only later.

    Those of normal draws come from the noise that `replay` gives, where it does.
    """
    with Whitening(replay) if replay is not None else nullcontext() as whitening:
        trace = poutine.trace(guide).get_trace(*row)
    if whitening is not None:
        whitening.score(trace)
    trace.compute_score_parts()
    return trace


def _log_guide(trace: Trace) -> Tensor:
    return sum(node["log_prob_sum"] for node in guide_sites(trace).values())


def _particle(model_trace: Trace, guide_trace: Trace) -> Particle:
    log_joint = sum(node["log_prob_sum"] for node in model_trace.nodes.values() if node["type"] == "sample")
    sites = guide_sites(guide_trace).values()
    score = sum(node["score_parts"].score_function.sum() for node in sites if _is_tensor(node, "score_function"))
    entropy = sum(node["score_parts"].entropy_term.sum() for node in sites if _is_tensor(node, "entropy_term"))
    log_guide = sum(node["log_prob_sum"] for node in sites)
    zero = torch.zeros_like(log_joint)
    return Particle(log_joint, log_guide + zero, score + zero, entropy + zero)


def _is_tensor(node: Any, part: str) -> bool:
    return isinstance(getattr(node["score_parts"], part), Tensor)


def analytic_divergence_missing(program: Program) -> str | None:
    """Says which latent has no registered KL from the guide's site to the prior, or gives None where each has one."""
    row = program.target.row(0)
    with program.isolated(seed=0):
        with whole_plates():
            guide_trace = program.call(program.initial, lambda guide: _scored(guide, row))
            model_trace = program.model_trace(program.initial, guide_trace, row, ())
        for site in program.target.latents:
            guide_fn, prior = guide_trace.nodes[site.name]["fn"], model_trace.nodes[site.name]["fn"]
            # Pyro registers a KL from point masses, but it leaves out the density of what is mapped to the point
            if is_delta(guide_fn):
                return f"site '{site.name}' has no KL in closed form: the guide maps auxiliary draws or a point to it"
            try:
                kl_divergence(guide_fn, prior)
            except NotImplementedError:
                names = type(guide_fn).__name__, type(prior).__name__
                return f"site '{site.name}' has no registered KL({names[0]} || {names[1]})"
    return None
