"""The operations of JAX in NumPy, one after another: JAX compiles each for each shape, which takes longer than it saves
where a program is small or runs a few times.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from scipy import special

from jaxgrad import jax_seam
from jaxgrad.jax_seam import ClosedJaxpr
from jaxgrad.jaxprs.walk import evaluate_now

# (operands, the equation's parameters) -> its one result.
_Operation: TypeAlias = Callable[[Sequence[np.ndarray], Mapping[str, Any]], Any]


def has(eqn: Any) -> bool:
    """Whether NumPy computes an equation: its operation is here, and all types are NumPy's own."""
    avals = [atom.aval for atom in (*eqn.invars, *eqn.outvars)]
    name = jax_seam.name(eqn)
    known = name in _ONE or (name in _SEVERAL and _in_one_order(eqn.params))
    return known and all(is_own(getattr(aval, "dtype", None)) for aval in avals)


def takes(x: Any) -> bool:
    """Whether NumPy computes with a value as JAX does: it is not traced, no key, and of no type that JAX adds."""
    if isinstance(x, jax.core.Tracer):
        return False
    return is_own(x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype)


def is_own(dtype: Any) -> bool:
    """Whether NumPy computes with a type as compilers do."""
    # What is narrower than float32 is computed in that by compilers, and rounded where they see fit.
    return isinstance(dtype, np.dtype) and dtype.kind in "biuf" and dtype != np.float16


def results(name: str, operands: Sequence[np.ndarray], params: Mapping[str, Any]) -> list[np.ndarray] | None:
    """What an operation gives; None where NumPy has it not. Overflows and what is no number are silent."""
    with np.errstate(all="ignore"):
        return _computed(name, operands, params)


def bind(eqn: Any, operands: Sequence[Any]) -> list[np.ndarray]:
    """The results of an equation of a program that `work` is known of, for NumPy's arrays and numbers."""
    made = _computed(jax_seam.name(eqn), operands, eqn.params)
    return list(map(np.asarray, jax_seam.bind(eqn, operands))) if made is None else made


def _computed(name: str, operands: Sequence[Any], params: Mapping[str, Any]) -> list[np.ndarray] | None:
    try:
        if name in _ONE:
            return [np.asarray(_ONE[name](operands, params))]
        if name in _SEVERAL and _in_one_order(params):
            return list(map(np.asarray, _SEVERAL[name](operands, params)))
    except (KeyError, AttributeError):
        # A JAX whose operation has other parameters computes itself what it means by them.
        return None
    return None


def _in_one_order(params: Mapping[str, Any]) -> bool:
    """Whether numbers that are sorted are so by one key: by several they are compared in JAX's order of them."""
    return bool(params.get("num_keys", 1) == 1)


def evaluate(program: ClosedJaxpr, values: Sequence[Any]) -> list[np.ndarray]:
    """The results of a program that `work` is known of."""
    return evaluate_now(program, list(map(np.asarray, values)), lambda eqn, given, _: bind(eqn, given), np.uint32(0))


def if_normal(program: ClosedJaxpr, values: Sequence[Any]) -> list[np.ndarray] | None:
    """What a program that `work` is known of gives; None where a number in it is too small to be normal.

    XLA takes such a number for 0, and NumPy does not, whose results may then be others.
    """
    found = False

    def visit(eqn: Any, given: list[Any], place: Any) -> list[np.ndarray]:
        nonlocal found
        made = bind(eqn, given)
        found = found or any(map(_is_subnormal, made))
        return made

    results = evaluate_now(program, list(map(np.asarray, values)), visit, np.uint32(0))
    return None if found else results


def _is_subnormal(x: np.ndarray) -> bool:
    if x.dtype.kind != "f":
        return False
    sizes = np.abs(x)
    return bool(((sizes < np.finfo(x.dtype).smallest_normal) & (sizes > 0)).any())


class Work(NamedTuple):
    """What it takes to evaluate a program one equation after another: equations and numbers, those of every turn.

    `written` counts an equation of a loop once, as a compiler does. `others` are the equations, those of one kind and
    shape taken for one, that NumPy has not: JAX compiles each.
    """

    equations: int
    numbers: int
    written: int
    others: frozenset[Any]


@functools.lru_cache(maxsize=256)
def work(program: ClosedJaxpr) -> Work | None:
    """The work of a program that can be evaluated so; None of one that cannot.

    It cannot where nobody knows how many turns a loop takes, and where there are types that NumPy has not.
    """
    jaxpr = program.jaxpr
    if not all(is_own(getattr(var.aval, "dtype", None)) for var in (*jaxpr.constvars, *jaxpr.invars)):
        return None
    found = [_of_equation(eqn) for eqn in jaxpr.eqns if eqn.outvars]
    each = [one for one in found if one is not None]
    if len(each) < len(found):
        return None
    return Work(
        sum(one.equations for one in each),
        sum(one.numbers for one in each),
        sum(one.written for one in each),
        frozenset().union(*(one.others for one in each)),
    )


def _of_equation(eqn: Any) -> Work | None:
    numbers = sum(math.prod(getattr(var.aval, "shape", ())) for var in eqn.outvars)
    if has(eqn):
        return Work(1, numbers, 1, frozenset())
    if (body := jax_seam.called(eqn)) is not None:
        return work(body)
    if (scan := jax_seam.scan(eqn)) is not None:
        turn = work(scan.body)
        if turn is None:
            return None
        return Work(scan.length * (turn.equations + 1), scan.length * turn.numbers, turn.written + 1, turn.others)
    if (branches := jax_seam.branches(eqn)) is not None:
        ways = [way for branch in branches if (way := work(branch)) is not None]
        return max(ways, key=lambda way: way.equations) if len(ways) == len(branches) else None
    avals = [atom.aval for atom in (*eqn.invars, *eqn.outvars)]
    if jax_seam.inner(eqn) or not all(is_own(getattr(aval, "dtype", None)) for aval in avals):
        return None
    shapes = tuple((aval.shape, aval.dtype) for aval in avals)
    return Work(1, numbers, 1, frozenset([(jax_seam.name(eqn), shapes)]))


def _axes(p: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(p["axes"])


def _slices(p: Mapping[str, Any]) -> tuple[slice, ...]:
    strides = p["strides"] or (1,) * len(p["start_indices"])
    return tuple(map(slice, p["start_indices"], p["limit_indices"], strides))


def _iota(p: Mapping[str, Any]) -> np.ndarray:
    shape, axis = p["shape"], p["dimension"]
    return np.broadcast_to(along(np.arange(shape[axis]), axis, len(shape)), shape).astype(p["dtype"])


def along(numbers: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Numbers along one of so many axes."""
    return numbers.reshape([-1 if k == axis else 1 for k in range(rank)])


def _product(a: np.ndarray, b: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    """A product of arrays: batch axes first, then the free ones of each."""
    (over_a, over_b), (batch_a, batch_b) = p["dimension_numbers"]
    free_a = [k for k in range(a.ndim) if k not in (*over_a, *batch_a)]
    free_b = [k for k in range(b.ndim) if k not in (*over_b, *batch_b)]
    batch, rows, columns = [a.shape[k] for k in batch_a], [a.shape[k] for k in free_a], [b.shape[k] for k in free_b]
    count, terms = math.prod(batch), math.prod(a.shape[k] for k in over_a)
    left = a.transpose(*batch_a, *free_a, *over_a).reshape(count, math.prod(rows), terms)
    right = b.transpose(*batch_b, *over_b, *free_b).reshape(count, terms, math.prod(columns))
    made = (left @ right).reshape((*batch, *rows, *columns))
    wanted = p["preferred_element_type"]
    return made if wanted is None else made.astype(wanted, copy=False)


def _broadcast(x: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    axes, shape = p["broadcast_dimensions"], p["shape"]
    sizes = [1] * len(shape)
    for axis, size in zip(axes, x.shape, strict=True):
        sizes[axis] = size
    return np.broadcast_to(x.reshape(sizes), shape)


def _reshaped(x: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    """A reshape, before which JAX transposes by `dimensions`: so it derives convolutions of groups, and order "F"."""
    return (x if p["dimensions"] is None else x.transpose(p["dimensions"])).reshape(p["new_sizes"])


def _accumulated(of: np.ufunc) -> _Operation:
    """A cumulative operation, from the first element on or from the last."""

    def run(operands: Sequence[np.ndarray], p: Mapping[str, Any]) -> np.ndarray:
        (x,), axis = operands, p["axis"]
        if p["reverse"]:
            return np.flip(of.accumulate(np.flip(x, axis), axis, x.dtype), axis)
        return of.accumulate(x, axis, x.dtype)

    return run


def _starts(x: np.ndarray, sizes: Sequence[int], starts: Sequence[np.ndarray]) -> tuple[slice, ...]:
    """The part of an array of some sizes from some numbers on, moved inside of it as JAX does."""
    first = [min(max(int(at), 0), n - size) for at, n, size in zip(starts, x.shape, sizes, strict=True)]
    return tuple(slice(at, at + size) for at, size in zip(first, sizes, strict=True))


def _updated(operands: Sequence[np.ndarray], p: Mapping[str, Any]) -> np.ndarray:
    x, part, *starts = operands
    made = np.array(x)
    made[_starts(x, part.shape, starts)] = part
    return made


def _padded(operands: Sequence[np.ndarray], p: Mapping[str, Any]) -> np.ndarray:
    x, number = operands
    around = p["padding_config"]
    # Zeros between numbers first, then those around them; of what is negative numbers are cut off.
    shape = [(n - 1) * (inside + 1) + 1 if n else 0 for n, (_, _, inside) in zip(x.shape, around, strict=True)]
    made = np.full([n + max(low, 0) + max(high, 0) for n, (low, high, _) in zip(shape, around, strict=True)], number)
    at = [slice(max(low, 0), max(low, 0) + n, inside + 1) for n, (low, _, inside) in zip(shape, around, strict=True)]
    made[tuple(at)] = x
    cut = [slice(max(-low, 0), n - max(-high, 0)) for n, (low, high, _) in zip(made.shape, around, strict=True)]
    return made[tuple(cut)]


class _Windows(NamedTuple):
    """The windows of a gather or scatter: their shape, an index of their numbers for each axis, and which lie inside.

    Those that reach beyond the array are moved into it; where that is not wanted, they are not `inside`.
    """

    shape: tuple[int, ...]
    at: tuple[np.ndarray, ...]
    inside: np.ndarray


def _windows(
    shape: Sequence[int],
    indices: np.ndarray,
    sizes: Sequence[int],
    start_axes: Sequence[int],
    batch: Iterable[tuple[int, int]],
    mode: Any,
) -> _Windows:
    """The windows of some sizes in an array of a shape, whose starts along some axes `indices` has in its last one."""
    windows, rank = indices.shape[:-1], len(shape)
    starts: list[Any] = [np.zeros(windows, np.int64)] * rank
    for k, axis in enumerate(start_axes):
        starts[axis] = indices[..., k].astype(np.int64)
    for axis, of_indices in batch:
        starts[axis] = along(np.arange(shape[axis]), of_indices, len(windows))
    last = [n - size for n, size in zip(shape, sizes, strict=True)]
    inside = np.ones(windows, bool)
    if "FILL" in str(mode):
        for start, most in zip(starts, last, strict=True):
            inside &= (start >= 0) & (start <= most)
    at = tuple(
        np.broadcast_to(np.clip(start, 0, most), windows).reshape(*windows, *[1] * rank)
        + along(np.arange(size), axis, rank)
        for axis, (start, most, size) in enumerate(zip(starts, last, sizes, strict=True))
    )
    return _Windows(windows, at, inside)


def _gathered(operands: Sequence[np.ndarray], p: Mapping[str, Any]) -> np.ndarray:
    x, indices = operands
    d = p["dimension_numbers"]
    batch = zip(d.operand_batching_dims, d.start_indices_batching_dims, strict=True)
    windows, at, inside = _windows(x.shape, indices, p["slice_sizes"], d.start_index_map, batch, p["mode"])
    found = x[at] if x.ndim else np.broadcast_to(x, windows)
    if not inside.all():
        left_out = ~inside.reshape(*windows, *[1] * x.ndim)
        found = np.where(left_out, _filling(p["fill_value"], x.dtype), found)
    dropped = (*d.collapsed_slice_dims, *d.operand_batching_dims)
    found = found.reshape([*windows, *(n for k, n in enumerate(p["slice_sizes"]) if k not in dropped)])
    of_windows, within = iter(range(len(windows))), iter(range(len(windows), found.ndim))
    order = [next(within) if k in d.offset_dims else next(of_windows) for k in range(found.ndim)]
    return found.transpose(order)


def _filling(value: Any, dtype: np.dtype) -> Any:
    """What stands where a gather reaches beyond an array: by itself NaN, or an integer that is none of its numbers."""
    if value is not None:
        return np.asarray(value, dtype)
    least, most = _ends(dtype)
    return np.asarray({"f": np.nan, "i": least}.get(dtype.kind, most), dtype)


def _scattered(add: bool) -> _Operation:
    def run(operands: Sequence[np.ndarray], p: Mapping[str, Any]) -> np.ndarray:
        x, indices, updates = operands
        d = p["dimension_numbers"]
        batch = zip(d.operand_batching_dims, d.scatter_indices_batching_dims, strict=True)
        left = (*d.inserted_window_dims, *d.operand_batching_dims)
        given = iter(updates.shape[k] for k in d.update_window_dims)
        sizes = [1 if k in left else next(given) for k in range(x.ndim)]
        windows, places, inside = _windows(x.shape, indices, sizes, d.scatter_dims_to_operand_dims, batch, p["mode"])
        order = [k for k in range(updates.ndim) if k not in d.update_window_dims]
        added = updates.transpose([*order, *d.update_window_dims]).reshape([*windows, *sizes])
        at = [np.broadcast_to(each, added.shape)[inside].ravel() for each in places]
        added = added[inside].ravel()
        made = np.array(x, order="C")
        if not x.ndim:
            return made + added.sum() if add else added[-1] if added.size else made
        where = np.ravel_multi_index(at, x.shape) if x.size else np.zeros(0, int)
        if not add:
            made.reshape(-1)[where] = added
        elif x.dtype == np.float64:
            # Many times as fast as to add one after another at their places.
            made += np.bincount(where, added, x.size).reshape(x.shape)
        else:
            np.add.at(made.reshape(-1), where, added)
        return made

    return run


def _sorted(operands: Sequence[np.ndarray], p: Mapping[str, Any]) -> list[np.ndarray]:
    """All operands in the order of the first."""
    axis = p["dimension"]
    # -0 is no less than 0, and NaN is above all, for either library.
    order = np.argsort(operands[0], axis, kind="stable")
    return [np.take_along_axis(x, order, axis) for x in operands]


def _split(operands: Sequence[np.ndarray], p: Mapping[str, Any]) -> list[np.ndarray]:
    return np.split(operands[0], np.cumsum(p["sizes"])[:-1], p["axis"])


def _unstacked(operands: Sequence[np.ndarray], p: Mapping[str, Any]) -> list[np.ndarray]:
    return list(np.moveaxis(operands[0], p["axis"], 0))


def _converted(x: np.ndarray, dtype: Any) -> np.ndarray:
    """A value in another type; integers have no infinity, so that floats beyond them are their last number."""
    wanted = np.dtype(dtype)
    if x.dtype.kind != "f" or wanted.kind not in "iu":
        return x.astype(wanted)
    least, most = _ends(wanted)
    inside = (x > float(least)) & (x < float(most))
    ends = np.where(x > 0, np.asarray(most, wanted), np.asarray(least, wanted))
    return np.where(inside, np.where(inside, x, 0).astype(wanted), np.where(np.isnan(x), wanted.type(0), ends))


def _divided(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A quotient; of integers it is rounded to 0, and that by 0 is the number whose bits are all set."""
    if x.dtype.kind == "f":
        return np.divide(x, y)
    quotient = np.floor_divide(x, y)
    up = (np.remainder(x, y) != 0) & ((x < 0) != (y < 0))
    return np.where(y == 0, np.invert(np.zeros_like(quotient)), quotient + up.astype(quotient.dtype))


def _remainder(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The remainder of such a quotient; of a division by 0 the dividend."""
    return np.fmod(x, y) if x.dtype.kind == "f" else np.where(y == 0, x, np.fmod(x, y))


def _arg(of: Callable[..., Any]) -> _Operation:
    return lambda x, p: of(x[0], p["axes"][0]).astype(p["index_dtype"])


def _largest(x: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    return np.max(x, _axes(p), initial=_ends(x.dtype)[0])


def _least(x: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    return np.min(x, _axes(p), initial=_ends(x.dtype)[1])


def _ends(dtype: np.dtype) -> tuple[Any, Any]:
    """The least and the largest number of a type, which are what is found among none."""
    if dtype.kind == "f":
        return -np.inf, np.inf
    return (False, True) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)


_ONE: dict[str, _Operation] = {
    "add": lambda x, p: np.add(*x),
    "add_any": lambda x, p: np.add(*x),
    "sub": lambda x, p: np.subtract(*x),
    "mul": lambda x, p: np.multiply(*x),
    "max": lambda x, p: np.maximum(*x),
    "min": lambda x, p: np.minimum(*x),
    "neg": lambda x, p: np.negative(*x),
    "exp": lambda x, p: np.exp(*x),
    "exp2": lambda x, p: np.exp2(*x),
    "log": lambda x, p: np.log(*x),
    "log1p": lambda x, p: np.log1p(*x),
    "expm1": lambda x, p: np.expm1(*x),
    "tanh": lambda x, p: np.tanh(*x),
    "sinh": lambda x, p: np.sinh(*x),
    "cosh": lambda x, p: np.cosh(*x),
    "sin": lambda x, p: np.sin(*x),
    "cos": lambda x, p: np.cos(*x),
    "tan": lambda x, p: np.tan(*x),
    "asin": lambda x, p: np.arcsin(*x),
    "acos": lambda x, p: np.arccos(*x),
    "atan": lambda x, p: np.arctan(*x),
    "atan2": lambda x, p: np.arctan2(*x),
    "sqrt": lambda x, p: np.sqrt(*x),
    "rsqrt": lambda x, p: np.asarray(1 / np.sqrt(*x), x[0].dtype),
    "cbrt": lambda x, p: np.cbrt(*x),
    "square": lambda x, p: np.square(*x),
    "abs": lambda x, p: np.abs(*x),
    "integer_pow": lambda x, p: x[0] ** float(p["y"]) if x[0].dtype.kind == "f" else x[0] ** p["y"],
    "eq": lambda x, p: np.equal(*x),
    "ne": lambda x, p: np.not_equal(*x),
    "lt": lambda x, p: np.less(*x),
    "le": lambda x, p: np.less_equal(*x),
    "gt": lambda x, p: np.greater(*x),
    "ge": lambda x, p: np.greater_equal(*x),
    "stop_gradient": lambda x, p: x[0],
    "name": lambda x, p: x[0],
    "copy": lambda x, p: x[0],
    "copy_p": lambda x, p: x[0],
    "broadcast_in_dim": lambda x, p: _broadcast(x[0], p),
    "reshape": lambda x, p: _reshaped(x[0], p),
    "squeeze": lambda x, p: np.squeeze(x[0], tuple(p["dimensions"])),
    "expand_dims": lambda x, p: np.expand_dims(x[0], tuple(p["dimensions"])),
    "transpose": lambda x, p: np.transpose(x[0], p["permutation"]),
    "concatenate": lambda x, p: np.concatenate(x, p["dimension"]),
    "stack": lambda x, p: np.stack(x, p["axis"]),
    "tile": lambda x, p: np.tile(x[0], p["reps"]),
    "reduce_sum": lambda x, p: np.sum(x[0], _axes(p), dtype=x[0].dtype),
    "reduce_prod": lambda x, p: np.prod(x[0], _axes(p), dtype=x[0].dtype),
    "reduce_max": lambda x, p: _largest(x[0], p),
    "reduce_min": lambda x, p: _least(x[0], p),
    "reduce_and": lambda x, p: np.bitwise_and.reduce(x[0], _axes(p)),
    "reduce_or": lambda x, p: np.bitwise_or.reduce(x[0], _axes(p)),
    "argmax": _arg(np.argmax),
    "argmin": _arg(np.argmin),
    "cumsum": _accumulated(np.add),
    "cumprod": _accumulated(np.multiply),
    "cummax": _accumulated(np.maximum),
    "cummin": _accumulated(np.minimum),
    "cumlogsumexp": _accumulated(np.logaddexp),
    "div": lambda x, p: _divided(*x),
    "rem": lambda x, p: _remainder(*x),
    "pow": lambda x, p: np.asarray(np.power(*x), x[0].dtype),
    "sign": lambda x, p: np.sign(*x),
    "floor": lambda x, p: np.floor(*x),
    "ceil": lambda x, p: np.ceil(*x),
    "and": lambda x, p: np.bitwise_and(*x),
    "or": lambda x, p: np.bitwise_or(*x),
    "xor": lambda x, p: np.bitwise_xor(*x),
    "not": lambda x, p: np.invert(*x),
    "is_finite": lambda x, p: np.isfinite(*x),
    "logistic": lambda x, p: special.expit(x[0]),
    "erf": lambda x, p: special.erf(x[0]),
    "erfc": lambda x, p: special.erfc(x[0]),
    "convert_element_type": lambda x, p: _converted(x[0], p["new_dtype"]),
    "select_n": lambda x, p: np.where(x[0], x[2], x[1]) if x[0].dtype == bool else np.choose(x[0], x[1:]),
    "slice": lambda x, p: x[0][_slices(p)],
    "dynamic_slice": lambda x, p: x[0][_starts(x[0], p["slice_sizes"], x[1:])],
    "dynamic_update_slice": _updated,
    "pad": _padded,
    "gather": _gathered,
    "scatter-add": _scattered(add=True),
    "scatter": _scattered(add=False),
    "rev": lambda x, p: np.flip(x[0], tuple(p["dimensions"])),
    "clamp": lambda x, p: np.clip(x[1], x[0], x[2]),
    "iota": lambda x, p: _iota(p),
    "dot_general": lambda x, p: _product(x[0], x[1], p),
}
_SEVERAL: dict[str, Callable[[Sequence[np.ndarray], Mapping[str, Any]], list[np.ndarray]]] = {
    "sort": _sorted,
    "split": _split,
    "unstack": _unstacked,
}
