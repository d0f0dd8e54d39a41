"""The evidence of many problems by an adaptive tree of cells: it goes where the posterior is narrow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vi.truth.decoder.cells import Cells, Joint, Seen, joined, look

NEGLIGIBLE = 28.0  # nats below the evidence: 7e-13 of it
SMOOTH = 25.0  # nats: a cell within which the density varies more is not accepted, whatever its rules agree on
DECODING = 256.0  # what decoding a point costs, in evaluations of one problem there
OVERHEAD = 1500.0  # what a generation costs however small it is, in evaluations of one problem in one cell
WORTHWHILE = 0.9  # of its costs that a branch must expect to keep at most before it is divided
SMALLEST = 1e-11  # half-width of a cell, relative to 1 + |center|, at which halving ends


@dataclass(frozen=True)
class CellRule:
    """How a tree is grown.

    Attributes:
        order: nodes an axis of the rule in a cell.
        widest: of the cells at the origin that it starts from.
        steepness: of these cells' growth outwards, see `graded`.
        tolerance: what a cell and its halves must agree to, relative to the evidence.
        limit: cells that one problem may ask for in one generation.
    """

    order: int
    widest: float
    steepness: float
    tolerance: float
    limit: int


@dataclass(frozen=True, eq=False)
class Branch:
    """Problems that are refined on the same cells.

    Attributes:
        problems: `(P,)`.
        cells: not yet settled, `C` of them.
        seen: in these.
        needed: which problem asks for which of them, `(P, C)`.
        log_mass: of what is settled, `(P,)`, nats.
        log_error: of a bound on the error of that mass, `(P,)`.
        highest: log likelihood seen, `(P,)`.
        leaves: settled cells that matter to any problem.
        leaf_mass: log of the integrals over them, `(P, L)`.
        lost: problems with a value that is nan, or that asked for too many cells, `(P,)`.
    """

    problems: Tensor
    cells: Cells
    seen: Seen
    needed: Tensor
    log_mass: Tensor
    log_error: Tensor
    highest: Tensor
    leaves: Cells
    leaf_mass: Tensor
    lost: Tensor

    def rows(self, index: Tensor) -> Branch:
        """The branch of some of its problems, with the cells that these need; the other cells become leaves."""
        needed = self.needed[index]
        go = needed.any(0)
        part = Branch(
            self.problems[index],
            self.cells[go],
            self.seen.rows(index)[go],
            needed[:, go],
            self.log_mass[index],
            self.log_error[index],
            self.highest[index],
            self.leaves,
            self.leaf_mass[index],
            self.lost[index],
        )
        return part._with_leaves(self.cells[~go], self.seen.rows(index)[~go].log_mass)

    def _with_leaves(self, cells: Cells, log_mass: Tensor) -> Branch:
        """More settled cells: what they hold is added, and they are kept where that matters."""
        total = torch.logaddexp(self.log_mass, log_mass.logsumexp(1))
        everything = torch.logaddexp(total, self.seen.log_mass.logsumexp(1))
        matters = (log_mass > everything[:, None] - NEGLIGIBLE).any(0)
        leaves = joined([self.leaves, cells[matters]])
        leaf_mass = torch.cat([self.leaf_mass, log_mass[:, matters]], 1)
        return Branch(
            self.problems,
            self.cells,
            self.seen,
            self.needed,
            total,
            self.log_error,
            self.highest,
            leaves,
            leaf_mass,
            self.lost,
        )


def grow(joint: Joint, problems: Tensor, cells: Cells, seen: Seen, rule: CellRule) -> list[Branch]:
    """Halves cells until those of every problem agree with their halves, or hold nothing.

    A cell is dropped, its integral kept, where the most it may hold lies 28 nats below the evidence so far. The halves
    of a cell are accepted where together they agree with it to `rule.tolerance` of the evidence and the density varies
    by less than 25 nats within each. The differences, and the bounds of what was dropped, make up the error. Problems
    in one branch share their cells, which are decoded once; a branch is divided where its problems part.

    Args:
        joint: of all problems.
        problems: which of them to treat, `(P,)`.
        cells: to start from.
        seen: of `problems` in `cells`.
        rule: how.

    Returns:
        Branches without unsettled cells; together they hold each of `problems` once.
    """
    evidence = seen.log_mass.logsumexp(1)
    bound = seen.bound(cells)
    dropped = bound < evidence[:, None] - NEGLIGIBLE
    lost = seen.highest.isnan()
    nothing = torch.full_like(evidence, -torch.inf)
    branch = Branch(
        problems,
        cells,
        seen,
        ~dropped & ~lost[:, None],
        nothing,
        torch.where(dropped, bound, -torch.inf).logsumexp(1),
        seen.highest,
        cells[:0],
        seen.log_mass[:, :0],
        lost,
    )
    waiting, grown = [branch.rows(torch.arange(len(problems), device=problems.device))], []
    while waiting:
        for part in _divided(waiting.pop()):
            if len(part.cells):
                waiting.append(_next(joint.rows(part.problems), part, rule))
            else:
                grown.append(part)
    return grown


def _next(joint: Joint, branch: Branch, rule: CellRule) -> Branch:
    """The branch one generation on."""
    cells = branch.cells.children()
    seen = look(joint, cells, rule.order)
    num, families = len(branch.problems), len(branch.cells)
    together = seen.log_mass.reshape(num, families, -1).logsumexp(2)
    evidence = torch.logaddexp(branch.log_mass, together.logsumexp(1))[:, None]
    difference = ((together - evidence).exp() - (branch.seen.log_mass - evidence).exp()).abs()
    accepted = (difference < rule.tolerance) & (seen.spread.reshape(num, families, -1).amax(2) < SMOOTH)
    bound = seen.bound(cells)
    dropped = bound < evidence - NEGLIGIBLE
    of_family = torch.arange(families, device=accepted.device).repeat_interleave(len(cells) // families)
    needed = ~(accepted[:, of_family] | dropped)
    least = SMALLEST * (1 + cells.center.abs().amax(-1))
    lost = branch.lost | seen.highest.isnan() | (needed.sum(1) > rule.limit) | (needed & (cells.half < least)).any(1)
    needed &= ~lost[:, None]
    settled = ~needed.any(0)
    used = accepted & settled.reshape(families, -1).any(1)
    left = settled & dropped & ~accepted[:, of_family]
    error = torch.where(used, difference, 0.0).sum(1) + torch.where(left, (bound - evidence).exp(), 0.0).sum(1)
    error = torch.where(lost, torch.inf, error)
    after = Branch(
        branch.problems,
        cells[~settled],
        seen[~settled],
        needed[:, ~settled],
        branch.log_mass,
        torch.logaddexp(branch.log_error, error.log() + evidence[:, 0]),
        torch.maximum(branch.highest, seen.highest),
        branch.leaves,
        branch.leaf_mass,
        lost,
    )
    return after._with_leaves(cells[settled], seen[settled].log_mass)


def _divided(branch: Branch) -> list[Branch]:
    """Parts of the branch, by where its problems' best cells lie, that together are cheaper than the whole."""
    if not len(branch.cells):
        return [branch]
    log_mass = torch.where(branch.needed, branch.seen.log_mass, -torch.inf)
    best = branch.cells.center[log_mass.argmax(1)]

    def cheapest(rows: Tensor) -> tuple[float, list[Tensor]]:
        num_cells = float(branch.needed[rows].any(0).sum())
        whole = num_cells * (DECODING + len(rows)) + OVERHEAD
        if len(rows) == 1:
            return whole, [rows]
        where = best[rows]
        order = rows[where[:, (where.amax(0) - where.amin(0)).argmax()].argsort()]
        low, high = (cheapest(half) for half in order.tensor_split(2))
        return (low[0] + high[0], low[1] + high[1]) if low[0] + high[0] < WORTHWHILE * whole else (whole, [rows])

    _, parts = cheapest(torch.arange(len(best), device=best.device))
    return [branch.rows(part) for part in parts] if len(parts) > 1 else [branch]
