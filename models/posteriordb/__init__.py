"""posteriordb's posteriors in Pyro, one file a model family. Data and reference draws are read from the user's clone.

`POSTERIORS` has every posterior that is ported, by posteriordb's own name, and `posterior` makes one:

    from models.posteriordb import posterior
    from models.posteriordb.loading import PosteriorDatabase

    port = posterior(PosteriorDatabase.at("path/of/the/clone"), "eight_schools-eight_schools_centered")
    truth = ppl_vi.ground_truth(port.target("eight schools"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from models.posteriordb import (
    diamonds,
    differential_equations,
    eight_schools,
    gaussian_process,
    hidden_markov,
    hierarchies,
    linear,
    logistic,
    mixtures,
    radon,
    rates,
    time_series,
)
from models.posteriordb.loading import PosteriorDatabase, PosteriorDatabaseError
from models.posteriordb.posterior import Posterior

# By posteriordb's name, the functions that make a posterior from posteriordb's data.
POSTERIORS: dict[str, Callable[[Mapping[str, Any]], Posterior]] = {
    **linear.POSTERIORS,
    **logistic.POSTERIORS,
    **rates.POSTERIORS,
    **eight_schools.POSTERIORS,
    **hierarchies.POSTERIORS,
    **radon.POSTERIORS,
    **mixtures.POSTERIORS,
    **hidden_markov.POSTERIORS,
    **time_series.POSTERIORS,
    **gaussian_process.POSTERIORS,
    **differential_equations.POSTERIORS,
    **diamonds.POSTERIORS,
}


def not_ported(name: str) -> str:
    """What to say where no posterior of a name is ported: the names that are most like it."""
    like = get_close_matches(name, POSTERIORS, n=3, cutoff=0.0)
    return f"of posteriordb's posteriors '{name}' is not ported; {len(POSTERIORS)} are, such as {', '.join(like)}"


def posterior(database: PosteriorDatabase, name: str) -> Posterior:
    """The port of one of posteriordb's posteriors, with the data of a clone.

    Raises:
        PosteriorDatabaseError: no posterior of this name is ported, or the clone lacks its data or has others.
    """
    if name not in POSTERIORS:
        raise PosteriorDatabaseError(not_ported(name))
    data = database.data(name)
    try:
        return POSTERIORS[name](data)
    except KeyError as error:
        raise PosteriorDatabaseError(f"the data of '{name}' lack {error}; is the clone complete?") from error


__all__ = ["POSTERIORS", "Posterior", "PosteriorDatabase", "PosteriorDatabaseError", "not_ported", "posterior"]
