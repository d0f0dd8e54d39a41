"""The evidence of many problems by an adaptive tree of cells, which becomes fine where a posterior is narrow.

Each cell is integrated by a Gauss-Legendre rule, and so are the 2^D cells of half its width, its children. Where the
children together agree with their parent, they are settled: they become leaves of the tree. Where they do not, they are
halved again in the next generation. Problems that are refined on the same cells form a branch, because a point that is
decoded once serves all of them; a branch is divided where its problems need different cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_vi.truth.decoder.cells import CellIntegrals, Cells, LogJoint, integrate_cells, joined_cells

# A cell whose mass lies more nats than this below the log evidence is not refined: it holds less than 7e-13 of the
# evidence, and a thousand such cells are still far below the stated error.
NEGLIGIBLE_NATS = 28.0
# Nats: the largest spread of the log joint at the nodes of a cell that may be settled. Where the density varies more, a
# rule and its children may agree by accident.
MAX_SPREAD = 25.0
# The cost of a generation, in units of evaluating one problem's log likelihood in one cell once it is decoded:
# decoding the cell's points costs the first, and a generation of any size the second. They only decide how problems are
# grouped, so rough figures will do.
COST_OF_DECODING = 256.0
COST_OF_GENERATION = 1500.0
MAX_COST_RATIO = 0.9  # a branch is divided if its parts together cost less than this times the whole
# The smallest half-width of a cell that may be asked for, relative to 1 + |center|. Smaller cells would be lost to
# rounding; only a jump or a pole of the density asks for them.
MIN_RELATIVE_HALF_WIDTH = 1e-11


@dataclass(frozen=True)
class CellRule:
    """How a tree is grown.

    Attributes:
        order: nodes an axis of the rule in each cell.
        max_width: of the cells at the origin that the tree starts from.
        steepness: how slowly these cells grow outwards, see `graded_cells`.
        tolerance: the largest difference between a cell and its children, relative to the evidence.
        max_cells: the largest number of cells that one problem may need in one generation.
    """

    order: int
    max_width: float
    steepness: float
    tolerance: float
    max_cells: int


@dataclass(frozen=True, eq=False)
class Branch:
    """`P` problems that are refined on the same cells.

    Attributes:
        problems: which, `(P,)`.
        cells: those that are not settled, `C` of them.
        integrals: over these cells.
        needed: which problem needs which of these cells refined, `(P, C)`.
        log_mass: log of the integral over the settled cells, `(P,)`, nats.
        log_error: log of the estimated error of that integral, `(P,)`, nats.
        highest: the largest log likelihood at any node so far, `(P,)`, nats.
        leaves: the settled cells whose mass matters to any of the problems, `L` of them.
        leaf_log_mass: log of the integrals over the leaves, `(P, L)`, nats.
        failed: which problems have a value that is nan, or needed too many or too small cells, `(P,)`.
    """

    problems: Tensor
    cells: Cells
    integrals: CellIntegrals
    needed: Tensor
    log_mass: Tensor
    log_error: Tensor
    highest: Tensor
    leaves: Cells
    leaf_log_mass: Tensor
    failed: Tensor

    @staticmethod
    def begun(problems: Tensor, cells: Cells, integrals: CellIntegrals) -> Branch:
        """The branch of all problems, in which every cell that may hold mass still has to be refined."""
        log_evidence = integrals.log_mass.logsumexp(1)
        bound = integrals.bound(cells)
        negligible = bound < log_evidence[:, None] - NEGLIGIBLE_NATS
        failed = integrals.highest.isnan()
        return Branch(
            problems=problems,
            cells=cells,
            integrals=integrals,
            needed=~negligible & ~failed[:, None],
            log_mass=torch.full_like(log_evidence, -torch.inf),
            log_error=torch.where(negligible, bound, -torch.inf).logsumexp(1),
            highest=integrals.highest,
            leaves=cells[:0],
            leaf_log_mass=integrals.log_mass[:, :0],
            failed=failed,
        )

    def rows(self, index: Tensor) -> Branch:
        """The branch of some of the problems, with the cells that these need; the other cells are settled."""
        needed, integrals = self.needed[index], self.integrals.rows(index)
        open_cells = needed.any(0)
        part = replace(
            self,
            problems=self.problems[index],
            cells=self.cells[open_cells],
            integrals=integrals[open_cells],
            needed=needed[:, open_cells],
            log_mass=self.log_mass[index],
            log_error=self.log_error[index],
            highest=self.highest[index],
            leaf_log_mass=self.leaf_log_mass[index],
            failed=self.failed[index],
        )
        return part.with_settled(self.cells[~open_cells], integrals[~open_cells].log_mass)

    def with_settled(self, cells: Cells, log_mass: Tensor) -> Branch:
        """The branch with more settled cells and the log of the integrals over them, `(P, n)`."""
        total = torch.logaddexp(self.log_mass, log_mass.logsumexp(1))
        log_evidence = torch.logaddexp(total, self.integrals.log_mass.logsumexp(1))
        matters = (log_mass > log_evidence[:, None] - NEGLIGIBLE_NATS).any(0)
        return replace(
            self,
            log_mass=total,
            leaves=joined_cells([self.leaves, cells[matters]]),
            leaf_log_mass=torch.cat([self.leaf_log_mass, log_mass[:, matters]], 1),
        )


def grow(joint: LogJoint, problems: Tensor, cells: Cells, integrals: CellIntegrals, rule: CellRule) -> list[Branch]:
    """Halves cells until those of every problem agree with their children, or hold nothing.

    The children of a cell are settled where together they agree with it to `rule.tolerance` of the evidence and the log
    density varies by less than 25 nats within each, and where the largest mass that they may hold lies 28 nats below
    the evidence. The error is the sum of the differences, and of these largest masses.

    Args:
        joint: of all problems.
        problems: which of them to treat, `(P,)`.
        cells: to start from.
        integrals: of `problems` over `cells`.
        rule: the orders and tolerances.

    Returns:
        Branches all of whose cells are settled; together they hold each of `problems` once.
    """
    everyone = torch.arange(len(problems), device=problems.device)
    waiting, grown = [Branch.begun(problems, cells, integrals).rows(everyone)], []
    while waiting:
        for part in _divided(waiting.pop()):
            if len(part.cells):
                waiting.append(_next_generation(joint.rows(part.problems), part, rule))
            else:
                grown.append(part)
    return grown


@dataclass(frozen=True, eq=False)
class _Comparison:
    """`P` problems' `F` cells compared with their `C` children.

    Attributes:
        log_evidence: with the children in place of their parents, `(P,)`, nats.
        difference: of each cell from its children, relative to the evidence, `(P, F)`.
        accepted: which cells agree with their children, `(P, F)`.
        largest: mass that a child may hold, relative to the evidence, `(P, C)`.
        negligible: which children may hold too little to matter, `(P, C)`.
    """

    log_evidence: Tensor
    difference: Tensor
    accepted: Tensor
    largest: Tensor
    negligible: Tensor

    @staticmethod
    def of(branch: Branch, children: Cells, integrals: CellIntegrals, tolerance: float) -> _Comparison:
        """The comparison of a branch's cells with their children."""
        by_parent = (len(branch.problems), len(branch.cells), -1)
        together = integrals.log_mass.reshape(by_parent).logsumexp(2)
        log_evidence = torch.logaddexp(branch.log_mass, together.logsumexp(1))
        scale = log_evidence[:, None]
        difference = ((together - scale).exp() - (branch.integrals.log_mass - scale).exp()).abs()
        smooth = integrals.spread.reshape(by_parent).amax(2) < MAX_SPREAD
        bound = integrals.bound(children)
        negligible = bound < scale - NEGLIGIBLE_NATS
        return _Comparison(
            log_evidence, difference, (difference < tolerance) & smooth, (bound - scale).exp(), negligible
        )

    @property
    def accepted_children(self) -> Tensor:
        """Which children belong to an accepted cell, `(P, C)`."""
        return self.accepted.repeat_interleave(self.negligible.shape[1] // self.accepted.shape[1], 1)

    def error(self, settled: Tensor) -> Tensor:
        """The error of settling these children `(C,)`, relative to the evidence, `(P,)`.

        Each cell that agrees with its children adds the difference, once; each other child that was settled because it
        is negligible adds the largest mass that it may hold.
        """
        used = self.accepted & settled.reshape(self.accepted.shape[1], -1).any(1)
        left = settled & self.negligible & ~self.accepted_children
        return torch.where(used, self.difference, 0.0).sum(1) + torch.where(left, self.largest, 0.0).sum(1)


def _next_generation(joint: LogJoint, branch: Branch, rule: CellRule) -> Branch:
    """The branch with its cells replaced by their children, which are settled unless some problem needs them halved."""
    cells = branch.cells.children()
    integrals = integrate_cells(joint, cells, rule.order)
    compared = _Comparison.of(branch, cells, integrals, rule.tolerance)
    needed = ~(compared.accepted_children | compared.negligible)
    too_small = cells.half < MIN_RELATIVE_HALF_WIDTH * (1 + cells.center.abs().amax(-1))
    too_much = (needed.sum(1) > rule.max_cells) | (needed & too_small).any(1)
    failed = branch.failed | integrals.highest.isnan() | too_much
    needed &= ~failed[:, None]
    settled = ~needed.any(0)
    error = torch.where(failed, torch.inf, compared.error(settled))
    after = replace(
        branch,
        cells=cells[~settled],
        integrals=integrals[~settled],
        needed=needed[:, ~settled],
        log_error=torch.logaddexp(branch.log_error, error.log() + compared.log_evidence),
        highest=torch.maximum(branch.highest, integrals.highest),
        failed=failed,
    )
    return after.with_settled(cells[settled], integrals[settled].log_mass)


def _divided(branch: Branch) -> list[Branch]:
    """The branch, or parts of it that together are cheaper to refine.

    Problems are split in half along the axis on which the centers of their heaviest cells lie farthest apart, and the
    halves again, as long as this is expected to pay.
    """
    if not len(branch.cells):
        return [branch]
    log_mass = torch.where(branch.needed, branch.integrals.log_mass, -torch.inf)
    heaviest = branch.cells.center[log_mass.argmax(1)]

    def cheapest(rows: Tensor) -> tuple[float, list[Tensor]]:
        """The cost of the next generation for some problems, and the parts to divide them into."""
        num_cells = float(branch.needed[rows].any(0).sum())
        whole = num_cells * (COST_OF_DECODING + len(rows)) + COST_OF_GENERATION
        if len(rows) == 1:
            return whole, [rows]
        where = heaviest[rows]
        order = rows[where[:, (where.amax(0) - where.amin(0)).argmax()].argsort()]
        (low_cost, low), (high_cost, high) = (cheapest(half) for half in order.tensor_split(2))
        halves = low_cost + high_cost
        return (halves, low + high) if halves < MAX_COST_RATIO * whole else (whole, [rows])

    _, parts = cheapest(torch.arange(len(heaviest), device=heaviest.device))
    return [branch.rows(part) for part in parts] if len(parts) > 1 else [branch]
