"""A first look is strict: what agrees within it agrees, and what differs or hangs on a choice is measured whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import GradientMismatch, check
from jaxgrad.checking import glance
from jaxgrad.checking.compare import compare
from jaxgrad.checking.expected import expect
from jaxgrad.checking.pullback import Pulled
from jaxgrad.jaxprs.noise import EXACT

RNG = np.random.default_rng(0)
RATIO = 16.0


def at_a_glance(expected, errors, choice=None):
    """The noise of an array with such errors; `choice` is what they are where roundings are large."""
    first = errors()
    enlarged = RATIO * first if choice is None else RATIO * first + choice
    seen = glance.seen(expected, expected + first, expected + enlarged, RATIO)
    return glance.noise_of(expected, seen, expected + errors(), 1.0, "float64")


def even(shape):
    return RNG.standard_normal(shape), lambda: 1e-6 * RNG.standard_normal(shape)


def by_row_and_column(shape):
    rows, columns = 10 ** RNG.uniform(-3, 3, (shape[0], 1)), 10 ** RNG.uniform(-3, 3, (1, shape[1]))
    return RNG.standard_normal(shape) * rows * columns, lambda: 1e-6 * rows * columns * RNG.standard_normal(shape)


def each_its_own(shape):
    expected = RNG.standard_normal(shape)
    return expected, lambda: 1e-6 * expected * RNG.standard_normal(shape)


@pytest.mark.parametrize("made", [even, by_row_and_column, each_its_own])
def test_what_noise_makes_is_nearly_always_settled(made):
    settled = 0
    for _ in range(20):
        expected, errors = made((300, 200))
        found = compare(expected, expected + errors(), at_a_glance(expected, errors), "float64")
        settled += found.agrees and not found.unjudged
    assert settled >= 18


@pytest.mark.parametrize("shape", [(), (5,), (1, 3000), (2, 3, 2000)])
def test_arrays_of_few_elements_or_slices_are_settled_too(shape):
    expected, errors = even(shape)
    found = [compare(expected, expected + errors(), at_a_glance(expected, errors), "float64") for _ in range(50)]
    assert sum(d.agrees and not d.unjudged for d in found) >= 45


def test_the_model_gives_the_noise_of_each_row_and_column():
    expected, errors = by_row_and_column((300, 200))
    true = np.sqrt(np.mean([errors() ** 2 for _ in range(400)], 0))
    noise = at_a_glance(expected, errors)
    assert np.quantile(noise.deviation / true, 0.02) > 0.5 and np.max(noise.deviation / true) < 4


@pytest.mark.parametrize("factor", [1 + 1e-5, 2.0, 0.0])
def test_a_wrong_factor_of_the_whole_or_of_a_small_row_differs(factor: float):
    expected, errors = by_row_and_column((300, 200))
    noise = at_a_glance(expected, errors)
    assert not compare(expected, factor * expected, noise, "float64").agrees
    small = expected.copy()
    small[np.argmin(np.linalg.norm(expected, axis=1))] *= factor
    assert not compare(expected, small, noise, "float64").agrees


def test_a_tiny_element_beside_large_ones_is_not_taken_for_their_noise():
    expected, errors = each_its_own((300, 200))
    expected[17, 5] = 1e-9
    noise = at_a_glance(expected, errors)
    wrong = expected.copy()
    wrong[17, 5] *= 2
    found = compare(expected, wrong, noise, "float64")
    assert not found.agrees and found.at == (17, 5)


def test_what_rounding_leaves_as_it_is_has_to_be_equal():
    expected, errors = even((300, 200))
    expected[:, 100:] = 0
    masked = lambda: np.where(np.arange(200) < 100, errors(), 0)  # noqa: E731
    noise = at_a_glance(expected, masked)
    assert compare(expected, expected + masked(), noise, "float64").agrees
    leaked = expected.copy()
    leaked[3, 150] = 1e-9
    assert not compare(expected, leaked, noise, "float64").agrees


def test_a_choice_that_larger_roundings_flip_is_unsure_and_nothing_else_is():
    expected, errors = even((300, 200))
    flipped = np.zeros((300, 200))
    flipped[4, 7] = 1.0
    assert np.argwhere(at_a_glance(expected, errors, flipped).unsure).tolist() == [[4, 7]]


def test_what_is_not_finite_is_unsure():
    expected, errors = even((30, 20))
    expected[2, 3] = np.inf
    assert at_a_glance(expected, errors).unsure[2, 3]


@pytest.mark.parametrize(("size", "whole", "draws"), [(70_000, False, 4), (70_000, True, 21), (100, False, 41)])
def test_a_large_answer_takes_four_evaluations_at_a_first_look(size: int, whole: bool, draws: int):
    expected, drawn = RNG.standard_normal(size), []

    def sampled(given):
        for draw in given:
            drawn.append(draw)
            errors = np.random.default_rng(draw.seed).standard_normal(size)
            yield Pulled([], [], [expected + draw.rounding.unit * errors])

    found = expect(sampled, "float32", whole)
    assert len(drawn) == draws and drawn[0].rounding == EXACT
    assert found.whole == (draws != 4)


LARGE = jax.ShapeDtypeStruct((700, 100), jnp.float32)
ONCE = {"dtypes": ("float32",), "transforms": ("jit",), "seeds": (0,)}


def scaled_by(wrong):
    @jax.custom_vjp
    def fn(x):
        return jnp.sin(x)

    fn.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (wrong(dy * jnp.cos(x)),))
    return fn


def test_a_large_function_that_is_right_is_judged_at_a_first_look(monkeypatch):
    from jaxgrad.checking import sources

    asked = []
    kept = sources.expect
    monkeypatch.setattr(sources, "expect", lambda *args: asked.append(args[2]) or kept(*args))
    assert check(scaled_by(lambda dx: dx), LARGE, reference=jnp.sin, **ONCE).passed
    assert asked == [False]


@pytest.mark.parametrize(
    "wrong", [lambda dx: dx.at[3, 4].mul(1.001), lambda dx: dx.at[5].set(0), lambda dx: dx * (1 + 1e-5)]
)
def test_one_that_is_wrong_is_measured_whole_before_it_is_called_so(wrong):
    with pytest.raises(GradientMismatch, match="measured over 16"):
        check(scaled_by(wrong), LARGE, reference=jnp.sin, **ONCE)
