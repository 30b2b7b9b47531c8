"""A first look is strict: what agrees within it agrees, and what differs or hangs on a choice is measured whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import GradientMismatch, check
from jaxgrad.checking import glance, sources
from jaxgrad.checking.compare import compare, may_drown
from jaxgrad.checking.expected import expect, few_samples, first_look
from jaxgrad.checking.oracles import jax as in_jax
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


UNIT = 2.0**-24


def by_own_error(expected, errors, dtype="float64"):
    return glance.by_own_error(expected, expected + UNIT / 1e-6 * errors(), dtype)


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


@pytest.mark.parametrize(
    ("look", "factor"),
    [*((at_a_glance, f) for f in (1 + 1e-5, 2.0, 0.0)), *((by_own_error, f) for f in (1 + 1e-13, 2.0, 0.0))],
)
def test_a_wrong_factor_of_the_whole_or_of_a_small_row_differs(look, factor: float):
    expected, errors = by_row_and_column((300, 200))
    noise = look(expected, errors)
    assert not compare(expected, factor * expected, noise, "float64").agrees
    small = expected.copy()
    small[np.argmin(np.linalg.norm(expected, axis=1))] *= factor
    assert not compare(expected, small, noise, "float64").agrees


def test_noise_is_not_overstated_where_few_large_rows_stand_above_many_cancelled_sums():
    # As in the gradient of a softmax's weights: rows of what was drawn are large, and have too few elements to be
    # looked at by themselves.
    large = np.arange(5000)[:, None] < 60
    expected = np.where(large, 1.0, 1e-4) * RNG.standard_normal((5000, 32))
    errors = np.where(large, 1e-7, 1e-10) * RNG.standard_normal((5000, 32))
    noise = glance.by_own_error(expected, expected + errors, "float32")
    assert np.linalg.norm(noise.deviation) < 3 * np.linalg.norm(errors)


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


@pytest.mark.parametrize(
    ("size", "look", "draws"),
    [(70_000, first_look, 4), (70_000, expect, 21), (100, few_samples, 11), (100, expect, 41)],
)
def test_a_first_look_takes_few_evaluations(size: int, look, draws: int):
    expected, drawn = RNG.standard_normal(size), []

    def sampled(given):
        for draw in given:
            drawn.append(draw)
            errors = np.random.default_rng(draw.seed).standard_normal(size)
            yield Pulled([], [], [expected + draw.rounding.unit * errors])

    found = look(sampled, "float32")
    assert len(drawn) == draws and drawn[0].rounding == EXACT
    assert found.whole == (look is expect)


# By a few samples.


def few(expected, made):
    """The noise of an array at a first look, where `made` gives an error of it for a seed."""

    def sampled(draws):
        for draw in draws:
            scale = draw.rounding.unit / UNIT
            yield Pulled([], [], [expected + scale * (made(draw.seed) if draw.rounding != EXACT else 0)])

    found = few_samples(sampled, "float32")
    assert not found.whole
    return found.noise.inputs[0]


@pytest.mark.parametrize("shape", [(), (7,), (8, 16), (3, 5, 4), (1, 200), (0, 3)])
def test_what_noise_makes_is_nearly_always_settled_by_a_few_samples(shape):
    settled = 0
    for trial in range(50):
        expected = RNG.standard_normal(shape)
        noise = few(expected, lambda seed: 1e-6 * np.random.default_rng((trial, seed)).standard_normal(shape))  # noqa: B023
        # Two programs that are right share most of their roundings.
        found = compare(expected, expected + 0.5e-6 * RNG.standard_normal(shape), noise, "float32")
        settled += found.agrees and not found.unjudged
    assert settled >= 45


def test_a_few_samples_settle_nothing_that_all_of_them_tell():
    """An error of 4 times the noise in every element, 5 in a row and 14 in an element."""
    for trial in range(50):
        expected = RNG.standard_normal((8, 16))
        noise = few(expected, lambda seed: 1e-6 * np.random.default_rng((trial, seed)).standard_normal((8, 16)))  # noqa: B023
        for wrong, times in ((np.s_[:], 4), (np.s_[3], 5), (np.s_[3, 7], 14)):
            planted = expected.copy()
            planted[wrong] += times * 1e-6
            assert not compare(expected, planted, noise, "float32").agrees, (times, trial)


def test_an_element_that_some_rounding_makes_another_is_unsure():
    expected = RNG.standard_normal((8, 16))
    errors = lambda seed: 1e-6 * (1 + (seed == 3) * np.eye(8, 16))  # noqa: E731
    assert not few(expected, errors).unsure.any()

    def sampled(draws):
        for draw in draws:
            scale = draw.rounding.unit / UNIT
            yield Pulled([], [], [expected + scale * errors(draw.seed) + 0.1 * (scale > 1) * np.eye(8, 16)])

    assert (few_samples(sampled, "float32").noise.inputs[0].unsure == np.eye(8, 16, dtype=bool)).all()


def test_small_functions_that_are_right_are_not_measured_whole(monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "expect", lambda *args: asked.append(args) or expect(*args))
    assert check(scaled_by(lambda dx: dx), jax.ShapeDtypeStruct((4, 5), jnp.float32), reference=jnp.sin).passed
    assert not asked
    with pytest.raises(GradientMismatch):
        check(scaled_by(lambda dx: 1.01 * dx), jax.ShapeDtypeStruct((4, 5), jnp.float32), reference=jnp.sin)
    assert asked


# By an oracle's own error in float32.


@pytest.mark.parametrize("dtype", glance.LINEAR)
@pytest.mark.parametrize("made", [even, by_row_and_column, each_its_own])
def test_what_the_oracle_s_own_error_explains_is_nearly_always_settled(made, dtype: str):
    settled = 0
    for _ in range(20):
        expected, errors = made((300, 200))
        noise = by_own_error(expected, errors, dtype)
        found = compare(expected, expected + glance.LINEAR[dtype] / 1e-6 * errors(), noise, dtype)
        settled += found.agrees and not found.unjudged
    assert settled >= 18


def test_a_tiny_element_beside_large_ones_is_not_taken_for_their_rounding():
    expected, errors = even((300, 200))
    expected[17, 5] = 1e-9
    rounded = expected + UNIT / 1e-6 * errors()
    rounded[17, 5] = 1e-9 * (1 + UNIT)
    wrong = expected.copy()
    wrong[17, 5] *= 1 + 1e-6
    found = compare(expected, wrong, glance.by_own_error(expected, rounded, "float64"), "float64")
    assert not found.agrees and found.at == (17, 5)


def test_where_float32_shows_more_than_rounding_nothing_is_known():
    expected, errors = even((300, 200))
    for narrow in (expected * (1 + 1e-3), np.where(errors() > 3e-6, np.inf, expected), expected[::-1]):
        assert glance.by_own_error(expected, narrow, "float64").unsure.all()
    infinite = np.where(errors() > 3e-6, -np.inf, expected)
    assert not glance.by_own_error(infinite, infinite.astype(np.float32), "float64").unsure.any()


@pytest.mark.parametrize("part", [1.0, np.arange(200) < 60])
def test_what_is_nothing_but_rounding_in_every_type_is_settled(part):
    true = np.where(part, 0.0, RNG.standard_normal((300, 200)))

    def answer(unit):
        return true + unit * RNG.standard_normal((300, 200))

    expected = answer(2.0**-53)
    known = glance.by_own_error(expected, answer(UNIT), "float64")
    assert compare(expected, answer(2.0**-53), known, "float64").agrees
    assert not compare(expected, expected + 1e-9 * (true == 0), known, "float64").agrees


LARGE = jax.ShapeDtypeStruct((700, 100), jnp.float32)
ONCE = {"dtypes": ("float32",), "transforms": ("jit",), "seeds": (0,)}


def scaled_by(wrong):
    @jax.custom_vjp
    def fn(x):
        return jnp.sin(x)

    fn.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (wrong(dy * jnp.cos(x)),))
    return fn


@pytest.mark.parametrize(("dtype", "draws"), [("float64", 0), ("float32", 0), ("bfloat16", 4)])
def test_a_large_function_that_is_right_is_judged_at_a_first_look(monkeypatch, dtype: str, draws: int):
    drawn = []
    kept = in_jax.rounded
    monkeypatch.setattr(in_jax, "rounded", lambda *args: drawn.extend(args[3]) or kept(*args))
    assert check(scaled_by(lambda dx: dx), LARGE, reference=jnp.sin, **{**ONCE, "dtypes": (dtype,)}).passed
    assert len(drawn) == draws


@pytest.mark.parametrize(("like", "answers"), [(LARGE, 2), (RNG.standard_normal((700, 100)), 4)])
def test_an_oracle_answers_once_in_each_type_where_float32_holds_the_numbers(monkeypatch, like, answers: int):
    asked = []
    kept = in_jax.pulled
    monkeypatch.setattr(in_jax, "pulled", lambda fn, *rest: asked.append(fn.__name__) or kept(fn, *rest))
    check(scaled_by(lambda dx: dx), like, reference=jnp.sin, **{**ONCE, "dtypes": ("float64", "float32")})
    assert asked.count("sin") == answers


def test_a_large_function_without_an_oracle_is_not_measured_by_its_own_error():
    wrong = scaled_by(lambda dx: dx if dx.dtype == np.float64 else dx * (1 + 2e-5))
    with pytest.raises(GradientMismatch, match="float32"):
        check(wrong, LARGE, **ONCE)


@pytest.mark.parametrize(
    "wrong", [lambda dx: dx.at[3, 4].mul(1.001), lambda dx: dx.at[5].set(0), lambda dx: dx * (1 + 1e-5)]
)
def test_one_that_is_wrong_is_measured_whole_before_it_is_called_so(wrong):
    with pytest.raises(GradientMismatch, match="measured over 16"):
        check(scaled_by(wrong), LARGE, reference=jnp.sin, **ONCE)


@pytest.mark.parametrize(("size", "noise", "drowns"), [(1.0, 0.2, True), (1.0, 0.05, False), (1e-20, 1e-7, False)])
def test_an_array_that_its_noise_may_reach_is_not_settled(size: float, noise: float, drowns: bool):
    """What is nothing in float64 too is 0, and is no smaller for its noise."""
    expected = np.full(4, size)
    found = compare(expected, expected + 0.5 * noise, few(expected, lambda seed: np.full(4, noise)), "float32")
    assert found.agrees and may_drown(found, "float32") == drowns
