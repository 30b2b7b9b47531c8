"""One walk over a traced program, into every program that it holds: jit, scan, while, cond, remat, custom rules,
shard_map.

A visitor says what one primitive gives; the walk does the rest, and can itself be traced, jitted and scanned.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import jax_seam
from jaxgrad.jax_seam import ClosedJaxpr

# (equation, values of its operands, a number of this place) -> values of its results.
Visitor: TypeAlias = Callable[[Any, list[Any], Any], list[Any]]


class _Walk(NamedTuple):
    """What a walk does: with each primitive, with those that decide whether a loop goes on, and with constants.

    With `turns`, what a while loop computes that has not ended after so many is NaN.
    """

    visit: Visitor
    decide: Visitor
    constant: Callable[[Any], Any] = lambda value: value
    turns: int | None = None


def evaluate(program: ClosedJaxpr, values: Sequence[Any], visit: Visitor, place: jax.Array) -> list[Any]:
    """The results of `program` for `values`, with `visit` in the place of each primitive that holds no program.

    `place` is a uint32; every equation, and every turn of a loop, hands the visitor another one made from it.
    Equations without results, such as `jax.debug.print`, are left out. Raises what the primitives raise.
    """
    return _walked(program, values, _Walk(visit, _plain), place)


def evaluate_now(program: ClosedJaxpr, values: Sequence[np.ndarray], visit: Visitor, place: np.uint32) -> list[Any]:
    """The same for NumPy's arrays, one equation after another, and scans turn by turn.

    The visitor gets the same places. Overflows and what is no number are silent. Raises `ValueError` for a while loop
    and a `shard_map`, which are for `evaluate`.
    """
    with np.errstate(all="ignore"):
        return _now(program, values, visit, place)


def bounded(program: ClosedJaxpr, values: Sequence[Any], turns: int) -> list[Any]:
    """The results of `program`, with NaN for what a while loop computes that has not ended after so many turns.

    An iteration that converges where its author meant it to may never end elsewhere.
    """
    return _walked(program, values, _Walk(_plain, _plain, turns=turns), jnp.uint32(0))


def widened(program: ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
    """The results of `program` with every float in float64, as if it named no narrower type.

    Conversions to a narrower type, and `reduce_precision`, change nothing. Raises where a primitive is made for the
    narrower type and takes no other, as a kernel may be.
    """
    # A loop that ends where float32 no longer changes may take many more turns, but none takes this many.
    walk = _Walk(_wide, _wide, _in_float64, 2**20)
    return _walked(program, list(map(_in_float64, values)), walk, jnp.uint32(0))


def _walked(program: ClosedJaxpr, values: Sequence[Any], walk: _Walk, place: Any) -> list[Any]:
    jaxpr = program.jaxpr
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, map(walk.constant, program.consts), strict=True))
    known.update(zip(jaxpr.invars, values, strict=True))

    def value(atom: Any) -> Any:
        return walk.constant(atom.val) if jax_seam.literal(atom) else known[atom]

    for number, eqn in enumerate(jaxpr.eqns):
        if eqn.outvars:
            made = _results(eqn, list(map(value, eqn.invars)), walk, another(place, np.uint32(number)))
            known.update(zip(eqn.outvars, made, strict=True))
    return list(map(value, jaxpr.outvars))


def _plain(eqn: Any, operands: list[Any], place: jax.Array) -> list[Any]:
    """The visitor that changes nothing."""
    return jax_seam.bind(eqn, operands)


def _wide(eqn: Any, operands: list[Any], place: jax.Array) -> list[Any]:
    """The visitor that keeps every float in float64."""
    if jax_seam.name(eqn) == "reduce_precision":
        return operands
    changed = {key: _wide_type(value) for key, value in eqn.params.items() if _is_type(value)}
    return list(map(_in_float64, jax_seam.bind(eqn, operands, **changed)))


def _is_type(value: Any) -> bool:
    return isinstance(value, (type, np.dtype)) and _wide_type(value) is not value


def _wide_type(dtype: Any) -> Any:
    """float64 or complex128 in the place of a narrower type; what is no such type as it is."""
    try:
        narrow = jnp.issubdtype(dtype, jnp.inexact)
    except TypeError:
        return dtype
    if not narrow:
        return dtype
    return np.dtype(np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64)


def _in_float64(value: Any) -> Any:
    dtype = getattr(value, "dtype", None)
    return jnp.asarray(value, _wide_type(dtype)) if dtype is not None and _is_float(value) else value


def _mixed(place: Any, number: Any) -> Any:
    """A number for a place inside `place`: the two are mixed so that no two places share one but by chance."""
    # The multipliers are those of the hash functions murmur3 and xxhash: odd, with bits spread evenly.
    mixed = place * np.uint32(0x85EBCA6B) + number * np.uint32(0x9E3779B1)
    return mixed ^ (mixed >> 15) ^ np.uint32(0x27D4EB2F)


# Traced once, and then copied into each program: it is called for every equation.
another = jax.jit(_mixed, inline=True)


def _results(eqn: Any, operands: list[Any], walk: _Walk, place: Any) -> list[Any]:
    if (body := jax_seam.called(eqn)) is not None:
        return _walked(body, operands, walk, place)
    if (scan := jax_seam.scan(eqn)) is not None:
        return _scan(scan, operands, walk, place)
    if (loop := jax_seam.while_loop(eqn)) is not None:
        return (_bounded_while if walk.turns else _while)(loop, operands, walk, place)
    if (branches := jax_seam.branches(eqn)) is not None:
        index, *rest = operands
        ways = [lambda *given, one=one: _walked(one, given, walk, place) for one in branches]
        return list(jax.lax.switch(jnp.asarray(index).astype(jnp.int32), ways, *rest))
    if (mapped := jax_seam.shard_map(eqn)) is not None:
        body = mapped.body
        run = mapped.rebuild(lambda place, *given: tuple(_walked(body, given, walk, place)), 1)
        return list(run(place, *operands))
    return walk.visit(eqn, operands, place)


def _scan(scan: jax_seam.Scan, operands: list[Any], walk: _Walk, place: jax.Array) -> list[Any]:
    constants, rest = operands[: scan.constants], operands[scan.constants :]
    carried, scanned = rest[: scan.carried], rest[scan.carried :]

    def step(carry: tuple[Any, list[Any]], slices: list[Any]) -> tuple[tuple[Any, list[Any]], list[Any]]:
        turn, values = carry
        made = _walked(scan.body, [*constants, *values, *slices], walk, another(place, turn))
        return (turn + 1, made[: scan.carried]), made[scan.carried :]

    (_, last), stacked = jax.lax.scan(step, (jnp.uint32(0), carried), scanned, length=scan.length, reverse=scan.reverse)
    return [*last, *stacked]


class _Loop(NamedTuple):
    """A while loop with its operands: where it starts, whether it goes on, and one more turn under a visitor.

    Under vmap the condition has the batch's axes, and an example that is done keeps its values.
    """

    start: list[Any]
    wanted: Callable[[list[Any]], Any]
    turned: Callable[[Any, Any, list[Any], Visitor], list[Any]]


def _loop(loop: jax_seam.While, operands: list[Any], walk: _Walk, place: jax.Array) -> _Loop:
    of_condition = operands[: loop.condition_constants]
    of_body = operands[loop.condition_constants :][: loop.body_constants]

    def wanted(values: list[Any]) -> Any:
        return _walked(loop.condition, [*of_condition, *values], walk._replace(visit=walk.decide), place)[0]

    def turned(goes_on: Any, number: Any, values: list[Any], visit: Visitor) -> list[Any]:
        made = _walked(loop.body, [*of_body, *values], walk._replace(visit=visit), another(place, number))
        return [_where(goes_on, new, old) if goes_on.ndim else new for new, old in zip(made, values, strict=True)]

    return _Loop(operands[loop.condition_constants + loop.body_constants :], wanted, turned)


def _while(held: jax_seam.While, operands: list[Any], walk: _Walk, place: jax.Array) -> list[Any]:
    """As many turns as the loop takes without a visitor: one that changes values might never meet its condition."""
    start, wanted, turned = _loop(held, operands, walk, place)

    def counted(state: tuple[Any, Any, list[Any]]) -> tuple[Any, Any, list[Any]]:
        number, turns, values = state
        goes_on = wanted(values)
        return number + 1, turns + goes_on.astype(jnp.uint32), turned(goes_on, number, values, walk.decide)

    def noted(state: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
        number, values = state
        return number + 1, turned(number < turns, number, values, walk.visit)

    none = jnp.uint32(0)
    turns = jnp.zeros(jax.eval_shape(wanted, start).shape, jnp.uint32)
    _, turns, _ = jax.lax.while_loop(lambda state: jnp.any(wanted(state[2])), counted, (none, turns, start))
    _, last = jax.lax.while_loop(lambda state: jnp.any(state[0] < turns), noted, (none, start))
    return last


def _bounded_while(held: jax_seam.While, operands: list[Any], walk: _Walk, place: jax.Array) -> list[Any]:
    """At most so many turns, and NaN where the loop has not ended then."""
    start, wanted, turned = _loop(held, operands, walk, place)
    _, last = jax.lax.while_loop(
        lambda state: jnp.any(wanted(state[1])) & (state[0] < walk.turns),
        lambda state: (state[0] + 1, turned(wanted(state[1]), state[0], state[1], walk.visit)),
        (jnp.uint32(0), start),
    )
    ended = ~jnp.asarray(wanted(last))
    return [_where(ended, x, jnp.full_like(x, jnp.nan)) if _is_float(x) else x for x in last]


def _is_float(x: Any) -> bool:
    return bool(jnp.issubdtype(jnp.asarray(x).dtype, jnp.inexact))


def _where(goes_on: Any, new: Any, old: Any) -> Any:
    return jnp.where(goes_on.reshape(goes_on.shape + (1,) * (new.ndim - goes_on.ndim)), new, old)


# Without tracing.


class _Line(NamedTuple):
    """An equation as it is evaluated: its number, its operands and results by key, and what it holds, if it does.

    `inside` takes the operands, the visitor and the place.
    """

    eqn: Any
    number: np.uint32
    operands: tuple[int, ...]
    results: tuple[int, ...]
    inside: Callable[[list[Any], Visitor, Any], list[Any]] | None


class _Plan(NamedTuple):
    """A program as it is evaluated: constants by key, the keys of what it is given and gives, and its equations."""

    constants: dict[int, np.ndarray]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    lines: tuple[_Line, ...]


@functools.lru_cache(maxsize=256)
def _plan(program: ClosedJaxpr) -> _Plan:
    """What is asked of a program's equations for every evaluation. A variable's key is its identity."""
    jaxpr = program.jaxpr
    constants = dict(zip(map(id, jaxpr.constvars), map(np.asarray, program.consts), strict=True))
    atoms = [*(atom for eqn in jaxpr.eqns for atom in eqn.invars), *jaxpr.outvars]
    constants |= {id(atom): np.asarray(atom.val, atom.aval.dtype) for atom in atoms if jax_seam.literal(atom)}

    def keys(atoms: Sequence[Any]) -> tuple[int, ...]:
        return tuple(map(id, atoms))

    lines = tuple(
        _Line(eqn, np.uint32(number), keys(eqn.invars), keys(eqn.outvars), _inside(eqn))
        for number, eqn in enumerate(jaxpr.eqns)
        if eqn.outvars
    )
    return _Plan(constants, keys(jaxpr.invars), keys(jaxpr.outvars), lines)


def _inside(eqn: Any) -> Callable[[list[Any], Visitor, Any], list[Any]] | None:
    if (body := jax_seam.called(eqn)) is not None:
        return functools.partial(_now, body)
    if (scan := jax_seam.scan(eqn)) is not None:
        return functools.partial(_scan_now, scan)
    if (branches := jax_seam.branches(eqn)) is not None:
        return functools.partial(_branch_now, branches)
    if jax_seam.while_loop(eqn) is not None or jax_seam.shard_map(eqn) is not None:
        raise ValueError(f"{jax_seam.name(eqn)} is not evaluated one equation after another")
    return None


def _now(program: ClosedJaxpr, values: Sequence[Any], visit: Visitor, place: Any) -> list[Any]:
    plan = _plan(program)
    known = {**plan.constants, **dict(zip(plan.inputs, values, strict=True))}
    for eqn, number, operands, results, inside in plan.lines:
        given, here = [known[key] for key in operands], _mixed(place, number)
        made = visit(eqn, given, here) if inside is None else inside(given, visit, here)
        known.update(zip(results, made, strict=True))
    return [known[key] for key in plan.outputs]


def _scan_now(scan: jax_seam.Scan, operands: list[Any], visit: Visitor, place: Any) -> list[Any]:
    constants, rest = operands[: scan.constants], operands[scan.constants :]
    carried, scanned = rest[: scan.carried], rest[scan.carried :]
    found: list[list[Any]] = []
    for turn in range(scan.length):
        at = scan.length - 1 - turn if scan.reverse else turn
        slices = [np.asarray(x[at]) for x in scanned]
        made = _now(scan.body, [*constants, *carried, *slices], visit, _mixed(place, np.uint32(turn)))
        carried = made[: scan.carried]
        found.append(made[scan.carried :])
    stacked = [np.stack(each) for each in zip(*(found[::-1] if scan.reverse else found), strict=True)]
    return [*carried, *stacked]


def _branch_now(branches: Sequence[ClosedJaxpr], operands: list[Any], visit: Visitor, place: Any) -> list[Any]:
    index, *rest = operands
    return _now(branches[min(max(int(index), 0), len(branches) - 1)], rest, visit, place)
