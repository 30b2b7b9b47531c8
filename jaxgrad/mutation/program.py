"""A traced function as a program that can be changed: calls inlined, a primitive a step, each with its source line."""

import inspect
import itertools
import linecache
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import jax_seam
from jaxgrad.checking.question import parameter_names
from jaxgrad.jax_seam import Literal
from jaxgrad.jaxprs import in_numpy
from jaxgrad.jaxprs.taps import marked


class Place(NamedTuple):
    """Where a step was written: its innermost line outside JAX.

    `functions` are those around it and `callers` the lines that called it, as `file:line`, innermost first.
    """

    file: str
    line: int
    functions: tuple[str, ...]
    callers: tuple[str, ...]

    @property
    def text(self) -> str:
        """The source line itself; empty where the file cannot be read."""
        return linecache.getline(self.file, self.line).strip()

    @property
    def frame(self) -> str:
        """The line as it stands among the `callers` of what it calls."""
        return f"{self.file}:{self.line}"


class Step(NamedTuple):
    """One primitive applied to slots of a program's memory; `run` takes their values and returns its results."""

    primitive: Any
    params: dict[str, Any]
    run: Callable[..., Sequence[Any]]
    operands: tuple[int, ...]
    results: tuple[int, ...]
    place: Place
    backward: bool

    @property
    def name(self) -> str:
        return str(self.primitive.name)


class Program(NamedTuple):
    """A traced function, calls within it inlined. Every value has a slot, of the shape and type that `shapes` holds.

    `stacks` are the slots that hold what all turns of a scan gave, where each turn is written out, and those of the
    turns, in the order of the stack.
    """

    steps: tuple[Step, ...]
    shapes: tuple[Any, ...]
    constants: dict[int, Any]
    inputs: dict[int, str]
    outputs: dict[str, int]
    stacks: dict[int, tuple[int, ...]]


def values(program: Program, leaves: Sequence[Any]) -> dict[int, Any]:
    """The value of every slot, from those of the program's inputs in their order; in NumPy where it can be."""
    given = {**program.constants, **dict(zip(program.inputs, leaves, strict=True))}
    known = {slot: _on_host(x, program.shapes[slot].dtype) for slot, x in given.items()}
    for step in program.steps:
        known.update(zip(step.results, step.run(*(known[slot] for slot in step.operands)), strict=True))
    return known


def results(program: Program, leaves: Sequence[Any]) -> dict[str, Any]:
    """The program's results by name, from the values of its inputs, as JAX's arrays."""
    known = values(program, leaves)
    made = {name: known[slot] for name, slot in program.outputs.items()}
    return {name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in made.items()}


def _on_host(x: Any, dtype: Any) -> Any:
    """A value as NumPy's array, of the type that the program has it in, if it is computed with in NumPy.

    In float32 it is not: a last digit that is not JAX's may be a large part of what a program cancels.
    """
    return np.asarray(x, dtype) if dtype != np.float32 and in_numpy.is_own(dtype) and in_numpy.takes(x) else x


class Traced(NamedTuple):
    """A backward pass as a program, and the tree of its results."""

    program: Program
    results: Any


def trace(
    fn: Callable[..., Any], *args: Any, starts: Callable[[Place], bool] | None = None, turns: bool = False
) -> Traced:
    """A backward pass, a function of trees of arrays; the program's inputs are the leaves of `args`.

    All its steps may be mutated, or, for a function that holds its forward pass too, those whose place `starts`
    says and all that depend on them. With `turns` each turn of a scan is written out, so that the steps inside can be
    mutated, in one turn at a time; without it a scan is one step. Raises what `fn` raises.
    """
    closed, results = jax.make_jaxpr(fn, return_shape=True)(*args)
    tape = Tape(turns)
    inputs = dict(zip(map(tape.slot, closed.in_avals), _leaf_names(fn, args), strict=True))
    made = tape.record(closed, list(inputs), backward=True)
    program = tape.program(inputs, dict(zip(_paths(results), made, strict=True)))
    return Traced(program if starts is None else _started_by(program, starts), results)


def trace_pullback(fn: Callable[..., Any], *args: Any, static_argnums: Sequence[int] = ()) -> Traced:
    """The pullback of `fn`, from the leaves of its other arguments and of its output's cotangent.

    The program holds the forward pass too, which is not mutated. Of a `jax.custom_vjp` object it shows the lines of
    the rule; where JAX makes the pullback, those that are differentiated. Outputs of `fn` must be floats.
    Raises what `fn` and its rule raise.
    """
    rule = rule_of(fn, args, static_argnums)
    forward, (out, residuals) = jax.make_jaxpr(rule.forward, return_shape=True)(*rule.dynamic)
    backward, results = jax.make_jaxpr(rule.backward, return_shape=True)(residuals, out)
    tape = Tape()
    names = _leaf_names(fn, rule.join(rule.dynamic, hide_static=True))
    inputs = dict(zip(map(tape.slot, forward.in_avals), names, strict=True))
    given = tape.record(forward, list(inputs), backward=False)[len(jax.tree.leaves(out)) :]
    dys = {
        tape.slot(aval): f"the cotangent of output{path}"
        for path, aval in zip(_paths(out), backward.in_avals[len(given) :], strict=True)
    }
    made = tape.record(backward, [*given, *dys], backward=True)
    return Traced(tape.program({**inputs, **dys}, dict(zip(_paths(results), made, strict=True))), results)


class Tape:
    """What a program is recorded on; with `turns`, scans turn by turn."""

    def __init__(self, turns: bool = False) -> None:
        self.turns = turns
        self.steps: list[Step] = []
        self.shapes: list[Any] = []
        self.constants: dict[int, Any] = {}
        self.stacks: dict[int, tuple[int, ...]] = {}

    def slot(self, aval: Any) -> int:
        self.shapes.append(aval)
        return len(self.shapes) - 1

    def constant(self, value: Any, aval: Any) -> int:
        self.constants[len(self.shapes)] = value
        return self.slot(aval)

    def program(self, inputs: dict[int, str], outputs: dict[str, int]) -> Program:
        return Program(tuple(self.steps), tuple(self.shapes), self.constants, inputs, outputs, self.stacks)

    def record(
        self, jaxpr: Any, operands: Sequence[int], backward: bool, call: tuple[str, Place] | None = None
    ) -> list[int]:
        """Append the steps of a jaxpr and of the calls in it; the slots of its results."""
        inner, consts = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
        known: dict[Any, int] = dict(zip(inner.invars, operands, strict=True))
        for var, value in zip(inner.constvars, consts, strict=True):
            known[var] = self.constant(value, var.aval)

        def read(atom: Any) -> int:
            return self.constant(atom.val, atom.aval) if isinstance(atom, Literal) else known[atom]

        for eqn in inner.eqns:
            used = tuple(map(read, eqn.invars))
            place, called = _place(eqn) if call is None else _within(_place(eqn), *call), jax_seam.called(eqn)
            if marked(eqn):
                # A tap names a value and computes nothing, so that no mistake can be made in it.
                made = list(used)
            elif self.turns and (scan := jax_seam.scan(eqn)) is not None:
                made = self.written_out(scan, used, backward, place)
            elif called is None:
                made = [self.slot(var.aval) for var in eqn.outvars]
                run = bound(eqn.primitive, eqn.params)
                self.steps.append(Step(eqn.primitive, eqn.params, run, used, tuple(made), place, backward))
            else:
                made = self.record(called, used, backward, (eqn.params.get("name", ""), place))
            known.update(zip(eqn.outvars, made, strict=True))
        return [read(atom) for atom in inner.outvars]

    def written_out(self, scan: jax_seam.Scan, operands: Sequence[int], backward: bool, place: Place) -> list[int]:
        """Append the steps of every turn of a scan, in the order in which they are taken; the slots of its results."""
        constants, rest = operands[: scan.constants], operands[scan.constants :]
        carried, scanned = list(rest[: scan.carried]), rest[scan.carried :]
        found: list[list[int]] = []
        for turn in sorted(range(scan.length), reverse=scan.reverse):
            slices = [self.helper(lambda x, turn=turn: x[turn], (slot,), backward, place) for slot in scanned]
            made = self.record(scan.body, [*constants, *carried, *slices], backward)
            carried = made[: scan.carried]
            found.append(made[scan.carried :])
        in_order = found[::-1] if scan.reverse else found
        stacks = {
            self.helper(lambda *x: jnp.stack(x), slots, backward, place): slots for slots in zip(*in_order, strict=True)
        }
        self.stacks |= stacks
        return [*carried, *stacks]

    def helper(self, fn: Callable[..., Any], operands: Sequence[int], backward: bool, place: Place) -> int:
        """Append the steps of a function of ours, which stand in the program at `place`; the slot of its result."""
        closed = jax.make_jaxpr(fn)(
            *(jax.ShapeDtypeStruct(self.shapes[k].shape, self.shapes[k].dtype) for k in operands)
        )
        (made,) = self.record(closed, operands, backward, ("", place))
        return made


def _within(place: Place, name: str, caller: Place) -> Place:
    """The place of a step in a called function: its own if it lies there, and if not that of the call.

    What it is told of itself may be another call's line: JAX traces a jitted function once, its own helpers too.
    """
    if caller.frame in place.callers:
        return place
    if name not in place.functions:
        return caller
    return Place(
        place.file,
        place.line,
        (*place.functions, *caller.functions),
        (*place.callers, caller.frame, *caller.callers),
    )


def bound(primitive: Any, params: dict[str, Any]) -> Callable[..., Sequence[Any]]:
    """A primitive with its parameters, as a step runs it: on NumPy's arrays in NumPy, where that has it."""

    def run(*values: Any) -> Sequence[Any]:
        if values and all(isinstance(x, (np.ndarray, np.generic)) and x.dtype != np.float32 for x in values):
            made = in_numpy.results(str(primitive.name), values, params)
            if made is not None:
                return made
        out = primitive.bind(*values, **params)
        return out if primitive.multiple_results else (out,)

    return run


def _place(eqn: Any) -> Place:
    """Where an equation was written, as JAX tells it."""
    # What called the tracing is the same for every step, and no part of the backward pass.
    frames = list(itertools.takewhile(lambda frame: frame.file != __file__, jax_seam.frames(eqn)))
    if not frames:
        return Place("unknown", 0, (), ())
    callers = tuple(f"{frame.file}:{frame.line}" for frame in frames[1:])
    functions = tuple(frame.function.rpartition(".")[2] for frame in frames)
    return Place(frames[0].file, frames[0].line, functions, callers)


def _paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _started_by(program: Program, starts: Callable[[Place], bool]) -> Program:
    depends: set[int] = set()
    steps = []
    for step in program.steps:
        backward = starts(step.place) or not depends.isdisjoint(step.operands)
        depends.update(step.results if backward else ())
        steps.append(step._replace(backward=backward))
    return program._replace(steps=tuple(steps))


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a float array or number, which has a cotangent; integers, booleans and keys have none."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _floats_of(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def _with_floats(tree: Any, floats: Sequence[Any]) -> Any:
    """The tree with `floats` in the places of its float leaves."""
    given = iter(floats)
    return jax.tree.map(lambda leaf: next(given) if is_float(leaf) else leaf, tree)


def _leaf_names(fn: Callable[..., Any], args: tuple[Any, ...]) -> list[str]:
    """A name for every leaf of `args`: the parameter's own name and the path inside it, such as `params['w']`."""
    return [own + path for own, arg in zip(parameter_names(fn, len(args)), args, strict=True) for path in _paths(arg)]


class Rule(NamedTuple):
    """A function's forward to its output and residuals, and from these and a cotangent backward."""

    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Any, Any], Any]
    dynamic: tuple[Any, ...]
    join: Callable[..., tuple[Any, ...]]


def rule_of(fn: Any, args: tuple[Any, ...], static_argnums: Sequence[int]) -> Rule:
    """The rule of a `jax.custom_vjp` object, or the one that `jax.vjp` makes of any other function."""
    custom, args = isinstance(fn, jax.custom_vjp), positional(fn, args, {})
    own = {i % len(args) for i in fn.nondiff_argnums} if custom else set()
    static = own | {i % len(args) for i in static_argnums}
    dynamic = tuple(arg for i, arg in enumerate(args) if i not in static)

    def join(given: Sequence[Any], hide_static: bool = False) -> tuple[Any, ...]:
        left = iter(given)
        return tuple((None if hide_static else arg) if i in static else next(left) for i, arg in enumerate(args))

    if custom and static == own and not fn.symbolic_zeros:
        before = [args[i] for i in sorted(own)]
        return Rule(
            lambda *given: fn.fwd(*join(given)), lambda residuals, dy: fn.bwd(*before, residuals, dy), dynamic, join
        )

    def forward(*given: Any) -> tuple[Any, Any]:
        return jax.vjp(lambda *floats: fn(*join(_with_floats(given, floats))), *_floats_of(given))

    def backward(vjp: Any, dy: Any) -> Any:
        made = iter(vjp(dy))
        return jax.tree.map(lambda leaf: next(made) if is_float(leaf) else None, dynamic)

    return Rule(forward, backward, dynamic, join)


def positional(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """All arguments in order; those of a `jax.custom_vjp` with its defaults, as its rule gets them."""
    if not kwargs and not isinstance(fn, jax.custom_vjp):
        return args
    given = inspect.signature(fn).bind(*args, **kwargs)
    given.apply_defaults()
    return given.args
