"""Every value of a JAX function in float64, with its source line, and the function as a flat list of operations.

The jaxpr is opened all the way: jit, remat, custom rules' primals, scans turn by turn, while loops, the branch that
cond takes, and a shard_map where there is one device. The list can be run again with some values replaced, which is
what the search for a mapping and for what would mend a difference do.

Of a run that is too large to keep, sketches stay, and from time to time all values that are needed further on: what
was let go is computed again from these. A value is let go with the last operation that takes it.
"""

import contextlib
import functools
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import jax_seam
from jaxgrad.errors import JaxgradError
from jaxgrad.jax_seam import ClosedJaxpr, jaxpr_as_fun
from jaxgrad.jaxprs import in_numpy
from jaxgrad.port import numpy_values
from jaxgrad.port.fingerprint import Sketch, blank, resketched, sketch
from jaxgrad.port.values import Line, Place, Trace, Value, Values, as_float64, decimal, raised, within
from jaxgrad.settings import compared_in

# What moves numbers out of their order, as a place names it.
_REORDERED_RESHAPE = "reshape in another order"
_REORDERS = frozenset(("transpose", _REORDERED_RESHAPE))
# A scan of more operations than this is run as it is: its turns are not looked at one by one.
MOST_UNROLLED = 20_000
# Of a run that is let go, all that is needed further on is kept where it is this much smaller than what was let go.
_SMALLER = 8

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


class Arrays(Mapping[int, Any]):
    """The values of a run by number; those that were let go are computed again from those that are `kept`."""

    def __init__(self, ops: Sequence[Op], kept: dict[int, Any], count: int) -> None:
        self.ops, self.kept, self.count = ops, kept, count
        self.makers: dict[int, int] = {}
        self.recent: dict[int, Any] = {}
        self.bytes = 0

    def __getitem__(self, number: int) -> Any:
        if number in self.kept:
            return self.kept[number]
        if number not in self.recent:
            self._compute(number)
        return self.recent[number]

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def __len__(self) -> int:
        return self.count

    def array(self, number: int) -> np.ndarray:
        """A value in float64."""
        return _host(self[number])

    def keep(self, numbers: Iterable[int]) -> None:
        """Keep some values from now on: those that are asked for again and again."""
        self.kept.update([(number, self[number]) for number in numbers])

    def _compute(self, number: int) -> None:
        for k in range(max(self.makers.values(), default=-1) + 1, len(self.ops)):
            self.makers.update(dict.fromkeys(self.ops[k].results, k))
        wanted, todo = set[int](), [number]
        while todo:
            m = todo.pop()
            if m not in self.kept and m not in self.recent and self.makers[m] not in wanted:
                wanted.add(self.makers[m])
                todo += self.ops[self.makers[m]].operands
        made: dict[int, Any] = {}
        with float64():
            for k in sorted(wanted):
                given = [made[m] if m in made else self[m] for m in self.ops[k].operands]
                made.update(zip(self.ops[k].results, self.ops[k].run(given), strict=True))
        size = sum(map(_bytes, made.values()))
        if self.bytes + size > Values.most:
            self.recent, self.bytes = {}, 0
        self.recent.update(made)
        self.bytes += size


class Recorded(NamedTuple):
    """A run: its values, the program that made them, and the values as JAX has them, by number.

    `floats` are the numbers of those that can have a derivative, `cuts` the indices of operations before which all
    values needed further on are kept, none where all are. `opened` tells whether a custom rule was looked into.
    """

    trace: Trace
    program: Program
    values: Arrays
    floats: frozenset[int]
    cuts: tuple[int, ...]
    opened: bool


def _bytes(x: Any) -> int:
    return 0 if _is_key(x) else math.prod(np.shape(x)) * 8


def record(
    fn: Callable[..., Any],
    args: Sequence[Any],
    parameters: int,
    use: str = "float32",
    *,
    open_custom: bool = True,
    inline: bool = True,
    looked_up: bool = True,
) -> Recorded:
    """Run `fn(*args)`, a function of arrays, in float64 and keep every value; of a run too large to keep a sketch.

    Args:
        fn: a function of arrays that returns a tree of arrays.
        args: its arrays; floats are taken to float64.
        parameters: how many of `args`, from the first, are parameters and no inputs.
        use: the type that the function is used in; what it computes in this type by itself is computed in float64,
            what it computes in a narrower one is left.
        open_custom: whether custom rules are looked into. They must not be where derivatives are wanted.
        inline: whether loops are looked into turn by turn.
        looked_up: whether values will be looked up among others. If not, of what is let go only its shape is kept.

    Raises `JaxgradError` where `fn` raises.
    """
    with float64():
        wide = [_given(x, use) for x in args]
        closed, shapes, calls = _traced(fn, wide, use)
        state = _State(use, open_custom, inline, looked_up, calls)
        inputs = [
            state.new(x, number >= parameters, _nowhere("input" if number >= parameters else "parameter"))
            for number, x in enumerate(wide)
        ]
        outputs = _open(closed, inputs, state, (), "")
    names = ["output" + jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    numbers = tuple(made.number for made in outputs)
    program = Program(tuple(state.ops), tuple(made.number for made in inputs), state.constants, numbers)
    for made in outputs:
        state.arrays.kept[made.number] = made.value
        state.values[made.number] = state.values[made.number]._replace(held=_host(made.value))
    state.arrays.count = len(state.values)
    trace = Trace(tuple(state.values), numbers, tuple(names))
    return Recorded(trace, program, state.arrays, frozenset(state.floats), tuple(state.cuts), state.opened)


def _host(x: Any) -> np.ndarray:
    return np.zeros(0) if _is_key(x) else as_float64(x)


def _given(x: Any, use: str) -> Any:
    """An argument in float64: an array of NumPy's in it as it lies, as copies of all weights are as large as they."""
    return x if isinstance(x, np.ndarray) and x.dtype == np.float64 else _widened(jnp.asarray(x), use)


def _nowhere(op: str) -> Place:
    return Place(op, "", ())


def _traced(fn: Callable[..., Any], wide: Sequence[Any], use: str) -> tuple[ClosedJaxpr, Any, numpy_values.Calls]:
    """The program of a function, traced in float64; in the type of use where it can be traced in no other.

    A program that was traced in the type of use is run in float64 all the same. With it, what was computed in NumPy
    meanwhile; that is nothing where the function does not take arrays that record.
    """
    # JAX does not trace one function twice, and what it does not trace computes nothing in NumPy.
    trace = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)
    with numpy_values.recording() as calls, contextlib.suppress(Exception):
        return *trace(*wide), calls
    try:
        try:
            return *trace(*wide), numpy_values.Calls()
        except TypeError:
            narrow = [jax.ShapeDtypeStruct(x.shape, use) if x.dtype == np.float64 else x for x in wide]
            return *trace(*narrow), numpy_values.Calls()
    except JaxgradError:
        raise
    except Exception as error:
        raise JaxgradError(f"the JAX function {raised(error)}") from error


def float64() -> Any:
    """A context in which JAX computes in float64 on the CPU."""
    stack = contextlib.ExitStack()
    stack.enter_context(compared_in("float64"))
    stack.enter_context(jax.default_device(jax.devices("cpu")[0]))
    stack.enter_context(jax.numpy_rank_promotion("allow"))
    return stack


class _Made:
    """A value that may still be needed: it is let go with the last that refers to it."""

    __slots__ = ("__weakref__", "number", "value", "varies")

    def __init__(self, number: int, value: Any, varies: bool) -> None:
        self.number, self.value, self.varies = number, value, varies


class _State(Values):
    """What a run has made so far."""

    def __init__(self, use: str, open_custom: bool, inline: bool, looked_up: bool, calls: numpy_values.Calls) -> None:
        self.use, self.open_custom, self.inline, self.looked_up = use, open_custom, inline, looked_up
        # What was computed in NumPy while the function was traced, and those of its results that are values.
        self.calls = calls
        self.tables: dict[int, _Made] = {}
        self.constants: dict[int, Any] = {}
        self.ops: list[Op] = []
        self.arrays = Arrays(self.ops, {}, 0)
        super().__init__(self.arrays.array)
        self.living: weakref.WeakValueDictionary[int, _Made] = weakref.WeakValueDictionary()
        # How many bytes were let go since all that lived was kept, and from how many on it may be again.
        self.since, self.pause = 0, self.most
        self.cuts: list[int] = []
        self.floats: set[int] = set()
        self.opened = False
        # The axes of the mesh of one device that is looked into.
        self.axes: tuple[str, ...] = ()

    def new(
        self,
        value: Any,
        varies: bool,
        place: Place,
        operands: tuple[int, ...] = (),
        moved: bool = False,
        scalars: tuple[tuple[str, float], ...] = (),
    ) -> _Made:
        array = _host(value)
        before = self.all
        number = self.add(Value(array, varies, place, operands, moved, scalars))
        if getattr(value, "dtype", None) == np.float64:
            self.floats.add(number)
        made = _Made(number, value, varies)
        self.living[number] = made
        if isinstance(self.values[number].held, np.ndarray):
            self.arrays.kept[number] = value
        else:
            self.since += 0 if moved else 8 * array.size
        if before and not self.all:
            # From here on values are let go.
            self.arrays.kept = {
                n: x for n, x in self.arrays.kept.items() if isinstance(self.values[n].held, np.ndarray)
            }
            self.keep_living()
        return made

    def sketch(self, value: Value) -> Sketch:
        """What is kept of a value that is let go. What is only moved has the numbers of what it is moved from."""
        if not self.looked_up:
            return blank(value.array)
        source = self.values[value.operands[0]].held if value.moved and len(value.operands) == 1 else None
        if isinstance(source, Sketch) and source.size == value.size:
            return resketched(source, value.array, value.place.op not in _REORDERS)
        return super().sketch(value)

    def keep_living(self) -> None:
        """Keep all that is still needed, so that what comes behind can be computed again from here."""
        self.arrays.kept.update((number, made.value) for number, made in self.living.items())
        self.cuts.append(len(self.ops))
        self.since, self.pause = 0, self.most

    def constant(self, value: Any) -> _Made:
        call = None if _is_key(value) else self.calls.made(np.asarray(value))
        return self.written(value) if call is None else self.table(call, value)

    def table(self, call: int, value: Any) -> _Made:
        """What a call of NumPy gave, made again with all that led to it."""
        for k in self.calls.leading_to(call):
            if k not in self.tables:
                name, run, given, lines, _ = self.calls[k]
                made = [self.tables[x.call] if isinstance(x, numpy_values.Made) else self.written(x) for x in given]
                (self.tables[k],) = self.apply(name, _in_numpy(run, self.use), made, Place(name, "", lines), None)
        return self.tables[call] if call in self.tables else self.written(value)

    def written(self, value: Any) -> _Made:
        """A value that the program has as it is."""
        made = self.new(_constant(value, self.use), False, _nowhere("constant"))
        self.constants[made.number] = made.value
        return made

    def apply(
        self, name: str, run: Callable[[Sequence[Any]], list[Any]], operands: Sequence[_Made], place: Place, eqn: Any
    ) -> list[_Made]:
        if self.since > self.pause:
            live = sum(_bytes(made.value) for number, made in self.living.items() if number not in self.arrays.kept)
            if _SMALLER * live <= self.since:
                self.keep_living()
            else:
                self.pause = self.since + self.most
        made = run([each.value for each in operands])
        varies = any(each.varies for each in operands)
        numbers = tuple(each.number for each in operands)
        scalars = _scalars(numbers, self.constants)
        first = len(self.values)
        self.ops.append(Op(name, run, numbers, tuple(range(first, first + len(made))), place, eqn))
        return [self.new(value, varies, place, numbers, name in LAYOUT, scalars) for value in made]


def _scalars(operands: Sequence[int], constants: Mapping[int, Any]) -> tuple[tuple[str, float], ...]:
    given = [(f"operand {k}", constants[n]) for k, n in enumerate(operands) if n in constants]
    return tuple((name, float(x)) for name, x in given if np.ndim(x) == 0 and np.asarray(x).dtype.kind in "fi")


def changed(recorded: Recorded, values: Mapping[int, Any], ops: Mapping[int, Op]) -> Recorded:
    """The run with some values replaced, by number, and some operations, by index."""
    program, rows = recorded.program, list(recorded.trace.values)
    # What was given is no longer computed.
    given = set(values)
    left = [ops.get(k, op) for k, op in enumerate(program.ops)]
    left = [op for op in left if not given.issuperset(op.results)]
    new = itertools.chain(values.items(), run_again(program, recorded.values, values, ops))
    kept = dict(recorded.values.kept)
    arrays = Arrays(left, kept, len(rows))
    for n, x in new:
        array = _host(x)
        if recorded.cuts and n not in given and array.size > Values.few:
            kept.pop(n, None)
            rows[n] = rows[n]._replace(held=sketch(array), again=functools.partial(arrays.array, n))
        else:
            kept[n] = x
            rows[n] = rows[n]._replace(held=array)
    trace = recorded.trace._replace(values=tuple(rows))
    return recorded._replace(trace=trace, program=program._replace(ops=tuple(left)), values=arrays)


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


def outputs(program: Program, given: Mapping[int, Any]) -> dict[int, Any]:
    """The outputs of a program by number, for inputs, constants and other values that are `given`.

    What lies between is let go with the last operation that takes it.
    """
    last = {n: k for k, op in enumerate(program.ops) for n in op.operands}
    last.update(dict.fromkeys(program.outputs, len(program.ops)))
    known = dict(given)
    for k, op in enumerate(program.ops):
        made = op.run([known[n] for n in op.operands])
        known.update((n, x) for n, x in zip(op.results, made, strict=True) if n not in given)
        for n in (*op.operands, *op.results):
            if last.get(n, k) <= k and n not in given:
                known.pop(n, None)
    return {n: known[n] for n in program.outputs}


def evaluate(closed: ClosedJaxpr, given: Sequence[Any]) -> list[Any]:
    """The results of a program as it was traced, in NumPy where it has the operation; nothing else is computed."""
    jaxpr = closed.jaxpr
    needed = {atom for atom in jaxpr.outvars if not jax_seam.literal(atom)}
    eqns = []
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            eqns.append(eqn)
            needed.update(atom for atom in eqn.invars if not jax_seam.literal(atom))
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *given), strict=True))
    last = _needed_until(jaxpr, eqns[::-1])

    def value(atom: Any) -> Any:
        return atom.val if jax_seam.literal(atom) else known[atom]

    for k, eqn in enumerate(eqns[::-1]):
        operands, body = [value(atom) for atom in eqn.invars], jax_seam.called(eqn)
        made = _bound(eqn, "float64")(operands) if body is None else evaluate(body, operands)
        known.update(zip(eqn.outvars, made, strict=True))
        for var in (*eqn.invars, *eqn.outvars):
            if not jax_seam.literal(var) and last.get(var, -1) <= k:
                known.pop(var, None)
    return [value(atom) for atom in jaxpr.outvars]


# Opening programs.


def _open(
    closed: ClosedJaxpr,
    operands: Sequence[_Made],
    state: _State,
    outer: tuple[Line, ...],
    stack: str,
    jitted: str | None = None,
) -> list[_Made]:
    jaxpr = closed.jaxpr
    known: dict[Any, _Made] = {}
    for var, value in zip(jaxpr.constvars, closed.consts, strict=True):
        known[var] = state.constant(value)
    known.update(zip(jaxpr.invars, operands, strict=True))

    def made(atom: Any) -> _Made:
        return state.constant(atom.val) if jax_seam.literal(atom) else known[atom]

    needed = _needed_until(jaxpr, jaxpr.eqns)
    for k, eqn in enumerate(jaxpr.eqns):
        if not eqn.outvars:
            continue
        place = _place(eqn, outer, stack, jitted)
        known.update(
            zip(eqn.outvars, _results(eqn, [made(a) for a in eqn.invars], state, place, stack, jaxpr), strict=True)
        )
        for var in (*eqn.invars, *eqn.outvars):
            if not jax_seam.literal(var) and needed.get(var, -1) <= k:
                known.pop(var, None)
    return [made(atom) for atom in jaxpr.outvars]


def _needed_until(jaxpr: Any, eqns: Sequence[Any]) -> dict[Any, int]:
    """The index of the last of some equations that takes each variable; that behind them all for what is returned."""
    last = {atom: k for k, eqn in enumerate(eqns) for atom in eqn.invars if not jax_seam.literal(atom)}
    return {**last, **{atom: len(eqns) for atom in jaxpr.outvars if not jax_seam.literal(atom)}}


def _results(eqn: Any, operands: list[_Made], state: _State, place: Place, stack: str, jaxpr: Any) -> list[_Made]:
    name = jax_seam.name(eqn)
    custom = name.startswith("custom_")
    below = "/".join(part for part in (stack, jax_seam.name_stack(eqn)) if part)
    # A rule is compiled for the types that it was traced in, and is given float64 where these are narrower.
    keeps = custom and not state.open_custom and _is_of_types(eqn, operands)
    if not keeps and (body := jax_seam.called(eqn)) is not None:
        state.opened |= custom
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
        taken = int(np.clip(int(index.value), 0, len(branches) - 1))
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


def _is_of_types(eqn: Any, operands: list[_Made]) -> bool:
    """Whether the values are of the types that an equation was traced for."""
    types = (getattr(made.value, "dtype", None) for made in operands)
    return all(dtype == atom.aval.dtype for dtype, atom in zip(types, eqn.invars, strict=True))


def _scan(scan: jax_seam.Scan, operands: list[_Made], state: _State, place: Place, stack: str) -> list[_Made]:
    constants, rest = operands[: scan.constants], operands[scan.constants :]
    carried, scanned = rest[: scan.carried], rest[scan.carried :]
    turns: list[list[_Made]] = []
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


def _while(loop: jax_seam.While, operands: list[_Made], state: _State, place: Place, stack: str) -> list[_Made]:
    of_condition = operands[: loop.condition_constants]
    of_body = operands[loop.condition_constants :][: loop.body_constants]
    carried = operands[loop.condition_constants + loop.body_constants :]
    turn = 0
    while True:
        (goes_on,) = _open(loop.condition, [*of_condition, *carried], state, place.lines, stack)
        wanted = goes_on.value
        if not bool(jnp.any(wanted)):
            return carried
        made = _open(loop.body, [*of_body, *carried], state, place.lines, f"{stack}/turn {turn}".lstrip("/"))
        if wanted.ndim:
            made = [_select(goes_on, new, old, state, place) for new, old in zip(made, carried, strict=True)]
        carried, turn = made, turn + 1


def _select(goes_on: _Made, new: _Made, old: _Made, state: _State, place: Place) -> _Made:
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

    name, params = jax_seam.name(eqn), {**eqn.params, **types}

    def run(given: Sequence[Any]) -> list[Any]:
        if all(map(in_numpy.takes, given)):
            made = in_numpy.results(name, [np.asarray(_widened(x, use)) for x in given], params)
            if made is not None:
                return made
        made = jax_seam.bind(eqn, given if keeps else [_widened(x, use) for x in given], **types)
        return made if keeps else [_widened(x, use) for x in made]

    return run


def _in_numpy(run: Callable[[Sequence[Any]], Any], use: str) -> Callable[[Sequence[Any]], list[Any]]:
    """A call of NumPy as an operation."""

    def quietly(given: Sequence[Any]) -> list[Any]:
        with np.errstate(all="ignore"):
            return [_constant(run([np.asarray(x) for x in given]), use)]

    return quietly


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
    name = jax_seam.name(eqn)
    reordered = name == "reshape" and eqn.params["dimensions"] is not None
    return Place(_REORDERED_RESHAPE if reordered else name, module, own)
