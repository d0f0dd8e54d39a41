"""Asserts for tests of your own guides, with any test runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from ppl_vi.model_comparison import ModelComparison, compare, labelled
from ppl_vi.report.checks import judged, not_passed, without_truth
from ppl_vi.runtime.limits import limits_of
from ppl_vi.svi.setup import TOLERANCE
from ppl_vi.target.target import Target
from ppl_vi.truth import UncertifiedTruthError


def assert_close_to_posterior(
    model: Callable[..., Any] | Target,
    guide: Any,
    args: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    max_reverse_kl: float | None = None,
    max_forward_kl: float | None = None,
    max_family_gap: float | None = None,
    max_start_gap: float | None = None,
    max_optimization_gap: float | None = None,
    min_sd_ratio: float | None = None,
    max_sd_ratio: float | None = None,
    min_coverage: float | None = None,
    max_khat: float | None = None,
    seed: int = 0,
    num_replicas: int = 4,
    num_steps: int = 1000,
    num_particles: int | Literal["auto"] = "auto",
    num_draws: int = 10_000,
    lr: float = 0.2,
    tolerance: float = TOLERANCE,
    objective: str = "trace_elbo",
    engine: str = "auto",
    max_memory: float | str | None = None,
) -> ModelComparison:
    """Asserts that a guide is as near to a model's posterior as the limits say.

    The guide is fitted and measured as by `ppl_vi.compare`, and judged as by `ppl-vi check`. Reverse KL, start gap and
    optimization gap are those of the worst replica, other figures medians over replicas. A value passes or fails beyond
    its own error alone: its numerical error and two standard errors. Within it, or where the truth is uncertified, it
    is undecided, and that is no success. What `ppl_vi.fitted` gives is measured as it is.

    Args:
        model, args, kwargs: the model and its arguments, as `compare` takes them.
        guide: one guide, as `compare` takes them in its list.
        max_reverse_kl: the largest log p(x) - ELBO, nats.
        max_forward_kl: the largest KL(p || q), nats.
        max_family_gap: the largest reverse KL of the family's best member, nats.
        max_start_gap: the most that another start would win, nats.
        max_optimization_gap: the most that more steps would win, nats.
        min_sd_ratio, max_sd_ratio: the smallest and largest ratio of the guide's standard deviation to the posterior's,
            of each latent number.
        min_coverage: the smallest posterior probability of the guide's central 90% interval, of each latent number.
        max_khat: the largest k-hat, which has no stated error.
        seed, num_replicas, num_steps, num_particles, num_draws, lr, tolerance, objective, engine, max_memory: how the
            guide is fitted and scored, see `compare`.

    Returns:
        The comparison, with all that was measured.

    Raises:
        AssertionError: a limit is not kept, or it can't be said whether it is. The message has a line for each: whose
            it is, what came, with its error, and what was asked.
        ValueError, TypeError: there is no limit or a wrong one, or as `compare` says.
    """
    __tracebackhide__ = True  # pytest then shows the line of the test
    limits = limits_of(
        {
            "max_reverse_kl": max_reverse_kl,
            "max_forward_kl": max_forward_kl,
            "max_family_gap": max_family_gap,
            "max_start_gap": max_start_gap,
            "max_optimization_gap": max_optimization_gap,
            "min_sd_ratio": min_sd_ratio,
            "max_sd_ratio": max_sd_ratio,
            "min_coverage": min_coverage,
            "max_khat": max_khat,
        }
    )
    guides = labelled([guide])
    try:
        result = compare(
            model,
            guides,
            args,
            kwargs=kwargs,
            seed=seed,
            num_replicas=num_replicas,
            num_steps=num_steps,
            num_particles=num_particles,
            num_draws=num_draws,
            lr=lr,
            tolerance=tolerance,
            objective=objective,
            engine=engine,
            max_memory=max_memory,
        )
    except UncertifiedTruthError as error:
        lines = without_truth(guides, limits, str(error))
        raise AssertionError("\n".join(map(str, lines))) from error
    if lines := not_passed(judged(result.records(), limits)):
        raise AssertionError("\n".join(map(str, lines)))
    return result
