"""A comparison in the form that ArviZ reads: xarray's `DataTree`, with one child for each fitted guide.

See `ModelComparison.to_datatree` for the groups of each child. Chains are the replicas of a fit; the truth, which has
none, gets as many chains of independent draws.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from ppl_vi.comparison.comparison import Comparison, Entry
from ppl_vi.metrics.draws.scorecard import DrawsScorecard
from ppl_vi.runtime.provenance import versions
from ppl_vi.target.trees import posterior_tree

if TYPE_CHECKING:
    from xarray import DataTree

TRUTH = "truth"  # the child that holds draws of the truth, with "_" appended where a guide has that name


def of_comparison(comparison: Comparison, num_draws: int, seed: int) -> DataTree:
    """The fitted guides of a comparison, and its truth where the truth has points to draw from."""
    from xarray import DataTree  # importing it takes a second

    children: dict[str, DataTree] = {}
    for entry in comparison.entries:
        if entry.card is not None or entry.measured is not None:  # a slash would be a group in a group
            children[_free(entry.guide.replace("/", "_"), children)] = of_entry(entry, num_draws, seed)
    truth = comparison.truth
    if truth.points:
        # as many chains as replicas of a fit, so that ArviZ can draw them beside each other
        tree = truth.to_datatree(num_draws, seed, num_chains=comparison.settings.num_replicas)
        children[_free(TRUTH, children)] = tree
    root = DataTree(children=children)
    root.attrs.update(_attrs(comparison))
    return root


def of_entry(entry: Entry, num_draws: int, seed: int) -> DataTree:
    """The tree of one guide's fit for the first problem, with its label, status and reverse KL among the attributes."""
    if entry.card is not None:
        tree = entry.card.fit.to_datatree(num_draws, seed)
    else:
        assert entry.measured is not None
        tree = of_draws(entry.measured)
    record = entry.records[0]
    more = {"guide": record["guide"], "status": record["status"], "reverse_kl": str(record["reverse_kl"])}
    for node in (tree, tree["posterior"]):
        node.attrs.update(more)
    return tree


def of_draws(card: DrawsScorecard) -> DataTree:
    """Draws from elsewhere as they were measured, with log q where known, and the worst scores beside their noise."""
    draws, target = card.approximation, card.truth.target
    latents = {name: torch.from_numpy(value) for name, value in draws.draws.items()}
    tree = posterior_tree(target, latents, {} if draws.log_q is None else {"sample_stats": {"log_q": draws.log_q}})
    for node in (tree, tree["posterior"]):
        node.attrs.update({"model": target.name, "inference_library": draws.system})
        for name, noise in card.noise.items():
            node.attrs.update({name: float(card.scores[name].value[0, 0]), f"{name}_noise": noise})
    return tree


def _free(name: str, taken: dict[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name


def _attrs(comparison: Comparison) -> dict[str, Any]:
    """The settings, the truth, the versions and the records: what is needed to cite or repeat the run."""
    settings = {name: value for name, value in vars(comparison.settings).items() if value is not None}
    return {
        "model": comparison.target.name,
        **settings,
        **comparison.truth.attributes(),
        "versions": json.dumps(versions()),
        "records": json.dumps(comparison.records(), allow_nan=False),
    }
