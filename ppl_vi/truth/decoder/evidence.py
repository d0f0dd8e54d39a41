"""The truth of a decoder with one to three latent numbers: log p(x) of every problem by two independent rules.

An adaptive tree of cells integrates the joint density over a box around 0, and a trapezoid lattice does the same where
the tree has found mass. Newton ascents look for modes that the tree has stepped over. What lies outside the box is
bounded by the largest likelihood that the decoder can reach (its ceiling) times the prior mass outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import special
from torch import Tensor

from ppl_vi.target.target import Target
from ppl_vi.truth.decoder.cells import (
    CellIntegrals,
    Cells,
    LogJoint,
    graded_cells,
    integrate_cells,
    joined_cells,
    joined_integrals,
)
from ppl_vi.truth.decoder.lattice import lattice_sum
from ppl_vi.truth.decoder.modes import Ascents, ascend, separate_tops
from ppl_vi.truth.decoder.tree import NEGLIGIBLE_NATS, Branch, CellRule, grow
from ppl_vi.truth.result import Check, Grade, Truth

LOG_EVIDENCE_TOLERANCE = 1e-6  # nats: the largest difference of tree and lattice, and the largest stated error
LATTICE_TOLERANCE = 1e-7  # nats: the largest difference of a sub-lattice from their mean
MAX_MASS_OUTSIDE = 1e-7  # the largest share of p(x) that may lie outside the box
# The half-width of the box, a power of two, so that the cells of a smaller box are among those of a larger one. Data
# that only a latent beyond the largest one explains are refused.
MIN_HALF_WIDTH, MAX_HALF_WIDTH = 8.0, 4096.0
# Nats by which the starting cells may overestimate log p(x) without making the box too small. More of them make the box
# larger than it need be, which costs time.
EVIDENCE_MARGIN = 10.0
FIRST_SPACING = 0.5  # of the lattice, in widths of the leaves that hold the mass
MAX_LATTICES = 6  # spacings that are tried until the sub-lattices agree, each shorter than the last
ASSUMPTIONS = (
    "no part of the posterior inside the box is so narrow that the cells, the lattice and the ascents all step over it",
)
CELL_RULES = {  # by the number of latent numbers
    1: CellRule(order=12, max_width=0.5, steepness=8.0, tolerance=1e-11, max_cells=1000),
    2: CellRule(order=8, max_width=1.0, steepness=8.0, tolerance=1e-9, max_cells=4096),
    3: CellRule(order=5, max_width=1.0, steepness=4.0, tolerance=1e-9, max_cells=16384),
}


def decoded_truth(target: Target) -> Truth:
    """log p(x) = log int N(z; 0, I_D) p(x | z) dz of every problem of a decoded target with D = 1, 2 or 3.

    The tree of cells and the lattice must agree to 1e-6 nats. The mass outside the box of half-width R is at most
    `exp(ceiling) P(|z| > R)`, and must be below 1e-7 of p(x). Every mode that ascents find must be resolved by the
    tree, the decoder must give the model's own log joint there, and no likelihood may exceed the ceiling. A problem
    that fails is tried again with finer cells. If it fails once more, `Truth.reasons` says why.
    `Truth.log_evidence_error` is the sum of the rules' difference, both rules' own error estimates, the bound on the
    mass outside, the difference of decoder and model, and rounding.

    Raises:
        ValueError: the target has no decoder, or more than three latent numbers.

    Source: Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule.
    """
    rule = CELL_RULES.get(target.dim)
    if target.decoded is None or rule is None:
        raise ValueError(
            f"decoded_truth needs a decoder of one to three latent numbers; '{target.name}' has {target.dim} latent "
            f"numbers and {'no' if target.decoded is None else 'a'} decoder"
        )
    with target.isolated(), torch.no_grad():
        everyone = torch.arange(target.num_problems, device=target.device)
        found = certify(target, everyone, rule)
        again = torch.from_numpy(found.failed).to(target.device)
        if len(again):
            finer = replace(
                rule, max_width=rule.max_width / 2, tolerance=rule.tolerance / 10, max_cells=2 * rule.max_cells
            )
            found = found.updated(certify(target, again, finer))
    return found.truth(target)


@dataclass(frozen=True, eq=False)
class DecodedEvidence:
    """The log evidence of `P` problems and the figures that certify it, as arrays `(P,)`, in nats.

    Attributes:
        problems: which.
        log_evidence: log p(x) by the tree.
        tree_error: the tree's own error estimate.
        difference: of tree and lattice.
        spread: of the lattice's sub-lattices.
        outside: bound on the share of p(x) outside the box.
        rounding: bound on the rounding of the log joint.
        mismatch: difference of the decoder's and the model's log joint at the highest mode.
        closed_form: difference of the tree from the closed form; 0 where there is none.
        excess: largest log likelihood minus its ceiling; nan where any log likelihood is nan.
        missed: whether an ascent found a mode that the tree has not resolved.
    """

    problems: np.ndarray
    log_evidence: np.ndarray
    tree_error: np.ndarray
    difference: np.ndarray
    spread: np.ndarray
    outside: np.ndarray
    rounding: np.ndarray
    mismatch: np.ndarray
    closed_form: np.ndarray
    excess: np.ndarray
    missed: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """The error of `log_evidence`: the sum of all that was estimated or bounded."""
        return self.tree_error + self.difference + self.spread + self.outside + self.rounding + self.mismatch

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why each problem is not to be trusted, "" where it is."""
        is_nan, gave_up, most = np.isnan(self.excess), np.isinf(self.tree_error), LOG_EVIDENCE_TOLERANCE
        tests = (
            (~is_nan, "log p(x | z) or its ceiling is nan", self.excess),
            (self.excess <= self.rounding, "log p(x | z) exceeds its ceiling by {:.1e} nats", self.excess),
            (self.outside <= MAX_MASS_OUTSIDE, "a share of up to {:.1e} of p(x) may lie outside the box", self.outside),
            (~gave_up, "the tree of cells gave up, because it needed too many or too small cells", self.tree_error),
            (self.tree_error <= most, "the tree of cells ended with an error of {:.1e} nats", self.tree_error),
            (~self.missed, "an ascent found a mode that the tree of cells has stepped over", self.excess),
            (self.mismatch <= most, "decoder and model differ by {:.1e} nats at the mode", self.mismatch),
            (self.spread <= LATTICE_TOLERANCE, "the lattice's sub-lattices differ by {:.1e} nats", self.spread),
            (self.difference <= most, "tree of cells and lattice differ by {:.1e} nats", self.difference),
            (self.closed_form <= most, "the tree of cells is {:.1e} nats from the closed form", self.closed_form),
            (self.error <= most, "the errors of log p(x) add up to {:.1e} nats", self.error),
        )
        return tuple(
            next((text.format(value[i]) for passed, text, value in tests if not passed[i]), "")
            for i in range(len(self.problems))
        )

    @property
    def failed(self) -> np.ndarray:
        """The problems that are not to be trusted."""
        return self.problems[np.array([bool(reason) for reason in self.reasons])]

    def updated(self, other: DecodedEvidence) -> DecodedEvidence:
        """The same with the figures of `other` for its problems, which are among these."""
        where = np.searchsorted(self.problems, other.problems)
        fields = {name: value.copy() for name, value in vars(self).items()}
        for name, value in fields.items():
            value[where] = getattr(other, name)
        return DecodedEvidence(**fields)

    def truth(self, target: Target) -> Truth:
        """The truth of all the target's problems."""
        reasons = self.reasons
        trusted = np.array([not reason for reason in reasons])
        passed = [
            ("difference of tree of cells and trapezoid lattice (nats)", self.difference, LOG_EVIDENCE_TOLERANCE),
            ("difference of the sub-lattices from their mean (nats)", self.spread, LATTICE_TOLERANCE),
            ("bound on the share of p(x) outside the box", self.outside, MAX_MASS_OUTSIDE),
            ("difference of decoder and model at the mode (nats)", self.mismatch, LOG_EVIDENCE_TOLERANCE),
        ]
        if target.closed_form is not None:
            name = "difference of tree of cells and closed form (nats)"
            passed.append((name, self.closed_form, LOG_EVIDENCE_TOLERANCE))
        checks = tuple(
            Check(name, float(value[trusted].max()) if trusted.any() else math.nan, tolerance)
            for name, value, tolerance in passed
        )
        why = () if trusted.all() else reasons
        grade: Grade = "uncertified" if why else "checked" if target.closed_form is None else "certified"
        return Truth(
            target,
            "tree of cells",
            self.log_evidence,
            self.error,
            checks,
            reasons=why,
            grade=grade,
            assumptions=() if grade == "certified" else ASSUMPTIONS,
        )


def certify(target: Target, problems: Tensor, rule: CellRule) -> DecodedEvidence:
    """The log evidence of some of the problems of a target, with the figures that certify it."""
    joint = LogJoint(target.rows(problems))
    cells, integrals, log_outside = starting_cells(joint, rule)
    ascents = ascend(joint, separate_tops(cells, integrals))
    everyone = torch.arange(len(problems), device=problems.device)
    parts = []
    for branch in grow(joint, everyone, cells, integrals, rule):
        parts.append(_evidence_of(branch, joint.rows(branch.problems), ascents.rows(branch.problems), log_outside))
    whole = {name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])}
    order = np.argsort(whole["problems"])
    ordered = {name: value[order] for name, value in whole.items()}
    return DecodedEvidence(**ordered | {"problems": problems.cpu().numpy()})


def starting_cells(joint: LogJoint, rule: CellRule) -> tuple[Cells, CellIntegrals, float]:
    """The cells that trees start from, in a box large enough for every problem.

    Where even the largest box would leave out too much of a problem, the box is chosen for the other problems, and this
    one will fail.

    Returns:
        The cells, the integrals over them, and log P(|z| > R) with R the box's half-width.
    """
    dim, ceiling = joint.target.dim, joint.ceiling()
    like = ceiling.new_empty(dim)
    half_width = MIN_HALF_WIDTH
    cells = graded_cells(half_width, rule.max_width, rule.steepness, like)
    integrals = integrate_cells(joint, cells, rule.order)
    while True:
        allowed = integrals.log_mass.logsumexp(1) - ceiling + math.log(MAX_MASS_OUTSIDE) - EVIDENCE_MARGIN
        sufficient = sufficient_box(allowed.tolist(), dim)
        if sufficient <= half_width:
            return cells, integrals, log_chi_tail(half_width, dim)
        wider = graded_cells(sufficient, rule.max_width, rule.steepness, like)
        new = wider[wider.center.abs().amax(-1) > half_width]
        cells = joined_cells([cells, new])
        integrals = joined_integrals([integrals, integrate_cells(joint, new, rule.order)])
        half_width = sufficient


def sufficient_box(allowed: list[float], dim: int) -> float:
    """The smallest half-width R with log P(|z| > R) at most `allowed`.

    Problems that would need more than the largest box have no say.
    """
    half_width = MIN_HALF_WIDTH
    least = min((a for a in allowed if a >= log_chi_tail(MAX_HALF_WIDTH, dim)), default=0.0)
    while log_chi_tail(half_width, dim) > least:
        half_width *= 2
    return half_width


def log_chi_tail(radius: float, dim: int) -> float:
    """log P(|z| > radius) for z ~ Normal(0, I_dim), dim = 1, 2 or 3; also where the probability underflows."""
    if dim == 2:
        return -(radius**2) / 2
    two_sided = math.log(2) + float(special.log_ndtr(-radius))
    if dim == 1:
        return two_sided
    return float(np.logaddexp(two_sided, math.log(radius) + math.log(2 / math.pi) / 2 - radius**2 / 2))


def _evidence_of(branch: Branch, joint: LogJoint, ascents: Ascents, log_outside: float) -> DecodedEvidence:
    """The log evidence of a branch's problems, and every figure that certifies it; `joint` and `ascents` are theirs."""
    target = joint.target
    ceiling = joint.ceiling()
    spread, difference = _by_lattice(branch, joint)
    mode, log_joint = ascents.best
    closed_form = torch.zeros_like(ceiling)
    if target.closed_form is not None:
        closed_form = (target.closed_form(*target.args) - branch.log_mass).abs()
    size = 1 + ceiling.abs() + branch.log_mass.abs()
    found = {
        "problems": branch.problems,
        "log_evidence": branch.log_mass,
        "tree_error": (branch.log_error - branch.log_mass).exp(),
        "difference": difference,
        "spread": spread,
        "outside": (ceiling + log_outside - branch.log_mass).exp(),
        "rounding": 16 * torch.finfo(size.dtype).eps * size,
        "mismatch": (target.log_joint(target.constrain(mode[:, None])[0])[:, 0] - log_joint).abs(),
        "closed_form": closed_form,
        "excess": branch.highest - ceiling,
        "missed": ascents.missed(branch),
    }
    return DecodedEvidence(**{name: value.cpu().numpy() for name, value in found.items()})


def _by_lattice(branch: Branch, joint: LogJoint) -> tuple[Tensor, Tensor]:
    """Spread of the sub-lattices and difference from the tree, `(P,)` each, nats; inf where no lattice was summed.

    The spacing is shortened for the problems whose sub-lattices, or lattice and tree, do not agree yet.
    """
    spread = torch.full_like(branch.log_mass, torch.inf)
    difference = spread.clone()
    share = (branch.leaf_log_mass - branch.log_mass[:, None]).exp()
    matters = share > math.exp(-NEGLIGIBLE_NATS)
    log_width = share @ (2 * branch.leaves.half).log() / share.sum(1)
    spacing = FIRST_SPACING * float(log_width.median().exp())
    waiting = ~branch.failed
    for _ in range(MAX_LATTICES):
        rows = waiting.nonzero()[:, 0]
        cells = branch.leaves[matters[rows].any(0)]
        summed = lattice_sum(joint.rows(rows), cells, spacing, branch.log_mass[rows]) if len(rows) else None
        if summed is None:
            break
        spread[rows], difference[rows] = summed.spread, summed.log_ratio.abs()
        waiting &= ~((spread <= LATTICE_TOLERANCE) & (difference <= LOG_EVIDENCE_TOLERANCE))
        spacing *= _spacing_factor(float(summed.spread.max()))
    return spread, difference


def _spacing_factor(spread: float) -> float:
    """The factor by which to shorten a spacing for the sub-lattices to agree: log(spread) goes as 1 / spacing^2."""
    if not spread < 0.1:
        return 0.5
    return min(0.9, max(0.5, math.sqrt(math.log(spread) / math.log(LATTICE_TOLERANCE / 10))))
