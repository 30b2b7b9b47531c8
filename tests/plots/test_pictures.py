"""Each picture draws the numbers that it is given."""

import itertools

import numpy as np
import pytest

from jaxgrad.plots import (
    DARK,
    LIGHT,
    Judged,
    Side,
    Watched,
    hidden_layer,
    letters,
    logit_gradients,
    message_text,
    model_graph,
    node_errors,
    noise_and_limits,
    side_by_side,
)
from jaxgrad.plots.embedding import apart, components, kind
from jaxgrad.plots.errors import Errors

THEMES = pytest.mark.parametrize("ground", [LIGHT, DARK], ids=["light", "dark"])
RNG = np.random.default_rng(0)


def softmax_gradient(batch: int, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    probs, targets = RNG.dirichlet(np.ones(vocab), batch), RNG.integers(0, vocab, batch)
    return (probs - np.eye(vocab)[targets]) / batch, targets


@THEMES
def test_the_gradient_of_the_logits_has_a_cell_a_number_and_sums_that_lie_on_zero(ground):
    dlogits, targets = softmax_gradient(32, 27)
    vocabulary = (".", *"abcdefghijklmnopqrstuvwxyz")
    figure = logit_gradients(dlogits, targets, vocabulary, "a batch", ground)
    cells, sums, _ = figure.axes
    np.testing.assert_array_equal(cells.images[0].get_array(), dlogits)
    assert [label.get_text() for label in cells.get_xticklabels()] == list(vocabulary)
    assert [patch.get_xy() for patch in cells.patches] == [(y - 0.5, row - 0.5) for row, y in enumerate(targets)]
    # 27 numbers below 1/32 are summed in float64: 27 * 1/32 * 2^-52.
    assert np.max(np.abs(sums.lines[0].get_xdata())) < 27 / 32 * 2**-52
    figure.draw_without_rendering()


def test_of_a_large_batch_the_first_rows_are_drawn_and_all_are_judged():
    dlogits, targets = softmax_gradient(200, 5)
    dlogits[150, 2] += 0.5
    figure = logit_gradients(dlogits, targets, tuple("abcde"), "a batch")
    cells, sums, _ = figure.axes
    assert cells.images[0].get_array().shape == (64, 5)
    assert cells.get_title(loc="left") == "dloss/dlogits, a batch, first 64 of 200 rows"
    assert sums.get_title(loc="left") == "|sum| ≤ 5.0e-01"


def test_gradients_that_are_all_zero_can_be_drawn():
    logit_gradients(np.zeros((2, 3)), np.zeros(2, int), tuple("abc"), "nothing").draw_without_rendering()


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("a", "vowel"),
        ("É", "vowel"),
        ("y", "consonant"),
        ("ø", "vowel"),
        ("ß", "consonant"),
        ("а", "other"),
        ("中", "other"),
        (".", "boundary"),
        ("-", "other"),
    ],
)
def test_symbols_are_of_four_kinds(symbol: str, expected: str):
    assert kind(symbol) == expected


def test_components_are_those_of_the_covariance():
    C = RNG.normal(size=(27, 10)) * np.arange(1, 11)
    scores, shares = components(C)
    variances = np.linalg.eigvalsh(np.cov(C.T))[::-1]
    # Two float64 decompositions of a well-conditioned 10 x 10 matrix: a thousand roundings at the most.
    np.testing.assert_allclose(scores.var(0, ddof=1), variances[:2], rtol=1000 * 2**-52)
    np.testing.assert_allclose(shares, variances[:2] / variances.sum(), rtol=1000 * 2**-52)
    flipped, _ = components(-C)
    assert (np.max(scores, 0) == np.max(np.abs(scores), 0)).all()
    assert (np.max(flipped, 0) == np.max(np.abs(flipped), 0)).all()


@pytest.mark.parametrize("C", [RNG.normal(size=(5, 1)), np.ones((5, 3)), RNG.normal(size=(1, 3))])
def test_an_embedding_of_less_than_two_dimensions_has_zeros_for_the_rest(C: np.ndarray):
    scores, shares = components(C)
    assert scores.shape == (len(C), 2) and np.isfinite(scores).all() and not scores[:, 1].any() and shares[1] == 0


@THEMES
def test_every_letter_stands_where_its_row_is_in_both_panels(ground):
    before, after = RNG.normal(size=(2, 5, 3))
    figure = letters(before, after, (".", "a", "b", "中", "$"), ground)
    for axes, C in zip(figure.axes, (before, after), strict=True):
        assert [text.get_text() for text in axes.texts] == [".", "a", "b", "U+4E2D", "$"]
        np.testing.assert_array_equal([text.get_position() for text in axes.texts], components(C)[0])
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["vowel", "consonant", "boundary", "other"]
    figure.draw_without_rendering()


def test_letters_that_would_cover_each_other_are_moved_apart_and_no_others():
    C = np.array([[0.0, 0], [0, 0], [0, 0.001], [1, 1], [-1, 0.5]])
    moved = apart(C, 0.05)
    gaps = [float(np.linalg.norm((a - b) / (2, 1))) for a, b in itertools.combinations(moved, 2)]
    # Pushed apart to the distance asked for, or nearly: each push may bring two others a little nearer.
    assert min(gaps) > 0.9 * 0.05 and (moved[3:] == C[3:]).all()
    assert np.max(np.abs(moved - C)) < 0.2


@THEMES
def test_errors_lie_on_a_log_axis_and_no_error_at_its_left_end(ground):
    errors = Errors("float64", np.array([0.0, 1e-16, 1e-15]), np.array([0.0, 1e-14, 1e-13]))
    figure = node_errors(("loss", "logits", "C"), [errors], "by-node", ground)
    (axes,) = figure.axes
    dots, bars, hollow = axes.lines
    assert axes.get_xscale() == "log" and [t.get_text() for t in axes.get_yticklabels()] == ["loss", "logits", "C"]
    assert dots.get_xydata().tolist() == [[1e-16, 1], [1e-15, 2]]
    assert bars.get_xydata().tolist() == [[1e-14, 1], [1e-13, 2]]
    assert hollow.get_xydata()[0, 0] < 1e-17 and hollow.get_ydata().tolist() == [0]
    top, bottom = axes.get_ylim()[::-1]
    assert top < 0 < bottom, "backward order runs downwards"


def test_no_name_of_the_errors_runs_into_the_next():
    names = tuple(f"node {n}" for n in range(27))
    errors = [Errors(t, np.full(27, e), np.full(27, 9 * e)) for t, e in (("float64", 1e-16), ("bfloat16", 1e-3))]
    figure = node_errors(names, errors, "by-node")
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(below.y1 < above.y0 for above, below in itertools.pairwise(boxes))


@THEMES
def test_the_hidden_layer_has_its_median_and_mean_in_four_panels(ground):
    steps, shape = np.array([0, 1, 2, 4]), (4, 9)
    watched = Watched(
        steps, RNG.random(shape), np.sort(RNG.normal(size=(4, 5))), RNG.normal(size=shape), RNG.random(shape)
    )
    figure = hidden_layer(watched, ground)
    figure.draw_without_rendering()
    share, given, mean, var = figure.axes
    np.testing.assert_array_equal(share.lines[0].get_ydata(), np.median(watched.saturated, 1))
    np.testing.assert_array_equal(share.lines[1].get_ydata(), watched.saturated.mean(1))
    np.testing.assert_array_equal(given.lines[0].get_ydata(), watched.h_norm[:, 2])
    np.testing.assert_array_equal(mean.lines[0].get_ydata(), np.median(watched.mean, 1))
    np.testing.assert_array_equal(var.lines[0].get_ydata(), np.median(watched.var, 1))
    # tanh(2.0923) = 0.97.
    assert np.tanh([line.get_ydata()[0] for line in given.lines[1:]]) == pytest.approx([-0.97, 0.97])


TEXT = "norm: the cotangent of input x is wrong\n\n  who       hand differs\n  worst     " + "a long line " * 20


@THEMES
def test_a_message_is_drawn_whole_and_its_long_lines_go_on_below(ground):
    (axes,) = message_text(TEXT, ground).axes
    words = " ".join(text.get_text() for text in axes.texts).split()
    assert words == TEXT.split()
    assert max(len(text.get_text()) for text in axes.texts) <= 104
    axes.figure.draw_without_rendering()


@THEMES
def test_every_node_has_a_box_and_an_arrow_to_each_that_uses_it(ground):
    nodes = [f"n{number}" for number in range(12)]
    users = {**{a: (b,) for a, b in itertools.pairwise(nodes)}, "n0": ("n1", "n4"), "w": ("n7",)}
    (axes,) = model_graph(nodes, ["w"], users, ground).axes
    assert {"w", *nodes} <= {text.get_text() for text in axes.texts}
    boxes, arrows = 12, 11 + 1
    assert len(axes.patches) == boxes + arrows
    axes.figure.draw_without_rendering()


@THEMES
def test_a_port_has_a_square_for_every_value_and_one_where_it_parts(ground):
    sides = [Side("JAX", [True, True, False, False], 2), Side("torch", [True, False, True], None)]
    figure = side_by_side(sides, [("would mend it", "1e-06 should be 1e-05 " * 10)], ground)
    squares, words = figure.axes
    colours = [line.get_markerfacecolor() for line in squares.lines]
    agrees, parts = ground.cycle[2], ground.cycle[1]
    assert colours == [agrees, agrees, parts, "none", agrees, "none", agrees]
    assert " ".join(text.get_text() for text in words.texts).count("1e-05") == 10
    figure.draw_without_rendering()


@THEMES
def test_noise_has_a_curve_a_type_and_a_dot_for_every_share(ground):
    distances = {"float64": np.abs(RNG.normal(size=50)), "float32": np.abs(RNG.normal(size=50))}
    judged = Judged(distances, {"float64": [0.0, 0.5], "float32": [0.1]}, [1e9, np.inf], 32, 8.5)
    above, below = noise_and_limits(judged, ground).axes
    # A histogram each, Student's t, and the limit.
    assert len(above.patches) == 2 and len(above.lines) == 2
    assert [len(line.get_xdata()) for line in below.lines] == [2, 1, 2, 2]
    assert below.lines[2].get_xdata().max() < np.inf
    above.figure.draw_without_rendering()
