"""The target: a Pyro model with its data, as one inference problem or as a batch of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.func import vmap

from ppl_vi.numerics.laplace import Laplace, Slopes, centred_on_mass, laplace_approximation
from ppl_vi.numerics.vmapping import vmap_or_loop
from ppl_vi.runtime.pickling import PickledAsOne
from ppl_vi.target.arguments import (
    BoundModel,
    checked_arguments,
    converted_arguments,
    positional,
    private_copy,
    tensors_of,
    to_device,
)
from ppl_vi.target.conditional import Conditional
from ppl_vi.target.decoder import Decoded
from ppl_vi.target.factorising import Factorising, factorising_trace
from ppl_vi.target.inspection import Largest, largest_tensors, latent_sites
from ppl_vi.target.isolation import isolated, one_at_a_time, runs_isolated, whole_plates
from ppl_vi.target.learned import Learnable, Learned
from ppl_vi.target.precision import ConvertedModel
from ppl_vi.target.preparation import (
    prepared_model,
    refuse_other_first_call,
    remarks_on,
    stated_function,
    vectorised_model,
)
from ppl_vi.target.sites import Constrained, Latents, constrain, inside, point_by_point, unconstrain
from ppl_vi.target.slopes import slopes_on_much_data
from ppl_vi.target.start import feasible_points
from ppl_vi.target.supports import LatentSite, MovingSupport

MODE_TOLERANCE = 1e-10  # nats by which the log density at a mode may fall short of the highest value nearby
# The search for a mode evaluates at most MANY_POINTS points of a problem at once, and fewer where their temporaries
# would have more numbers than MAX_POINT_NUMBERS each, 32 MiB in double precision. So does `Target.log_joint`.
MANY_POINTS, MAX_POINT_NUMBERS = 64, 2**22


@dataclass(frozen=True, eq=False)
class Target(PickledAsOne):
    """A Pyro model with its data: `B` inference problems that share the model, one for each row of its arguments.

    The model is called with one row, that is with one entry along the leading axis of each argument. So
    `Target(model, (data,))` with 12 data points poses 12 problems of one point each. Which constructor to use:

    - `Target.of(model, args)` poses one problem of all the data; the model is called with `args` as they are.
    - `Target.batch(model, args)` poses many problems, one for each row of `args`.
    - `Target(model, args)` is the same as `Target.batch`; with a single row it poses one problem.

    Attributes:
        model: a Pyro model, called with one row of `args`.
        args: tensors with the problems along the leading axis, `(B, ...)`.
        closed_form: a function from `args` to the log evidence of each problem, `(B,)`, where it is known. The truth is
            checked against it.
        name: the name that tables and messages show.
        dtype: the dtype of every computation with this target.
        decoded: the decoder of a model that decodes a standard normal latent, as a VAE does; None for other models.
        conditional: how all other latents are drawn exactly given a few of them; None where this is not known.
        remarks: what may be a mistake in the model, found by `Target.of`, in a line each; tables show them.
    """

    model: Callable[..., Any]
    args: tuple[Tensor, ...]
    closed_form: Callable[..., Tensor] | None = None
    name: str = "target"
    dtype: torch.dtype = torch.float64
    decoded: Decoded | None = None
    conditional: Conditional | None = None
    remarks: tuple[str, ...] = ()

    local: ClassVar[tuple[str, ...]] = ("slopes",)

    def __post_init__(self) -> None:
        rows = {len(arg) if arg.dim() else 0 for arg in self.args}
        if len(rows) != 1 or 0 in rows:
            shapes, wanted = [tuple(arg.shape) for arg in self.args], "one row a problem (at least one)"
            raise ValueError(f"args must be tensors that share a leading axis, {wanted}; got shapes {shapes}")
        cast = tuple(arg.to(self.dtype) if arg.is_floating_point() else arg for arg in self.args)
        object.__setattr__(self, "args", cast)

    def __repr__(self) -> str:
        return f"Target {self.name!r}: {_problems(self)}"

    @classmethod
    def batch(
        cls,
        model: Callable[..., Any],
        args: tuple[Tensor, ...],
        closed_form: Callable[..., Tensor] | None = None,
        name: str = "target",
        dtype: torch.dtype = torch.float64,
        decoded: Decoded | None = None,
        conditional: Conditional | None = None,
        remarks: tuple[str, ...] = (),
    ) -> Target:
        """Many problems, one for each row of `args`, exactly as the constructor makes them.

        Where all the data belong to one problem, use `Target.of`.
        """
        return cls(model, args, closed_form, name, dtype, decoded, conditional, remarks)

    @staticmethod
    @one_at_a_time()
    def of(
        model: Callable[..., Any],
        args: Any = (),
        *,
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Target:
        """One problem of all the data: the model is called with `args` as they are, not with one row after another.

        Discrete latents are summed out. Plates take all of their data, in guides and in the steps of SVI as well. What
        the model states by `pyro.param` or `pyro.module` is learned by `ppl_vi.fit`. The model keeps its arguments, so
        that it may branch on its data, index by them and take arguments that are no tensors; the target's own `args`
        are then one row of zeros that the model does not read. A model that is a module is copied, in the target's
        dtype.

        Args:
            model: a Pyro model.
            args: its positional arguments, a tuple, or one tensor, array or table. Arrays become tensors, and
                floating-point ones get the target's dtype. Their numbers stay as they are: `torch.tensor([0.1])`, in
                single precision, holds 0.100000001 and keeps it.
            kwargs: its keyword arguments, likewise. A guide that is a function or a module gets the same arguments.
            name: the name that tables show; by default that of the model's function or class.
            dtype: the dtype of every computation.

        Raises:
            TypeError: the model can't be called, args is no tuple, or kwargs is no dict.
            ValueError: the model can't be used, see `latents`.
        """
        if not callable(model):
            raise TypeError(f"model must be a Pyro model, something callable; got {type(model).__name__}")
        args, named = checked_arguments(args, kwargs)
        name, keywords = name or str(getattr(model, "__name__", type(model).__name__)), tuple(named)
        model = positional(private_copy(model, dtype), keywords)
        given = converted_arguments((*args, *named.values()), dtype)
        device = next((tensor.device for tensor in tensors_of(given)), torch.device("cpu"))
        with whole_plates():
            stated, first = stated_function(model, given, name, dtype)
            bound = prepared_model(frozen := stated.frozen() if stated else model, given, name, dtype)
            refuse_other_first_call(frozen, first, given, name, dtype)
            row = (torch.zeros(1, dtype=dtype, device=device),)
            target = Target(bound, row, name=name, dtype=dtype, remarks=remarks_on(frozen, given, name, dtype))
            _ = target.latents  # looking for the sites raises here what is wrong with the model
            vectorised = vectorised_model(bound, error := target.many_at_once())
            if keywords or vectorised is not bound:
                target = replace(target, model=(vectorised := replace(vectorised, keywords=keywords)))
            if stated is None:
                return target
            learnable = vectorised_model(prepared_model(stated, given, name, dtype), error)
            return replace(target, model=replace(vectorised, learnable=Learnable(stated, learnable)))

    @contextmanager
    def isolated(self, seed: int | None = None) -> Iterator[None]:
        """The gate through which this target's model is run, see `ppl_vi.target.isolation.isolated`.

        Where the target poses one problem of all the data, plates take all of them inside, in the model and in guides.

        Every method that runs the model enters it. It is for whoever runs a model or guide by other means, and for
        many calls in a row, of which only the first then has to save the caller's settings.
        """
        with isolated(self.dtype, seed), whole_plates() if isinstance(self.model, BoundModel) else nullcontext():
            yield

    def many_at_once(self) -> RuntimeError | None:
        """The error with which `vmap` refuses to compute the log density at many points, or None where it does not."""
        try:
            with self.isolated(seed=0):
                vmap(lambda u: self.log_density_of_row(u, *self.row(0)))(drawn_point(self)[None])
        except RuntimeError as error:
            return error
        return None

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A hand-written guide in the target's dtype, called with a `row` and given what the model keeps."""
        if not isinstance(self.model, BoundModel):
            return ConvertedModel(function, self.dtype)
        return BoundModel(ConvertedModel(positional(function, self.model.keywords), self.dtype), self.model.given)

    @property
    def data(self) -> tuple[Tensor, ...]:
        """All tensors that the model is called with, including those that it keeps."""
        return (*self.args, *(tensors_of(self.model.given) if isinstance(self.model, BoundModel) else ()))

    @property
    def learnable(self) -> Learnable | None:
        """The model's own parameters while they are to be learned; densities are those with their initial values."""
        return self.model.learnable if isinstance(self.model, BoundModel) else None

    @property
    def learned(self) -> Learned | None:
        """What was learned of the model's own parameters, whose values the model has."""
        return self.model.learned if isinstance(self.model, BoundModel) else None

    @property
    def num_problems(self) -> int:
        """The number of problems, `B`."""
        return len(self.args[0])

    @property
    def device(self) -> torch.device:
        """Where the data lie."""
        return self.args[0].device

    def row(self, problem: int) -> tuple[Tensor, ...]:
        """The model's arguments for one problem."""
        return tuple(arg[problem] for arg in self.args)

    def to(self, device: torch.device | str) -> Target:
        """The same target with its data moved to `device`."""
        model = self.model
        model = replace(model, given=to_device(model.given, device)) if isinstance(model, BoundModel) else model
        return replace(self, model=model, args=tuple(arg.to(device) for arg in self.args))

    def rows(self, index: Tensor) -> Target:
        """The target of some of the problems."""
        return replace(self, args=tuple(arg[index] for arg in self.args))

    @cached_property
    def latents(self) -> tuple[LatentSite, ...]:
        """The latent sites, found by running the model.

        Raises:
            ValueError: the model can't be used; the message says why, see `ppl_vi.target.inspection.latent_sites`.
        """
        first = self.row(0)
        last = self.row(self.num_problems - 1) if self.num_problems > 1 else first
        with whole_plates():
            return latent_sites(self.model, first, last, self.dtype, self.name)

    @cached_property
    def parts(self) -> dict[str, int]:
        """For each plate that takes a subsample of its data, by name, how many of the data it takes."""
        with self.isolated(seed=0):
            trace = poutine.trace(self.model).get_trace(*self.row(0))
        frames = [frame for node in trace.nodes.values() for frame in node.get("cond_indep_stack", ())]
        return {frame.name: frame.size for frame in frames if frame.size < (frame.full_size or 0)}

    @property
    def dim(self) -> int:
        """`D`, the number of unconstrained coordinates of one problem."""
        return sum(site.unconstrained_shape.numel() for site in self.latents)

    @property
    def width(self) -> int:
        """How many numbers the largest tensor has that is computed for the log density at one point."""
        return self.largest.numbers

    @cached_property
    def largest(self) -> Largest:
        """The sizes of the largest tensors that are computed for the log density at one point."""
        with self.isolated(seed=0):
            return largest_tensors(lambda: self.log_density_of_row(drawn_point(self), *self.row(0)))

    @cached_property
    def moving(self) -> tuple[str, ...]:
        """The sites whose supports move with latents that the model draws before them."""
        return tuple(site.name for site in self.latents if isinstance(site.support, MovingSupport))

    def constrain(self, unconstrained: Tensor) -> tuple[Latents, Tensor]:
        """Maps `(..., D)` to the latents and the log absolute determinant of the Jacobian, `(...)`.

        The numbers of the sites follow one another in the order of `latents`. Each site is mapped by `biject_to` of its
        support; where the support moves, it is the support that the site has given the sites before it.
        """
        if not self.moving:
            return constrain(self.latents, unconstrained)
        batch = unconstrained.shape[:-1]

        def of_one(u: Tensor) -> tuple[Latents, Tensor]:
            with self.isolated(), poutine.block(), whole_plates(), Constrained(self.latents, u) as constrained:
                self.model(*self.row(0))
            return constrained.values, constrained.log_jacobian

        values, log_jacobian = (
            vmap_or_loop(of_one)(unconstrained.reshape(-1, self.dim)) if batch else of_one(unconstrained)
        )
        shaped = {site.name: values[site.name].reshape(batch + site.shape) for site in self.latents}
        return shaped, log_jacobian.reshape(batch)

    def unconstrain(self, latents: Latents) -> Tensor:
        """The inverse of `constrain`: latents of shape `(..., *site.shape)` to `(..., D)`."""
        if not self.moving:
            return unconstrain(self.latents, latents)
        return point_by_point(lambda one: unconstrain(self.sites_at(one), one), self.latents, latents)

    def inside(self, latents: Latents) -> Tensor:
        """Whether latents of shape `(..., *site.shape)` are finite and in their supports, `(...)`."""
        if not self.moving:
            return inside(self.latents, latents)
        return point_by_point(lambda one: inside(self.sites_at(one), one), self.latents, latents)

    def sites_at(self, latents: Latents) -> tuple[LatentSite, ...]:
        """The latent sites with the supports that they have at one point, `(*site.shape)` a site."""
        if not self.moving:
            return self.latents
        with self.isolated(), poutine.block(), whole_plates():
            trace = poutine.trace(poutine.condition(self.model, data=latents)).get_trace(*self.row(0))
        return tuple(replace(site, support=trace.nodes[site.name]["fn"].support) for site in self.latents)

    @runs_isolated
    def log_joint_of_row(self, latents: Latents, *row: Tensor) -> Tensor:
        """log p(x, z) of one problem at one point, nats: a pure function of tensors, for `torch.func`.

        Plates that take a subsample of their data take all of it here. Where a matrix can't be factorised, it is -inf.
        """
        with poutine.block(), whole_plates():
            return factorising_trace(poutine.condition(self.model, data=latents), row).log_prob_sum()

    @runs_isolated
    def log_density_of_row(self, unconstrained: Tensor, *row: Tensor) -> Tensor:
        """log p(x, z(u)) + `log |dz/du|` of one problem at one unconstrained point `(D,)`."""
        latents, log_jacobian = self.constrain(unconstrained)
        return self.log_joint_of_row(latents, *row) + log_jacobian

    @runs_isolated
    def log_joint(self, latents: Latents, index: Tensor | None = None) -> Tensor:
        """log p(x, z), nats.

        Args:
            latents: for each site `(B, S, *site.shape)`.
            index: which problem each leading row belongs to, `(B,)`; all of them in order by default.

        Returns:
            `(B, S)`.
        """
        rows = self.args if index is None else tuple(arg[index] for arg in self.args)
        num_points = next(iter(latents.values())).shape[1]
        chunk = max(1, MAX_POINT_NUMBERS // self.width) if num_points * self.width > MAX_POINT_NUMBERS else None
        over_points = vmap_or_loop(self.log_joint_of_row, in_dims=(0,) + (None,) * len(rows), chunk_size=chunk)
        return vmap_or_loop(over_points)(latents, *rows)

    @cached_property
    def laplace(self) -> Laplace:
        """Mode and curvature in unconstrained space, by Newton's method on all problems at once.

        Quadratures take their scales from its curvature. The mode need not be the highest one.

        Raises:
            ValueError: no point was found where the posterior has a density.
        """
        with self.isolated(seed=0):
            return laplace_approximation(*_search(self))

    @cached_property
    def start(self) -> Laplace:
        """The Gaussian at which fits begin: `laplace`, or one around the mass where the mode is far from it."""
        with self.isolated(seed=0):
            return centred_on_mass(self.laplace, *_search(self))

    @cached_property
    def slopes(self) -> Slopes | None:
        """Values and gradients of the log density by machine code, see `Slopes`; None where the data are not much."""
        return slopes_on_much_data(self, self._feasible)

    @cached_property
    def _feasible(self) -> Tensor:
        """Points `(B, D)` where the log density is finite, see `feasible_points`."""
        return feasible_points(lambda: drawn_point(self)[None], self.log_density_of_row, self.args, self.name)


def drawn_point(target: Target) -> Tensor:
    """The latents of one run of the model on the first problem, in unconstrained space, `(D,)`."""
    with whole_plates(), Factorising():
        nodes = poutine.trace(target.model).get_trace(*target.row(0)).nodes
    latents = {site.name: nodes[site.name]["value"].detach() for site in target.latents}
    return target.unconstrain(latents).to(target.dtype)


def _problems(target: Target) -> str:
    """A line that says how many problems a target poses, and of how many latent numbers each is."""
    num = target.num_problems
    try:
        with poutine.block():  # where a model is being run meanwhile, its handlers must not see this run's sites
            size = f"{target.dim} latent number{'' if target.dim == 1 else 's'}"
    except Exception as error:  # a target must be printable; `Target.latents` raises this error in full
        size = f"a model whose latents are not found ({type(error).__name__})"
    return f"1 problem of {size}" if num == 1 else f"{num} problems of {size}: one for each row of its arguments"


def _search(
    target: Target,
) -> tuple[Callable[..., Tensor], Tensor, tuple[Tensor, ...], float, int | None, Slopes | None]:
    """What a search for a mode takes: density, start, data, tolerance, most points at once (None is all), slopes."""
    start, width = target._feasible, target.width
    chunk = max(1, MAX_POINT_NUMBERS // width) if width * MANY_POINTS > MAX_POINT_NUMBERS else None
    return target.log_density_of_row, start, target.args, MODE_TOLERANCE, chunk, target.slopes
