"""The result object: its text, its HTML, tables of its numbers, copies, files, and what ArviZ takes."""

import copy
import json
import pickle
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from rich.cells import cell_len

import ppl_vi
from ppl_vi.comparison import saving
from ppl_vi.comparison.comparison import Comparison
from ppl_vi.runtime.plain import plain, restored
from ppl_vi.runtime.showing import shortened

TINY = {"num_steps": 60, "num_particles": 16, "num_replicas": 2, "num_draws": 600}
Y = torch.tensor([1.2, 3.4, 2.2])
X = torch.tensor([0.0, 1.0, 2.0])


def line(x, y):
    """Conjugate, with one latent for each row and a vector besides."""
    ab = pyro.sample("ab", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("rows", len(x)):
        shift = pyro.sample("shift", dist.Normal(0.0, 0.5))
        pyro.sample("y", dist.Normal(ab[0] + ab[1] * x + shift, 1.0), obs=y)


def conjugate(y):
    z = pyro.sample("z", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(z), obs=y.round())


def mine(model):
    """A family that is known by no name here."""
    return AutoMultivariateNormal(model)


GUIDES = {"AutoNormal": "AutoNormal", "<b>mine</b>": mine, "point": "AutoDelta"}


@pytest.fixture(scope="module")
def result():
    return ppl_vi.compare(line, GUIDES, (X, Y), seed=1, **TINY)


@pytest.fixture(scope="module")
def of_one_number():
    return ppl_vi.compare(conjugate, ["gamma", "lognormal"], (Y,), **TINY)


# ---- text


def test_the_text_has_six_columns_and_all_of_them_on_request(result):
    assert str(result) == result.table()
    brief, full = result.table(width=200), result.table(full=True, width=300)
    (heading,) = [text for text in brief.splitlines() if text.startswith("guide")]
    assert heading.split("  ")[0] == "guide"
    assert [word for word in ("status", "ELBO", "= family + optimiz.", "interval", "time") if word not in heading] == []
    assert "forward" not in brief
    assert "forward" in full
    assert result.verdict().text.split(".")[0] in " ".join(brief.split())
    assert brief.index("Take") < brief.index("guide  ")
    assert "point¹" in brief
    assert "AutoDelta" not in brief.split("point¹")[0]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("full", [False, True])
def test_no_line_is_wider_than_asked_and_nothing_is_cut(result, width, full):
    text = result.table(width=width, full=full)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text


def test_every_repr_is_short(result):
    fit, card = result["AutoNormal"], result.entries[0].card
    things = [result, fit, card, result.truth, result.target, result.entries[0], result.entries[0].curves, card.best,
              card.marginals, *result.truth.points, *result.truth.modes, result.settings, result.plot()]  # fmt: skip
    for thing in things:
        assert len(repr(thing)) < 400, type(thing)
        assert "\n" not in repr(thing)
    assert max(len(repr(estimate)) for estimate in card.scores.values()) < 400
    assert repr(fit).startswith("<Fit of AutoNormal to line: 2 replicas, 2 ")
    assert repr(result.truth).startswith("<Truth of line: log p(x) -")
    assert repr(card).startswith("<Scorecard of AutoNormal on line: ELBO -")
    plain_one = Comparison(result.target, result.truth, result.settings, (1.5,), result.entries, result.families)
    assert len(repr(plain_one)) < 800
    many = ppl_vi.ModelComparison(result.target, result.truth, result.settings, (), result.entries * 5)
    assert repr(many).endswith("and 9 more>")
    assert shortened("a" * 90) == repr("a" * 59 + "…")


# ---- HTML


class Tags(HTMLParser):
    """Collects the tags of a page, and that they are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_html_has_title_verdict_table_notes_and_figure_and_escapes_text(result):
    page = Tags(result._repr_html_())
    kinds = [tag for tag, _ in page.seen]
    assert kinds.count("table") == 1
    assert kinds.count("tr") == 4
    assert kinds.count("th") == 6
    assert "<b>mine</b>" in page.text  # as text
    assert result.verdict().text in page.text
    assert "log p(x) = " in page.text
    assert "AutoDelta" not in page.text or "point: skipped" in page.text
    (picture,) = [attrs for tag, attrs in page.seen if tag == "img"]
    assert picture["src"].startswith("data:image/png;base64,iVBOR")


def test_the_html_sets_no_colour_so_that_it_is_readable_in_light_and_dark(result):
    for thing in (result, result["AutoNormal"], result.truth, result.entries[0].card):
        for _, attrs in Tags(thing._repr_html_()).seen:
            style = attrs.get("style", "")
            assert "color" not in style.replace("border-collapse", "")
            assert "background" not in style or "background: none" in style


def test_parts_and_figures_show_themselves(result):
    assert "2 replicas" in Tags(result["AutoNormal"]._repr_html_()).text
    assert "reference draws" in result.truth._repr_html_() or "by" in result.truth._repr_html_()
    assert "reverse KL" in Tags(result.entries[0].card._repr_html_()).text
    figures = result.plot()
    assert isinstance(figures, dict)
    assert figures._repr_html_().count("<img ") == len(figures) == 4
    empty = ppl_vi.ModelComparison(result.target, result.truth, result.settings, ())
    assert "no guide is finished" in empty._repr_html_()


# ---- parts


def test_a_guide_by_its_label_gives_guide_draws_and_tree(result):
    found = result["AutoNormal"]
    draws = found.draws(5, replica=1, seed=3)
    assert draws["shift"].shape == (5, 3)
    assert torch.equal(draws["ab"], found.draw(5, 3)["ab"][0, 1])
    assert pyro.poutine.trace(found.guide(replica=1)).get_trace(X, Y).nodes["ab"]["value"].shape == (2,)
    assert list(result) == list(GUIDES)
    assert result.best is result[result.verdict().best]
    with pytest.raises(KeyError, match="'point' has no fit: skipped"):
        result["point"]


def test_a_frame_has_a_row_for_each_guide_or_for_each_latent_number(result):
    frame = result.to_dataframe()
    assert list(frame.index) == ["<b>mine</b>", "AutoNormal", "point"]
    by_guide = {record["guide"]: record for record in result.records()}
    assert frame.loc["AutoNormal", "reverse_kl"] == by_guide["AutoNormal"]["reverse_kl"]
    assert frame.loc["AutoNormal", "num_replicas"] == 2
    assert np.isnan(frame.loc["point", "elbo"])
    assert frame.loc["point", "status"] == "skipped"
    error = by_guide["AutoNormal"]["elbo_error"] + 2 * by_guide["AutoNormal"].get("elbo_std_error", 0.0)
    assert frame.loc["AutoNormal", "elbo_error"] == pytest.approx(error)
    latents = result.to_dataframe(by="latent")
    assert list(latents.loc["AutoNormal"].index) == ["ab[0]", "ab[1]", "shift[0]", "shift[1]", "shift[2]"]
    part = next(part for part in by_guide["AutoNormal"]["marginals"] if part["name"] == "shift[1]")
    assert latents.loc[("AutoNormal", "shift[1]"), "coverage_90"] == part["coverage_90"]
    worst = frame.loc["AutoNormal", "worst_latent"]
    away = (latents.loc["AutoNormal", "coverage_90"] - 0.9).abs()
    assert worst == away.idxmax()
    with pytest.raises(ValueError, match="'guide' or 'latent', got 'site'"):
        result.to_dataframe(by="site")


def test_trees_have_the_plates_as_dimensions_and_arviz_reads_them(result):
    import arviz  # which has to be there on every Python

    assert arviz.__version__
    from arviz_base import extract

    tree = result["AutoNormal"].to_datatree(num_draws=50, seed=2)
    posterior = tree["posterior"]
    assert posterior["shift"].dims == ("chain", "draw", "rows")
    assert posterior["ab"].dims == ("chain", "draw", "ab_dim_0")
    assert list(posterior["rows"].values) == [0, 1, 2]
    assert torch.equal(torch.tensor(posterior["shift"].values), result["AutoNormal"].draw(50, 2)["shift"][0])
    assert extract(tree).sizes["sample"] == 100
    truth = result.truth.to_datatree(40, num_chains=3)
    assert truth["posterior"]["shift"].shape == (3, 40, 3)
    assert truth.attrs["log_evidence"] == result.truth.log_evidence[0]
    whole = result.to_datatree(num_draws=20)
    assert whole["AutoNormal"]["posterior"]["shift"].dims == ("chain", "draw", "rows")
    assert whole["AutoNormal"].attrs["guide"] == "AutoNormal"
    assert whole["<b>mine<_b>"].attrs["guide"] == "<b>mine</b>"  # names of groups have no slash
    assert whole["truth"]["posterior"]["shift"].shape == (2, 20, 3)
    assert result.truth.draws(7)["ab"].shape == (7, 2)


def test_a_plate_with_the_name_of_a_dimension_of_arviz_is_one_of_another_name():
    def model():
        with pyro.plate("draw", 3), pyro.plate("rows", 2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    target = ppl_vi.Target.of(model)
    tree = ppl_vi.ground_truth(target).to_datatree(5)
    assert tree["posterior"]["z"].dims == ("chain", "draw", "rows", "draw_")


# ---- copies and files


def same(one, other):
    """Whether two comparisons have the same numbers, and their fits the same guides."""
    assert str(one) == str(other)
    assert one.verdict() == other.verdict()
    assert json.dumps(one.records()) == json.dumps(other.records())
    for a, b in zip(one.entries, other.entries, strict=True):
        if a.card is None:
            assert b.card is None
            continue
        assert torch.equal(
            a.card.fit.draws(4)[one.target.latents[0].name], b.card.fit.draws(4)[one.target.latents[0].name]
        )
        assert b.card.fit.target is other.target
        assert b.card.truth is other.truth
        np.testing.assert_array_equal(a.card.scores["reverse_kl"].value, b.card.scores["reverse_kl"].value)
        np.testing.assert_array_equal(a.curves.density, b.curves.density)
    for a, b in zip(one.truth.points, other.truth.points, strict=True):
        assert torch.equal(a.u, b.u)
    np.testing.assert_array_equal(one.posterior(0), other.posterior(0))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_comparison_of_functions_that_have_no_name_is_copied_and_pickled(result, of_one_number, copied):
    local = ppl_vi.compare(lambda y: conjugate(y), {"mine": lambda model: mine(model)}, (Y,), **TINY)
    for one in (result, of_one_number, local):
        back = copied(one)
        same(one, back)
        again = ppl_vi.score(back.entries[0].card.fit, back.truth, num_draws=600)
        np.testing.assert_array_equal(again.scores["reverse_kl"].value, one.entries[0].card.scores["reverse_kl"].value)
    for part in (result["AutoNormal"], result.truth, result.entries[0].card, result.entries[0]):
        assert repr(copied(part)) == repr(part)


def test_what_is_pickled_in_several_parts_is_of_one_target_again(result):
    """Also in another process, where the target has never been."""
    parts = {"fit": result["AutoNormal"], "truth": result.truth, "target": result.target}
    for back in (pickle.loads(pickle.dumps(parts)), copy.deepcopy(parts)):
        assert back["fit"].target is back["truth"].target is back["target"]
    text = pickle.dumps({name: pickle.dumps(part) for name, part in parts.items()}).hex()
    script = f"""
import pickle, sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
parts = {{name: pickle.loads(part) for name, part in pickle.loads(bytes.fromhex(sys.stdin.read())).items()}}
assert parts["fit"].target is parts["truth"].target is parts["target"]
import ppl_vi
print(float(ppl_vi.score(parts["fit"], parts["truth"], num_draws=600).scores["reverse_kl"].value[0, 0]))
"""
    done = subprocess.run([sys.executable, "-c", script], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == result.entries[0].card.scores["reverse_kl"].value[0, 0]


def test_a_saved_comparison_is_as_it_was(result, of_one_number, tmp_path):
    of_one_number.save(tmp_path / "one")
    same(of_one_number, ppl_vi.load(tmp_path / "one", conjugate, (Y,)))
    result.save(tmp_path / "several")
    back = ppl_vi.load(tmp_path / "several", line, (X, Y), guides={"<b>mine</b>": mine})
    same(result, back)
    assert set(back.plot()) == set(result.plot())
    assert back.best is back[result.verdict().best]
    assert ppl_vi.score(back["<b>mine</b>"], back.truth).scores["family_gap"].value == pytest.approx(
        result.entries[1].card.scores["family_gap"].value
    )
    again = ppl_vi.load(tmp_path / "several", line, (X, Y), import_guides=True)
    same(result, again)


def test_one_comparison_replaces_another_and_leaves_no_stale_fit(result, of_one_number, tmp_path):
    result.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    of_one_number.save(str(tmp_path))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0] == "comparison.zip"
    assert len(names) == 4
    assert names[-1] == "report.json"
    same(of_one_number, ppl_vi.load(str(tmp_path), conjugate, (Y,)))


def test_what_is_no_comparison_of_this_model_is_refused_in_a_line(result, tmp_path):
    result.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="no comparison at"):
        ppl_vi.load(tmp_path / "nowhere", line, (X, Y))
    with pytest.raises(ValueError, match="another model or other data"):
        ppl_vi.load(tmp_path, line, (X, Y + 1))
    with pytest.raises(ValueError, match=r"give it by guides=\{'<b>mine</b>': \.\.\.\}.*import_guides=True"):
        ppl_vi.load(tmp_path, line, (X, Y))
    fit = next(tmp_path.glob("fit_0_*.zip"))
    kept = fit.read_bytes()
    fit.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(ppl_vi.DamagedFileError, match="missing or is another one"):
        ppl_vi.load(tmp_path, line, (X, Y), guides={"<b>mine</b>": mine})
    fit.unlink()
    with pytest.raises(ppl_vi.DamagedFileError, match="missing or is another one"):
        ppl_vi.load(tmp_path, line, (X, Y), guides={"<b>mine</b>": mine})
    file = tmp_path / saving.FILE
    kept = file.read_bytes()
    for place in (10, len(kept) // 2, len(kept) - 100):
        file.write_bytes(kept[:place] + bytes([kept[place] ^ 1]) + kept[place + 1 :])
        with pytest.raises(ppl_vi.DamagedFileError, match="is not a comparison saved by ppl_vi, or is damaged"):
            ppl_vi.load(tmp_path, line, (X, Y))


def learned(y):
    scale = pyro.param("scale", torch.tensor(1.3), constraint=dist.constraints.positive)
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(z, scale), obs=y)


@pytest.mark.slow
def test_what_was_learned_of_the_model_is_kept(tmp_path):
    one = ppl_vi.compare(learned, ["AutoNormal"], (Y,), **TINY)
    one.save(tmp_path)
    back = ppl_vi.load(tmp_path, learned, (Y,))
    same(one, back)
    assert torch.equal(back.target.learned.values["scale"], one.target.learned.values["scale"])


def test_files_hold_no_pickle_and_only_listed_classes_are_made():
    """A file could name any class, or any function as one."""
    arrays = {}
    held = json.loads(json.dumps(plain({"a": (1.5, np.inf, np.arange(3), [torch.ones(2), None, "x", True])}, arrays)))
    back = restored(held, arrays, {})
    assert back["a"][:2] == (1.5, np.inf)
    assert back["a"][2].tolist() == [0, 1, 2]
    assert torch.equal(back["a"][3][0], torch.ones(2))
    for bad in ({"type": "system", "fields": {"command": "true"}}, {"type": "Path", "fields": {}}, {"array": "b"}, {}):
        with pytest.raises(ppl_vi.DamagedFileError):
            restored(bad, arrays, {"Estimate": ppl_vi.Estimate})
    with pytest.raises(TypeError, match="can't be kept"):
        plain(Path, {})
    with pytest.raises(TypeError, match="array of objects"):
        plain(np.array([None]), {})


def test_arviz_is_there_without_a_warning():
    """In a process of its own, whose warnings are errors but for those of other libraries."""
    done = subprocess.run([sys.executable, "-c", "import arviz"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
