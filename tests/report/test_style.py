"""Colours that colour-blind readers can tell apart, by a simulation of their sight."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from ppl_vi.report import style

# What readers without one kind of cone see, of linear RGB. Source: Machado, Oliveira and Fernandes (2009), A
# physiologically-based model for simulation of color vision deficiency, severity 1.0.
SIGHT = {
    "all cones": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.95047, 1.0, 1.08883])
# CIE 1976 distance. 2.3 is just noticeable side by side; what lies apart, as points of a scatter plot, needs more.
LEAST = 15.0


def lab(color, sight):
    """CIE L*a*b* of a colour as it is seen."""
    values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    x = TO_XYZ @ np.clip(np.array(sight) @ linear, 0, 1) / WHITE
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colors, sight):
    """The smallest distance of two of the colours."""
    return min(float(np.linalg.norm(lab(a, sight) - lab(b, sight))) for a, b in combinations(colors, 2))


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize(
    "colors",
    [style.DIGIT_COLORS, style.LINE_COLORS, tuple(style.PART_COLORS.values())],
    ids=["digits", "lines", "parts"],
)
def test_colors_are_told_apart(colors, sight):
    assert nearest(colors, SIGHT[sight]) > LEAST


def test_the_first_lines_are_the_farthest_apart():
    assert min(nearest(style.LINE_COLORS[:4], sight) for sight in SIGHT.values()) > 1.5 * LEAST


def test_the_simulation_finds_a_palette_that_is_not_safe():
    tab10 = (
        "#1f77b4",
        "#ff7f0e",
        "#2ca02c",
        "#d62728",
        "#9467bd",
        "#8c564b",
        "#e377c2",
        "#7f7f7f",
        "#bcbd22",
        "#17becf",
    )
    assert nearest(tab10, SIGHT["deuteranopia"]) < LEAST < nearest(tab10, SIGHT["all cones"])


def test_21_lines_look_different():
    looks = [style.line_style(i) for i in range(21)]
    assert len({(look["color"], look["linestyle"]) for look in looks}) == 21


def test_a_line_under_another_one_is_seen():
    widths = [style.line_style(i)["linewidth"] for i in range(5)]
    assert all(before - after >= 0.3 for before, after in pairwise(widths))
