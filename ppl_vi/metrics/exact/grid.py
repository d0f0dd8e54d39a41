"""A guide's density laid over the posterior's, on nodes that resolve both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from ppl_vi.svi.result import Fit
from ppl_vi.target import evaluation
from ppl_vi.target.supports import ends
from ppl_vi.target.target import Target
from ppl_vi.truth import Truth

NUM_NODES = 16  # of the Gauss-Legendre rule in each panel
NUM_DRAWS = 2048  # of the guide, to see where it lies
GROWTH = 1.5  # of panels, outwards from the mode
ENDS = (-690.0, 300.0)  # exp of these, and the square of that, are still finite numbers
FARTHEST = float(np.exp(ENDS[1]))  # on the real line, whose numbers are their own coordinate
REACH = 1e3  # widths on either side of the mode and of the guide that panels cover there at least
TOLERANCE = 1e-11  # of each panel's integrals, absolute
RELATIVE = 1e-14  # and relative
MAX_LEVELS = 14
COARSE = 1e-3  # in u: by which rounding of z may move it
NUM_TAIL = 128
NOTHING = 1e-18  # of an integral: all panels together change no digit of it

NODES, WEIGHTS = legendre.leggauss(NUM_NODES)
TO_SERIES = np.linalg.inv(legendre.legvander(NODES, NUM_NODES - 1))  # values at the nodes to Legendre coefficients
INNER = np.stack([legendre.legval(NODES, legendre.legint(row, lbnd=-1)) for row in np.eye(NUM_NODES)])


def _roots(series: np.ndarray) -> np.ndarray:
    """The zeros of a Legendre series within (-1, 1), in order."""
    trimmed = np.trim_zeros(series, "b")
    if len(trimmed) < 2:
        return np.empty(0)
    roots = legendre.legroots(trimmed)
    return np.sort(roots.real[(np.abs(roots.imag) < 1e-8) & (np.abs(roots.real) < 1)])


def _roots_of_many(series: np.ndarray) -> np.ndarray:
    """The zeros within (-1, 1) of Legendre series `(K, n)`, `(K, n - 1)`; 1 in the places of those that are missing."""
    out = np.ones((len(series), series.shape[1] - 1))
    whole = series[:, -1] != 0
    if whole.any():
        roots = np.linalg.eigvals(_companions(series[whole]))
        inside = (np.abs(roots.imag) < 1e-8) & (np.abs(roots.real) < 1)
        out[whole] = np.where(inside, roots.real, 1.0)
    for k in np.nonzero(~whole)[0]:
        roots = _roots(series[k])
        out[k, : len(roots)] = roots
    return out


def _companions(series: np.ndarray) -> np.ndarray:
    """Matrices whose eigenvalues are the roots of Legendre series: numpy's `legcompanion` for each."""
    degree = series.shape[1] - 1
    like = legendre.legcompanion([*[0.0] * degree, 1.0])
    scale = 1.0 / np.sqrt(2 * np.arange(degree) + 1)
    last = series[:, :-1] / series[:, -1:] * (scale / scale[-1]) * (degree / (2 * degree - 1))
    out = np.repeat(like[None], len(series), 0)
    out[:, :, -1] -= last
    return out[:, ::-1, ::-1]  # as `legroots` turns it, for accuracy


@dataclass(frozen=True)
class Piece:
    """A stretch of the line and a map `v -> z` onto it that grows with `v`.

    The support itself is reached by Pyro's bijection; what lies below or above it, where a guide may leak, by
    `low - exp(-v)` and `high + exp(v)`.
    """

    kind: str  # "below", "inside" or "above"
    end: float = 0.0


@dataclass(frozen=True)
class Grid:
    """Densities of `F` pairs of guide and posterior on `M` panels of `n` nodes each, in order of z.

    Attributes:
        z: nodes, `(F, M, n)`.
        weight: of a sum over nodes as an integral over z, `(F, M, n)`.
        log_p: the posterior's log density in z, -inf outside the support.
        log_q: the guide's.
        log_joint: the model's log p(x, z), continued by its formula outside the support.
    """

    z: np.ndarray
    weight: np.ndarray
    log_p: np.ndarray
    log_q: np.ndarray
    log_joint: np.ndarray

    @cached_property
    def p(self) -> np.ndarray:
        """The posterior's density."""
        return np.exp(self.log_p)

    @cached_property
    def q(self) -> np.ndarray:
        """The guide's density."""
        return np.exp(self.log_q)

    def integral(self, values: np.ndarray) -> np.ndarray:
        """Integrals over z of values at the nodes, `(F,)`."""
        return (self.weight * values).sum((1, 2))

    def absolute_integral(self, values: np.ndarray) -> np.ndarray:
        """Integrals of |values|: a panel in which the sign changes is split at the roots of its interpolant."""
        density = self.weight / WEIGHTS * values
        series = density @ TO_SERIES.T
        ends = np.stack([series @ (-1.0) ** np.arange(NUM_NODES), series.sum(2)], 2)
        signs = np.sign(np.concatenate([density, ends], 2))
        total = np.abs((self.weight * values).sum(2))
        size = (self.weight * np.abs(values)).sum(2)
        counts = size > NOTHING * size.sum(1, keepdims=True)  # far out the sign changes with the rounding
        split = np.nonzero((signs.min(2) < 0) & (signs.max(2) > 0) & counts)
        points = np.concatenate([np.full((len(split[0]), 1), -1.0), _roots_of_many(series[split])], 1)
        points = np.sort(np.concatenate([points, np.full((len(points), 1), 1.0)], 1), 1)
        primitive = legendre.legint(series[split], axis=1)
        values = (legendre.legvander(points, NUM_NODES) * primitive[:, None]).sum(2)
        total[split] = np.abs(np.diff(values)).sum(1)
        return total.sum(1)

    def cumulative(self, difference: np.ndarray) -> np.ndarray:
        """The integral of a difference of two densities from the far left to each node, `(F, M, n)`.

        Taken from the nearer end, in mass: over the far right a rounding error of 1e-16 would be multiplied by widths
        of 1e100.
        """
        inner = (self.weight / WEIGHTS * difference) @ TO_SERIES.T @ INNER
        mass = (self.weight * difference).sum(2)
        before = np.cumsum(mass, 1) - mass
        after = np.cumsum(mass[:, ::-1], 1)[:, ::-1]
        right = np.cumsum((self.weight * (self.p + self.q)).sum(2), 1) > 1.0
        return np.where(right[..., None], inner - after[..., None], inner + before[..., None])

    def transport(self, of: np.ndarray, to: np.ndarray, probability: float) -> np.ndarray:
        """The mass that density `to` has below the quantile of density `of` at a probability, `(F,)`."""
        mass = (self.weight * of).sum(2)
        reached = np.cumsum(mass, 1)
        panel = np.minimum((reached < probability).sum(1), mass.shape[1] - 1)
        out = np.empty(len(mass))
        for f, m in enumerate(panel):
            series = legendre.legint(TO_SERIES @ (self.weight[f, m] / WEIGHTS * of[f, m]), lbnd=-1)
            series[0] -= probability - (reached[f, m] - mass[f, m])
            roots = _roots(series)
            at = roots[0] if len(roots) else 1.0
            inner = legendre.legint(TO_SERIES @ (self.weight[f, m] / WEIGHTS * to[f, m]), lbnd=-1)
            out[f] = (self.weight[f, :m] * to[f, :m]).sum() + legendre.legval(at, inner)
        return out


@dataclass(frozen=True, eq=False)
class QuadratureGrid:
    """Members of a fit's family over the posterior, for a target with one latent number.

    Attributes:
        fit: whose family.
        truth: the posterior.
        theta: the members, `(B, R, D)`.
    """

    fit: Fit
    truth: Truth
    theta: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """`(B, R)`."""
        return self.theta.shape[0], self.theta.shape[1]

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The support, and what lies outside it where the guide leaks."""
        inside = (Piece("inside"),)
        limits = ends(self.truth.target.latents[0].support)
        if not self.fit.support_mismatch or limits is None:
            return inside
        low, high = map(float, limits)
        below = () if np.isinf(low) else (Piece("below", low),)
        above = () if np.isinf(high) else (Piece("above", high),)
        return (*below, *inside, *above)

    @cached_property
    def grids(self) -> tuple[Grid, Grid]:
        """Densities on panels fine enough for both, and on the same panels halved."""
        coarse = [self._refined(piece) for piece in self.pieces]
        return self._grid(coarse), self._grid([_halved(*panels) for panels in coarse])

    @cached_property
    def at_once(self) -> tuple[np.ndarray, np.ndarray]:
        """Reverse KL by one rule on panels as they are, and by how much it misses a mass of 1, `(F,)` each."""
        num = self.shape[0] * self.shape[1]
        total = np.zeros((num, 4))
        for piece in self.pieces:
            pair, left, right = _panels(self._edges(piece))
            np.add.at(total, pair, self._panel_integrals(piece, pair, left, right, lost=np.inf))
        p, q, reverse, _ = total.T
        return reverse - q + p, np.abs(p - 1) + np.abs(q - 1)

    @cached_property
    def tails(self) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], ...]:
        """u, log p, log q and log |dz/du| on the way from the mode to either end of the floats, `(F, K)` each.

        The densities are nan where z is rounded so coarsely that it is not that of u: 2 + exp(u) below u = -30.
        """
        target = self.truth.target
        num = self.shape[0] * self.shape[1]
        mode = self._where[0][0][:, None]
        inside = next(piece for piece in self.pieces if piece.kind == "inside")
        found = []
        for end in self._ends:
            u = mode + (end - mode) * np.linspace(0.0, 1.0, NUM_TAIL)
            z, slope, log_p, log_q, _ = self._at(inside, np.arange(num), u)
            values = torch.from_numpy(z).to(target.device).reshape((*z.shape, *target.latents[0].shape))
            back = target.unconstrain({target.latents[0].name: values})[..., 0].cpu().numpy()
            lost = ~(np.abs(back - u) <= COARSE)
            found.append((u, np.where(lost, np.nan, log_p), np.where(lost, np.nan, log_q), slope))
        return tuple(found)

    # ---- where the panels lie

    def _edges(self, piece: Piece) -> np.ndarray:
        """Panel edges for each pair in the piece's own coordinate, `(F, E)`."""
        num = self.shape[0] * self.shape[1]
        if piece.kind != "inside":
            return np.broadcast_to(np.linspace(-60.0, 60.0, 121), (num, 121))
        centers, widths = self._where
        spreading = [geometric_edges(*one, self._ends) for one in zip(centers, widths, strict=True)]
        levels = np.clip(self._levels, *self._ends)
        return np.sort(np.concatenate([*spreading, levels], 1), 1)

    @cached_property
    def _levels(self) -> np.ndarray:
        """Quantiles of the guide in unconstrained space, `(F, 33)`."""
        return np.nanquantile(self._draws(), np.linspace(0, 1, 33), axis=1).T

    @cached_property
    def _where(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the posterior, and the guide, lie in unconstrained space, and how wide they are, `(2, F)` each."""
        line, levels = self.truth.target.laplace, self._levels
        mode, width = (np.repeat(part[:, 0].cpu().numpy(), self.shape[1]) for part in (line.loc, line.scale))
        spread = (levels[:, 24] - levels[:, 8]) / 1.35
        return np.stack([mode, levels[:, 16]]), np.stack([width, np.where(spread > 0, spread, width)])

    @cached_property
    def _ends(self) -> np.ndarray:
        """Between what panels lie, `(2, F, 1)`."""
        return far_ends(self.truth.target, *self._where)

    def _draws(self) -> np.ndarray:
        """Where the guide lies, in unconstrained space, `(F, N)`; draws outside the support are nan."""
        site = self.truth.target.latents[0]
        z = self.fit.draw_at(self.theta, NUM_DRAWS, seed=0)[site.name].flatten(0, 1).reshape(-1, NUM_DRAWS)
        inside = site.support.check(z.reshape((*z.shape, *site.shape))).reshape(z.shape)
        u = self.truth.target.unconstrain({site.name: z.reshape((*z.shape, *site.shape))})[..., 0]
        values = torch.where(inside, u, torch.nan).clamp(*_limits(self.truth.target)).cpu().numpy()
        return np.where(np.isnan(values).all(1, keepdims=True), 0.0, values)

    # ---- the densities

    def _at(self, piece: Piece, pair: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
        """z, log dz/dv, log p, log q and log joint of pairs `(N,)` at `v`, `(N, n)`."""
        target, replicas = self.truth.target, self.shape[1]
        site = target.latents[0]
        v_tensor = torch.from_numpy(v).to(target.device)
        if piece.kind == "inside":
            values, log_slope = target.constrain(v_tensor[..., None])
            z = values[site.name]
        else:
            sign = -1.0 if piece.kind == "below" else 1.0
            z = (piece.end + sign * torch.exp(sign * v_tensor)).reshape((*v.shape, *site.shape))
            log_slope = sign * v_tensor
        problem = torch.from_numpy(pair // replicas).to(target.device)
        log_q = self.fit.log_prob_rows(self.theta.flatten(0, 1)[pair], problem, {site.name: z})
        log_joint = evaluation.log_joint(target, {site.name: z}, problem).cpu().numpy()
        evidence = self.truth.log_evidence[pair // replicas][:, None]
        log_p = log_joint - evidence if piece.kind == "inside" else np.full_like(log_joint, -np.inf)
        return z.reshape(v.shape).cpu().numpy(), log_slope.cpu().numpy(), log_p, log_q.cpu().numpy(), log_joint

    def _panel_integrals(
        self, piece: Piece, pair: np.ndarray, left: np.ndarray, right: np.ndarray, lost: float = 0.0
    ) -> np.ndarray:
        """Over each panel: both masses, both divergences' integrands, `(N, 4)`.

        `lost` is log q - log p where the guide has mass and the posterior none.
        """
        half = (right - left) / 2
        _, slope, log_p, log_q, _ = self._at(piece, pair, (left + right)[:, None] / 2 + half[:, None] * NODES)
        weight = np.exp(slope) * half[:, None] * WEIGHTS
        p, q = np.exp(log_p), np.exp(log_q)
        known = np.isfinite(log_p) & np.isfinite(log_q)
        ratio = np.where(known, log_q - np.where(known, log_p, 0.0), np.where(q > 0, lost, 0.0))
        return np.stack([(weight * f).sum(1) for f in (p, q, q * ratio, p * np.where(known, ratio, 0.0))], 1)

    def _refined(self, piece: Piece) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Panels `(pair, left, right)`, halved where halving still changes their integrals."""
        pair, left, right = _panels(self._edges(piece))
        integrals = self._panel_integrals(piece, pair, left, right)
        done: list[tuple[np.ndarray, ...]] = []
        before = np.full(len(integrals), np.inf)
        for _ in range(MAX_LEVELS):
            halves = _halved(pair, left, right)
            parts = self._panel_integrals(piece, *halves)
            excess = np.abs(parts.reshape(-1, 2, parts.shape[1]).sum(1) - integrals) - RELATIVE * np.abs(integrals)
            change = excess.max(1)
            # a kink's error falls to a quarter with each halving; what falls by less is rounding in the densities
            rough = ~(change <= TOLERANCE) & ~(change > 0.4 * before)
            done.append((pair[~rough], left[~rough], right[~rough]))
            again = np.repeat(rough, 2)
            pair, left, right = (part[again] for part in halves)
            integrals, before = parts[again], np.repeat(change, 2)[again]
            if not len(pair):
                break
        done.append((pair, left, right))
        pair, left, right = (np.concatenate(parts) for parts in zip(*done, strict=True))
        order = np.lexsort((left, pair))
        return pair[order], left[order], right[order]

    def _grid(self, panels: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Grid:
        num = self.shape[0] * self.shape[1]
        columns = [self._piece_columns(piece, num, *part) for piece, part in zip(self.pieces, panels, strict=True)]
        return Grid(*(np.concatenate(parts, 1) for parts in zip(*columns, strict=True)))

    def _piece_columns(
        self, piece: Piece, num: int, pair: np.ndarray, left: np.ndarray, right: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """z, weight, log p, log q, log joint of one piece, `(F, M, n)`, padded by panels of weight 0."""
        half = (right - left)[:, None] / 2
        z, slope, log_p, log_q, log_joint = self._at(piece, pair, (left + right)[:, None] / 2 + half * NODES)
        counts = np.bincount(pair, minlength=num)
        column = np.arange(len(pair)) - np.repeat(np.cumsum(counts) - counts, counts)
        out = []
        weight = np.exp(slope) * half * WEIGHTS
        columns = ((z, 0.0), (weight, 0.0), (log_p, -np.inf), (log_q, -np.inf), (log_joint, 0.0))
        for values, empty in columns:
            padded = np.full((num, counts.max(), NUM_NODES), empty)
            padded[pair, column] = values
            out.append(padded)
        return tuple(out)


def _panels(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The panels between edges `(F, E)`, `(pair, left, right)`, those of no width left out."""
    pair = np.repeat(np.arange(len(edges)), edges.shape[1] - 1)
    left, right = edges[:, :-1].ravel(), edges[:, 1:].ravel()
    wide = right > left
    return pair[wide], left[wide], right[wide]


def _halved(pair: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every panel's two halves, side by side."""
    middle = (left + right) / 2
    return np.repeat(pair, 2), np.stack([left, middle], 1).ravel(), np.stack([middle, right], 1).ravel()


def _limits(target: Target) -> tuple[float, float]:
    """Between which unconstrained numbers a latent, and the square of it, are finite."""
    found = ends(target.latents[0].support)
    real = found is not None and all(bool(end.isinf().all()) for end in found)
    return (-FARTHEST, FARTHEST) if real else ENDS


def far_ends(target: Target, center: np.ndarray, width: np.ndarray) -> np.ndarray:
    """The lower and the upper ends of the panels around several centres of those widths, `(K, F)` each: `(2, F, 1)`.

    On the real line they lie `REACH` widths beyond the outermost centre, if that is farther out than `ENDS`. Any other
    support is reached by an exponential of the unconstrained number, which ends at `ENDS`.
    """
    low = np.minimum(ENDS[0], (center - REACH * width).min(0))
    high = np.maximum(ENDS[1], (center + REACH * width).max(0))
    return np.clip(np.stack([low, high]), *_limits(target))[..., None]


def geometric_edges(center: np.ndarray, width: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Edges that spread outwards from centres of those widths, `(F,)`, to both `ends`, `(2, F, 1)`: `(F, E)`."""
    low, high = ends
    count = int(np.ceil(np.log(((high - low)[:, 0] / width).max()) / np.log(GROWTH))) + 2
    steps = 0.5 * GROWTH ** np.arange(count)
    offsets = np.concatenate([-steps[::-1], [0.0], steps])
    return np.clip(center[:, None] + width[:, None] * offsets, low, high)


def quadrature_grid(fit: Fit, truth: Truth, theta: Tensor | None = None) -> QuadratureGrid:
    """A fit's densities, or other members of its family, over the posterior.

    Raises:
        ValueError: the target has more than one latent number.
    """
    if truth.target.dim != 1:
        raise ValueError(f"exact scores here take one latent number; the target has {truth.target.dim}")
    return QuadratureGrid(fit, truth, fit.theta if theta is None else theta)
