"""A tap changes nothing, and the gradient with respect to it is its node's cotangent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad import check, tap
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs.taps import collecting_torch_taps, tapped


@jax.custom_vjp
def twice_the_slope(x):
    return jnp.sin(x)


twice_the_slope.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (2 * dy * jnp.cos(x),))


def fn(x):
    h = tap("h", 3 * x)
    return jax.jit(lambda h: tap("z", twice_the_slope(h)))(h).sum()


X = jnp.array([0.1, 0.7])


def test_a_tap_changes_no_value_under_any_transformation():
    expected = np.sin(3 * np.asarray(X)).sum()
    for value in (fn(X), jax.jit(fn)(X), jax.vmap(fn)(X[:, None]).sum(), jax.checkpoint(fn)(X)):
        # Two sines summed in float32.
        np.testing.assert_allclose(value, expected, rtol=4 * 2.0**-24)


def test_taps_are_found_in_forward_order_through_nested_jits_and_custom_rules_are_kept():
    with_taps, zeros = tapped(fn, X)
    assert list(zeros) == ["h", "z"]
    cotangents = jax.jit(jax.grad(with_taps))(zeros, X)
    assert cotangents["z"].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(cotangents["h"], 2 * np.cos(3 * np.asarray(X)), rtol=4 * 2.0**-24)


def test_a_function_without_taps_is_left_alone():
    with_taps, zeros = tapped(jnp.sin, X)
    assert zeros == {}
    assert np.array_equal(with_taps({}, X), jnp.sin(X))


def test_a_name_is_a_text_and_comes_first():
    with pytest.raises(JaxgradError, match=r"it is a text, and comes first: tap\('name', x\)"):
        tap(X, "a")


def test_a_name_that_is_set_twice_is_refused():
    with pytest.raises(JaxgradError, match="the tap 'a' is set twice"):
        tapped(lambda x: tap("a", tap("a", x) + 1), X)
    with collecting_torch_taps(), pytest.raises(JaxgradError, match="the tap 'a' is set twice"):
        tap("a", tap("a", torch.ones(1, requires_grad=True)))


def test_torch_tensors_are_collected_only_while_asked_for():
    x = torch.ones(1, requires_grad=True)
    with collecting_torch_taps() as taps:
        assert tap("x", x) is x
        tap("constant", torch.ones(1))
    tap("later", x)
    assert list(taps) == ["x"]


def test_nodes_are_seen_through_scan_and_remat_and_those_that_are_not_are_named():
    def looped(x: jax.Array) -> jax.Array:
        last, _ = jax.lax.scan(lambda c, _: (tap("turn", jnp.tanh(c)), None), x, None, length=3)
        return jax.checkpoint(lambda c: tap("again", jnp.sin(c)))(last)

    def branched(x: jax.Array) -> jax.Array:
        return jax.lax.cond(x.sum() > 0, lambda x: tap("one", jnp.sin(x)), lambda x: tap("other", jnp.cos(x)), x)

    x = jax.ShapeDtypeStruct((2,), jnp.float32)
    asked = {"dtypes": ("float32",), "transforms": ("jit",), "seeds": (0,)}
    seen = check(looped, x, reference=looped, **asked).findings[0]
    assert [(t.name, t.values["hand"].shape) for t in seen.tensors if t.kind == "node"] == [
        ("again", (2,)),
        ("turn", (3, 2)),
    ]
    assert seen.why == ""
    unseen = check(branched, x, reference=branched, **asked).findings[0]
    assert unseen.outcome == "agrees" and "not compared: " in unseen.why and "one" in unseen.why
