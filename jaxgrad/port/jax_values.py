"""Every value of a JAX function in float64, with its source line, and the function as a flat list of operations.

The jaxpr is opened all the way: jit, remat, custom rules' primals, scans turn by turn, while loops, the branch that
cond takes, and a shard_map where there is one device. The list can be run again with some values replaced, which is
what the search for a mapping and for what would mend a difference do.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from jaxgrad import jax_seam
from jaxgrad.errors import JaxgradError
from jaxgrad.jax_seam import ClosedJaxpr, jaxpr_as_fun
from jaxgrad.port.values import Line, Place, Trace, Value, as_float64, decimal, raised, within

# A scan of more operations than this is run as it is: its turns are not looked at one by one.
MOST_UNROLLED = 20_000

LAYOUT = frozenset(
    "reshape transpose squeeze expand_dims broadcast_in_dim copy copy_p stop_gradient name optimization_barrier "
    "device_put sharding_constraint".split()
)
_AS_THEY_ARE = frozenset("bitcast_convert_type random_bits random_seed random_wrap random_unwrap".split())
_TYPES = ("new_dtype", "dtype", "preferred_element_type")


class Op(NamedTuple):
    """An operation: `run` takes the operands' values and gives the results'. Values are told by number.

    `eqn` is the equation that it is, None for the slices and stacks of a scan.
    """

    name: str
    run: Callable[[Sequence[Any]], list[Any]]
    operands: tuple[int, ...]
    results: tuple[int, ...]
    place: Place
    eqn: Any


class Program(NamedTuple):
    """A function as a flat list of operations. `inputs` are the numbers of its arguments' leaves.

    `constants` are what is written into it, by number; a number written into an equation is one of them.
    """

    ops: tuple[Op, ...]
    inputs: tuple[int, ...]
    constants: Mapping[int, Any]
    outputs: tuple[int, ...]


class Recorded(NamedTuple):
    """A run: its values, the program that made them, and the values as JAX has them, by number."""

    trace: Trace
    program: Program
    values: dict[int, Any]


def record(
    fn: Callable[..., Any],
    args: Sequence[Any],
    parameters: int,
    use: str = "float32",
    *,
    open_custom: bool = True,
    inline: bool = True,
) -> Recorded:
    """Run `fn(*args)`, a function of arrays, in float64 and keep every value.

    Args:
        fn: a function of arrays that returns a tree of arrays.
        args: its arrays; floats are taken to float64.
        parameters: how many of `args`, from the first, are parameters and no inputs.
        use: the type that the function is used in; what it computes in this type by itself is computed in float64,
            what it computes in a narrower one is left.
        open_custom: whether custom rules are looked into. They must not be where derivatives are wanted.
        inline: whether loops are looked into turn by turn.

    Raises `JaxgradError` where `fn` raises.
    """
    with float64():
        wide = [_widened(jnp.asarray(x), use) for x in args]
        closed, shapes = _traced(fn, wide, use)
        state = _State(use, open_custom, inline)
        inputs = [state.new(x, number >= parameters) for number, x in enumerate(wide)]
        outputs = _open(closed, inputs, state, (), "")
    names = ["output" + jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    program = Program(tuple(state.ops), tuple(inputs), state.constants, tuple(outputs))
    return Recorded(trace_of(program, state, names), program, state.values)


def _traced(fn: Callable[..., Any], wide: Sequence[Any], use: str) -> tuple[ClosedJaxpr, Any]:
    """The program of a function, traced in float64; in the type of use where it can be traced in no other.

    A program that was traced in the type of use is run in float64 all the same.
    """
    narrow = [x.astype(use) if x.dtype == np.float64 else x for x in wide]
    try:
        try:
            return jax.make_jaxpr(fn, return_shape=True)(*wide)
        except TypeError:
            return jax.make_jaxpr(fn, return_shape=True)(*narrow)
    except JaxgradError:
        raise
    except Exception as error:
        raise JaxgradError(f"the JAX function {raised(error)}") from error


def float64() -> Any:
    """A context in which JAX computes in float64 on the CPU."""
    import contextlib

    stack = contextlib.ExitStack()
    stack.enter_context(jax.enable_x64(True))
    stack.enter_context(jax.default_matmul_precision("highest"))
    stack.enter_context(jax.default_device(jax.devices("cpu")[0]))
    stack.enter_context(jax.numpy_rank_promotion("allow"))
    return stack


class _State:
    """What a run has made so far."""

    def __init__(self, use: str, open_custom: bool, inline: bool) -> None:
        self.use, self.open_custom, self.inline = use, open_custom, inline
        self.values: dict[int, Any] = {}
        self.varies: list[bool] = []
        self.constants: dict[int, Any] = {}
        self.ops: list[Op] = []
        # The axes of the mesh of one device that is looked into.
        self.axes: tuple[str, ...] = ()

    def new(self, value: Any, varies: bool) -> int:
        number = len(self.varies)
        self.values[number] = value
        self.varies.append(varies)
        return number

    def constant(self, value: Any) -> int:
        number = self.new(_constant(value, self.use), False)
        self.constants[number] = self.values[number]
        return number

    def apply(
        self, name: str, run: Callable[[Sequence[Any]], list[Any]], operands: Sequence[int], place: Place, eqn: Any
    ) -> list[int]:
        made = run([self.values[number] for number in operands])
        varies = any(self.varies[number] for number in operands)
        results = [self.new(value, varies) for value in made]
        self.ops.append(Op(name, run, tuple(operands), tuple(results), place, eqn))
        return results


def trace_of(program: Program, state: Any, names: Sequence[str]) -> Trace:
    nowhere = Place("constant", "", ())
    made = {number: op for op in program.ops for number in op.results}
    values = []
    for number, varies in enumerate(state.varies):
        op = made.get(number)
        array = as_float64(state.values[number]) if not _is_key(state.values[number]) else np.zeros(0)
        if op is None:
            kind = "input" if varies else "parameter" if number in program.inputs else "constant"
            values.append(Value(array, varies, nowhere._replace(op=kind), (), False))
            continue
        values.append(Value(array, varies, op.place, op.operands, op.name in LAYOUT, _scalars(op, program)))
    return Trace(tuple(values), program.outputs, tuple(names))


def _scalars(op: Op, program: Program) -> tuple[tuple[str, float], ...]:
    given = [(f"operand {k}", program.constants[n]) for k, n in enumerate(op.operands) if n in program.constants]
    return tuple((name, float(x)) for name, x in given if np.ndim(x) == 0 and np.asarray(x).dtype.kind in "fi")


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def run_again(
    program: Program, values: Mapping[int, Any], changes: Mapping[int, Any], ops: Mapping[int, Op] | None = None
) -> "Iterable[tuple[int, Any]]":
    """Yield the values, by number and in order, that differ because of `changes`, which gives some values by number.

    `ops` gives other operations in the place of those of an index. Only what depends on a change is computed.
    """
    known: dict[int, Any] = dict(changes)
    for index, op in enumerate(program.ops):
        other = (ops or {}).get(index)
        if other is None and not any(number in known for number in op.operands):
            continue
        used = other or op
        made = used.run([known.get(number, values[number]) for number in used.operands])
        for number, value in zip(op.results, made, strict=True):
            if number not in changes:
                known[number] = value
                yield number, value


# Opening programs.


def _open(
    closed: ClosedJaxpr,
    operands: Sequence[int],
    state: _State,
    outer: tuple[Line, ...],
    stack: str,
    jitted: str | None = None,
) -> list[int]:
    jaxpr = closed.jaxpr
    known: dict[Any, int] = {}
    for var, value in zip(jaxpr.constvars, closed.consts, strict=True):
        known[var] = state.constant(value)
    known.update(zip(jaxpr.invars, operands, strict=True))

    def number(atom: Any) -> int:
        return state.constant(atom.val) if jax_seam.literal(atom) else known[atom]

    for eqn in jaxpr.eqns:
        if not eqn.outvars:
            continue
        place = _place(eqn, outer, stack, jitted)
        known.update(
            zip(eqn.outvars, _results(eqn, [number(a) for a in eqn.invars], state, place, stack, jaxpr), strict=True)
        )
    return [number(atom) for atom in jaxpr.outvars]


def _results(eqn: Any, operands: list[int], state: _State, place: Place, stack: str, jaxpr: Any) -> list[int]:
    name = jax_seam.name(eqn)
    custom = name.startswith("custom_")
    below = "/".join(part for part in (stack, jax_seam.name_stack(eqn)) if part)
    # A rule is compiled for the types that it was traced in, and is given float64 where these are narrower.
    keeps = custom and not state.open_custom and _is_of_types(eqn, operands, state)
    if not keeps and (body := jax_seam.called(eqn)) is not None:
        return _open(body, operands, state, place.lines, below, jax_seam.jitted(eqn))
    if custom and keeps:
        return state.apply(name, _kept(eqn, jaxpr), operands, place, eqn)
    if state.inline and (scan := jax_seam.scan(eqn)) is not None:
        size = sum(1 for _ in scan.body.jaxpr.eqns)
        if scan.length * size <= MOST_UNROLLED:
            return _scan(scan, operands, state, place, below)
    if state.inline and (loop := jax_seam.while_loop(eqn)) is not None:
        return _while(loop, operands, state, place, below)
    if (branches := jax_seam.branches(eqn)) is not None:
        index, *rest = operands
        taken = int(np.clip(int(state.values[index]), 0, len(branches) - 1))
        return _open(branches[taken], rest, state, place.lines, below)
    if (mapped := jax_seam.shard_map(eqn)) is not None:
        if mapped.mesh.size > 1:
            # What each device has is no value of the program, so it is run as it is.
            whole = mapped.rebuild(lambda *given: tuple(jaxpr_as_fun(mapped.body)(*given)), 0)
            return state.apply(name, lambda given: list(whole(*given)), operands, place, eqn)
        outer, state.axes = state.axes, (*state.axes, *mapped.mesh.axis_names)
        results = _open(mapped.body, operands, state, place.lines, below)
        state.axes = outer
        return results
    if state.axes and jax_seam.over_axes(eqn, state.axes):
        return state.apply(name, _alone(eqn), operands, place, eqn)
    return state.apply(name, _bound(eqn, state.use), operands, place, eqn)


def _is_of_types(eqn: Any, operands: list[int], state: _State) -> bool:
    """Whether the values are of the types that an equation was traced for."""
    types = (getattr(state.values[n], "dtype", None) for n in operands)
    return all(dtype == atom.aval.dtype for dtype, atom in zip(types, eqn.invars, strict=True))


def _scan(scan: jax_seam.Scan, operands: list[int], state: _State, place: Place, stack: str) -> list[int]:
    constants, rest = operands[: scan.constants], operands[scan.constants :]
    carried, scanned = rest[: scan.carried], rest[scan.carried :]
    turns: list[list[int]] = []
    order = range(scan.length - 1, -1, -1) if scan.reverse else range(scan.length)
    for turn in order:
        slices = [state.apply("slice", _turn(turn), [x], place._replace(op="slice"), None)[0] for x in scanned]
        inside = f"{stack}/turn {turn}".lstrip("/")
        made = _open(scan.body, [*constants, *carried, *slices], state, place.lines, inside)
        carried = made[: scan.carried]
        turns.append(made[scan.carried :])
    if scan.reverse:
        turns.reverse()
    if not turns:
        return carried
    stacked = [
        state.apply("stack", lambda given: [jnp.stack(given)], list(each), place._replace(op="stack"), None)[0]
        for each in zip(*turns, strict=True)
    ]
    return [*carried, *stacked]


def _turn(turn: int) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda given: [given[0][turn]]


def _while(loop: jax_seam.While, operands: list[int], state: _State, place: Place, stack: str) -> list[int]:
    of_condition = operands[: loop.condition_constants]
    of_body = operands[loop.condition_constants :][: loop.body_constants]
    carried = operands[loop.condition_constants + loop.body_constants :]
    turn = 0
    while True:
        (goes_on,) = _open(loop.condition, [*of_condition, *carried], state, place.lines, stack)
        wanted = state.values[goes_on]
        if not bool(jnp.any(wanted)):
            return carried
        made = _open(loop.body, [*of_body, *carried], state, place.lines, f"{stack}/turn {turn}".lstrip("/"))
        if wanted.ndim:
            made = [_select(goes_on, new, old, state, place) for new, old in zip(made, carried, strict=True)]
        carried, turn = made, turn + 1


def _select(goes_on: int, new: int, old: int, state: _State, place: Place) -> int:
    """Under vmap the condition has the batch's axes, and an example that is done keeps its values."""

    def run(given: Sequence[Any]) -> list[Any]:
        mask, a, b = given
        return [jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)]

    return state.apply("select_n", run, [goes_on, new, old], place, None)[0]


# Running one operation.


def _bound(eqn: Any, use: str) -> Callable[[Sequence[Any]], list[Any]]:
    """An equation as a function in float64: what it makes in the type of use, it makes in float64."""
    keeps = jax_seam.name(eqn) in _AS_THEY_ARE
    types = {} if keeps else {k: np.dtype(np.float64) for k in _TYPES if _is_use(eqn.params.get(k), use)}
    if jax_seam.name(eqn) == "reduce_precision" and eqn.params["mantissa_bits"] >= jnp.finfo(use).nmant:
        return lambda given: list(given)

    in_numpy = _NUMPY.get(jax_seam.name(eqn))

    def run(given: Sequence[Any]) -> list[Any]:
        if in_numpy is not None and not any(map(_is_abstract, given)):
            with np.errstate(all="ignore"):
                return [in_numpy([np.asarray(_widened(x, use)) for x in given], {**eqn.params, **types})]
        made = jax_seam.bind(eqn, given if keeps else [_widened(x, use) for x in given], **types)
        return made if keeps else [_widened(x, use) for x in made]

    return run


def _is_abstract(x: Any) -> bool:
    """Whether NumPy cannot compute with a value as JAX does: it is traced, a key, or of a type that JAX adds."""
    return isinstance(x, jax.core.Tracer) or _is_key(x) or np.asarray(x).dtype.kind not in "biuf"


def _alone(eqn: Any) -> Callable[[Sequence[Any]], list[Any]]:
    """An equation that communicates, where there is one device: it sends its operands to itself, and is the first."""
    shapes = [var.aval.shape for var in eqn.outvars]
    if not eqn.invars:
        return lambda given: [jnp.zeros(var.aval.shape, var.aval.dtype) for var in eqn.outvars]
    return lambda given: [jnp.reshape(x, shape) for x, shape in zip(given, shapes, strict=True)]


def _kept(eqn: Any, jaxpr: Any) -> Callable[[Sequence[Any]], list[Any]]:
    """An equation as a program of its own, so that it keeps its custom rule."""
    call = jaxpr_as_fun(jax_seam.alone(eqn, jaxpr))
    return lambda given: list(call(*given))


def _is_use(dtype: Any, use: str) -> bool:
    """Whether a type is a float that is no narrower than the type of use, and not float64."""
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or dtype == np.float64:
        return False
    return float(jnp.finfo(dtype).eps) <= float(jnp.finfo(use).eps)


def _widened(x: Any, use: str) -> Any:
    return jnp.asarray(x, jnp.float64) if not _is_key(x) and _is_use(getattr(x, "dtype", None), use) else x


def _constant(x: Any, use: str) -> Any:
    if _is_key(x):
        return x
    array = np.asarray(x)
    return jnp.asarray(decimal(array)) if array.dtype == np.float32 and _is_use(array.dtype, use) else jnp.asarray(x)


def _axes(p: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(p["axes"])


def _slices(p: Mapping[str, Any]) -> tuple[slice, ...]:
    strides = p["strides"] or (1,) * len(p["start_indices"])
    return tuple(map(slice, p["start_indices"], p["limit_indices"], strides))


def _iota(p: Mapping[str, Any]) -> np.ndarray:
    shape, axis = p["shape"], p["dimension"]
    along = np.arange(shape[axis]).reshape([-1 if k == axis else 1 for k in range(len(shape))])
    return np.broadcast_to(along, shape).astype(p["dtype"])


def _product(a: np.ndarray, b: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    """A product of arrays: batch axes first, then the free ones of each."""
    (over_a, over_b), (batch_a, batch_b) = p["dimension_numbers"]
    free_a = [k for k in range(a.ndim) if k not in (*over_a, *batch_a)]
    free_b = [k for k in range(b.ndim) if k not in (*over_b, *batch_b)]
    batch, rows, columns = [a.shape[k] for k in batch_a], [a.shape[k] for k in free_a], [b.shape[k] for k in free_b]
    count, terms = math.prod(batch), math.prod(a.shape[k] for k in over_a)
    left = a.transpose(*batch_a, *free_a, *over_a).reshape(count, math.prod(rows), terms)
    right = b.transpose(*batch_b, *over_b, *free_b).reshape(count, terms, math.prod(columns))
    return (left @ right).reshape(*batch, *rows, *columns)


def _broadcast(x: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    axes, shape = p["broadcast_dimensions"], p["shape"]
    sizes = [1] * len(shape)
    for axis, size in zip(axes, x.shape, strict=True):
        sizes[axis] = size
    return np.broadcast_to(x.reshape(sizes), shape)


# The commonest operations in NumPy: JAX compiles each operation for each shape, which takes longer than it saves here.
_NUMPY: dict[str, Callable[[list[np.ndarray], Mapping[str, Any]], Any]] = {
    "add": lambda x, p: np.add(*x),
    "add_any": lambda x, p: np.add(*x),
    "sub": lambda x, p: np.subtract(*x),
    "mul": lambda x, p: np.multiply(*x),
    "max": lambda x, p: np.maximum(*x),
    "min": lambda x, p: np.minimum(*x),
    "neg": lambda x, p: np.negative(*x),
    "exp": lambda x, p: np.exp(*x),
    "log": lambda x, p: np.log(*x),
    "log1p": lambda x, p: np.log1p(*x),
    "expm1": lambda x, p: np.expm1(*x),
    "tanh": lambda x, p: np.tanh(*x),
    "sin": lambda x, p: np.sin(*x),
    "cos": lambda x, p: np.cos(*x),
    "sqrt": lambda x, p: np.sqrt(*x),
    "rsqrt": lambda x, p: 1 / np.sqrt(*x),
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
    "broadcast_in_dim": lambda x, p: _broadcast(x[0], p),
    "reshape": lambda x, p: x[0].reshape(p["new_sizes"]),
    "squeeze": lambda x, p: np.squeeze(x[0], tuple(p["dimensions"])),
    "transpose": lambda x, p: np.transpose(x[0], p["permutation"]),
    "concatenate": lambda x, p: np.concatenate(x, p["dimension"]),
    "reduce_sum": lambda x, p: np.sum(x[0], _axes(p), dtype=x[0].dtype),
    "reduce_max": lambda x, p: np.max(x[0], _axes(p)),
    "reduce_min": lambda x, p: np.min(x[0], _axes(p)),
    "reduce_and": lambda x, p: np.all(x[0], _axes(p)),
    "reduce_or": lambda x, p: np.any(x[0], _axes(p)),
    "div": lambda x, p: np.divide(*x) if x[0].dtype.kind in "fV" else np.trunc(x[0] / x[1]).astype(x[0].dtype),
    "pow": lambda x, p: np.power(*x),
    "sign": lambda x, p: np.sign(*x),
    "floor": lambda x, p: np.floor(*x),
    "and": lambda x, p: np.bitwise_and(*x),
    "or": lambda x, p: np.bitwise_or(*x),
    "not": lambda x, p: np.invert(*x),
    "is_finite": lambda x, p: np.isfinite(*x),
    "logistic": lambda x, p: special.expit(x[0]),
    "erf": lambda x, p: special.erf(x[0]),
    "erfc": lambda x, p: special.erfc(x[0]),
    "convert_element_type": lambda x, p: x[0].astype(p["new_dtype"]),
    "select_n": lambda x, p: np.where(x[0], x[2], x[1]) if x[0].dtype == bool else np.choose(x[0], x[1:]),
    "slice": lambda x, p: x[0][_slices(p)],
    "rev": lambda x, p: np.flip(x[0], tuple(p["dimensions"])),
    "clamp": lambda x, p: np.clip(x[1], x[0], x[2]),
    "iota": lambda x, p: _iota(p),
    "dot_general": lambda x, p: _product(x[0], x[1], p),
}


# Places.


def _place(eqn: Any, outer: tuple[Line, ...], stack: str, jitted: str | None) -> Place:
    """Where an equation was written, with the lines that led to the call of the program it is in.

    JAX traces a jitted function once, so its equations show the lines of its first call for ever: of those, the ones
    outside of the function named `jitted` are the first caller's, and the present caller's take their place.
    """
    own = within([Line(*frame) for frame in jax_seam.frames(eqn)])
    if jitted is not None:
        last = max((k for k, line in enumerate(own) if line.function.split(".")[-1] == jitted), default=-1)
        own = (*own[: last + 1], *outer)
    elif outer:
        calls = {(line.file, line.function) for line in outer}
        count = next((k for k, line in enumerate(own) if (line.file, line.function) in calls), len(own))
        own = (*own[:count], *outer)
    module = "/".join(part for part in (stack, jax_seam.name_stack(eqn)) if part)
    return Place(jax_seam.name(eqn), module, own)
