"""The steps of a traced backward pass, and the mistakes that people make in them.

`OPERATORS` is the table, and a row is all that a new kind of mistake needs. Each operator looks at one step of a
program and yields the ways in which it could have been written wrongly: the changed step, the mistake in words, and a
name for it that holds no size or type, so that the same mistake can be made again where the same code is traced with
other arguments.

A sum in place of a mean has no operator of its own: it is a dropped divisor.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.mutation.program import Program, Step

# How many other variables each operand is swapped for: those made last are the likeliest to be mistaken for it.
STALE = 2

_NON_LINEAR = frozenset(
    "tanh exp exp2 expm1 log log1p pow integer_pow square sqrt rsqrt logistic sin cos erf max".split()
)


class Mistake(NamedTuple):
    """A changed step. `variant` tells it from the others that the same operator makes of this step."""

    variant: str
    words: str
    step: Step


Make: TypeAlias = Callable[[Program, int], Iterator[Mistake]]


class Operator(NamedTuple):
    """A kind of mistake: how it is made in the step of an index, and what `learn.check` calls it to a reader."""

    make: Make
    told_as: str


def holds_floats(program: Program, slot: int) -> bool:
    """Whether the slot holds floating-point numbers, and at least one."""
    shape = program.shapes[slot]
    return hasattr(shape, "size") and shape.size > 0 and bool(jnp.issubdtype(shape.dtype, jnp.floating))


def dropped_addend(program: Program, index: int) -> Iterator[Mistake]:
    """`a + b` or `a - b` without one of the two; where the accumulation is a scatter, later terms overwrite."""
    step = program.steps[index]
    if step.name in ("add", "add_any", "sub"):
        sign = -1 if step.name == "sub" else 1
        keeps: tuple[Callable[..., Any], ...] = (lambda a, b: sign * b, lambda a, b: a)
        for (ordinal, slot), keep in zip(_ordinals(step), keeps, strict=True):
            yield _changed(program, step, keep, ordinal, f"the {ordinal} addend, {_name(program, slot)}, is dropped")
    if step.name in ("scatter-add", "scatter_add"):
        yield _changed(
            program,
            step,
            _overwriting(step),
            "scatter",
            "terms that go to the same place overwrite instead of adding up",
        )


def _overwriting(step: Step) -> Callable[..., Any]:
    def scatter(operand: Any, indices: Any, updates: Any) -> Any:
        return jax.lax.scatter(
            operand,
            indices,
            updates,
            dimension_numbers=step.params["dimension_numbers"],
            indices_are_sorted=step.params["indices_are_sorted"],
            mode=step.params["mode"],
        )

    return scatter


def flipped_sign(program: Program, index: int) -> Iterator[Mistake]:
    """Plus for minus and the other way round, and a minus left out."""
    step = program.steps[index]
    if step.name in ("add", "add_any", "sub"):
        minus = step.name != "sub"
        words = f"{'minus' if minus else 'plus'} where {'plus' if minus else 'minus'} should be"
        yield _changed(program, step, (lambda a, b: a - b) if minus else (lambda a, b: a + b), "sum", words)
    if step.name == "neg":
        yield _changed(
            program, step, lambda a: a, "neg", f"the minus before {_name(program, step.operands[0])} is gone"
        )
    if step.name in ("mul", "div"):
        for ordinal, slot in _ordinals(step):
            constant = _scalar(program, slot)
            if constant is not None and constant < 0:
                words = f"the minus of the factor {constant:.6g} is gone"
                yield _changed(program, step, lambda a, b, run=step.run: -run(a, b)[0], ordinal, words)


def dropped_factor(program: Program, index: int) -> Iterator[Mistake]:
    """One factor of a product, or the divisor of a quotient, left out where what is left has the result's shape."""
    step = program.steps[index]
    shape = program.shapes[step.results[0]].shape
    if step.name not in ("mul", "div"):
        return
    keeps: tuple[Callable[..., Any], ...] = (lambda a, b: b, lambda a, b: a)
    for (ordinal, slot), keep, kept in zip(_ordinals(step), keeps, reversed(step.operands), strict=True):
        reciprocal = step.name == "div" and ordinal == "first"
        same_again = slot == kept and ordinal == "second"
        if program.shapes[kept].shape == shape and _scalar(program, slot) != 1 and not (reciprocal or same_again):
            role = "divisor" if step.name == "div" else f"{ordinal} factor"
            yield _changed(program, step, keep, ordinal, f"the {role}, {_name(program, slot)}, is dropped")


def wrong_axis(program: Program, index: int) -> Iterator[Mistake]:
    """A sum over other axes, where the result has the same shape."""
    step = program.steps[index]
    if step.name != "reduce_sum":
        return
    axes, before = tuple(step.params["axes"]), program.shapes[step.operands[0]].shape
    for others in itertools.combinations(range(len(before)), len(axes)):
        left = tuple(size for axis, size in enumerate(before) if axis not in others)
        if others != axes and left == program.shapes[step.results[0]].shape:
            words = f"the sum is over {_axes(others)} instead of {_axes(axes)}"
            yield _changed(program, step, lambda a, others=others: a.sum(others), str(others), words)


def mean_for_sum(program: Program, index: int) -> Iterator[Mistake]:
    """The sum, or the sum within a product of matrices, divided by the number of its terms."""
    step = program.steps[index]
    terms = _terms(program, step)
    if terms > 1:
        words = f"a mean over {terms} terms instead of their sum"
        yield _changed(program, step, lambda *operands: step.run(*operands)[0] / terms, "mean", words)


def missing_sum(program: Program, index: int) -> Iterator[Mistake]:
    """The first slice along the axes that should have been summed."""
    step = program.steps[index]
    terms = _terms(program, step)
    if step.name == "reduce_sum" and terms > 1:
        axes, dimensions = tuple(step.params["axes"]), len(program.shapes[step.operands[0]].shape)
        first = tuple(0 if axis in axes else slice(None) for axis in range(dimensions))
        words = f"the sum over {_axes(axes)} is missing: only the first of {terms} terms is left"
        yield _changed(program, step, lambda a: a[first], "first", words)


def miscounted(program: Program, index: int) -> Iterator[Mistake]:
    """A factor or divisor that counts the n terms of one of the program's sums: n - 1 for n, and n for n - 1."""
    step = program.steps[index]
    if step.name not in ("mul", "div"):
        return
    counts = sorted({_terms(program, other) for other in program.steps} - {0, 1})
    for place, (ordinal, slot) in enumerate(_ordinals(step)):
        constant = _scalar(program, slot)
        if constant is None:
            continue
        eps = float(jnp.finfo(program.shapes[slot].dtype).eps)
        for n, name, written, wrong in itertools.chain.from_iterable(map(_forms, counts)):
            if math.isclose(abs(constant), written, rel_tol=eps):
                value = math.copysign(wrong, constant)
                run = _with_operand(step, place, functools.partial(jnp.full_like, fill_value=value))
                words = f"{name}, that is {value:.6g} for {constant:.6g} (n is {n})"
                yield Mistake(f"{ordinal}: {name}", words, step._replace(run=run))


def _forms(n: int) -> Iterator[tuple[int, str, float, float]]:
    """n, the mistake, the number that was meant and the one that is written."""
    yield n, "n - 1 for n", n, n - 1
    yield n, "n for n - 1", n - 1, n
    yield n, "1/(n - 1) for 1/n", 1 / n, 1 / (n - 1)
    yield n, "1/n for 1/(n - 1)", 1 / (n - 1), 1 / n


def missing_transpose(program: Program, index: int) -> Iterator[Mistake]:
    """A transpose left out where the shape is the same without it, also one that a product of matrices implies."""
    step = program.steps[index]
    if step.name == "transpose" and program.shapes[step.operands[0]].shape == program.shapes[step.results[0]].shape:
        words = f"the transpose of {_name(program, step.operands[0])} is left out"
        yield _changed(program, step, lambda a: a, "transpose", words)
    if step.name != "dot_general" or any(len(program.shapes[slot].shape) != 2 for slot in step.operands):
        return
    (contracted, _), usual = step.params["dimension_numbers"], (1, 0)
    for place, (ordinal, slot) in enumerate(_ordinals(step)):
        rows, columns = program.shapes[slot].shape
        if rows == columns and tuple(contracted[place]) == (1 - usual[place],):
            run = _with_operand(step, place, lambda a: a.T)
            words = f"the transpose of {_name(program, slot)} is left out"
            yield Mistake(ordinal, words, step._replace(run=run))


def other_side(program: Program, index: int) -> Iterator[Mistake]:
    """An operand taken from before instead of after a non-linearity, or from after instead of before it."""
    step = program.steps[index]
    for maker in program.steps[:index]:
        if maker.name not in _NON_LINEAR or maker.operands[0] in program.constants:
            continue
        before, after = maker.operands[0], maker.results[0]
        for place, (ordinal, slot) in enumerate(_ordinals(step)):
            if slot in (before, after) and holds_floats(program, slot) and _alike(program, before, after):
                other, side = (before, "before") if slot == after else (after, "after")
                words = f"from {side} the {maker.name}, and not {_name(program, slot)}"
                variant = f"{ordinal}: {side} {_identity(program, after)}"
                yield _swapped(
                    step, place, other, variant, f"the {ordinal} operand is {_name(program, other)}, {words}"
                )


def stale_operand(program: Program, index: int, most: int | None = STALE) -> Iterator[Mistake]:
    """Another variable of the same shape and type: the `most` that were made last before this step, or all."""
    step, variables = program.steps[index], _variables(program)
    made = [slot for earlier in reversed(program.steps[:index]) for slot in earlier.results]
    for place, (ordinal, slot) in enumerate(_ordinals(step)):
        if slot not in variables or not holds_floats(program, slot):
            continue
        alike = (s for s in (*made, *program.inputs) if s in variables and _alike(program, s, slot))
        for other in itertools.islice((s for s in alike if s not in step.operands), most):
            words = f"the {ordinal} operand is {_name(program, other)} and not {_name(program, slot)}"
            yield _swapped(step, place, other, f"{ordinal}: {_identity(program, other)}", words)


def _variables(program: Program) -> set[int]:
    """What has a name in the source: inputs, results, and what is made on one line and used on another."""
    lines = {slot: step.place[:2] for step in program.steps for slot in step.results}
    elsewhere = {
        slot for step in program.steps for slot in step.operands if lines.get(slot, step.place[:2]) != step.place[:2]
    }
    return {*elsewhere, *program.inputs, *program.outputs.values()} - program.constants.keys()


def stopped_path(program: Program, index: int) -> Iterator[Mistake]:
    """`stop_gradient` on one of several uses of a value that the backward pass made or was given: zeros there."""
    step = program.steps[index]
    if step.name in ("add", "add_any", "sub"):
        return  # A zero addend is a dropped one.
    used = [program.steps[i] for i in used_steps(program)]
    forward = {slot for other in program.steps if not other.backward for slot in (*other.operands, *other.results)}
    for place, (ordinal, slot) in enumerate(_ordinals(step)):
        uses = sum(slot in other.operands for other in used) + list(program.outputs.values()).count(slot)
        if uses > 1 and slot not in forward and slot not in program.constants and holds_floats(program, slot):
            words = f"stop_gradient on this use of {_name(program, slot)}"
            yield Mistake(ordinal, words, step._replace(run=_with_operand(step, place, jnp.zeros_like)))


def wrong_power(program: Program, index: int) -> Iterator[Mistake]:
    """A power one too high or one too low."""
    step = program.steps[index]
    exponent = _exponent(program, step)
    if exponent is None:
        return
    for off in (-1, 1):
        wrong = exponent + off
        power = round(wrong) if float(wrong).is_integer() else wrong
        yield _changed(
            program,
            step,
            lambda a, *_, power=power: a**power,
            f"{off:+d}",
            f"the power {power:g} instead of {exponent:g}",
        )


def _exponent(program: Program, step: Step) -> float | None:
    match step.name:
        case "integer_pow":
            return step.params["y"]
        case "pow":
            return _scalar(program, step.operands[1])
        case "square" | "sqrt" | "rsqrt":
            return {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5}[step.name]
        case _:
            return None


# A bare function is a row too: a reader is then told the kind itself.
OPERATORS: dict[str, Operator | Make] = {
    "an addend dropped": Operator(dropped_addend, "missing term"),
    "a sign flipped": Operator(flipped_sign, "sign"),
    "a factor dropped": Operator(dropped_factor, "missing factor"),
    "a sum over the wrong axis": Operator(wrong_axis, "wrong axis"),
    "a mean for a sum": Operator(mean_for_sum, "mean for sum"),
    "a broadcast's sum missing": Operator(missing_sum, "missing sum"),
    "n and n - 1 mistaken": Operator(miscounted, "n and n - 1"),
    "a transpose left out": Operator(missing_transpose, "transposed"),
    "the other side of a non-linearity": Operator(other_side, "before or after"),
    "a stale operand": Operator(stale_operand, "another variable"),
    "a path stopped": Operator(stopped_path, "missing path"),
    "a power off by one": Operator(wrong_power, "power"),
}


def operator(kind: str) -> Operator:
    """The row of a kind of mistake. Raises `KeyError` for a kind that the table does not have."""
    row = OPERATORS[kind]
    return row if isinstance(row, Operator) else Operator(row, kind)


def _changed(program: Program, step: Step, run: Callable[..., Any], variant: str, words: str) -> Mistake:
    """The step with another `run`, whose result is brought to the shape and type of the right one."""
    like = program.shapes[step.results[0]]

    def in_shape(*operands: Any) -> Sequence[Any]:
        made = run(*operands)
        xp = np if isinstance(made, (np.ndarray, np.generic)) else jnp
        return (xp.broadcast_to(made, like.shape).astype(like.dtype),)

    return Mistake(variant, words, step._replace(run=in_shape))


def _with_operand(step: Step, place: int, change: Callable[[Any], Any]) -> Callable[..., Sequence[Any]]:
    """What the step does, a loop's every result too, with `change` done to one of its operands first."""
    return lambda *operands: step.run(*(change(a) if k == place else a for k, a in enumerate(operands)))


def _swapped(step: Step, place: int, other: int, variant: str, words: str) -> Mistake:
    operands = (*step.operands[:place], other, *step.operands[place + 1 :])
    return Mistake(variant, words, step._replace(operands=operands))


def _ordinals(step: Step) -> Iterator[tuple[str, int]]:
    names = ("first", "second", "third", *(f"{k}th" for k in range(4, len(step.operands) + 1)))
    return zip(names, step.operands, strict=False)


def used_steps(program: Program) -> set[int]:
    """The steps that some output depends on."""
    needed, used = set(program.outputs.values()), set()
    for index, step in reversed(list(enumerate(program.steps))):
        if not needed.isdisjoint(step.results):
            used.add(index)
            needed.update(step.operands)
    return used


def numbered(program: Program) -> list[str]:
    """For every step its primitive, and its number among the steps of that primitive."""
    seen: dict[str, int] = {}
    names = []
    for step in program.steps:
        seen[step.name] = seen.get(step.name, 0) + 1
        names.append(f"{step.name} {seen[step.name]}")
    return names


def _identity(program: Program, slot: int) -> str:
    """A name for a slot that is the same in every trace of the same code."""
    if slot in program.inputs:
        return program.inputs[slot]
    makers = zip(program.steps, numbered(program), strict=True)
    return next((name for step, name in makers if slot in step.results), "a constant")


def _name(program: Program, slot: int) -> str:
    """A constant's value, an input's name, or the variable that a step's line assigns to, and the primitive in it."""
    constant = _scalar(program, slot)
    if constant is not None:
        return f"{constant:.6g}"
    if slot in program.inputs:
        return program.inputs[slot]
    maker = next((step for step in program.steps if slot in step.results), None)
    if maker is None:
        return "a constant array"
    on_line = [step for step in program.steps if step.place[:2] == maker.place[:2]]
    assigned = re.match(r"(\w+)(: [^=]+)? = ", maker.place.text)
    variable = f"`{assigned[1]}`" if assigned else "the result"
    part = variable if on_line[-1] is maker else f"the {maker.name} in {variable}"
    return f"{part} ({Path(maker.place.file).name}:{maker.place.line})"


def _scalar(program: Program, slot: int) -> float | None:
    """The value of a constant of one floating-point number."""
    if slot not in program.constants or np.size(program.constants[slot]) != 1 or not holds_floats(program, slot):
        return None
    return float(np.asarray(program.constants[slot]).reshape(()))


def _alike(program: Program, a: int, b: int) -> bool:
    x, y = program.shapes[a], program.shapes[b]
    return getattr(x, "shape", None) == getattr(y, "shape", ()) and getattr(x, "dtype", None) == getattr(y, "dtype", ())


def _terms(program: Program, step: Step) -> int:
    """How many numbers a sum or a product of matrices adds up for each of its results; 0 for other steps."""
    match step.name:
        case "reduce_sum":
            axes = step.params["axes"]
        case "dot_general":
            (axes, _), _ = step.params["dimension_numbers"]
        case _:
            return 0
    return math.prod(program.shapes[step.operands[0]].shape[axis] for axis in axes)


def _axes(axes: Sequence[int]) -> str:
    return f"ax{'i' if len(axes) == 1 else 'e'}s {', '.join(map(str, axes))}"
