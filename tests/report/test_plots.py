"""The figures of a comparison: equal curves once with all names, and no guide and no latent left out unsaid."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ppl_vi.report import model_plots, plots
from ppl_vi.report.model_plots import MAX_NUMBERS, marginals
from tests.report.made import STEPS, comparison, entry, failed_record, infinite_record, made_record, points

REASON = "a point mass has no density"
SMALL = {"family": 0.2, "optimization": 0.1}


def words(figure):
    """All that stands in a figure, but for the labels of ticks."""
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    texts += [text for axes in figure.axes for text in (*axes.texts, axes.title, *axes.get_yticklabels())]
    return " ".join(" ".join(text.get_text().split()) for text in texts)


def guides(num_numbers, num_guides, *, equal=0):
    """So many guides that were fitted, of which the last are equal, and one of each other kind."""
    z = points(num_numbers)
    fitted = []
    for i in range(num_guides):
        k = min(i, num_guides - 1 - equal)
        record = made_record(f"_guide {i}", {"family": 0.1 * (k + 1), "optimization": 0.1}, replicas=(0.0, 0.1, 0.2))
        fitted.append(entry(record, z, narrow=0.95**k, start=3.0 + k))
    return [
        *fitted,
        entry(made_record("laplace", SMALL), z, narrow=1.3, steps=np.empty(0, int)),
        entry(made_record("as it is", SMALL | {"family": 0.9}), z, narrow=1.6, steps=STEPS[:1]),
        entry(infinite_record("normal"), z, narrow=1.9, steps=np.empty(0, int)),
        _without(failed_record("AutoDelta", "skipped", REASON)),
        _without(failed_record("broken", "failed", "RuntimeError: no")),
    ]


def _without(record):
    return plots.Entry(record["guide"], (record,))


EVERY = {**plots.FIGURES, **model_plots.FIGURES}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("num_guides", "equal"), [(1, 0), (12, 4)])
def test_every_guide_is_named_in_every_figure(name, num_guides, equal):
    made = comparison(guides(1, num_guides, equal=equal))
    figure = EVERY[name](made, 0)
    said = words(figure)
    for one in made.entries:
        assert one.guide in said
    assert REASON in said
    figure.draw_without_rendering()


@pytest.mark.parametrize("draw", [plots.densities, plots.divergences_by_step, plots.elbos_by_step])
def test_equal_curves_share_a_panel(draw):
    apart, together = (len(draw(comparison(guides(1, 9, equal=equal)), 0).axes) for equal in (0, 5))
    assert apart - together >= 4  # a page may end with empty places
    assert "drawn once" in words(draw(comparison(guides(1, 9, equal=5)), 0))


def test_equal_marginals_are_one_line_with_all_names():
    figure = marginals(comparison(guides(3, 6, equal=3), 3), 0)
    assert {len(panel.lines) for panel in figure.axes} == {6 - 3 + 3}  # and laplace, as it is, normal
    labels = [" ".join(text.get_text().split()) for text in figure.legends[0].get_texts()]
    (shared,) = [label for label in labels if label.count("_guide") > 1]
    assert [f"_guide {i}" in shared for i in range(6)] == [False, False, True, True, True, True]
    drawn = [str(line.get_color()) + str(line.get_linestyle()) for line in figure.axes[0].lines]
    assert len(set(drawn)) == len(drawn)


def test_guides_that_differ_in_one_number_have_lines_of_their_own():
    z = points(3)
    one, other = (entry(made_record(name, SMALL), z) for name in ("one", "other"))
    other.curves.density[0, 2] *= 1.05
    assert len(marginals(comparison([one, other], 3), 0).axes[0].lines) == 2


@pytest.mark.parametrize("num", [1, 2, 5, 7, 40])
def test_every_latent_has_a_panel_and_rows_are_wrapped(num):
    figure = marginals(comparison(guides(num, 2), num), 0)
    panels = [panel for panel in figure.axes if panel.axison]
    names = [panel.get_title() for panel in panels]
    assert names == (["w"] if num == 1 else [f"w[{k}]" for k in range(num)])
    assert len({panel.get_position().x0 for panel in panels}) <= 5
    assert figure.get_size_inches()[0] < 12
    assert figure.get_label() == "marginals"


def test_latents_that_are_left_out_are_told_in_the_figure_and_its_name():
    num = 3 * MAX_NUMBERS
    worst = set(range(7, 7 + MAX_NUMBERS))
    record = made_record("one", SMALL) | {
        "marginals": [{"name": f"w[{k}]", "wasserstein": 0.5 if k in worst else 0.1} for k in range(num)]
    }
    figure = marginals(comparison([entry(record, points(num))], num), 0)
    assert [panel.get_title() for panel in figure.axes] == [f"w[{k}]" for k in sorted(worst)]
    assert f"{MAX_NUMBERS} of {num} latent numbers are shown" in words(figure)
    assert "records.json" in words(figure)
    assert figure.get_label() == f"marginals_{MAX_NUMBERS}_of_{num}"


def test_a_latent_with_one_value_is_named_below():
    figure = marginals(comparison(guides(4, 2), 4, fixed=(2,)), 0)
    assert [panel.get_title() for panel in figure.axes if panel.axison] == ["w[0]", "w[1]", "w[3]"]
    assert "one value of them: w[2] (1 in all)" in words(figure)


def test_a_guide_without_steps_is_a_level_and_an_infinite_one_says_so():
    figure = plots.elbos_by_step(comparison(guides(1, 1)), 0)
    panels = {panel.get_title().split("\n")[0]: panel for panel in figure.axes if panel.axison}
    assert list(panels) == ["_guide 0", "laplace", "as it is", "normal"]
    assert [line.get_ydata()[0] for line in panels["laplace"].lines] == pytest.approx([-3.3, -3.0])
    assert "without SVI steps" in panels["as it is"].texts[0].get_text()
    assert "infinite" in panels["normal"].texts[0].get_text()


def test_a_fit_that_begins_beyond_all_bounds_does_not_flatten_the_others():
    """A flow may start 1e100 nats away."""
    wild = entry(made_record("flow", SMALL), points(1), start=1e100)
    near = entry(made_record("near", SMALL), points(1))
    far = entry(made_record("far", SMALL | {"family": 0.9}), points(1))
    figure = plots.divergences_by_step(comparison([wild, near, far]), 0)
    panels = [panel for panel in figure.axes if panel.axison]
    assert [panel.get_title().split("\n")[0] for panel in panels] == ["flow", "near", "far"]
    assert panels[0].get_ylim()[1] < 2e3
    assert "off the scale" in panels[0].texts[0].get_text()
    assert "Some fits began beyond the axis, 2e100 nats away at most." in words(figure)


def test_marginals_of_bins_are_drawn_without_kinks_and_nowhere_below_zero():
    figure = marginals(comparison(guides(2, 1), 2), 0)
    (curve, *_), z = figure.axes[0].lines, points(1)
    at, drawn = curve.get_data()
    middles = np.isin(at.round(9), z.round(9))
    assert drawn[middles] == pytest.approx(stats.norm.pdf(z), abs=1e-12)
    assert drawn == pytest.approx(stats.norm.pdf(at), abs=1e-3)
    assert drawn.min() >= 0


def test_one_replica_has_no_range_and_one_step_is_seen():
    only = entry(made_record("one", SMALL), points(1), steps=STEPS[:2])
    only = replace(only, curves=replace(only.curves, reverse_kl=only.curves.reverse_kl[:, :1]))
    figure = plots.divergences_by_step(comparison([only]), 0)
    assert figure.axes[0].lines[0].get_marker() == "o"
    assert "replicas" not in words(figure)
    assert "range (band) of replicas" in words(plots.divergences_by_step(comparison(guides(1, 1)), 0))


@pytest.mark.parametrize("name", EVERY)
def test_an_uncertified_truth_is_told_in_every_figure(name):
    doubtful = {"uncertified": ["reverse_kl", "family_gap"], "grade_reason": "split R-hat 1.2, at most 1.01 is allowed"}
    made = comparison([entry(made_record("one", SMALL) | doubtful, points(1))])
    said = words(EVERY[name](made, 0))
    assert "uncertified, so do not rely on this: the chains disagree" in said
    assert name != "gaps" or ("0.300?" in said and "0.200?" in said and "0.100?" not in said)
    assert "uncertified" not in words(EVERY[name](comparison(guides(1, 1)), 0))


def test_a_long_name_is_whole_in_a_note_below():
    name = "my_package.guides.with.a.path:and_a_name_that_has_no_end"
    figure = plots.densities(comparison([entry(made_record(name, SMALL), points(1))]), 0)
    first = figure.axes[0].get_title().split("\n")[0]
    assert first.endswith("(1)")
    assert len(first) <= 40
    assert f"(1) {name}" in words(figure)
