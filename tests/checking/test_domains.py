"""Inputs are of the domain that was asked for, moved ones still are, and edges are edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking.domains import DOMAINS, EDGES, MOVED, draw, moved, reached, reaches
from jaxgrad.checking.question import applied, call, drawn, variants
from jaxgrad.errors import JaxgradError

HOLDS = {
    "normal": lambda x: np.isfinite(x).all(),
    "positive": lambda x: (x > 0).all(),
    "unit": lambda x: ((x > 0) & (x < 1)).all(),
    "probabilities": lambda x: (x > 0).all() and np.allclose(x.sum(-1), 1),
    "spd": lambda x: np.allclose(x, x.T) and (np.linalg.eigvalsh(x) > 0).all(),
    "sorted": lambda x: (np.diff(x) >= 0).all(),
}


def test_every_domain_is_looked_at():
    assert HOLDS.keys() == DOMAINS.keys()


@pytest.mark.parametrize("name", HOLDS)
def test_what_is_drawn_belongs_to_the_domain_and_still_does_when_moved(name: str):
    leaf = jax.ShapeDtypeStruct((6, 6), jnp.float32)
    x = draw(name, leaf, 0, 0, "x")
    assert x.dtype == np.float32 and HOLDS[name](x)
    other = moved(x, 0, 0)
    assert HOLDS[name](other) and not np.array_equal(x, other)
    assert not np.array_equal(x, draw(name, leaf, 1, 0, "x"))


def test_integers_and_a_function_of_a_key():
    ids = draw("integers(2, 5)", jax.ShapeDtypeStruct((100,), jnp.int32), 0, 0, "ids")
    assert set(ids) == {2, 3, 4}
    own = draw(lambda key: jax.random.exponential(key, (3,)), jax.ShapeDtypeStruct((3,), jnp.float32), 0, 0, "x")
    assert own.shape == (3,)
    with pytest.raises(JaxgradError, match=r"gave an array of shape \(2,\); its shape is \(3,\)"):
        draw(lambda key: np.ones(2), jax.ShapeDtypeStruct((3,), jnp.float32), 0, 0, "x")
    with pytest.raises(JaxgradError, match="square"):
        draw("spd", jax.ShapeDtypeStruct((2, 3), jnp.float32), 0, 0, "x")


def test_zeros_move_and_what_is_not_finite_does_not():
    assert (moved(np.zeros(3), 0, 0) != 0).all() and (moved(np.array([0.0, 1.0, 2.0]), 0, 0) >= 0).all()
    x = moved(np.array([1.0, -np.inf]), 0, 0)
    assert x[0] != 1 and x[1] == -np.inf


def test_edges_are_of_the_type():
    x = reached(EDGES, np.ones(20, np.float32), "bfloat16", 0, 0)
    tiny = float(jnp.finfo(jnp.bfloat16).smallest_normal)
    assert {0.0, tiny, -tiny} <= set(x.tolist()) and (x == 1).sum() == 15


def test_variants_are_those_that_a_call_has_room_for():
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert variants(call(jnp.sin, (shape,), {})) == [*reaches("normal")]
    assert variants(call(jnp.sin, (jnp.ones(3),), {})) == [MOVED]
    assert variants(call(jnp.sin, (shape,), {}, domains="unit")) == []


def test_leaves_are_told_apart():
    def fn(tree, ids, eps, mode, flag=True):
        return tree["w"] * eps

    of = call(fn, ({"w": jnp.ones(2), "act": jnp.tanh}, np.arange(2), 1e-5, "mode"), {"flag": False})
    assert {leaf.name: leaf.kind for leaf in of.leaves} == {
        "tree['act']": "static", "tree['w']": "input", "ids": "carried", "eps": "input", "mode": "static",
        "flag": "static",
    }  # fmt: skip
    inputs, carried = drawn(of, "float32", 0)
    assert np.array_equal(applied(fn, of)(inputs, carried), np.full(2, np.float32(1e-5)))
    assert applied(fn, of) is applied(fn, of)
    with pytest.raises(JaxgradError, match="names is an array of object, which can be neither compared nor carried"):
        call(lambda names, x: x, (np.array([object()]), jnp.ones(2)), {})
