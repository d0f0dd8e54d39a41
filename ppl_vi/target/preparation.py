"""What `Target.of` does to a user's model before it is the model of a target.

The model's distributions get the target's dtype, densities end where their supports do, discrete latents are summed
out, and the model keeps its arguments. A model that writes into tensors of its own is made fit for `torch.func.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.trace_struct import Trace

from ppl_vi.numerics.vmapping import draws_outside_sites
from ppl_vi.target.arguments import BoundModel
from ppl_vi.target.enumeration import summed_out
from ppl_vi.target.idle_draws import IdleDrawsModel
from ppl_vi.target.inplace import InPlaceModel, writes_in_place
from ppl_vi.target.inspection import SEEDS, model_errors_explained, refuse_learned_supports, run_model
from ppl_vi.target.isolation import isolated
from ppl_vi.target.missing import filled_model, without_missing
from ppl_vi.target.mistakes import possible_mistakes, refuse_changed_since, refuse_changing
from ppl_vi.target.precision import ConvertedModel, DtypeConversion, refuse_densities_of_another
from ppl_vi.target.statements import StatedFunction, first_run
from ppl_vi.target.truncation import truncated_model


def prepared_model(model: Callable[..., Any], given: tuple[Any, ...], name: str, dtype: torch.dtype) -> BoundModel:
    """A model of continuous latents that keeps its arguments, whose numbers are all in one dtype.

    Args:
        model: a Pyro model.
        given: its positional arguments, floating-point ones in `dtype`.
        name: the target's, for messages.
        dtype: of the target.

    Raises:
        ValueError: the model raises, is another function at each call, or has a discrete latent that can't be summed
            out.
    """
    with DtypeConversion(dtype) as conversion:
        trace = run_model(model, given, dtype, name)
        with model_errors_explained(name, dtype):
            refuse_changing(model, trace, given, dtype)
    if conversion.changed:
        model = ConvertedModel(model, dtype)
        with isolated(dtype, seed=0), model_errors_explained(name, dtype):
            refuse_densities_of_another(poutine.trace(model).get_trace(*given), dtype)
    with isolated(dtype, seed=1):  # another seed than that of the trace
        model = without_missing(filled_model(model, trace), trace, given)
    with isolated(dtype, seed=0):
        model = truncated_model(model, trace, run_model(model, given, dtype, name, seed=SEEDS[1]))
        return BoundModel(summed_out(model, trace, given, name), given)


def remarks_on(model: Callable[..., Any], given: tuple[Any, ...], name: str, dtype: torch.dtype) -> tuple[str, ...]:
    """What may be a mistake in a model, see `possible_mistakes`; the arguments are those of `prepared_model`.

    Raises:
        ValueError: it is a mistake for sure.
    """
    with model_errors_explained(name, dtype), DtypeConversion(dtype):
        return possible_mistakes(model, given, dtype)


def refuse_other_first_call(
    model: Callable[..., Any], trace: Trace, given: tuple[Any, ...], name: str, dtype: torch.dtype
) -> None:
    """Refuses a model that was another function when it was called for the first time.

    Args:
        model, given, name, dtype: as `prepared_model` takes them.
        trace: of the first call, by `stated_function`.

    Raises:
        ValueError: its log density at the values of the first call is another one now.
    """
    with model_errors_explained(name, dtype), DtypeConversion(dtype):
        refuse_changed_since(model, trace, given, dtype)


def stated_function(
    model: Callable[..., Any], given: tuple[Any, ...], name: str, dtype: torch.dtype
) -> tuple[StatedFunction | None, Trace]:
    """A model that states parameters to be learned, as a module that holds them; None where it states none.

    Args:
        model, given, name, dtype: as `prepared_model` takes them.

    Returns:
        The module or None, and the trace of the run that has shown it, which is the first call of the model.

    Raises:
        ValueError: the model raises, or a support moves with its parameters.
    """
    with isolated(dtype, seed=0), model_errors_explained(name, dtype), torch.enable_grad(), DtypeConversion(dtype):
        trace, stating = first_run(model, given, dtype)
        stated = [node["value"] for node in trace.nodes.values() if node["type"] == "param"]
        if not any(value.requires_grad for value in stated):
            return None, trace
        function = StatedFunction(model, dtype, trace, stating)
    refuse_learned_supports(trace, name)
    return function, trace


def vectorised_model(model: BoundModel, error: RuntimeError | None) -> BoundModel:
    """The model, changed where that makes `torch.func.vmap` take its log density.

    Args:
        model: a prepared model.
        error: what `vmap` says of its log density, or None where it takes it; see `Target.many_at_once`.

    Returns:
        A model that may draw numbers that change nothing, or write into its own tensors, under `vmap`, if that is what
        the error is about; else the same one, which is then run point by point.
    """
    if error is not None and draws_outside_sites(error):  # that they change nothing is known by now
        return BoundModel(IdleDrawsModel(model.function), model.given)
    if error is not None and writes_in_place(error):
        return BoundModel(InPlaceModel(model.function), model.given)
    return model
