"""Guides of all kinds on models that the project has not seen, from Python and from a shell."""

import dataclasses
import json
import math
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions.transforms import affine_coupling, iterated, planar, spline_autoregressive
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, AutoNormalizingFlow, AutoStructured
from pyro.nn import PyroModule, PyroParam
from scipy import special, stats

import ppl_vi
from ppl_vi import __main__ as command
from ppl_vi import cli, ground_truth, model_comparison
from ppl_vi.commands import compare as compare_command
from ppl_vi.comparison.axes import PROBABILITIES, axes_of
from ppl_vi.comparison.comparison import Curves, Entry
from ppl_vi.model_comparison import labelled
from ppl_vi.report.plots import elbos_by_step
from ppl_vi.svi.objectives import tail_adaptive
from ppl_vi.svi.result import Fit
from tests.strict_json import strict

DATA = torch.tensor([1.2, 3.4, 2.2, 0.7, 1.9])
TINY = {"num_steps": 40, "num_particles": 16, "num_replicas": 2, "num_draws": 2000}
TINY_OPTIONS = ["--num-steps", "40", "--num-particles", "16", "--num-replicas", "2"]


def line(x, y, names):
    """Two latents with correlation, a list of str among the arguments: conjugate."""
    assert names == ["a", "b"]
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y)


X = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])


def function_guide(x, y, names):
    """Hand-written, with the model's own arguments."""
    for name in names:
        loc = pyro.param(f"loc_{name}", torch.tensor(0.1))
        pyro.sample(
            name, dist.Normal(loc, pyro.param(f"sd_{name}", torch.tensor(0.5), constraint=dist.constraints.positive))
        )


class ModuleGuide(PyroModule):
    """The same as a module."""

    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor([0.1, 0.1]))
        self.scale = PyroParam(torch.tensor([0.5, 0.5]), dist.constraints.positive)

    def forward(self, x, y, names):
        for i, name in enumerate(names):
            pyro.sample(name, dist.Normal(self.loc[i], self.scale[i]))


class Easy(EasyGuide):
    """A module whose parameters are stated by `pyro.param`, beside one of its own."""

    def __init__(self, model):
        super().__init__(model)
        self.loc = PyroParam(torch.tensor([0.1, 0.1]))

    def guide(self, x, y, names):
        group = self.group(match="a|b")
        scale = pyro.param("scale", torch.full(group.event_shape, 0.5), constraint=dist.constraints.positive)
        group.sample("both", dist.Normal(self.loc, scale).to_event(1))


def family(model):
    """A family as a function of the model."""
    return AutoNormal(model)


def adds_a_site(x, y, names):
    function_guide(x, y, names)
    pyro.sample("c", dist.Normal(0.0, 1.0))


def raises(x, y, names):
    raise RuntimeError("no such luck\nand more")


GUIDES = {
    "full": AutoMultivariateNormal,
    "by name": "AutoNormal",
    "family": family,
    "function": function_guide,
    "module": ModuleGuide(),
    "easy": Easy,
    "adds": adds_a_site,
    "raises": raises,
    "point": AutoDelta,
}


def exact():
    """log p(y), the posterior's covariance and the best mean-field reverse KL: closed forms of linear regression."""
    design = torch.stack([torch.ones(5), X], 1).double()
    marginal = dist.MultivariateNormal(torch.zeros(5).double(), torch.eye(5).double() + 4 * design @ design.mT)
    precision = torch.eye(2).double() / 4 + design.mT @ design
    kl = (torch.diagonal(precision).log().sum() - torch.logdet(precision)) / 2
    return float(marginal.log_prob(DATA.double())), torch.linalg.inv(precision), float(kl)


@pytest.fixture(scope="module")
def result():
    return ppl_vi.compare(line, GUIDES, args=(X, DATA, ["a", "b"]), seed=1, **TINY)


@pytest.mark.slow
def test_every_kind_of_guide_is_measured_against_the_exact_posterior(result):
    evidence, _, best = exact()
    records = {record["guide"]: record for record in strict(json.dumps(result.records(), allow_nan=False))}
    assert list(records) == list(GUIDES)
    for name in ("full", "by name", "family", "function", "module", "easy"):
        record = records[name]
        assert record["log_evidence"] == pytest.approx(evidence, abs=1e-7)
        assert record["elbo"] + record["reverse_kl"] == pytest.approx(evidence, abs=1e-7)
        gap = 0.0 if name == "full" else best
        assert record["family_gap"] == pytest.approx(gap, abs=1e-6)
        assert record["reverse_kl"] >= gap
        assert len(record["replicas"]) == 2
        assert [part["name"] for part in record["marginals"]] == ["a", "b"]
    assert (records["adds"]["status"], records["raises"]["status"]) == ("failed", "failed")
    assert "draws site 'c', which the model has not" in records["adds"]["reason"]
    raised = "raised RuntimeError before its first sample site: no such luck and more"
    assert records["raises"]["reason"] == f"ValueError: the guide '{__name__}:raises' {raised}"
    assert records["point"]["status"] == "skipped"
    assert "point mass" in records["point"]["reason"]


@pytest.mark.slow
def test_the_table_says_what_is_known_and_why_a_row_is_missing(result):
    text = str(result)
    assert "log p(x) = " in text
    assert result.truth.grade in text
    assert "raised RuntimeError before its first sample site: no such luck" in " ".join(text.split())
    assert "nan" not in text
    assert "<ModelComparison of line: full, by name" in repr(result)


@pytest.mark.slow
def test_fits_are_at_hand_and_give_draws_densities_and_quantiles(result):
    found = result["function"]
    loc, sd = (float(found.parameters[name].flatten()[0]) for name in list(found.parameters)[:2])
    quantiles = found.quantiles([0.025, 0.5])["a"]
    assert quantiles.shape == (1, 2, 2)
    # 16,384 Sobol points: the standard error of as many independent draws is 0.02 sd in the tail
    assert quantiles[0, 0].tolist() == pytest.approx([loc - 1.95996 * math.exp(sd), loc], abs=0.02 * math.exp(sd))
    with pytest.raises(KeyError, match=r"'raises' has no fit: failed, ValueError: the guide .* raised RuntimeError"):
        result["raises"]
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        found.quantiles([1.5])


@pytest.mark.slow
def test_guides_of_ones_own_are_saved_and_found_again_by_name(result, tmp_path):
    for name in ("function", "easy", "family"):
        result[name].save(tmp_path / name)
        draws = result[name].draw(5, seed=0)
        with pytest.raises(ValueError, match=r"give it by family=.* or let a file that you trust import it"):
            Fit.load(tmp_path / name, result.target)
        for back in (
            Fit.load(tmp_path / name, result.target, import_family=True),
            Fit.load(tmp_path / name, result.target, GUIDES[name]),
        ):
            assert torch.equal(back.log_prob(draws), result[name].log_prob(draws))
    assert result["function"].family_name == f"{__name__}:function_guide"
    result["module"].save(tmp_path / "module")
    with pytest.raises(ValueError, match=r"its guide '.*:ModuleGuide' can't be made again, give it by family="):
        Fit.load(tmp_path / "module", result.target, import_family=True)
    assert Fit.load(tmp_path / "module", result.target, GUIDES["module"]).num_replicas == 2


def flow(transform):
    return lambda model: AutoNormalizingFlow(model, partial(iterated, 1, transform))


@pytest.mark.slow
def test_the_best_of_a_users_own_flow_is_the_best_one_found():
    """A network has many local optima, whoever wrote the guide; what can't be done is told in a line."""
    guides = {
        "coupling": flow(affine_coupling),
        "spline": flow(spline_autoregressive),
        "planar": flow(planar),
        "structured": AutoStructured,
    }
    result = ppl_vi.compare(line, guides, args=(X, DATA, ["a", "b"]), **TINY)
    coupling, spline, no_inverse, structured = result.records()
    assert not structured["family_gap_is_upper_bound"]  # linear maps, but Gaussian members
    assert coupling["family_gap_is_upper_bound"]
    assert coupling["family_gap"] >= 0
    assert "indexes by a mask of drawn values" in spline["reason"]
    assert (no_inverse["status"], "without an inverse" in no_inverse["reason"]) == ("skipped", True)


@pytest.mark.slow
def test_figures_show_marginals_gaps_and_the_way_there(result, tmp_path):
    figures = result.plot()
    assert set(figures) == {"marginals", "gaps", "reverse_kl", "elbo"}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    axes = figures["marginals"].axes
    assert [panel.get_title() for panel in axes if panel.axison] == ["a", "b"]
    named = " ".join(text.get_text() for text in figures["marginals"].legends[0].get_texts())
    assert all(entry.guide in named for entry in result.entries if entry.curves is not None)
    for panel in axes[:2]:
        for line in panel.lines:
            z, density = line.get_data()
            assert np.trapezoid(density, z) == pytest.approx(1, abs=0.1)  # what lies beyond the ends is missing


@pytest.mark.slow
def test_arviz_takes_each_guide_and_draws_it(result):
    import arviz_plots
    import arviz_stats  # noqa: F401, the accessor that plots use

    tree = result.to_datatree(num_draws=300, seed=2)
    assert set(tree.children) == {"full", "by name", "family", "function", "module", "easy", "truth"}
    full = tree["full"]
    assert full["posterior"]["a"].dims == ("chain", "draw")
    assert full["posterior"]["a"].shape == (2, 300)
    found = result["full"]
    log_q = found.log_prob({name: torch.tensor(full["posterior"][name].values)[None] for name in ("a", "b")})
    assert full["sample_stats"]["log_q"].values == pytest.approx(log_q[0].numpy())
    a, b = (torch.tensor(full["posterior"][name].values) for name in ("a", "b"))
    log_joint = dist.Normal(0, 2.0).log_prob(a) + dist.Normal(0, 2.0).log_prob(b)
    log_joint = log_joint + dist.Normal(a[..., None] + b[..., None] * X, 1.0).log_prob(DATA).sum(-1)
    assert full["sample_stats"]["lp"].values == pytest.approx(log_joint.numpy())
    assert full["loss_history"]["loss"].shape == (2, found.elbo_history.shape[0])
    assert full["loss_history"]["loss"].values[0, 0] == -found.elbo_history[0, 0, 0]
    assert (tree.attrs["seed"], full.attrs["family"]) == (1, "pyro.infer.autoguide.guides:AutoMultivariateNormal")
    assert "torch" in json.loads(tree.attrs["versions"])
    assert tree.attrs["log_evidence_std_error"] == float(result.truth.log_evidence_std_error[0])
    sd = tree["truth"]["posterior"]["a"].std().item()
    assert sd == pytest.approx(float(exact()[1][0, 0]) ** 0.5, rel=0.15)  # of 600 draws, 5 standard errors
    drawn = arviz_plots.plot_forest({"full": full, "truth": tree["truth"]}, backend="none")
    assert drawn is not None


@pytest.mark.slow
def test_one_latent_is_measured_by_quadrature():
    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    counts = torch.tensor([2.0, 3.0, 1.0])
    found = ppl_vi.compare(model, ["gamma"], args=(counts,), **TINY)
    (record,) = found.records()
    # conjugate: Gamma(2 + 6, 1 + 3)
    evidence = math.lgamma(8) - math.lgamma(2) - 8 * math.log(4) - sum(math.lgamma(1 + n) for n in (2, 3, 1))
    assert record["log_evidence"] == pytest.approx(evidence, abs=1e-10)
    assert record["family_gap"] == pytest.approx(0, abs=1e-9)
    assert [part["name"] for part in record["marginals"]] == ["rate"]
    assert len(found.plot()["marginals"].axes) == 1


@pytest.mark.parametrize(
    ("guides", "error", "message"),
    [
        ({}, ValueError, "at least one guide"),
        ([AutoNormal, AutoNormal], ValueError, "two guides are called 'AutoNormal'"),
        (AutoNormal, TypeError, "must be a dict of label to guide, or a list"),
    ],
)
def test_guides_are_a_dict_or_a_list(guides, error, message):
    with pytest.raises(error, match=message):
        labelled(guides)


def test_a_target_of_several_problems_is_refused_with_the_mend():
    def model(y):
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0).expand(y.shape), obs=y)

    several = ppl_vi.Target(model, (DATA,), name="several")
    message = r"'several' poses 5, one for each row of its arguments: .* Target\.of\(model, args\), or .* Target\.rows"
    with pytest.raises(ValueError, match=message):
        ppl_vi.compare(several, ["AutoNormal"], **TINY)


MODULE = """
import torch, pyro, pyro.distributions as dist
data = torch.tensor([1.0, 2.5])
pair = (torch.tensor([1.0, 2.5]), 0.5)
def model(y, sd=1.0):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(z, sd), obs=y)
def mine(y, sd=1.0):
    pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 0.5))
def wrong(y, sd=1.0):
    pyro.sample("other", dist.Normal(0.0, 1.0))
def raises(y):
    raise RuntimeError("no such luck")
def empty(y):
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a user's module, the current one."""
    (tmp_path / "seen_by_nobody.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("seen_by_nobody", None)


def test_the_file_of_a_figure_has_the_name_that_the_figure_gives_it(tmp_path):
    figures = {"gaps": Figure(), "marginals": Figure()}
    figures["marginals"].set_label("marginals_40_of_100")
    compare_command.write_figures(SimpleNamespace(plot=lambda: figures), SimpleNamespace(out=tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"gaps.png", "marginals_40_of_100.png"}


@pytest.mark.slow
def test_the_shell_compares_what_lies_in_the_current_folder(folder, capsys):
    path = list(sys.path)
    guides = ["--guides", "AutoNormal", "seen_by_nobody:mine", "seen_by_nobody:wrong"]
    arguments = ["compare", "seen_by_nobody:model", "--args", "seen_by_nobody:pair", *guides, *TINY_OPTIONS]
    assert command.main([*arguments, "--out", "out", "--json", "-", "--html"]) == 0
    shown = capsys.readouterr()
    records = strict(shown.out)
    assert [record["guide"] for record in records] == guides[1:]
    assert [record["status"] for record in records][2] == "failed"
    # precision 1 + 2 / 0.25 = 9, so the sd of 0.5 is wrong: KL = log(2/3) ... of the best mean
    best = math.log((1 / 3) / 0.5) + 0.25 * 9 / 2 - 0.5
    assert records[1]["family_gap"] == pytest.approx(best, abs=1e-9)
    assert "the guide has no site 'z'" in shown.err
    written = {file.name for file in Path("out").iterdir()}
    assert {"records.json", "records.csv", "table.txt", "marginals.png", "gaps.png", "report.html"} <= written
    assert sys.path == path


@pytest.mark.parametrize("full", [False, True])
def test_the_shell_prints_the_verdict_and_six_columns_or_all_and_writes_all(full, folder, capsys):
    arguments = ["compare", "seen_by_nobody:model", "--args", "seen_by_nobody:data", "--guides", "AutoNormal"]
    assert command.main([*arguments, *TINY_OPTIONS, "--no-plots", *(["--full"] if full else [])]) == 0
    shown, written = capsys.readouterr().out, Path("results/table.txt").read_text()
    assert ("k-hat" in shown, "worst 90%" in shown) == (full, not full)
    assert "k-hat" in written
    for text in (shown, written):
        assert " ".join(text.split()).partition("checked ")[2].startswith("AutoNormal is ")  # below the title


@pytest.mark.parametrize("num_workers", [1, 2])
def test_in_a_pipe_the_shell_says_each_stage_on_one_line_of_standard_error(num_workers, folder, capfd, monkeypatch):
    monkeypatch.setattr(cli.workers, "MAX_WORKERS", num_workers)
    arguments = ["seen_by_nobody:model", "--args", "seen_by_nobody:data", "--guides", "AutoNormal", "lognormal"]
    assert command.main(["compare", *arguments, *TINY_OPTIONS, "--no-plots"]) == 0
    shown = capfd.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == len(set(lines))
    assert "\x1b" not in shown.err
    for subject, stages in {
        "truth": ["quadrature", "search for modes", "tree of bricks", "checks by other routes"],
        "AutoNormal": ["choosing starts", "preparing the steps", "fitting", "best member", "scoring"],
        "lognormal": ["choosing starts", "preparing the steps", "fitting", "scoring"],
    }.items():
        told = [line.removeprefix(f"{subject}: ") for line in lines if line.startswith(subject)]
        assert [stage for stage in told if stage in stages] == stages
    assert shown.out.startswith("model")


def conjugate(y):
    z = pyro.sample("z", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def test_every_stage_of_a_comparison_is_told_in_order_and_to_its_end():
    told = []
    ppl_vi.compare(conjugate, ["AutoNormal", "lognormal"], args=(torch.tensor(0.7),), progress=told.append, **TINY)
    assert {one.subject for one in told} == {"", "truth", "AutoNormal", "lognormal"}
    by_stage = {}
    for one in told:
        by_stage.setdefault(one.title, []).append(one)
    for events in by_stage.values():
        assert events[-1].is_over
        for before, after in pairwise(events):
            assert before.is_over or before.done <= after.done  # a stage may come again, as a check does
            assert before.total is None or before.done <= before.total
    assert [one.done for one in by_stage["comparison"]][-1] == 2


def test_what_a_callback_raises_is_no_failure_of_a_guide():
    def full(stage):
        if stage.title == "AutoNormal: fitting":
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        ppl_vi.compare(conjugate, ["AutoNormal"], args=(torch.tensor(0.7),), progress=full, **TINY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the model as package.module:attribute"),
        (["seen_by_nobody"], "expected package.module:attribute, got 'seen_by_nobody'"),
        (["no_such_module:model"], "can't be imported: ModuleNotFoundError"),
        (["seen_by_nobody:nothing"], "can't be imported: AttributeError"),
        (["seen_by_nobody:model", "--args", "seen_by_nobody:nothing"], "--args: 'seen_by_nobody:nothing' can't be"),
        (["seen_by_nobody:model", "--args", "seen_by_nobody:data", "--guides", "x:y"], "guide 'x:y' can't be imported"),
        (["seen_by_nobody:model", "--args", "seen_by_nobody:data", "--guides", "AutoNorml"], "did you mean AutoNormal"),
        (["seen_by_nobody:raises", "--args", "seen_by_nobody:data"], "no such luck"),
        (["seen_by_nobody:empty", "--args", "seen_by_nobody:data"], "no latent sample site"),
        (["seen_by_nobody:data"], "must be a Pyro model, something callable; got Tensor"),
        (["seen_by_nobody:model"], "missing 1 required positional argument"),
        (
            [
                "seen_by_nobody:model",
                "--args",
                "seen_by_nobody:data",
                "--guides",
                "seen_by_nobody:wrong",
                *TINY_OPTIONS,
            ],
            None,
        ),
    ],
)
def test_what_can_t_be_done_is_one_line_and_exit_code_2(arguments, message, folder, refused, capsys):
    if message is None:  # the table comes first, then the line
        assert command.main(["compare", *arguments, "--no-plots"]) == 2
        *_, told, error = capsys.readouterr().err.splitlines()
        assert told == "written to results: records.json, records.csv, table.txt"
        assert "no guide could be compared: seen_by_nobody:wrong: ValueError" in error
        return
    assert message in refused(command.main, ["compare", *arguments])


def test_an_uncertified_truth_is_exit_code_3(folder, capsys, monkeypatch):
    def failing(target, **settings):
        return dataclasses.replace(ground_truth(target, **settings), grade="uncertified", reasons=("split R-hat is 3",))

    monkeypatch.setattr(model_comparison, "ground_truth", failing)
    arguments = ["compare", "seen_by_nobody:model", "--args", "seen_by_nobody:data", *TINY_OPTIONS, "--no-plots"]
    assert command.main(arguments) == 3
    assert "uncertified: the chains disagree" in capsys.readouterr().out


def test_a_guide_without_mass_where_the_posterior_has_some_is_said_to_be_infinitely_far_forwards():
    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    (record,) = ppl_vi.compare(model, ["lognormal"], args=(torch.tensor(0.7),), **TINY).records()
    assert record["forward_kl"] == "inf"
    assert "no mass where the posterior has some" in record["reasons"]["forward_kl"]
    # the mass that the posterior, Normal(0.35, 1/2), has above 0 bounds what any such guide can do
    assert record["reverse_kl"] > -math.log(0.5 * math.erfc(-0.35))


COUNTS = torch.tensor([3.0, 0.0, 7.0, 12.0, 1.0, 4.0, 4.0, 9.0])


def overdispersed(y):
    """Counts of a negative binomial distribution of unknown mean and shape."""
    mean = pyro.sample("mean", dist.Gamma(2.0, 0.25))
    shape = pyro.sample("shape", dist.LogNormal(0.5, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.GammaPoisson(shape, shape / mean), obs=y)


def two_lognormals(y):
    """Far from the posterior, so that neither divergence is small."""
    for name in ("mean", "shape"):
        loc = pyro.param(f"loc_{name}", torch.tensor(0.8))
        scale = pyro.param(f"sd_{name}", torch.tensor(0.5), constraint=dist.constraints.positive)
        pyro.sample(name, dist.LogNormal(loc, scale))


@pytest.mark.slow
def test_weights_of_a_guide_without_mass_where_the_posterior_has_some_have_no_finite_variance():
    """Their mean misses a part of the evidence, which no spread among them tells."""

    def one(y):
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    def short(y):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("z", dist.Uniform(-scale, scale))

    (record,) = ppl_vi.compare(one, {"short": short}, args=(torch.tensor(0.0),), **TINY).records()
    assert (record["chi_square"], record["importance_log_evidence_std_error"]) == ("inf", "inf")
    assert record["reasons"]["chi_square"] == record["reasons"]["forward_kl"] != ""


def test_both_divergences_are_those_of_scipys_densities_on_a_grid():
    found = ppl_vi.compare(overdispersed, {"mine": two_lognormals}, args=(COUNTS,), **TINY | {"num_replicas": 1})
    loc_mean, log_sd_mean, loc_shape, log_sd_shape = (float(value) for value in found["mine"].parameters.values())
    u, v = np.linspace(-3, 5, 1001)[:, None], np.linspace(-5, 7, 1001)[None]  # logs; beyond lies less than 1e-8
    cell = (u[1, 0] - u[0, 0]) * (v[0, 1] - v[0, 0])
    mean, shape = np.exp(u), np.exp(v)
    log_joint = stats.gamma.logpdf(mean, 2, scale=4) + u + stats.norm.logpdf(v, 0.5, 1)
    log_joint = log_joint + sum(stats.nbinom.logpmf(y, shape, shape / (shape + mean)) for y in COUNTS.numpy())
    log_evidence = special.logsumexp(log_joint) + math.log(cell)
    log_p = log_joint - log_evidence
    log_q = stats.norm.logpdf(u, loc_mean, math.exp(log_sd_mean)) + stats.norm.logpdf(
        v, loc_shape, math.exp(log_sd_shape)
    )
    (record,) = found.records()
    assert record["log_evidence"] == pytest.approx(log_evidence, abs=1e-7)
    assert record["reverse_kl"] == pytest.approx((np.exp(log_q) * (log_q - log_p)).sum() * cell, abs=1e-6)
    assert record["forward_kl"] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum() * cell, abs=1e-6)
    assert min(record["reverse_kl"], record["forward_kl"]) > 0.1


@pytest.mark.slow
def test_tail_adaptive_weights_find_a_posterior_that_is_in_the_family():
    def model(y):
        z = pyro.sample("z", dist.Normal(1.0, 2.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def guide(y):
        sd = pyro.param("sd", torch.tensor(1.5), constraint=dist.constraints.positive)
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(2.5)), sd))

    settings = {"num_steps": 400, "num_particles": 64, "num_replicas": 2, "num_draws": 2000, "lr": 1.0}
    given = {"args": (torch.tensor(4.0),), "objective": "tail_adaptive", "engine": "batched", **settings}
    (record,) = ppl_vi.compare(model, {"mine": guide}, **given).records()
    # it starts 7 nats away; what the stopping rule calls converged is 1e-3 nats
    assert record["reverse_kl"] < 1e-3
    assert record["log_evidence"] == pytest.approx(float(stats.norm.logpdf(4, 1, 4.25**0.5)), abs=1e-9)


def test_tail_adaptive_weights_are_the_inverse_ranks():
    log_joint, log_guide, entropy = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rank = stats.rankdata(-(log_joint - log_guide).numpy())  # 1 is the largest
    particle = SimpleNamespace(log_joint=log_joint, log_guide=log_guide, entropy=entropy)
    loss, bound = tail_adaptive.reduce(particle)
    assert float(loss) == pytest.approx(-np.average((log_joint - entropy).numpy(), weights=1 / rank), rel=1e-12)
    assert float(bound) == pytest.approx(float((log_joint - log_guide).mean()), rel=1e-12)


def test_curves_end_where_heavy_tails_would_squeeze_the_rest():
    normal, cauchy = (kind.ppf(PROBABILITIES, 3.0, 2.0) for kind in (stats.norm, stats.cauchy))
    begin, end = axes_of(np.array([normal, cauchy])).T
    assert (begin[0], end[0]) == (normal[0], normal[-1])
    assert (begin[1], end[1]) == pytest.approx((3 - 4 * (3 - cauchy[1]), 3 + 4 * (cauchy[3] - 3)))
    assert end[1] < cauchy[-1] / 20


def test_a_guide_that_ends_far_below_says_so_in_its_panel():
    def entry(name, gap):
        way = np.array([[[9.0, 5.0, gap]]])
        record = {"guide": name, "status": "converged", "elbo": -gap, "reverse_kl": gap, "support_mismatch": None}
        return Entry(name, (record,), Curves(np.empty(0), np.empty(0), np.array([0, 10, 100]), way))

    entries = tuple(entry(name, gap) for name, gap in (("near", 0.2), ("middle", 4.0), ("far", 812.0)))
    truth = SimpleNamespace(log_evidence=np.zeros(1), grade="checked")
    target = SimpleNamespace(name="m")
    made = SimpleNamespace(target=target, truth=truth, entries=entries, label=lambda problem: "m")
    panels = elbos_by_step(made, 0).axes
    assert [len(panel.texts) for panel in panels[:3]] == [0, 0, 1]
    assert "812 nats below" in panels[2].texts[0].get_text()
    assert panels[0].get_ylim()[0] == pytest.approx(-5.0)  # a quarter more than the middle one
