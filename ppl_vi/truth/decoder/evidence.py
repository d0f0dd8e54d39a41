"""The truth of a decoder of one to three latent numbers: by a tree of cells and a lattice, each problem by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import special
from torch import Tensor

from ppl_vi.target.target import Target
from ppl_vi.truth.decoder.cells import Cells, Joint, Seen, graded, joined, look, merged
from ppl_vi.truth.decoder.lattice import lattice_sum
from ppl_vi.truth.decoder.modes import Ascents, ascend, separate_tops
from ppl_vi.truth.decoder.tree import NEGLIGIBLE, Branch, CellRule, grow
from ppl_vi.truth.result import Check, Grade, Truth

AGREEMENT = 1e-6  # nats: what the tree and the lattice must agree to, and what the stated error must stay below
SPREAD = 1e-7  # nats: of the sub-lattices
OUTSIDE = 1e-7  # of the evidence: the most that may lie outside the box
SPARE = 10.0  # nats by which the first look may overestimate the evidence without making the box too small
SMALLEST_BOX, LARGEST_BOX = 8.0, 4096.0  # half-widths; powers of two, so that cells are shared
FIRST_SPACING = 0.5  # of the lattice, in widths of the cells that the tree accepted
ASSUMED = ("inside the box no part of the posterior is so narrow that cells, lattice and ascents all step over it",)
ATTEMPTS = 6  # at a spacing that makes the sub-lattices agree
RULES = {  # by the number of latents
    1: CellRule(order=12, widest=0.5, steepness=8.0, tolerance=1e-11, limit=1000),
    2: CellRule(order=8, widest=1.0, steepness=8.0, tolerance=1e-9, limit=4096),
    3: CellRule(order=5, widest=1.0, steepness=4.0, tolerance=1e-9, limit=16384),
}


def decoded_truth(target: Target) -> Truth:
    """log p(x) = log int N(z; 0, I_D) p(x | z) dz of every problem of a decoded target with D = 1, 2 or 3.

    Two independent rules, a tree of Gauss-Legendre cells and a trapezoid lattice, must agree to 1e-6 nats; what lies
    outside the box of half-width R is at most `exp(ceiling) P(|z| > R)`, and must be below 1e-7 of p(x). Every mode
    that ascents find must lie where the tree looked, the decoder must give the model's own density there, and no value
    may exceed the ceiling. A problem that fails is treated again from finer cells; if it fails once more, the reason
    is in `Truth.reasons`. `Truth.log_evidence_error` is the sum of the rules' difference, both their own error
    estimates, the bound on what lies outside, and rounding.

    Raises:
        ValueError: the target has no decoder, or more than three latent numbers.

    Source: Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule.
    """
    rule = RULES.get(target.dim)
    if target.decoded is None or rule is None:
        raise ValueError(
            f"this takes a decoder of one to three latent numbers; '{target.name}' has {target.dim} latents and "
            f"{'no' if target.decoded is None else 'a'} decoder"
        )
    with target.isolated(), torch.no_grad():
        everyone = torch.arange(target.num_problems, device=target.device)
        found = certify(target, everyone, rule)
        again = torch.from_numpy(found.failed).to(target.device)
        if len(again):
            finer = replace(rule, widest=rule.widest / 2, tolerance=rule.tolerance / 10, limit=2 * rule.limit)
            found = found.updated(certify(target, again, finer))
    return found.truth(target)


@dataclass(frozen=True, eq=False)
class DecodedEvidence:
    """What was found for `P` problems, as arrays `(P,)`, nats, one entry a problem.

    Attributes:
        problems: which.
        log_evidence: by the tree.
        tree_error: the tree's own estimate.
        difference: of tree and lattice.
        spread: of the lattice's sub-lattices.
        outside: a bound on what the box leaves out.
        rounding: of the log joint.
        mismatch: of decoder and model at the mode.
        closed_form: difference from it; 0 where there is none.
        excess: of the log likelihood over its ceiling; nan where a value is.
        missed: whether a mode was found where the tree did not look.
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
        """Bound on the error of `log_evidence`."""
        return self.tree_error + self.difference + self.spread + self.outside + self.rounding + self.mismatch

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why each is not to be trusted, "" where it is."""
        tests = (
            (self.excess <= self.rounding, "log p(x | z) exceeds its ceiling by {:.1e} nats, or is nan", self.excess),
            (self.outside <= OUTSIDE, "up to {:.1e} of p(x) may lie outside the box", self.outside),
            (self.tree_error <= AGREEMENT, "the tree of cells stopped with an error of {:.1e}", self.tree_error),
            (~self.missed, "an ascent found a mode where the tree did not look", self.excess),
            (self.mismatch <= AGREEMENT, "decoder and model differ by {:.1e} nats at the mode", self.mismatch),
            (self.spread <= SPREAD, "the sub-lattices differ by {:.1e} nats", self.spread),
            (self.difference <= AGREEMENT, "tree and lattice differ by {:.1e} nats", self.difference),
            (self.closed_form <= AGREEMENT, "the tree is {:.1e} nats from the closed form", self.closed_form),
            (self.error <= AGREEMENT, "the errors add up to {:.1e} nats", self.error),
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
        """With what `other` found for its problems, which are among these."""
        where = np.searchsorted(self.problems, other.problems)
        fields = {name: value.copy() for name, value in vars(self).items()}
        for name, value in fields.items():
            value[where] = getattr(other, name)
        return DecodedEvidence(**fields)

    def truth(self, target: Target) -> Truth:
        """As the truth of all the target's problems."""
        reasons = self.reasons
        trusted = np.array([not reason for reason in reasons])
        passed = [
            ("tree of cells against trapezoid lattice", self.difference, AGREEMENT),
            ("sub-lattices against their mean", self.spread, SPREAD),
            ("bound on the mass outside the box", self.outside, OUTSIDE),
            ("decoder against model at the mode", self.mismatch, AGREEMENT),
        ]
        if target.closed_form is not None:
            passed.append(("tree of cells against the closed form", self.closed_form, AGREEMENT))
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
            assumptions=() if grade == "certified" else ASSUMED,
        )


def certify(target: Target, problems: Tensor, rule: CellRule) -> DecodedEvidence:
    """The evidence of some of the problems of a target, with every check of it."""
    joint = Joint(target.rows(problems))
    cells, seen, log_outside = first_look(joint, rule)
    ascents = ascend(joint, separate_tops(cells, seen))
    everyone = torch.arange(len(problems), device=problems.device)
    parts = []
    for branch in grow(joint, everyone, cells, seen, rule):
        parts.append(_evidence_of(branch, joint.rows(branch.problems), ascents.rows(branch.problems), log_outside))
    whole = {name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])}
    order = np.argsort(whole["problems"])
    ordered = {name: value[order] for name, value in whole.items()}
    return DecodedEvidence(**ordered | {"problems": problems.cpu().numpy()})


def first_look(joint: Joint, rule: CellRule) -> tuple[Cells, Seen, float]:
    """The cells that trees start from, in a box large enough for every problem, and what is seen in them.

    A problem whose ceiling asks for more than the largest box has no say, and will fail.

    Returns:
        The cells, what is seen, and log P(|z| > R) with R the box's half-width.
    """
    dim, ceiling = joint.target.dim, joint.ceiling()
    like = ceiling.new_empty(dim)
    half_width = SMALLEST_BOX
    cells = graded(half_width, rule.widest, rule.steepness, like)
    seen = look(joint, cells, rule.order)
    while True:
        allowed = seen.log_mass.logsumexp(1) - ceiling + math.log(OUTSIDE) - SPARE
        enough = sufficient_box(allowed.tolist(), dim)
        if enough <= half_width:
            return cells, seen, log_chi_tail(half_width, dim)
        wider = graded(enough, rule.widest, rule.steepness, like)
        new = wider[wider.center.abs().amax(-1) > half_width]
        cells, seen = joined([cells, new]), merged([seen, look(joint, new, rule.order)])
        half_width = enough


def sufficient_box(allowed: list[float], dim: int) -> float:
    """The smallest box with log P(|z| > R) at most `allowed`, for all whom the largest box satisfies."""
    half_width = SMALLEST_BOX
    least = min((a for a in allowed if a >= log_chi_tail(LARGEST_BOX, dim)), default=0.0)
    while log_chi_tail(half_width, dim) > least:
        half_width *= 2
    return half_width


def log_chi_tail(radius: float, dim: int) -> float:
    """log P(|z| > radius) for z ~ Normal(0, I_dim), dim = 1, 2 or 3, far beyond where the probability underflows."""
    if dim == 2:
        return -(radius**2) / 2
    two_sided = math.log(2) + float(special.log_ndtr(-radius))
    if dim == 1:
        return two_sided
    return float(np.logaddexp(two_sided, math.log(radius) + math.log(2 / math.pi) / 2 - radius**2 / 2))


def _evidence_of(branch: Branch, joint: Joint, ascents: Ascents, log_outside: float) -> DecodedEvidence:
    """Checks the problems of a branch, the rows of `joint` and `ascents`, by all that is independent of the tree."""
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


def _by_lattice(branch: Branch, joint: Joint) -> tuple[Tensor, Tensor]:
    """Spread of the sub-lattices and difference from the tree, `(P,)` each, nats; inf where there was no sum."""
    spread = torch.full_like(branch.log_mass, torch.inf)
    difference = spread.clone()
    share = (branch.leaf_mass - branch.log_mass[:, None]).exp()
    matters = share > math.exp(-NEGLIGIBLE)
    log_width = share @ (2 * branch.leaves.half).log() / share.sum(1)
    spacing = FIRST_SPACING * float(log_width.median().exp())
    waiting = ~branch.lost
    for _ in range(ATTEMPTS):
        rows = waiting.nonzero()[:, 0]
        cells = branch.leaves[matters[rows].any(0)]
        summed = lattice_sum(joint.rows(rows), cells, spacing, branch.log_mass[rows]) if len(rows) else None
        if summed is None:
            break
        spread[rows], difference[rows] = summed.spread, summed.log_ratio.abs()
        waiting &= ~((spread <= SPREAD) & (difference <= AGREEMENT))
        spacing *= _shrinkage(float(summed.spread.max()))
    return spread, difference


def _shrinkage(spread: float) -> float:
    """What to shorten a spacing by for the sub-lattices to agree, as log(spread) is in proportion to 1 / spacing^2."""
    if not spread < 0.1:
        return 0.5
    return min(0.9, max(0.5, math.sqrt(math.log(spread) / math.log(SPREAD / 10))))
