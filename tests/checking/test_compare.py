"""A difference is data, measured in float64, and nothing that is not finite ever agrees."""

import ml_dtypes
import numpy as np
import pytest

from jaxgrad.checking.compare import MOST_ROUNDINGS, Scale, compare, scale, tolerance

ONE = Scale("norm", 1.0, 1.0)


def test_equal_arrays_are_exact():
    d = compare(np.array([1.0, -2.0]), np.array([1.0, -2.0]), ONE, "float64")
    assert (d.exact, d.agrees, d.max_abs, d.ulps, d.relative, d.not_finite) == (True, True, 0, 0, 0, None)


def test_the_worst_element_is_named_with_both_values():
    a, b = np.zeros((2, 3)), np.zeros((2, 3))
    a[1, 2] = 0.5
    d = compare(a, b, ONE, "float64")
    assert (d.max_abs, d.at, d.values, d.agrees) == (0.5, (1, 2), (0.5, 0.0), False)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, ml_dtypes.bfloat16])
def test_neighbouring_numbers_are_one_ulp_apart(dtype):
    eps = ml_dtypes.finfo(dtype).eps
    for x in (1.0, 1.75, 1024.0, 2.0**-20):
        a = np.array([x], dtype)
        b = a + np.array([2.0 ** np.floor(np.log2(x))], dtype) * dtype(eps)
        assert compare(a, b, ONE, dtype).ulps == 1


def test_subnormals_are_counted_in_the_spacing_of_subnormals():
    tiny = np.array([np.nextafter(0.0, 1.0)])
    assert compare(tiny, 3 * tiny, ONE, "float64").ulps == 2


def test_zeros_of_either_sign_are_equal():
    assert compare(np.array([0.0]), np.array([-0.0]), ONE, "float64").exact


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        (np.nan, np.nan, "nan against nan at [1], 1 in all"),
        (np.nan, 1.0, "nan against 1.0 at [1], 1 in all"),
        (np.inf, np.inf, "inf against inf at [1], 1 in all"),
        (-np.inf, np.inf, "-inf against inf at [1], 1 in all"),
    ],
)
def test_what_is_not_finite_agrees_with_nothing_and_is_named(a: float, b: float, named: str):
    d = compare(np.array([0.0, a]), np.array([0.0, b]), ONE, "float64")
    assert not d.agrees and not d.exact
    assert d.not_finite == named


def test_no_absolute_tolerance_swallows_a_small_tensor():
    a = np.array([1e-20, 2e-20])
    s = scale(a, np.zeros(2))
    assert not compare(a, a * (1 + 1e-6), s, "float64").agrees
    assert not compare(a, np.zeros(2), Scale("norm", s.value, 1.0), "float64").agrees


def test_a_tensor_of_zeros_agrees_with_zeros_only():
    s = scale(np.zeros(2), np.zeros(2))
    assert compare(np.zeros(2), np.zeros(2), s, "float64").agrees
    assert not compare(np.zeros(2), np.array([0.0, 1e-300]), s, "float64").agrees


def test_shapes_must_be_equal():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1, 2\)"):
        compare(np.zeros(2), np.zeros((1, 2)), ONE, "float64")


def test_the_scale_is_the_norm_until_ten_bits_are_lost_and_then_that_of_the_terms():
    value = np.array([3.0, 4.0])
    kept = scale(value, np.array([25.0, 0.0]) * MOST_ROUNDINGS**2)
    assert kept == Scale("norm", 5.0, MOST_ROUNDINGS)
    lost = scale(value, np.array([100.0, 0.0]) * MOST_ROUNDINGS**2)
    assert lost == Scale("terms", 10.0, MOST_ROUNDINGS)


@pytest.mark.parametrize(("dtype", "most"), [("float64", 9.1e-13), ("float32", 4.9e-4), ("bfloat16", 32)])
def test_the_tolerance_is_four_eps_a_rounding(dtype: str, most: float):
    assert tolerance(dtype, 1.0) == 4 * float(ml_dtypes.finfo(dtype).eps)
    assert tolerance(dtype, MOST_ROUNDINGS) <= most
