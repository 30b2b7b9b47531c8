"""What every operation must pass: a test of an op names it, its plain JAX, its torch twin and its arguments."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxgrad.models.mlp import forward
from jaxgrad.parity.cases import Case
from jaxgrad.parity.compare import compare, scale
from jaxgrad.parity.rounding import accumulated
from jaxgrad.parity.taylor import random_direction, remainder_order


class Op(NamedTuple):
    """`arguments` picks the op's arguments, NumPy arrays, from a case and its nodes; integer ones have no cotangent."""

    op: Callable[..., Any]
    plain: Callable[..., Any]
    twin: Callable[..., Any]
    arguments: Callable[[Any, Any, Any], tuple[Any, ...]]


def arguments(op: Op, case: Case, dtype: str = "float64") -> tuple[Any, ...]:
    """The op's arguments in the model's own forward pass, floats in `dtype`; needs 64-bit types enabled."""
    nodes = jax.tree.map(np.asarray, jax.jit(forward)(*jax.tree.map(jnp.asarray, (case.params, case.batch))))
    args = op.arguments(case.params, case.batch, nodes)
    return tuple(jnp.asarray(a, dtype if np.issubdtype(a.dtype, np.floating) else np.int32) for a in args)


def pullback(fn: Callable[..., Any], args: tuple[Any, ...], dy: Any) -> tuple[Any, ...]:
    """The output and the cotangents of all float arguments, for one cotangent of the output."""
    floats = [i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating)]

    def of_floats(*values: Any) -> Any:
        full = list(args)
        for i, value in zip(floats, values, strict=True):
            full[i] = value
        return fn(*full)

    y, vjp = jax.vjp(of_floats, *(args[i] for i in floats))
    return (y, *vjp(dy.astype(y.dtype)))


def second(fn: Callable[..., Any], args: tuple[Any, ...], dy: Any, directions: Any) -> tuple[Any, ...]:
    """Cotangents of the inner product of first-order cotangents with `directions`: second derivatives."""

    def inner(*args: Any) -> Any:
        _, *cotangents = pullback(fn, args, dy)
        return sum(jnp.vdot(d, c) for d, c in zip(directions, cotangents, strict=True))

    return pullback(inner, args, jnp.ones(()))[1:]


def output_cotangent(op: Op, args: tuple[Any, ...], seed: int = 1) -> Any:
    return random_direction(jax.random.key(seed), jax.eval_shape(op.plain, *args))


def agree(got: tuple[Any, ...], expected: tuple[Any, ...], scales: list[Any], dtype: str) -> None:
    """Every array within the tolerance that its accumulated roundings allow."""
    for number, (a, b, s) in enumerate(zip(got, expected, scales, strict=True)):
        difference = compare(np.asarray(a), np.asarray(b), s, dtype)
        assert difference.agrees, (number, difference, s)


def scales_of(fn: Callable[..., Any], *args: Any, wide_sums: float = 1.0) -> list[Any]:
    values, variances = accumulated(fn, *args, wide_sums=wide_sums)
    return [scale(np.asarray(value), np.asarray(variance)) for value, variance in zip(values, variances, strict=True)]


def in_torch(op: Op, args: tuple[Any, ...], dy: Any, directions: Any = None) -> tuple[Any, ...]:
    """`pullback`, or with directions `second`, by the torch twin's autograd."""
    tensors = [torch.from_numpy(np.array(a)) for a in args]
    floats = [t.requires_grad_() for t in tensors if t.dtype.is_floating_point]
    y = op.twin(*tensors)
    grads = torch.autograd.grad(y, floats, torch.from_numpy(np.array(dy)), create_graph=directions is not None)
    if directions is None:
        return tuple(t.detach().numpy() for t in (y, *grads))
    inner = sum((g * torch.from_numpy(np.array(d))).sum() for g, d in zip(grads, directions, strict=True))
    if not inner.requires_grad:
        return tuple(np.zeros(t.shape) for t in floats)
    again = torch.autograd.grad(inner, floats, allow_unused=True)
    return tuple(np.zeros(t.shape) if g is None else g.numpy() for t, g in zip(floats, again, strict=True))


def first_order(op: Op, case: Case) -> None:
    """Output and cotangents equal jax.grad's of the plain function and PyTorch's of the twin."""
    args = arguments(op, case)
    dy = output_cotangent(op, args)
    scales = scales_of(functools.partial(pullback, op.plain), args, dy)
    by_hand = pullback(op.op, args, dy)
    agree(by_hand, pullback(op.plain, args, dy), scales, "float64")
    agree(by_hand, in_torch(op, args, dy), scales, "float64")


def second_order(op: Op, case: Case) -> None:
    """Derivatives of the cotangents equal those of both oracles."""
    args = arguments(op, case)
    dy = output_cotangent(op, args)
    directions = random_direction(jax.random.key(2), pullback(op.plain, args, dy)[1:])
    scales = scales_of(functools.partial(second, op.plain), args, dy, directions)
    by_hand = second(op.op, args, dy, directions)
    agree(by_hand, second(op.plain, args, dy, directions), scales, "float64")
    agree(by_hand, in_torch(op, args, dy, directions), scales, "float64")


def differences(op: Op, case: Case) -> None:
    """First and second derivatives leave a Taylor remainder that falls with the second power of the step."""
    args = arguments(op, case)
    dy = output_cotangent(op, args)
    floats = [i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating)]

    def full(values: Any) -> tuple[Any, ...]:
        chosen = dict(zip(floats, values, strict=True))
        return tuple(chosen.get(i, a) for i, a in enumerate(args))

    x = tuple(args[i] for i in floats)
    directions = random_direction(jax.random.key(3), x)
    gradient = pullback(op.op, args, dy)[1:]
    assert remainder_order(lambda v: jnp.vdot(dy, op.plain(*full(v))), x, gradient, directions) > 1.9

    def inner(values: Any) -> Any:
        _, *cotangents = pullback(op.op, full(values), dy)
        return sum(jnp.vdot(d, c) for d, c in zip(directions, cotangents, strict=True))

    again = second(op.op, args, dy, directions)
    assert remainder_order(inner, x, again, random_direction(jax.random.key(4), x)) > 1.9


def transforms(op: Op, case: Case) -> None:
    """The same cotangents under jit, remat, vmap and scan."""
    args = arguments(op, case)
    dy = output_cotangent(op, args)
    run = functools.partial(pullback, op.op)
    scales = scales_of(functools.partial(pullback, op.plain), args, dy)
    expected = run(args, dy)
    agree(jax.jit(run)(args, dy), expected, scales, "float64")
    agree(jax.jit(functools.partial(pullback, jax.checkpoint(op.op)))(args, dy), expected, scales, "float64")

    two = jax.tree.map(lambda a: jnp.stack([a, a[::-1] if a.ndim else -a]), (args, dy))
    each = [run(*jax.tree.map(lambda a, i=i: a[i], two)) for i in range(2)]
    batched = jax.vmap(run)(*two)
    scanned = jax.lax.scan(lambda carry, xs: (carry, run(*xs)), 0, two)[1]
    for i in range(2):
        agree(tuple(out[i] for out in batched), each[i], scales, "float64")
        agree(tuple(out[i] for out in scanned), each[i], scales, "float64")


def narrow_types(op: Op, case: Case) -> None:
    """float32 and bfloat16 results lie within their own tolerance of the float64 ones, and keep their type."""
    for dtype, wide_sums in (("float32", 1.0), ("bfloat16", 2.0**-16)):
        args = arguments(op, case, dtype)
        wide = tuple(a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in args)
        dy = output_cotangent(op, args)
        wide_dy = dy.astype(jnp.float64)
        got = pullback(op.op, args, dy)
        floats = [a for a in args if jnp.issubdtype(a.dtype, jnp.floating)]
        assert [c.dtype for c in got[1:]] == [a.dtype for a in floats]
        scales = scales_of(functools.partial(pullback, op.plain), wide, wide_dy, wide_sums=wide_sums)
        # Plain JAX in float64 is exact here, so one engine's error is judged by the tolerance meant for two.
        agree(got, pullback(op.plain, wide, wide_dy), scales, dtype)


PROPERTIES = (first_order, second_order, differences, transforms, narrow_types)
SIZES = ({}, {"batch_size": 2, "h_size": 1, "n": 1, "emb_size": 1, "vocab_size": 2}, {"batch_size": 12, "h_size": 30})


def passes(op: Op, property: Callable[[Op, Case], None], case: Case) -> None:
    with jax.enable_x64(True):
        property(op, case)
