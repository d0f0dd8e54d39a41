"""A guide's density and the posterior's on quadrature nodes that resolve both, for a target with one latent number.

The line is cut into panels, each with a Gauss-Legendre rule. They lie in the latent's unconstrained coordinate u,
spread outwards from where the posterior and the guide lie, and are halved where halving still changes an integral. All
integrals are taken over the panels as they are and over the same panels halved: the difference is the error.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from ppl_vi.svi.result import Fit
from ppl_vi.target import evaluation
from ppl_vi.target.supports import ends
from ppl_vi.target.target import Target
from ppl_vi.truth import Truth

# Nodes of the Gauss-Legendre rule in each panel, exact for polynomials of degree 31.
NUM_PANEL_NODES = 16
# Draws of the guide from which its quantiles are taken. The quantiles only place the first panels, which are then
# refined, so more draws would make no result more exact.
NUM_DRAWS = 2048
# Each panel is this many times as wide as its neighbour nearer to the mode. With a larger number more panels have to be
# halved.
PANEL_GROWTH = 1.5
# Panels lie between these unconstrained numbers, whose exponentials, and the squares of these, are finite numbers.
U_LIMITS = (-690.0, 300.0)
# On the real line, whose numbers are their own coordinates, panels lie within this distance of 0 instead.
MAX_REAL = float(np.exp(U_LIMITS[1]))
# On the real line panels cover at least this many widths on either side of the posterior's mode and of the guide.
REAL_REACH = 1e3
# Panels are halved until their integrals change by no more than the sum of these, an absolute and a relative number.
# Larger ones leave a larger error, which the difference of the two grids states.
PANEL_TOLERANCE = 1e-11
PANEL_RELATIVE_TOLERANCE = 1e-14
# A panel is halved at most this many times: a jump within it is then confined to 2^-14 of its width.
MAX_PANEL_HALVINGS = 14
# A point is left out where rounding of z moves its unconstrained number by more than this.
MAX_ROUNDING_IN_U = 1e-3
# Points between the mode and either end at which it is checked how the tails of both densities fall.
NUM_TAIL_POINTS = 128
# A panel with a smaller share than this of an absolute integral is not split where the integrand changes its sign: all
# such panels together change no digit of the integral.
NEGLIGIBLE_SHARE = 1e-18
# Outside the support, where z = end +- exp(v), panels have these edges in v: distances of exp(-60) to exp(60).
OUTSIDE_EDGES = np.linspace(-60.0, 60.0, 121)
# A root of a polynomial counts as real where its imaginary part is smaller than this.
MAX_IMAGINARY_PART = 1e-8
# Quantiles of the guide that become panel edges: the minimum, 31 between, and the maximum of its draws.
NUM_QUANTILES = 33
# The interquartile range of a normal density in standard deviations.
INTERQUARTILE_RANGE = 1.35

NODES, WEIGHTS = legendre.leggauss(NUM_PANEL_NODES)
# Matrices that turn values at the nodes into Legendre coefficients, and into the integrals from a panel's left edge up
# to each node.
TO_SERIES = np.linalg.inv(legendre.legvander(NODES, NUM_PANEL_NODES - 1))
TO_INTEGRALS = np.stack([legendre.legval(NODES, legendre.legint(row, lbnd=-1)) for row in np.eye(NUM_PANEL_NODES)])


def _roots(series: np.ndarray) -> np.ndarray:
    """The roots of a Legendre series within (-1, 1), in order."""
    trimmed = np.trim_zeros(series, "b")
    if len(trimmed) < 2:
        return np.empty(0)
    roots = legendre.legroots(trimmed)
    return np.sort(roots.real[(np.abs(roots.imag) < MAX_IMAGINARY_PART) & (np.abs(roots.real) < 1)])


def _roots_of_many(series: np.ndarray) -> np.ndarray:
    """The roots within (-1, 1) of Legendre series `(K, n)`: `(K, n - 1)`, filled up by 1 where there are fewer."""
    out = np.ones((len(series), series.shape[1] - 1))
    whole = series[:, -1] != 0
    if whole.any():
        roots = np.linalg.eigvals(_companions(series[whole]))
        inside = (np.abs(roots.imag) < MAX_IMAGINARY_PART) & (np.abs(roots.real) < 1)
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
    return out[:, ::-1, ::-1]  # turned for accuracy, as `legroots` does


@dataclass(frozen=True)
class Piece:
    """An interval of the line and an increasing map `v -> z` from the real numbers onto it.

    The map onto the support is Pyro's bijection. What lies below or above the support, where a guide may leak mass, is
    reached by `end - exp(-v)` and `end + exp(v)`.

    Attributes:
        kind: of the interval: "below", "inside" or "above" the support.
        end: the support's end, where the interval lies outside it.
    """

    kind: str
    end: float = 0.0


class Panels(NamedTuple):
    """`N` panels of one piece, in its coordinate v.

    Attributes:
        pair: which of the `F` pairs of guide and posterior each belongs to, `(N,)`.
        left: left edges, `(N,)`.
        right: right edges, `(N,)`.
    """

    pair: np.ndarray
    left: np.ndarray
    right: np.ndarray

    @classmethod
    def between(cls, edges: np.ndarray) -> Panels:
        """The panels between edges `(F, E)`, without those of no width."""
        pair = np.repeat(np.arange(len(edges)), edges.shape[1] - 1)
        left, right = edges[:, :-1].ravel(), edges[:, 1:].ravel()
        return cls(pair, left, right).rows(right > left)

    def rows(self, rows: np.ndarray) -> Panels:
        """Some of the panels."""
        return Panels(self.pair[rows], self.left[rows], self.right[rows])

    def halved(self) -> Panels:
        """The two halves of every panel, side by side."""
        middle = (self.left + self.right) / 2
        left, right = np.stack([self.left, middle], 1).ravel(), np.stack([middle, self.right], 1).ravel()
        return Panels(np.repeat(self.pair, 2), left, right)

    @property
    def half_width(self) -> np.ndarray:
        """Half of each panel's width, `(N, 1)`."""
        return (self.right - self.left)[:, None] / 2

    @property
    def nodes(self) -> np.ndarray:
        """Where each panel's rule has its nodes, `(N, n)`."""
        return (self.left + self.right)[:, None] / 2 + self.half_width * NODES


class Densities(NamedTuple):
    """Guide and posterior at points `(N, n)` of one piece.

    Attributes:
        z: the latent number.
        log_slope: log dz/dv.
        log_p: the posterior's log density in z, -inf outside the support.
        log_q: the guide's.
        log_joint: the model's log p(x, z), continued by its formula outside the support.
    """

    z: np.ndarray
    log_slope: np.ndarray
    log_p: np.ndarray
    log_q: np.ndarray
    log_joint: np.ndarray


class Tail(NamedTuple):
    """Log densities on the way from the posterior's mode to one end of the panels, `(F, K)` each.

    Attributes:
        u: the points, in unconstrained space.
        log_p: the posterior's log density in z; nan where z is rounded so coarsely that it is not the number of u, as
            2 + exp(u) is below u = -30.
        log_q: the guide's, likewise.
        log_slope: log dz/du.
    """

    u: np.ndarray
    log_p: np.ndarray
    log_q: np.ndarray
    log_slope: np.ndarray


@dataclass(frozen=True)
class Grid:
    """Densities of `F` pairs of guide and posterior on `M` panels of `n` nodes each, in order of z.

    Attributes:
        z: nodes, `(F, M, n)`.
        weight: of each node, by which sums become integrals over z, `(F, M, n)`; 0 in panels that only fill up.
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
        """Integrals of |values|, `(F,)`: a panel in which the sign changes is split at the roots of its interpolant."""
        density = self.weight / WEIGHTS * values
        series = density @ TO_SERIES.T
        ends = np.stack([series @ (-1.0) ** np.arange(NUM_PANEL_NODES), series.sum(2)], 2)
        signs = np.sign(np.concatenate([density, ends], 2))
        total = np.abs((self.weight * values).sum(2))
        size = (self.weight * np.abs(values)).sum(2)
        counts = size > NEGLIGIBLE_SHARE * size.sum(1, keepdims=True)  # far out, the sign is that of rounding errors
        split = np.nonzero((signs.min(2) < 0) & (signs.max(2) > 0) & counts)
        points = np.concatenate([np.full((len(split[0]), 1), -1.0), _roots_of_many(series[split])], 1)
        points = np.sort(np.concatenate([points, np.full((len(points), 1), 1.0)], 1), 1)
        primitive = legendre.legint(series[split], axis=1)
        values = (legendre.legvander(points, NUM_PANEL_NODES) * primitive[:, None]).sum(2)
        total[split] = np.abs(np.diff(values)).sum(1)
        return total.sum(1)

    def cumulative(self, difference: np.ndarray) -> np.ndarray:
        """The integral of a difference of two densities from the far left to each node, `(F, M, n)`.

        It is summed from the end that is nearer in mass: in the far right tail, rounding errors of 1e-16 of the whole
        mass would be multiplied by widths of 1e100.
        """
        inner = (self.weight / WEIGHTS * difference) @ TO_SERIES.T @ TO_INTEGRALS
        mass = (self.weight * difference).sum(2)
        before = np.cumsum(mass, 1) - mass
        after = np.cumsum(mass[:, ::-1], 1)[:, ::-1]
        right = np.cumsum((self.weight * (self.p + self.q)).sum(2), 1) > 1.0
        return np.where(right[..., None], inner - after[..., None], inner + before[..., None])

    def mass_below_quantile(self, of: np.ndarray, quantile_of: np.ndarray, probability: float) -> np.ndarray:
        """The mass of density `of` below the quantile of density `quantile_of` at a probability, `(F,)`."""
        mass = (self.weight * quantile_of).sum(2)
        reached = np.cumsum(mass, 1)
        panel = np.minimum((reached < probability).sum(1), mass.shape[1] - 1)
        out = np.empty(len(mass))
        for f, m in enumerate(panel):
            series = legendre.legint(TO_SERIES @ (self.weight[f, m] / WEIGHTS * quantile_of[f, m]), lbnd=-1)
            series[0] -= probability - (reached[f, m] - mass[f, m])
            roots = _roots(series)
            at = roots[0] if len(roots) else 1.0
            inner = legendre.legint(TO_SERIES @ (self.weight[f, m] / WEIGHTS * of[f, m]), lbnd=-1)
            out[f] = (self.weight[f, :m] * of[f, :m]).sum() + legendre.legval(at, inner)
        return out


@dataclass(frozen=True, eq=False)
class QuadratureGrid:
    """Members of a fit's family and the posterior on common nodes: what each exact score is a function of.

    Member r and posterior b are a pair, of which there are `F = B R`, in that order.

    Attributes:
        fit: gives the family.
        truth: the posterior, of one latent number.
        theta: the members, `(B, R, D)`.
    """

    fit: Fit
    truth: Truth
    theta: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """How many posteriors and members of each there are, `(B, R)`."""
        return self.theta.shape[0], self.theta.shape[1]

    @property
    def num_pairs(self) -> int:
        """`F`."""
        return self.shape[0] * self.shape[1]

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The support and, where the guide may leak mass out of it, what lies outside."""
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
        return self._grid(coarse), self._grid([panels.halved() for panels in coarse])

    @cached_property
    def unrefined(self) -> tuple[np.ndarray, np.ndarray]:
        """Reverse KL by the panels as they are at first, and how far both masses are from 1, together, `(F,)` each."""
        total = np.zeros((self.num_pairs, 4))
        for piece in self.pieces:
            panels = Panels.between(self._edges(piece))
            np.add.at(total, panels.pair, self._panel_integrals(piece, panels, lost=np.inf))
        p, q, reverse, _ = total.T
        return reverse - q + p, np.abs(p - 1) + np.abs(q - 1)

    @cached_property
    def tails(self) -> tuple[Tail, ...]:
        """The way from the mode to the lower end, and to the upper one."""
        target = self.truth.target
        mode = self._centers_and_widths[0][0][:, None]
        inside = next(piece for piece in self.pieces if piece.kind == "inside")
        found = []
        for end in self._ends:
            u = mode + (end - mode) * np.linspace(0.0, 1.0, NUM_TAIL_POINTS)
            at = self._densities(inside, np.arange(self.num_pairs), u)
            values = torch.from_numpy(at.z).to(target.device).reshape((*at.z.shape, *target.latents[0].shape))
            back = target.unconstrain({target.latents[0].name: values})[..., 0].cpu().numpy()
            lost = ~(np.abs(back - u) <= MAX_ROUNDING_IN_U)
            log_p, log_q = np.where(lost, np.nan, at.log_p), np.where(lost, np.nan, at.log_q)
            found.append(Tail(u, log_p, log_q, at.log_slope))
        return tuple(found)

    # ---- where the panels lie

    def _edges(self, piece: Piece) -> np.ndarray:
        """Panel edges for each pair in the piece's own coordinate, `(F, E)`."""
        if piece.kind != "inside":
            return np.broadcast_to(OUTSIDE_EDGES, (self.num_pairs, len(OUTSIDE_EDGES)))
        centers, widths = self._centers_and_widths
        places = [*zip(centers, widths, strict=True)]
        for mode, width in mode_centres(self.truth)[1:]:
            places.append((np.repeat(mode, self.shape[1]), np.repeat(width, self.shape[1])))
        spreading = [geometric_edges(center, width, self._ends) for center, width in places]
        quantiles = np.clip(self._quantiles, *self._ends)
        return np.sort(np.concatenate([*spreading, quantiles], 1), 1)

    @cached_property
    def _quantiles(self) -> np.ndarray:
        """Evenly spaced quantiles of the guide in unconstrained space, `(F, NUM_QUANTILES)`."""
        return np.nanquantile(self._draws(), np.linspace(0, 1, NUM_QUANTILES), axis=1).T

    @cached_property
    def _centers_and_widths(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the posterior, and the guide, lie in unconstrained space, and how wide they are, `(2, F)` each."""
        quantiles = self._quantiles
        mode, width = (np.repeat(part, self.shape[1]) for part in mode_centres(self.truth)[0])
        lower, median, upper = (quantiles[:, place * (NUM_QUANTILES - 1) // 4] for place in (1, 2, 3))
        spread = (upper - lower) / INTERQUARTILE_RANGE
        return np.stack([mode, median]), np.stack([width, np.where(spread > 0, spread, width)])

    @cached_property
    def _ends(self) -> np.ndarray:
        """The lower and the upper ends of the panels, `(2, F, 1)`."""
        return far_ends(self.truth.target, *self._centers_and_widths)

    def _draws(self) -> np.ndarray:
        """Draws of the guide in unconstrained space, `(F, N)`, nan outside the support; 0 where all of them are."""
        site = self.truth.target.latents[0]
        z = self.fit.draw_at(self.theta, NUM_DRAWS, seed=0)[site.name].flatten(0, 1).reshape(-1, NUM_DRAWS)
        inside = site.support.check(z.reshape((*z.shape, *site.shape))).reshape(z.shape)
        u = self.truth.target.unconstrain({site.name: z.reshape((*z.shape, *site.shape))})[..., 0]
        values = torch.where(inside, u, torch.nan).clamp(*_limits(self.truth.target)).cpu().numpy()
        return np.where(np.isnan(values).all(1, keepdims=True), 0.0, values)

    # ---- the densities

    def _densities(self, piece: Piece, pair: np.ndarray, v: np.ndarray) -> Densities:
        """Guide and posterior of pairs `(N,)` at points `(N, n)` in a piece's coordinate."""
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
        numbers = z.reshape(v.shape).cpu().numpy()
        return Densities(numbers, log_slope.cpu().numpy(), log_p, log_q.cpu().numpy(), log_joint)

    def _panel_integrals(self, piece: Piece, panels: Panels, lost: float = 0.0) -> np.ndarray:
        """Integrals over each panel of p, q, q log(q / p) and p log(q / p), `(N, 4)`.

        `lost` is log(q / p) where the guide has mass and the posterior none.
        """
        at = self._densities(piece, panels.pair, panels.nodes)
        weight = np.exp(at.log_slope) * panels.half_width * WEIGHTS
        p, q = np.exp(at.log_p), np.exp(at.log_q)
        known = np.isfinite(at.log_p) & np.isfinite(at.log_q)
        ratio = np.where(known, at.log_q - np.where(known, at.log_p, 0.0), np.where(q > 0, lost, 0.0))
        return np.stack([(weight * f).sum(1) for f in (p, q, q * ratio, p * np.where(known, ratio, 0.0))], 1)

    def _refined(self, piece: Piece) -> Panels:
        """A piece's panels, halved where halving still changes their integrals."""
        panels = Panels.between(self._edges(piece))
        integrals = self._panel_integrals(piece, panels)
        done: list[Panels] = []
        before = np.full(len(integrals), np.inf)
        for _ in range(MAX_PANEL_HALVINGS):
            halves = panels.halved()
            parts = self._panel_integrals(piece, halves)
            difference = np.abs(parts.reshape(-1, 2, parts.shape[1]).sum(1) - integrals)
            change = (difference - PANEL_RELATIVE_TOLERANCE * np.abs(integrals)).max(1)
            # a kink's error falls to a quarter with each halving; what falls by less is rounding in the densities
            rough = ~(change <= PANEL_TOLERANCE) & ~(change > 0.4 * before)
            done.append(panels.rows(~rough))
            again = np.repeat(rough, 2)
            panels = halves.rows(again)
            integrals, before = parts[again], np.repeat(change, 2)[again]
            if not len(panels.pair):
                break
        done.append(panels)
        found = Panels(*(np.concatenate(parts) for parts in zip(*done, strict=True)))
        return found.rows(np.lexsort((found.left, found.pair)))

    def _grid(self, panels: list[Panels]) -> Grid:
        """The densities on the panels of all pieces."""
        grids = [self._piece_grid(*each) for each in zip(self.pieces, panels, strict=True)]
        names = [field.name for field in fields(Grid)]
        return Grid(**{name: np.concatenate([getattr(grid, name) for grid in grids], 1) for name in names})

    def _piece_grid(self, piece: Piece, panels: Panels) -> Grid:
        """The densities on one piece's panels: pairs of fewer panels are filled up by panels of weight 0."""
        at = self._densities(piece, panels.pair, panels.nodes)
        counts = np.bincount(panels.pair, minlength=self.num_pairs)
        column = np.arange(len(panels.pair)) - np.repeat(np.cumsum(counts) - counts, counts)

        def filled(values: np.ndarray, empty: float) -> np.ndarray:
            out = np.full((self.num_pairs, counts.max(), NUM_PANEL_NODES), empty)
            out[panels.pair, column] = values
            return out

        return Grid(
            z=filled(at.z, 0.0),
            weight=filled(np.exp(at.log_slope) * panels.half_width * WEIGHTS, 0.0),
            log_p=filled(at.log_p, -np.inf),
            log_q=filled(at.log_q, -np.inf),
            log_joint=filled(at.log_joint, 0.0),
        )


def _limits(target: Target) -> tuple[float, float]:
    """The unconstrained numbers between which panels may lie: the latent and its square are finite there."""
    found = ends(target.latents[0].support)
    real = found is not None and all(bool(end.isinf().all()) for end in found)
    return (-MAX_REAL, MAX_REAL) if real else U_LIMITS


def mode_centres(truth: Truth) -> list[tuple[np.ndarray, np.ndarray]]:
    """Where each problem's posterior has modes in unconstrained space, and how wide they are, `(B,)` each.

    The first is the mode that the target itself finds. The others are those of the truth; a problem of fewer repeats
    one.
    """
    laplace = truth.target.laplace
    found = [(laplace.loc[:, 0].cpu().numpy(), laplace.scale[:, 0].cpu().numpy())]
    num = max((len(modes) for modes in truth.modes), default=1)
    for k in range(num if num > 1 else 0):
        at = [(modes.peak[k % len(modes), 0], modes.factor[k % len(modes), 0, 0]) for modes in truth.modes]
        found.append((np.array([float(peak) for peak, _ in at]), np.array([float(width) for _, width in at])))
    return found


def far_ends(target: Target, center: np.ndarray, width: np.ndarray) -> np.ndarray:
    """The lower and the upper ends of panels, `(2, F, 1)`.

    On the real line they lie `REAL_REACH` widths beyond the outermost centre, if that is farther out than `U_LIMITS`.
    Any other support is reached by an exponential of the unconstrained number, and panels end at `U_LIMITS`.

    Args:
        target: with one latent number.
        center: `K` unconstrained numbers of each pair around which panels are spread, `(K, F)`.
        width: of the densities there, `(K, F)`.
    """
    low = np.minimum(U_LIMITS[0], (center - REAL_REACH * width).min(0))
    high = np.maximum(U_LIMITS[1], (center + REAL_REACH * width).max(0))
    return np.clip(np.stack([low, high]), *_limits(target))[..., None]


def geometric_edges(center: np.ndarray, width: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Panel edges whose spacing grows outwards by `PANEL_GROWTH` from a centre, `(F, E)`.

    Args:
        center: `(F,)`.
        width: of the density there; the first edges lie half of it from the centre, `(F,)`.
        ends: the lower and the upper ends, `(2, F, 1)`.
    """
    low, high = ends
    count = int(np.ceil(np.log(((high - low)[:, 0] / width).max()) / np.log(PANEL_GROWTH))) + 2
    steps = 0.5 * PANEL_GROWTH ** np.arange(count)
    offsets = np.concatenate([-steps[::-1], [0.0], steps])
    return np.clip(center[:, None] + width[:, None] * offsets, low, high)


def quadrature_grid(fit: Fit, truth: Truth, theta: Tensor | None = None) -> QuadratureGrid:
    """The replicas of a fit, or other members `theta` `(B, R, D)` of its family, over the posterior.

    Raises:
        ValueError: the target has more than one latent number.
    """
    if truth.target.dim != 1:
        raise ValueError(f"exact scores here take one latent number; the target has {truth.target.dim}")
    return QuadratureGrid(fit, truth, fit.theta if theta is None else theta)
