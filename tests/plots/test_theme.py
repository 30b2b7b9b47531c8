"""The two grounds: everything on them can be read, told apart, and is set by the theme alone."""

import itertools
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from jaxgrad.errors import JaxgradError
from jaxgrad.plots import DARK, LIGHT, loss_curve, save, sweep_curves, theme
from jaxgrad.plots.theme import Theme

THEMES = pytest.mark.parametrize("ground", [LIGHT, DARK], ids=["light", "dark"])


def linear(colour: str) -> np.ndarray:
    """Linear RGB of an sRGB colour (IEC 61966-2-1)."""
    s = np.array(to_rgb(colour))
    return np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """The contrast ratio of WCAG 2.2."""
    low, high = sorted(float(linear(c) @ (0.2126, 0.7152, 0.0722)) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


@THEMES
def test_text_and_colours_stand_out_from_the_ground(ground: Theme):
    # WCAG 2.2: 4.5 for text (1.4.3), 3 for what is drawn (1.4.11).
    assert contrast(ground.text, ground.face) >= 4.5
    assert all(contrast(colour, ground.face) >= 3 for colour in ground.cycle)


# Linear RGB as people without red, green or blue cones see it (Viénot, Brettel & Mollon 1999, rounded).
WITHOUT_CONES = {
    "red": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "green": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    "none is missing": np.eye(3),
}


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* under D65 of linear sRGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    t = to_xyz @ np.clip(rgb, 0, 1) / (to_xyz @ np.ones(3))
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@THEMES
@pytest.mark.parametrize("missing", WITHOUT_CONES)
def test_colour_blind_people_can_tell_the_colours_apart(ground: Theme, missing: str):
    seen = [lab(np.array(WITHOUT_CONES[missing]) @ linear(colour)) for colour in ground.cycle]
    # A difference of 2.3 in L*a*b* is just noticeable side by side (Mahy et al. 1994); four times that, at a distance.
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) > 4 * 2.3


def curve(ground: Theme = LIGHT) -> Figure:
    steps = np.arange(100, 5001, 100)
    return loss_curve(steps, 2 + 1 / steps, np.where(steps <= 2500, 0.1, 0.01), ground)


@THEMES
def test_the_style_of_a_user_changes_no_colour(ground: Theme):
    with matplotlib.rc_context():
        matplotlib.style.use("dark_background" if ground is LIGHT else "ggplot")
        styled = theme.image(curve(ground), "png")
        # Sizes and fonts of a style file are its own; the corner shows the ground alone.
        figure = curve(ground)
    assert to_rgb(figure.get_facecolor()) == to_rgb(ground.face)
    assert {axes.yaxis.label.get_color() for axes in figure.axes} == {ground.text}
    assert {to_rgb(axes.get_facecolor()) for axes in figure.axes} == {to_rgb(ground.face)}
    assert styled.startswith(b"\x89PNG")


def test_drawing_leaves_matplotlibs_settings_and_pyplot_alone(tmp_path: Path):
    before = dict(matplotlib.rcParams)
    save(curve(DARK), tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("b.PDF", b"%PDF")])
def test_a_picture_has_the_format_of_its_name(tmp_path: Path, name: str, begins: bytes):
    save(curve(), tmp_path / "new" / name)
    assert (tmp_path / "new" / name).read_bytes().startswith(begins)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [name]


def test_the_same_figure_is_the_same_png():
    assert theme.image(curve(), "png") == theme.image(curve(), "png")


@pytest.mark.parametrize("name", ["a.gif", "a", ".png"])
def test_another_ending_is_refused(tmp_path: Path, name: str):
    with pytest.raises(JaxgradError, match=r"give a picture a name that ends in \.png, \.svg or \.pdf"):
        save(Figure(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_symbol_that_the_font_lacks_is_shown_by_its_code_point():
    assert theme.shown((".", "a", "é", "中")) == [".", "a", "é", "U+4E2D"]


def test_of_many_labels_every_nth_is_shown():
    at, labels = theme.thinned([str(n) for n in range(100)], most=40)
    assert at.tolist() == list(range(0, 100, 3)) and labels == [str(n) for n in range(0, 100, 3)]
    assert theme.thinned(["a", "b"])[1] == ["a", "b"]


def test_curves_through_few_points_have_marks():
    figure = loss_curve(np.array([7]), np.array([3.0]), np.array([0.1]))
    assert [axes.lines[0].get_marker() for axes in figure.axes] == [".", "."]
    figure.draw_without_rendering()
    told = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert len(set(told)) == len(told), "a step is a whole number, and told once"


def test_a_mean_lies_at_the_middle_of_its_steps():
    steps = np.arange(1, 201)
    each, mean = loss_curve(steps, steps.astype(float), np.full(200, 0.1)).axes[0].lines
    assert len(each.get_xdata()) == 200 and mean.get_label() == "mean of 2 steps"
    np.testing.assert_array_equal(mean.get_xdata(), mean.get_ydata(), "the loss is its step, so is the mean of both")


def test_a_rate_that_ends_at_zero_has_a_linear_axis():
    steps = np.arange(1, 101)
    cosine = loss_curve(steps, 1 / steps, np.linspace(0.1, 0, 100))
    assert [axes.get_yscale() for axes in cosine.axes] == ["linear", "linear"]
    assert curve().axes[1].get_yscale() == "log"


def test_a_sweep_names_its_best_and_gives_it_the_room():
    steps = np.arange(1, 201)
    figure = sweep_curves(steps, [3 + 1 / steps, 100.0 * steps, 4 + 1 / steps], ["seed 0", "seed 1", "seed 2"], DARK)
    (axes,) = figure.axes
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == ["best on dev: seed 0", "2 others"] and axes.get_ylim()[1] < 5


def test_a_sweep_whose_runs_all_diverged_can_be_drawn():
    nothing = np.full(5, np.nan)
    sweep_curves(np.arange(1, 6), [nothing, nothing], ["a", "b"]).draw_without_rendering()
