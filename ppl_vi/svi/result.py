"""The result of `fit`: the fitted guides of every problem and replica, and how to save them.

The file of a saved fit, and what is checked before it is believed, are in `saving.py`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pyro.nn.module import PyroModule
from torch import Tensor, nn

from ppl_vi.approximations.approximation import Approximation
from ppl_vi.guides import FAMILIES, Family
from ppl_vi.guides.autoguides import drawn_by_latents
from ppl_vi.guides.own import family_of, name_of
from ppl_vi.runtime.archives import check_array
from ppl_vi.runtime.pickling import Pickled
from ppl_vi.runtime.showing import Summarized
from ppl_vi.svi import members, saving, trees
from ppl_vi.svi.finishing import finished
from ppl_vi.svi.program import Program, load_parameters
from ppl_vi.svi.randomness import UnsupportedRandomnessError, pseudo_random, quasi_random
from ppl_vi.svi.saving import FORMAT, FORMAT_VERSION
from ppl_vi.svi.start import build_guide, structure_seed
from ppl_vi.target.fingerprint import fingerprint
from ppl_vi.target.freezing import frozen_target
from ppl_vi.target.learned import Learned
from ppl_vi.target.sites import Latents, latents_of
from ppl_vi.target.statements import parameters_of
from ppl_vi.target.target import Target

if TYPE_CHECKING:
    from xarray import DataTree

_GUIDE_NUMBERS = itertools.count()  # part of the names of guides that are given to users


def _rename(guide: nn.Module, name: str) -> None:
    """Gives a guide a name of its own: two guides of one name would share their values in Pyro's parameter store."""
    for path, module in guide.named_modules():
        if isinstance(module, PyroModule):
            module._pyro_name = f"{name}.{path}" if path else name


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Pickled, Summarized):
    """Fits of one family by SVI: `B` problems, `R` independent replicas of each.

    Attributes:
        target: the target whose problems were fitted.
        family_name: the name of the family, as `find_family` takes it.
        family: the family.
        objective: the name of the objective.
        engine: the name of the engine.
        engine_reason: why it was this engine, where none or another one was asked for by name; else "".
        seed: of the initial values and the noise.
        seconds: how long the fit took.
        num_particles: draws of the guide in each step, or "auto"; see `ppl_vi.svi.fit.fit`.
        lr: the size of Adam's first step, see `fit`.
        parameters: the unconstrained parameters by name, `(B, R, *shape)`.
        scope: for each parameter "per_problem" or "shared".
        initial: the parameters before the first step, by name; empty where the guide that is scored is another than
            that which was fitted, as with a Laplace approximation.
        steps: the steps after which the parameters were noted, `(T,)`.
        trajectory: the flat parameters then, `(T, B, R, D)`.
        elbo_history: the estimate of the objective's bound in every step, `(num_steps, B, R)`, nats; nan where a fit
            was left out of a step.
        status: a value of `ppl_vi.svi.status.Status` for each fit, as a string, `(B, R)`.
        stop_reason: why each fit stopped or did not stop, in words, `(B, R)`.
        num_steps: the steps that each fit took, `(B, R)`.
        predicted_gain: the most that each fit could still gain nearby, nats, `(B, R)`.
        support_mismatch: what is wrong with the guide's support, or "".
        versions: the versions of the software.
        program: the model and the guide as pure functions.
    """

    target: Target
    family_name: str
    family: Family
    objective: str
    engine: str
    engine_reason: str
    seed: int
    seconds: float
    num_particles: int | Literal["auto"]
    lr: float
    parameters: dict[str, Tensor]
    scope: dict[str, str]
    initial: dict[str, Tensor]
    steps: np.ndarray
    trajectory: Tensor
    elbo_history: np.ndarray
    status: np.ndarray
    stop_reason: np.ndarray
    num_steps: np.ndarray
    predicted_gain: np.ndarray
    support_mismatch: str
    versions: dict[str, str]
    program: Program

    def heading(self) -> str:
        """Such as `Fit of AutoNormal to eight_schools`."""
        return f"Fit of {self.family_name.rpartition(':')[2]} to {self.target.name}"

    def summary(self) -> Mapping[str, str]:
        """How the fits ended, and what they took."""
        problems = f"{len(self.status)} problems, " if len(self.status) > 1 else ""
        ends = Counter(str(status).replace("_", " ") for status in self.status.flat)
        ended = ", ".join(f"{num} {status}" for status, num in ends.most_common())
        return {
            "": f"{problems}{self.num_replicas} replica{'s' if self.num_replicas > 1 else ''}, {ended}",
            "steps": f"{int(self.num_steps.max(initial=0)):,}",
            "time": f"{self.seconds:.2g} s",
            "support": self.support_mismatch,
        }

    @property
    def num_replicas(self) -> int:
        """The number of replicas of each problem, `R`."""
        return self.status.shape[1]

    @property
    def is_laplace(self) -> bool:
        """Whether its steps sought another thing than the guide of highest ELBO that is measured.

        So it is with a Laplace approximation, whose steps seek the mode, with linear response and with Pathfinder.
        """
        return not self.initial and bool((self.num_steps > 0).any())

    @property
    def theta(self) -> Tensor:
        """All parameters of each fit as one vector, `(B, R, D)`."""
        return self.program.layout.flatten(self.parameters)

    def guide(self, problem: int = 0, replica: int = 0) -> nn.Module:
        """One fitted guide, an ordinary Pyro guide: call it with the problem's data, or give it to `Predictive`.

        Its parameters have the target's dtype. Where a guide makes tensors of its own while it runs, as `AutoGaussian`
        does, set torch's default dtype to that before.
        """
        built = build_guide(self.family, self.target, problem, seed=structure_seed(self.seed))
        guide = finished(built, self.target, problem, at_mode=False)
        load_parameters(guide, {name: stacked[problem, replica] for name, stacked in self.parameters.items()})
        _rename(guide, f"{type(guide).__name__}_{next(_GUIDE_NUMBERS)}")
        return guide

    def draw(self, num: int, seed: int) -> Latents:
        """Draws from every fitted guide: for each latent site `(B, R, num, *site.shape)`."""
        return self.draw_at(self.theta, num, seed)

    def draws(self, num: int = 1000, *, problem: int = 0, replica: int = 0, seed: int = 0) -> Latents:
        """Draws from one fitted guide, that of `guide(problem, replica)`: for each site `(num, *site.shape)`."""
        return {name: value[problem, replica] for name, value in self.draw(num, seed).items()}

    def approximation(
        self, problem: int = 0, replica: int = 0, num: int = 4000, seed: int = 0, *, name: str = ""
    ) -> Approximation:
        """Draws of one fitted guide with their log density, as `ppl_vi.measure` takes those of any system.

        Args:
            problem: which of the target's problems.
            replica: which of its fits.
            num: how many draws.
            seed: of the draws.
            name: what tables call it, by default the family's name.
        """
        latents, log_q = self.draw_with_log_prob(num, seed)
        return Approximation(
            {key: value[problem, replica][None].cpu().numpy() for key, value in latents.items()},
            log_q[problem, replica][None].cpu().numpy(),
            name or self.family_name.rpartition(":")[2],
            f"ppl_vi {self.versions.get('ppl_vi', '')}".strip(),
            self.seconds,
        )

    def to_datatree(self, num_draws: int = 1000, seed: int = 0, problem: int = 0) -> DataTree:
        """The fitted guides of one problem for ArviZ, with the model's plates as dimensions.

        It has the groups

        - `posterior`: draws of the guide, one chain for each replica;
        - `sample_stats`: `lp`, the log joint, and `log_q`, the log guide density, of each draw, nats;
        - `loss_history`: the objective's estimate of minus the ELBO at every step, one chain for each replica, nats;

        and attributes that say how it was fitted.

        Args:
            num_draws: how many draws of each replica.
            seed: the seed of the draws.
            problem: which of the target's problems.
        """
        return trees.tree_of(self, num_draws, seed, problem)

    def draw_at(self, theta: Tensor, num: int, seed: int) -> Latents:
        """Draws from members `theta` `(B, R, D)` of the family: for each latent site `(B, R, num, *site.shape)`."""
        return self._pseudo_random(theta, num, seed)[0]

    def draw_with_log_prob(self, num: int, seed: int) -> tuple[Latents, Tensor]:
        """What `draw` gives, and log q there, nats, `(B, R, num)`."""
        latents, log_q = self._pseudo_random(self.theta, num, seed)
        if not bool(log_q.isfinite().all()):  # a draw was rounded onto an edge of its support, which `log_prob` mends
            log_q = torch.where(log_q.isfinite(), log_q, self.log_prob(latents))
        return latents, log_q

    def _pseudo_random(self, theta: Tensor, num: int, seed: int) -> tuple[Latents, Tensor]:
        def found() -> tuple[Latents, Tensor]:
            generator = torch.Generator(device=theta.device).manual_seed(seed)
            return self._drawn(theta, pseudo_random(self.program.latent_draws, (*theta.shape[:2], num), generator), num)

        try:
            return found()
        except UnsupportedRandomnessError as error:  # now the guide draws in another way than in its first run
            self.program.run_one_by_one(str(error), by_seeds=True)
        return found()

    def _drawn(self, theta: Tensor, noise: tuple[Tensor, ...], num: int) -> tuple[Latents, Tensor]:
        """What members `theta` `(B, R, D)` draw from noise `(B, R, num, *shape)`, and log q `(B, R, num)`, nats."""
        z, log_q = members.drawn(self.program, theta, noise, num)
        return latents_of(self.target.latents, z), log_q

    def quantiles(self, probabilities: Sequence[float], *, num_points: int = 2**14, seed: int = 0) -> Latents:
        """Quantiles of each latent number's marginal under the fitted guides: `(B, R, Q, *site.shape)` for each site.

        They are the quantiles of draws on scrambled Sobol points, for any guide. The probability below each is right to
        about `1 / num_points^(1/2)` at worst.

        Args:
            probabilities: `Q` numbers between 0 and 1.
            num_points: draws of each guide.
            seed: of the scrambling.

        Raises:
            ValueError: a probability is not between 0 and 1.
        """
        bad = [p for p in probabilities if not 0 < p < 1]
        if bad or not len(probabilities):
            raise ValueError(f"probabilities must lie between 0 and 1, got {bad[0] if bad else 'none'}")
        noise = quasi_random(self.program.latent_draws, num_points, 1, seed)
        common = [part[0].to(self.theta.device) for part in noise]
        shape = self.theta.shape[:2]
        latents, _ = self._drawn(self.theta, tuple(part.expand(*shape, *part.shape) for part in common), num_points)
        at = torch.as_tensor(probabilities, dtype=self.target.dtype, device=self.theta.device)
        return {name: values.quantile(at, dim=2).movedim(0, 2) for name, values in latents.items()}

    def log_prob(self, latents: Latents) -> Tensor:
        """log q of the fitted guides at latents `(B, R, S, *site.shape)`: `(B, R, S)`, nats."""
        return self.log_prob_at(self.theta, latents)

    def log_prob_at(self, theta: Tensor, latents: Latents) -> Tensor:
        """log q of members `theta` `(B, R, D)` at latents `(B, R, S, *site.shape)`: `(B, R, S)`, nats."""
        batch, replicas = theta.shape[:2]
        problem = torch.arange(batch, device=theta.device).repeat_interleave(replicas)
        rows = {name: value.flatten(0, 1) for name, value in latents.items()}
        return self.log_prob_rows(theta.flatten(0, 1), problem, rows).unflatten(0, (batch, replicas))

    def log_prob_rows(self, theta: Tensor, problem: Tensor, latents: Latents) -> Tensor:
        """log q of members `theta` `(N, D)` for problems `(N,)` at latents `(N, S, *site.shape)`: `(N, S)`, nats."""
        return members.log_density(self.program, theta, problem, latents)

    def save(self, path: str | Path) -> None:
        """Writes the fit as a zip of plain arrays and JSON; an existing file is replaced only once all is written.

        Raises:
            OSError: the file can't be written.
        """
        learned = self.target.learned
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "family": self.family_name,
            **{name: getattr(self, name) for name in saving.SCALARS},
            "parameters": list(self.parameters),
            "scope": self.scope,
            "support_mismatch": self.support_mismatch,
            "versions": self.versions,
            "target": fingerprint(self.target),
            "learned": None if learned is None else {**vars(learned), "values": list(learned.values)},
            "dtype": str(self.target.dtype).removeprefix("torch."),
        }
        groups = (("parameter", self.parameters), ("initial", self.initial), ("learned", learned and learned.values))
        arrays = {
            **{f"{name}_{i}": v.cpu().numpy() for name, held in groups for i, v in enumerate((held or {}).values())},
            "trajectory": self.trajectory.cpu().numpy(),
            **{name: getattr(self, name) for name in saving.HISTORIES},
        }
        saving.write(Path(path), header, arrays)

    @staticmethod
    def load(path: str | Path, target: Target, family: Any = None, *, import_family: bool = False) -> Fit:
        """Reads a fit from a file.

        A file can be damaged, or made by somebody else. Its content has to be that of its digest, and every array has
        to have the shape and the dtype that the target, the family and the number of replicas ask for. No code is run
        that the file names, unless `import_family` allows it. A file that an earlier version of ppl_vi wrote has no
        digest; it is loaded after the other checks, with a line in the log.

        Args:
            path: a file that `save` has written.
            target: the target that it was fitted to, since a file holds no code. Where the model has parameters that
                were learned, they are taken from the file.
            family: the family, or a guide of your own; needed where it is none of this package's or Pyro's.
            import_family: whether a family that the file names as `package.module:attribute` may be imported and
                called. Allow it only for files that you trust: importing a module runs it.

        Raises:
            DamagedFileError: (a ValueError) the file is truncated, changed, or no saved fit.
            ValueError: the file is of another version or another target, or its family has to be given.
            FileNotFoundError: there is no such file.
        """
        path = Path(path)
        header, arrays = saving.read(path)
        with saving.errors_naming(path):
            target = with_learned(target, header, arrays)
        if header["target"] != fingerprint(target):
            raise ValueError(f"{path} was fitted to another target or other data: {header['target']}")
        family = _loaded(path, target, header["family"], family, import_family)
        built = build_guide(family, target, seed=structure_seed(header["seed"]))
        program = Program(target, drawn_by_latents(finished(built, target, 0, at_mode=False)))
        names = header["parameters"]
        if tuple(names) != program.layout.names:
            raise ValueError(
                f"{path}: family '{header['family']}' has parameters {program.layout.names}, the file {names}"
            )
        with saving.errors_naming(path):
            saving.check_arrays(header, arrays, target.num_problems, program.layout.shapes, target.dtype)

        def tensors(prefix: str) -> dict[str, Tensor]:
            return {n: torch.from_numpy(arrays[f"{prefix}_{i}"]).to(target.device) for i, n in enumerate(names)}

        scalars: dict[str, Any] = {name: header[name] for name in saving.SCALARS}
        histories: dict[str, Any] = {name: arrays[name] for name in saving.HISTORIES}
        return Fit(
            target=target,
            family_name=header["family"],
            family=family,
            **scalars,
            parameters=tensors("parameter"),
            scope=header["scope"],
            initial=tensors("initial") if "initial_0" in arrays else {},
            trajectory=torch.from_numpy(arrays["trajectory"]).to(target.device),
            **histories,
            support_mismatch=header["support_mismatch"],
            versions=header["versions"],
            program=program,
        )


def with_learned(target: Target, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Target:
    """A target with what a saved fit has learned of its model's own parameters; the same one where that is nothing.

    Raises:
        DamagedFileError: what was learned is of other shapes or dtypes than the model's parameters.
    """
    learned = header["learned"]
    if target.learnable is None or learned is None:
        return target
    expected = parameters_of(target.learnable.parameters)
    if set(learned["values"]) != set(expected):
        return target  # the fit is of another model, which its fingerprint tells
    values = {}
    for i, name in enumerate(learned["values"]):
        array = arrays.get(f"learned_{i}")
        check_array(f"learned_{i}", array, expected[name].detach().cpu().numpy().dtype, tuple(expected[name].shape))
        values[name] = torch.from_numpy(array)
    return frozen_target(target, Learned(**{**learned, "values": values}))


def _loaded(path: Path, target: Target, name: str, given: Any, import_family: bool) -> Family:
    """The family of a saved fit: the one that is given, else the one that its name says.

    Raises:
        ValueError: the family has to be given.
    """
    known = {name_of(family): family for family in FAMILIES.values()} | FAMILIES
    if given is None and name not in known and not import_family:
        raise ValueError(
            f"{path}: its guide '{name}' is code that is not part of ppl_vi, give it by family=..., or let a file that "
            "you trust import it by import_family=True"
        )
    try:
        family = family_of(target, known.get(name, name) if given is None else given)
        build_guide(family, target)
    except (TypeError, ValueError) as error:
        if given is not None:
            raise
        raise ValueError(f"{path}: its guide '{name}' can't be made again, give it by family=...: {error}") from error
    return family
