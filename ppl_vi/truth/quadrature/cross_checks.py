"""Routes to the same integral that owe the tree of bricks nothing, and what they find.

A trapezoid lattice is a second rule. The points of the search must not lie where the density is far above that of
their bricks. Hamiltonian Monte Carlo, which knows the density but no bricks, must visit regions as often as the masses
of their bricks say.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ppl_vi.truth.chains.sampler import HMC, adapt_step_size, chains_at
from ppl_vi.truth.quadrature.bricks import Bricks
from ppl_vi.truth.quadrature.search import SearchResult
from ppl_vi.truth.quadrature.standardized import StandardizedDensity, WeightedNodes
from ppl_vi.truth.quadrature.tree import NEGLIGIBLE_NATS, Tree

# The most that log p(x) by the tree and by the lattice may differ by, in nats.
RULES_TOLERANCE = 1e-8
# The most that the sub-lattices of twice the spacing may differ from the lattice by, in nats. The error of a lattice is
# about the square of theirs, hence about `RULES_TOLERANCE`.
SUBLATTICE_TOLERANCE = 1e-4
# The spacing of a lattice begins at FIRST_SPACING standard deviations, and shrinks by the factor SHRINKAGE until the
# lattice agrees with the tree, or would need more nodes than MAX_LATTICE_NODES by the number of latent numbers.
FIRST_SPACING, SHRINKAGE = 0.5, 0.75
MAX_LATTICE_NODES = {1: 2**16, 2: 2**18, 3: 2**19}
# The shift of a lattice in spacings, sqrt(5) - 2: an irrational number keeps the nodes off planes of symmetry.
LATTICE_SHIFT = 0.2360679775
# Regions are made by halving the bricks three times.
NUM_HALVINGS = 3
NUM_REGIONS = 2**NUM_HALVINGS
# Short chains suffice, because they start from draws of about the posterior and only have to show whether they stay
# there.
NUM_CHAINS, NUM_WARMUP, NUM_TRANSITIONS = 256, 30, 40
FIRST_STEP, TRAJECTORY_TIME, MAX_LEAPFROG_STEPS, ACCEPTANCE = 0.3, math.pi / 2, 16, 0.8
# By these the step size is multiplied in turn. With the step that suits most of a posterior alone, chains hardly ever
# enter or leave a place where it ends as steeply as at a wall, and would deny the mass that lies there.
STEP_SHARES = (1.0, 0.5, 0.25, 0.125)


def lattice_nodes(standardized: StandardizedDensity, tree: Tree) -> WeightedNodes | None:
    """A trapezoid lattice over the box around the leaves that agrees with the tree, or None if none is found.

    The nodes of a lattice form 2^D sub-lattices of twice its spacing, which err by about the square root of its error.

    Source: Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule.
    """
    dim, spacing, leaves = standardized.density.dim, FIRST_SPACING, tree.leaves
    low, high = (leaves.center - leaves.half_width).amin(0), (leaves.center + leaves.half_width).amax(0)
    while float(((high - low) / spacing).prod()) <= MAX_LATTICE_NODES[dim]:
        lines = [torch.arange(math.ceil(float(width) / spacing)) for width in high - low]
        index = torch.cartesian_prod(*lines).reshape(-1, dim)
        shift = LATTICE_SHIFT * torch.arange(1, dim + 1) / dim
        s = low + (index + shift) * spacing
        nodes = WeightedNodes(s, standardized(s) + dim * math.log(spacing))
        sublattice = (index.remainder(2) * 2 ** torch.arange(dim)).sum(1)
        parts = [nodes.log_mass[sublattice == i].logsumexp(0) for i in range(2**dim)]
        away = float((torch.stack(parts) + dim * math.log(2) - nodes.log_total).abs().max())
        if away < SUBLATTICE_TOLERANCE and abs(nodes.log_total - tree.log_mass) < RULES_TOLERANCE:
            return nodes
        spacing *= SHRINKAGE
    return None


def density_above_bricks(standardized: StandardizedDensity, tree: Tree, found: SearchResult) -> float:
    """By how much the log density at any mode or scanned point exceeds the mean one of its brick, nats.

    A point outside of all leaves is compared with the mean density of a unit cube of negligible mass.
    """
    s = standardized.inverse(torch.cat([found.modes.u, found.scanned]))
    value = standardized(s)
    high = value > tree.log_mass - NEGLIGIBLE_NATS
    leaf = tree.leaves.holding(s[high])
    outside = torch.tensor([tree.log_mass - NEGLIGIBLE_NATS])
    mean = torch.cat([tree.leaves.log_mass - tree.leaves.log_volume, outside])  # the index -1 is that of `outside`
    return float((value[high] - mean[leaf]).max())


def largest_region_deviation(standardized: StandardizedDensity, sample: Tensor, tree: Tree, seed: int) -> float:
    """The largest difference between a region's mass by chains and by the tree, in standard errors.

    There are eight regions of about equal mass, sets of bricks, and a ninth: all that lies in no leaf. Each chain's
    share of transitions that end in a region is one observation of its mass. The standard error is that of the mean
    over chains, but at least what independent draws would have: where hardly a chain was, their spread says little.

    Args:
        standardized: the density.
        sample: draws of about the posterior from which the chains start, `(S, D)`.
        tree: whose masses are checked.
        seed: of the chains.
    """
    region = torch.cat([_regions(tree.leaves), torch.tensor([NUM_REGIONS])])  # the last entry is for leaf -1, no leaf
    leaf_mass = (tree.leaves.log_mass - tree.log_mass).exp()
    mass = leaf_mass.new_zeros(NUM_REGIONS + 1).index_add(0, region[:-1], leaf_mass)
    visited = _visited(standardized, sample, seed)
    where = region[tree.leaves.holding(standardized.inverse(visited))].reshape(NUM_TRANSITIONS, NUM_CHAINS)
    share = torch.nn.functional.one_hot(where, NUM_REGIONS + 1).to(mass).mean(0)
    independent = (mass * (1 - mass)).clamp(min=1e-10).sqrt() / math.sqrt(NUM_TRANSITIONS)
    std_error = torch.maximum(share.std(0), independent) / math.sqrt(NUM_CHAINS)
    return float(((share.mean(0) - mass).abs() / std_error).max())


def _visited(standardized: StandardizedDensity, sample: Tensor, seed: int) -> Tensor:
    """Where the chains are after each transition, `(NUM_TRANSITIONS * NUM_CHAINS, D)`, transition by transition."""
    density = standardized.density
    generator = torch.Generator(sample.device).manual_seed(seed)
    state = chains_at(density, sample[torch.randperm(len(sample), generator=generator)[:NUM_CHAINS]])
    hmc = HMC(torch.tensor(FIRST_STEP), TRAJECTORY_TIME, standardized.factor, max_leapfrog=MAX_LEAPFROG_STEPS)
    states, hmc = adapt_step_size(density, state, hmc, NUM_WARMUP, ACCEPTANCE, generator)
    kernels = [replace(hmc, step_size=share * hmc.step_size) for share in STEP_SHARES]
    state, visited = states[-1], []
    for i in range(NUM_TRANSITIONS):
        state = kernels[i % len(kernels)].transition(density, state, generator).state
        visited.append(state.u)
    return torch.cat(visited)


def _regions(leaves: Bricks) -> Tensor:
    """Which region each brick belongs to, `(C,)`: the bricks are halved by mass along one axis after the other."""
    region = torch.zeros(len(leaves), dtype=torch.int64)
    for depth in range(NUM_HALVINGS):
        whole = region.clone()
        for one in whole.unique():
            rows = (whole == one).nonzero()[:, 0]
            rows = rows[leaves.center[rows, depth % leaves.center.shape[1]].argsort()]
            share = (leaves.log_mass[rows] - leaves.log_mass[rows].logsumexp(0)).exp().cumsum(0)
            region[rows] = 2 * one + (share > 0.5)
    return region
