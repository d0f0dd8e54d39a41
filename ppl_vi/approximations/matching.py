"""Matches an approximation to a target's latent sites: names, parametrisation, shapes, and log q of each draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from ppl_vi.approximations.approximation import Approximation, Draws
from ppl_vi.target.sites import Latents, off_edge
from ppl_vi.target.supports import LatentSite
from ppl_vi.target.target import Target

Transforms = Mapping[str, tuple[str, Callable[[Tensor], Tensor]]]
NO_DENSITY = "log q of the draws is not known: give it by log_q, as an array (chain, draw) or as a function"
MOST_NAMED = 5  # names in a message


@dataclass(frozen=True, eq=False)
class MatchedDraws:
    """Draws as a target's latent sites have them.

    Attributes:
        latents: for each site `(chain, draw, *site.shape)`, in the order of the target's sites.
        log_q: log q of each draw, nats, `(chain, draw)`, a density over the sites; None where it is not known.
        reason: why it is not known, or "".
        remarks: what was done to make the draws fit, and what was left out, in a line each.
    """

    latents: Latents
    log_q: np.ndarray | None
    reason: str
    remarks: tuple[str, ...]


def matched(
    target: Target,
    approximation: Approximation,
    names: Mapping[str, str] | None = None,
    transforms: Transforms | None = None,
) -> MatchedDraws:
    """Draws and log q as the target's latent sites have them.

    Args:
        target: whose sites they are matched to.
        approximation: from any system.
        names: what the target calls a variable of the approximation, `{"theirs": "ours"}`.
        transforms: for variables in another parametrisation, `{"log_sigma": ("sigma", torch.exp)}`: the target's site,
            and the function that makes it of one draw's value, of tensors. log q is then changed by the logarithm of
            the determinant of its Jacobian, by automatic differentiation.

    Raises:
        TypeError: `names` or `transforms` has another form.
        ValueError: a site is missing or has another shape, a draw is not finite, or log q does not fit the draws.
    """
    names, transforms = _checked(target, approximation, names or {}, transforms or {})
    used = {**{name: name for name in approximation.draws}, **names}
    found: Draws = {}
    remarks: list[str] = []
    log_jacobian: np.ndarray | None = np.zeros((approximation.num_chains, approximation.num_draws))
    for theirs, (ours, function) in transforms.items():
        found[ours], log_det = _transformed(theirs, approximation.draws[theirs], function)
        log_jacobian = None if log_det is None or log_jacobian is None else log_jacobian + log_det
    for theirs, ours in used.items():
        if theirs not in transforms and ours not in found:
            found[ours] = approximation.draws[theirs]
    sites = target.latents
    _refuse_missing(sites, found, approximation)
    extra = [name for name in found if name not in {site.name for site in sites}]
    if extra:
        remarks.append(f"{_listed(extra)} of the draws {'is' if len(extra) == 1 else 'are'} no latent site: ignored")
    latents = {site.name: torch.from_numpy(_of_site(site, found[site.name])).to(target.device) for site in sites}
    latents, moved = _inside(target, latents)
    log_q = None if approximation.log_q is None else _log_q(approximation)
    reason = "" if log_q is not None else NO_DENSITY
    if log_q is not None and log_jacobian is None:
        log_q, reason = None, "a transform changes how many numbers there are, so that log q does not carry over"
    elif log_q is not None:
        log_q = log_q - log_jacobian
    return MatchedDraws(latents, log_q, reason, tuple([*remarks, *moved]))


def _checked(
    target: Target, approximation: Approximation, names: Mapping[str, str], transforms: Transforms
) -> tuple[Mapping[str, str], Transforms]:
    """Refuses names of what is not there."""
    if not isinstance(names, Mapping) or not all(isinstance(one, str) for one in names.values()):
        raise TypeError(f'names must be a dict such as {{"theirs": "ours"}}; got {names!r:.60}')
    if not isinstance(transforms, Mapping) or not all(
        isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str) and callable(one[1])
        for one in transforms.values()
    ):
        raise TypeError(
            f'transforms must be a dict such as {{"log_sigma": ("sigma", torch.exp)}}; got {transforms!r:.60}'
        )
    ours = [site.name for site in target.latents]
    for option, pairs in (("names", dict(names)), ("transforms", {key: one[0] for key, one in transforms.items()})):
        for theirs, site in pairs.items():
            if theirs not in approximation.draws:
                raise ValueError(f"{option}: the draws have no '{theirs}'; they have {_listed(approximation.draws)}")
            if site not in ours:
                raise ValueError(f"{option}: '{target.name}' has no latent site '{site}'; it has {_listed(ours)}")
    return names, transforms


def _transformed(
    name: str, value: np.ndarray, function: Callable[[Tensor], Tensor]
) -> tuple[np.ndarray, np.ndarray | None]:
    """A variable's transformed draws, and log |det| of the Jacobian of each, `(chain, draw)`.

    The latter is None where the transform changes how many numbers there are.
    """
    flat = torch.from_numpy(value.reshape(-1, *value.shape[2:]))
    try:
        out = vmap(function)(flat)
        jacobian = vmap(jacrev(function))(flat)
    except Exception as error:  # the function is the user's
        raise ValueError(
            f"transforms: the function for '{name}' must take a draw as a tensor of shape {tuple(flat.shape[1:])} and "
            f"return a tensor, as torch.exp does; it raised {type(error).__name__}: {str(error).splitlines()[0]:.80}"
        ) from error
    new = out.detach().numpy().reshape(value.shape[:2] + tuple(out.shape[1:]))
    if out[0].numel() != flat[0].numel():
        return new, None
    size = flat[0].numel()
    log_det = torch.linalg.slogdet(jacobian.reshape(len(flat), size, size))[1]
    return new, log_det.detach().numpy().reshape(value.shape[:2])


def _refuse_missing(sites: tuple[LatentSite, ...], found: Draws, approximation: Approximation) -> None:
    missing = [site.name for site in sites if site.name not in found]
    if missing:
        spare = next((name for name in approximation.draws if name not in {site.name for site in sites}), "theirs")
        raise ValueError(
            f"the draws have no {_listed(missing)}, {'a latent site' if len(missing) == 1 else 'latent sites'} of the "
            f'model; they have {_listed(approximation.draws)}: say which it is by names={{"{spare}": "{missing[0]}"}}, '
            f'or by transforms={{"{spare}": ("{missing[0]}", torch.exp)}} where it is its logarithm'
        )


def _of_site(site: LatentSite, value: np.ndarray) -> np.ndarray:
    """The draws of a site in its shape; axes of length 1 may be missing or be there in addition."""
    shape = tuple(site.shape)
    if _squeezed(value.shape[2:]) != _squeezed(shape):
        hint = ": for a single chain put an axis in front, as in draws[None]" if value.shape[1:] == shape else ""
        raise ValueError(
            f"the draws of '{site.name}' must have the shape (chain, draw, *{shape}), as the model's site has; got "
            f"{value.shape}{hint}"
        )
    bad = ~np.isfinite(value).reshape(*value.shape[:2], -1).all(-1)
    if bad.any():
        chain, draw = np.argwhere(bad)[0]
        raise ValueError(
            f"the draws of '{site.name}' must be finite; {int(bad.sum())} of {bad.size} are not, the first is draw "
            f"{draw} of chain {chain}: leave these draws out, or see why the other system made them"
        )
    return np.ascontiguousarray(value.reshape(value.shape[:2] + shape))


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def _inside(target: Target, latents: Latents) -> tuple[Latents, list[str]]:
    """The draws, of which those that rounding has put on an end of an interval are moved to the next number inside."""
    moved = off_edge(target.latents, latents)
    remarks = []
    for name, value in moved.items():
        num = int((value != latents[name]).sum())
        if num:
            remarks.append(
                f"{num} of {value.numel()} numbers of '{name}' lay on an end of its support: moved inside by 1 ulp"
            )
    return moved, remarks


def _log_q(approximation: Approximation) -> np.ndarray:
    """log q of each draw, over the approximation's own variables, `(chain, draw)`."""
    shape = (approximation.num_chains, approximation.num_draws)
    if callable(approximation.log_q):
        flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in approximation.draws.items()}
        try:
            found = np.asarray(approximation.log_q(flat), dtype=np.float64)
        except Exception as error:
            shapes = ", ".join(f"'{name}': {value.shape}" for name, value in flat.items())
            raise ValueError(
                f"log_q takes all draws at once, {{{shapes}}}, and returns log q of each; it raised "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        if found.shape != (shape[0] * shape[1],):
            raise ValueError(
                f"log_q must return a number for each draw, the shape {(shape[0] * shape[1],)}; got {found.shape}"
            )
        found = found.reshape(shape)
    else:
        found = np.asarray(approximation.log_q)
    bad = ~np.isfinite(found)
    if bad.any():
        chain, draw = np.argwhere(bad)[0]
        raise ValueError(
            f"log_q must be finite at each of its own draws; {int(bad.sum())} of {bad.size} are not, the first is "
            f"{found[chain, draw]} at draw {draw} of chain {chain}"
        )
    return found


def _listed(names: object) -> str:
    every = [str(name) for name in names]  # type: ignore[attr-defined]
    more = f" and {len(every) - MOST_NAMED} more" if len(every) > MOST_NAMED else ""
    return ", ".join(f"'{name}'" for name in every[:MOST_NAMED]) + more
