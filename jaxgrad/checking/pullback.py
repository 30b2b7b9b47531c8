"""A function of any trees -> its outputs and the cotangents of every float input and tap, under a transformation."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs.taps import tapped

TRANSFORMS = ("jit", "vmap", "scan", "remat", "grad_of_grad")


class Pulled(NamedTuple):
    """What a pullback gives: outputs, cotangents of tapped nodes in backward order, cotangents of float inputs.

    `names` gives each its name; apart, because JAX sorts the keys of a dict.
    """

    outputs: list[Any]
    nodes: list[Any]
    inputs: list[Any]


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a float array or number, which has a cotangent; integers, booleans and keys have none."""
    return not _is_key(leaf) and bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def floats_of(tree: Any) -> list[Any]:
    """The float leaves of a tree, in its order."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def with_floats(tree: Any, floats: list[Any]) -> Any:
    """The tree with `floats` in the places of its float leaves."""
    given = iter(floats)
    return jax.tree.map(lambda leaf: next(given) if is_float(leaf) else leaf, tree)


def parameter_names(fn: Callable[..., Any], count: int) -> list[str]:
    """The names of the first `count` positional parameters, `arg0` and so on where the function does not tell."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    told = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    return told + [f"arg{number}" for number in range(len(told), count)]


def leaf_names(fn: Callable[..., Any], args: tuple[Any, ...]) -> list[str]:
    """A name for every leaf of `args`: the parameter's own name and the path inside it, such as `params['w']`."""
    return [
        own + jax.tree_util.keystr(path)
        for own, arg in zip(parameter_names(fn, len(args)), args, strict=True)
        for path, _ in jax.tree_util.tree_leaves_with_path(arg)
    ]


def output_names(outputs: Any) -> list[str]:
    """A name for every leaf of a function's output, such as `output` or `output['loss']`."""
    return ["output" + jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(outputs)]


def names(fn: Callable[..., Any], args: tuple[Any, ...], transform: str) -> Pulled:
    """The names of what `under` gives, in the same places."""
    labels = leaf_names(fn, args)
    inputs = [name for name, leaf in zip(labels, jax.tree.leaves(args), strict=True) if is_float(leaf)]
    if transform == "grad_of_grad":
        return Pulled([], [], inputs)
    _, zeros = tapped(fn, *args)
    return Pulled(output_names(jax.eval_shape(fn, *args)), list(reversed(zeros)), inputs)


def pull(
    fn: Callable[..., Any], args: tuple[Any, ...], dys: list[Any], wrap: Callable[..., Any] = lambda fn: fn
) -> Pulled:
    """Outputs, and the cotangents for the cotangents `dys` of the float outputs, in order of the leaves.

    `wrap` transforms the function together with its taps, which hide from the outside of a transformation.
    Raises `JaxgradError` where nothing can be differentiated or the outputs have not the shapes of `dys`.
    """
    floats = floats_of(args)
    if not floats:
        raise JaxgradError("no argument is a float array, so there is no gradient to check")
    with_taps, zeros = tapped(fn, *args)

    def of_floats(floats: list[Any], taps: dict[str, Any]) -> tuple[list[Any], Any]:
        out = wrap(with_taps)(taps, *with_floats(args, floats))
        return floats_of(out), out

    ys, vjp, out = jax.vjp(of_floats, floats, zeros, has_aux=True)
    given, own = [dy.shape for dy in dys], [y.shape for y in ys]
    if own != given:
        raise JaxgradError(
            f"the reference has float outputs of shapes {own}, and the function {given}; make them equal"
        )
    dfloats, dtaps = vjp([dy.astype(y.dtype) for dy, y in zip(dys, ys, strict=True)])
    # A backward pass forms the cotangents of the last nodes first.
    return Pulled(jax.tree.leaves(out), [dtaps[name] for name in reversed(zeros)], dfloats)


def pull_again(fn: Callable[..., Any], args: tuple[Any, ...], dys: list[Any], directions: list[Any]) -> Pulled:
    """Second order: the pullback of the inner product of the first cotangents with `directions`."""

    def inner(*args: Any) -> Any:
        cotangents = pull(fn, args, dys).inputs
        return sum(jnp.vdot(d.astype(c.dtype), c) for d, c in zip(directions, cotangents, strict=True))

    out = jax.eval_shape(inner, *args)
    return Pulled([], [], pull(inner, args, [jnp.ones((), out.dtype)]).inputs)


def under(
    transform: str, fn: Callable[..., Any], args: tuple[Any, ...], dys: list[Any], directions: list[Any]
) -> Pulled:
    """The pullback as one of `TRANSFORMS`; vmap and scan run over a pair of different arguments and cotangents.

    Raises `JaxgradError` for another name.
    """
    match transform:
        case "jit":
            return jax.jit(lambda a, d: pull(fn, a, d))(args, dys)
        case "remat":
            return jax.jit(lambda a, d: pull(fn, a, d, jax.checkpoint))(args, dys)
        case "vmap":
            return jax.jit(jax.vmap(lambda a, d: pull(fn, a, d)))(*pair(args, dys))
        case "scan":
            return jax.jit(lambda a, d: jax.lax.scan(lambda c, x: (c, pull(fn, *x)), 0, (a, d))[1])(*pair(args, dys))
        case "grad_of_grad":
            return jax.jit(lambda a, d, v: pull_again(fn, a, d, v))(args, dys, directions)
        case _:
            raise JaxgradError(f"there is no transform {transform!r}; choose from {', '.join(TRANSFORMS)}")


def pair(args: tuple[Any, ...], dys: list[Any]) -> tuple[tuple[Any, ...], list[Any]]:
    """Two of everything in a new leading axis: floats with half their size, so that their signs stay, as the second."""

    def two(leaf: Any) -> Any:
        return jnp.stack([leaf, leaf * jnp.asarray(0.5, leaf.dtype)]) if is_float(leaf) else jnp.stack([leaf, leaf])

    return jax.tree.map(two, args), [jnp.stack([dy, -2 * dy]) for dy in dys]
