"""A failed check's line is that of the rule that is wrong, wherever the rule is called."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxgrad.checking.compare import exact
from jaxgrad.checking.findings import HAND, Finding, Report, Setting, Tensor
from jaxgrad.mutation.blame import wrong_line

X, W = jax.ShapeDtypeStruct((4, 3), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.float32)


def report(first: str | None, kind: str = "input", passed: bool = False) -> Report:
    """What a check says that failed in one setting."""
    one = jnp.ones(())
    tensors = () if first is None else (Tensor(first, kind, exact(one), False, {HAND: one}, {}),)
    finding = Finding(Setting("float64", "jit", 0), tensors, {}, "differs", "", first, HAND, passed)
    return Report("f", passed, (finding,), "")


@jax.custom_vjp
def right(x):
    return jnp.sin(x)


right.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x),))


@jax.custom_vjp
def scaled(x, w):
    return x * w


def scaled_bwd(residuals, dy):
    x, w = residuals
    dx = dy * w
    dw = (dy * x).mean(0)  # the sum
    return dx, dw


scaled.defvjp(lambda x, w: (x * w, (x, w)), scaled_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def power(x, n):
    return x**n


power.defvjp(
    lambda x, n: (x**n, x),
    lambda n, x, dy: (x ** (n - 1) * dy,),  # no factor n
)


@jax.custom_vjp
def straight(x):
    return jnp.sin(x)


def straight_bwd(x, dy):
    return (dy,)


straight.defvjp(lambda x: (jnp.sin(x), x), straight_bwd)


@jax.custom_vjp
def half(x, w):
    return x * w


def half_bwd(residuals, dy):
    _, w = residuals
    return dy * w, None


half.defvjp(lambda x, w: (x * w, (x, w)), half_bwd)


@jax.custom_vjp
def ranked(x):
    return jnp.max(x, -1), jnp.argmax(x, -1)


def ranked_bwd(residuals, dy):
    best = jax.nn.one_hot(residuals, 3, dtype=dy[0].dtype)
    return (2 * best * dy[0][:, None],)


ranked.defvjp(lambda x: (ranked(x), jnp.argmax(x, -1)), ranked_bwd)


@jax.custom_jvp
def tangent(x):
    return jnp.tan(x)


@tangent.defjvp
def tangent_jvp(primals, tangents):
    return tangent(*primals), tangents[0]


def inside(params, x):
    """A rule that is right, and one that is wrong under jit and in a scan."""
    first = jax.jit(scaled)(right(x), params["w"])
    return jax.lax.scan(lambda carry, row: (carry + right(row), None), jnp.zeros(3, x.dtype), first)[0]


def output(x):
    doubled = 2 * x
    return doubled + 1, x


def raises(x):
    raise TypeError("not now")


CASES: list[tuple[Any, tuple[Any, ...], Report, str]] = [
    (scaled, (X, W), report("w"), "dw = (dy * x).mean(0)  # the sum"),
    (inside, ({"w": W}, X), report("params['w']"), "dw = (dy * x).mean(0)  # the sum"),
    (functools.partial(lambda n, x: power(x, n), 3), (X,), report("x"), "lambda n, x, dy: (x ** (n - 1) * dy,)"),
    (tangent, (X,), report("x"), "@tangent.defjvp"),
    (half, (X, W), report("w"), "def half_bwd(residuals, dy):"),
    (straight, (X,), report("x"), "def straight_bwd(x, dy):"),
    (ranked, (X,), report("x"), "return (2 * best * dy[0][:, None],)"),
    (output, (X,), report("output[0]", "output"), "return doubled + 1, x"),
    (output, (X,), report("output[1]", "output"), "def output(x):"),
    (output, (X,), report(None), "def output(x):"),
    (raises, (X,), report("x"), "def raises(x):"),
]


@pytest.mark.parametrize(("fn", "args", "failed", "text"), CASES, ids=[text for *_, text in CASES])
def test_the_line_of_what_is_wrong_is_found(fn: Any, args: tuple[Any, ...], failed: Report, text: str):
    place = wrong_line(failed, fn, *args)
    assert place is not None and place.file == __file__ and place.text.startswith(text)


def test_sizes_that_vary_are_those_of_the_setting_that_failed():
    failed = report("w")
    (finding,) = failed.findings
    sized = finding._replace(setting=finding.setting._replace(sizes="m=2, n=3"))
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (("m", "n"), ("n",)))
    place = wrong_line(failed._replace(findings=(sized,)), scaled, x, w, vary={"m": (2, 5), "n": (3,)})
    assert place is not None and place.text.startswith("dw =")


def test_there_is_none_where_nothing_failed_or_no_source_is_known():
    assert wrong_line(report("x", passed=True), scaled, X, W) is None
    assert wrong_line(report("x"), max, X) is None


def test_jax_is_left_as_it_was():
    before = jax.custom_vjp.__call__
    wrong_line(report("w"), scaled, X, W)
    assert jax.custom_vjp.__call__ is before
