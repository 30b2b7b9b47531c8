"""Noise agrees with itself, and anything larger does not: as a whole, in one slice, in one element."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking.compare import LEAST, Noise, Spread, compare, exact, floored, limit, scaled, stands_alone

RNG = np.random.default_rng(0)


def measured(expected, errors, samples=32):
    spread = Spread(expected)
    for _ in range(samples):
        spread.add(expected + errors())
    return spread.noise()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (300, 4), (4, 5, 6)])
@pytest.mark.parametrize("size", [1.0, 1e-200, 1e200])
def test_what_noise_makes_agrees(shape, size: float):
    expected = size * RNG.standard_normal(shape)
    errors = lambda: 1e-6 * expected * RNG.standard_normal(shape)  # noqa: E731
    noise = measured(expected, errors)
    for _ in range(200):
        found = compare(expected, expected + errors(), noise, "float64")
        assert found.agrees and found.judged, found


def test_a_shared_error_agrees_too():
    # One rounding, of a norm say, that every element of a row has.
    expected = RNG.standard_normal((50, 8))
    errors = lambda: 1e-6 * expected * RNG.standard_normal((50, 1))  # noqa: E731
    noise = measured(expected, errors)
    assert all(compare(expected, expected + errors(), noise, "float32").agrees for _ in range(300))


def test_one_factor_of_the_whole_is_seen_at_a_few_times_the_noise():
    expected = RNG.standard_normal((300, 40))
    noise = measured(expected, lambda: 1e-6 * expected * RNG.standard_normal((300, 40)))
    assert not compare(expected, expected * (1 + 1.1e-6 * LEAST), noise, "float32").agrees
    assert compare(expected, expected * (1 + 1e-6), noise, "float32").agrees


def test_a_lost_row_of_many_and_one_wrong_entry_are_seen_where_they_are():
    expected = RNG.standard_normal((16384, 4))
    noise = measured(expected, lambda: 1e-2 * expected * RNG.standard_normal(expected.shape), samples=16)
    lost = expected.copy()
    lost[-1] = 0
    found = compare(expected, lost, noise, "bfloat16")
    assert not found.agrees and "16383" in found.where
    one = expected.copy()
    one[77, 3] *= 2
    found = compare(expected, one, noise, "bfloat16")
    assert not found.agrees and found.at == (77, 3)


def test_a_small_row_beside_a_large_one_is_judged_by_its_own_noise():
    expected = np.array([[1e8, 2e8], [1.0, 2.0], [1e-8, 2e-8]])
    noise = measured(expected, lambda: 1e-7 * expected * RNG.standard_normal((3, 2)))
    doubled = expected.copy()
    doubled[2] *= 2
    assert not compare(expected, doubled, noise, "float32").agrees


def test_limits_hold_for_the_samples_that_were_taken():
    # Student's t: few samples say little of one element; of many independent ones F is near 1, and LEAST holds.
    assert limit(1.0, 4) > limit(1.0, 8) > limit(1.0, 32) > 8 > limit(1e4, 4) == LEAST
    assert limit(1.0, 32, count=10**6) > limit(1.0, 32)


def test_infinities_and_nan():
    noise = exact(np.zeros(3))
    inf = np.array([np.inf, -np.inf, 1.0])
    assert compare(inf, inf, noise, "float32").agrees
    assert compare(inf, np.array([np.inf, np.inf, 1.0]), noise, "float32").not_finite.startswith("-inf against inf")
    nan = np.array([np.nan, 1.0, 2.0])
    both = compare(nan, nan, noise, "float32")
    assert both.agrees and both.both_nan == "first at [0], 1 of 3"
    assert not compare(nan, np.ones(3), noise, "float32").agrees
    assert not compare(np.ones(3), nan, noise, "float32").agrees


def test_what_hangs_on_a_choice_is_counted_and_not_judged():
    expected = np.ones(10)
    noise = floored(exact(expected), expected, "float32")._replace(unsure=np.arange(10) < 2)
    flipped = expected.copy()
    flipped[:2] = 5
    found = compare(expected, flipped, noise, "float32")
    assert found.agrees and found.unjudged == 2 and found.judged
    more = noise._replace(unsure=np.arange(10) < 3)
    flipped[2] = 5
    assert not compare(expected, flipped, more, "float32").judged


def test_few_elements_that_are_nearly_all_of_an_array_have_to_be_judged():
    """The gradient of a largest element is 0 but for one number of each row."""
    expected = np.zeros((6, 20))
    expected[:, 3] = 1.0
    noise = floored(exact(expected), expected, "float32")._replace(unsure=expected > 0)
    assert compare(expected, expected, noise, "float32").judged
    found = compare(expected, 2 * expected, noise, "float32")
    assert found.agrees and found.unjudged == 6 and found.hidden == 1 and not found.judged
    two = noise._replace(unsure=noise.unsure & (np.arange(6) < 2)[:, None])
    wrong = expected.copy()
    wrong[:2] *= 2
    assert compare(expected, wrong, two, "float32").judged


def test_what_drowns_in_its_noise_is_not_judged_but_zero_is():
    expected = RNG.standard_normal(100)
    drowned = Noise(np.ones(100), 32, (50.0,), np.zeros(100, bool))
    assert not compare(expected, np.zeros(100), drowned, "bfloat16").judged
    # Nothing but rounding, in float64 too: the cotangent of a maximum that was subtracted for range only.
    zero = 1e-17 * expected
    assert compare(zero, 1e-9 * expected, scaled(drowned, 1e-8), "float32").judged


def test_integers_and_booleans_agree_where_they_are_equal():
    noise = exact(np.zeros(2))
    assert compare(np.array([1, 2]), np.array([1, 2]), noise, "float32").agrees
    assert not compare(np.array([1, 2]), np.array([1, 3]), noise, "float32").agrees


def test_complex_numbers_extension_types_and_empty_arrays():
    z = np.array([1 + 2j, 3 - 1j])
    noise = floored(exact(z), z, "float64")
    assert compare(z, z * (1 + 1e-16), noise, "float64").agrees and not compare(z, z.conj(), noise, "float64").agrees
    half = np.ones(2, jnp.bfloat16)
    assert compare(np.ones(2), half, floored(exact(half), np.ones(2), "bfloat16"), "bfloat16").exact
    assert compare(np.zeros((0, 3)), np.zeros((0, 3)), exact(np.zeros((0, 3))), "float32").agrees
    with pytest.raises(ValueError, match="shapes"):
        compare(np.ones(2), np.ones(3), exact(np.ones(2)), "float32")


def test_who_stands_alone():
    right, wrong = (compare(np.ones(1), np.full(1, x), exact(np.ones(1)), "float64") for x in (1.0, 2.0))
    assert stands_alone({("a", "b"): wrong, ("a", "c"): wrong, ("b", "c"): right}) == "a"
    assert stands_alone({("a", "b"): wrong}) is None


@pytest.mark.parametrize(
    ("noise", "off", "judged"), [(1e-6, 0.0, True), (1e-6, 3e-6, True), (1e-6, 1e-3, False), (0.1, 0.05, False)]
)
def test_what_hangs_on_a_choice_is_judged_where_it_agrees_within_a_small_noise(noise: float, off: float, judged: bool):
    # A weight's gradient is a sum over a layer, and hangs on the signs before many a relu.
    expected = 1 + RNG.random((6, 5))
    known = Noise(noise * expected, 32, (1.0, 1.0, 1.0), np.ones((6, 5), bool))
    found = compare(expected, expected * (1 + off), known, "float32")
    assert found.agrees and found.judged == judged


def _plain(shape):
    return RNG.standard_normal(shape), RNG.standard_normal(shape)


def _with_what_is_not_finite(shape):
    a, b = _plain(shape)
    for place, (x, y) in enumerate([(np.nan, np.nan), (np.inf, np.inf), (-np.inf, 1.0), (np.nan, 2.0), (0.0, 0.0)]):
        a.ravel()[3 * place + 1], b.ravel()[3 * place + 1] = x, y
    return a, b


def _faint(shape):
    a, _ = _plain(shape)
    a[2:4] *= 1e-9
    return a, a + 1e-6 * RNG.standard_normal(shape)


def _complex(shape):
    a, b = _plain(shape)
    return a + 1j * b, b + 1j * a


def _integers(shape):
    return RNG.integers(0, 3, shape), RNG.integers(0, 3, shape)


def test_what_may_be_infinite_has_no_distance_in_whichever_part_it_is(monkeypatch):
    expected, actual = np.arange(1.0, 15.0), np.arange(1.0, 15.0)
    actual[[3, 9]] = np.nan, 10.5
    may_be = np.arange(14) == 3
    noise = Noise(np.full(14, 0.1), 8, (1.0, 1.0), may_be, may_be)
    for part in (7, 2**16):
        monkeypatch.setattr("jaxgrad.checking.compare._PART", part)
        found = compare(expected, actual, noise, "float32")
        assert (found.not_finite, found.max_abs, found.unjudged) == (None, 0.5, 1)


@pytest.mark.parametrize("tolerance", [None, 0.1])
@pytest.mark.parametrize("shape", [(40,), (13, 6), (9, 2, 5)])
@pytest.mark.parametrize("made", [_plain, _with_what_is_not_finite, _faint, _complex, _integers])
def test_an_array_in_parts_is_compared_as_the_whole_is(made, shape, tolerance, monkeypatch):
    expected, actual = made(shape)
    deviation = 1e-6 * np.abs(RNG.standard_normal(shape))
    noise = Noise(deviation, 8, (1.0,) * (1 + len(shape)), RNG.random(shape) < 0.1, RNG.random(shape) < 0.05)
    whole = compare(expected, actual, noise, "float32", tolerance)
    monkeypatch.setattr("jaxgrad.checking.compare._PART", 7)
    parts = compare(expected, actual, noise, "float32", tolerance)
    for name, a, b in zip(whole._fields, whole, parts, strict=True):
        assert a == b or np.allclose(np.array(a, complex), np.array(b, complex), rtol=1e-12, equal_nan=True), name
