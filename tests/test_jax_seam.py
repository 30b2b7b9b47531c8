"""What JAX does not promise is used in one file, and a release that takes a name away is told by that name."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import jax_seam

ROOT = Path(__file__).parents[1]
X = np.ones((2, 3), np.float32)


def equations(fn, *args):
    return jax.make_jaxpr(fn)(*args).jaxpr.eqns


def named(name, fn, *args):
    """The first equation of a primitive, which JAX may come to call otherwise."""
    found = {jax_seam.name(eqn): eqn for eqn in equations(fn, *args)}
    assert name in found, f"JAX calls the primitive {name!r} something else: {sorted(found)}"
    return found[name]


@jax.custom_vjp
def ruled(x):
    return jnp.sin(x)


ruled.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x),))


@pytest.mark.parametrize(
    ("fn", "inside"),
    [(jax.jit(jnp.sin), "sin"), (jax.checkpoint(jnp.sin), "sin"), (ruled, "sin")],
    ids=["jit", "checkpoint", "custom_vjp"],
)
def test_a_called_program_is_found(fn, inside):
    (eqn,) = equations(fn, X)
    called = jax_seam.called(eqn)
    assert called is not None, f"the program that {jax_seam.name(eqn)} holds is in none of {sorted(eqn.params)}"
    assert [jax_seam.name(one) for one in called.jaxpr.eqns] == [inside]


def test_rules_are_noted_as_they_are_called():
    met = []
    with jax_seam.noting_rules(lambda rule, args: met.append((rule, args))):
        ruled(x=X)
    ruled(X)
    assert len(met) == 1 and met[0][0] is ruled and met[0][1][0] is X


def test_the_parts_of_a_scan():
    def summed(x, w):
        return jax.lax.scan(lambda carry, row: (carry + w * row.sum(), carry), 0.0, x, reverse=True)

    scan = jax_seam.scan(named("scan", summed, X, 2.0))
    assert (scan.constants, scan.carried, scan.length, scan.reverse) == (1, 1, 2, True)
    assert len(scan.body.jaxpr.outvars) == 2


def test_the_parts_of_a_while_loop():
    def halved(x, w):
        return jax.lax.while_loop(lambda x: x > w, lambda x: x / 2, x)

    loop = jax_seam.while_loop(named("while", halved, 8.0, 1.0))
    assert (loop.condition_constants, loop.body_constants) == (1, 0)
    assert len(loop.condition.jaxpr.outvars) == len(loop.body.jaxpr.outvars) == 1


def test_the_branches_of_a_cond():
    chosen = lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x)  # noqa: E731
    ways = jax_seam.branches(named("cond", chosen, X))
    assert [jax_seam.name(way.jaxpr.eqns[0]) for way in ways] == ["cos", "sin"]


def test_a_shard_map_is_run_again_with_another_function():
    mesh, spec = jax.sharding.Mesh(jax.devices()[:2], ("data",)), jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(jnp.sin, mesh=mesh, in_specs=spec, out_specs=spec)
    held = jax_seam.shard_map(named("shard_map", mapped, X))
    again = jax.jit(held.rebuild(lambda k, x: (k * x,), 1))
    np.testing.assert_array_equal(again(np.float32(3), X)[0], 3 * X)


def test_how_many_products_are_added_up():
    assert jax_seam.contracted(named("dot_general", lambda x: x @ x.T, X)) == 3
    conv = lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME")  # noqa: E731
    eqn = named("conv_general_dilated", conv, np.ones((1, 4, 5, 5), np.float32), np.ones((8, 4, 3, 3), np.float32))
    assert jax_seam.convolved(eqn) == 4 * 3 * 3


def test_an_equation_knows_its_line_and_its_scopes():
    def scoped(x):
        with jax.named_scope("outer"), jax.named_scope("inner"):
            return jnp.sin(x)

    (eqn,) = equations(scoped, X)
    assert jax_seam.name_stack(eqn) == "outer/inner"
    frame = next(f for f in jax_seam.frames(eqn) if f.file == __file__)
    assert frame.function.rpartition(".")[2] == "scoped" and frame.line > 0


def test_an_equation_alone_keeps_its_rule():
    jaxpr = jax.make_jaxpr(ruled)(X)
    alone = jax_seam.jaxpr_as_fun(jax_seam.alone(jaxpr.jaxpr.eqns[0], jaxpr.jaxpr))
    np.testing.assert_allclose(jax.grad(lambda x: alone(x)[0].sum())(X), np.cos(X), rtol=1e-6)


def test_the_axes_that_an_array_varies_over():
    seen = []
    mesh, spec = jax.sharding.Mesh(jax.devices()[:2], ("data",)), jax.sharding.PartitionSpec("data")
    jax.make_jaxpr(
        jax.shard_map(lambda x: (seen.append(jax_seam.varying_axes(x)), x)[1], mesh=mesh, in_specs=spec, out_specs=spec)
    )(X)
    assert seen == [frozenset({"data"})] and jax_seam.varying_axes(X) == frozenset()


def test_nothing_else_imports_what_jax_does_not_promise():
    for path in (ROOT / "jaxgrad").rglob("*.py"):
        if path.name == "jax_seam.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if re.match(r"jax\.(extend|_src|interpreters)\b", name)], path
