"""How a leaf of a JAX tree is made from tensors of a state dict, and which ways there are to try.

A rule joins its sources (or takes the only one) and then goes through steps of reordering. It is data, so that it can
be written to JSON, shown as code, undone and transposed.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# How several sources are joined.
ONE, STACK, CONCATENATE, SUM, CONSTANT = "one", "stack", "concatenate", "sum", "constant"
# The biases of a GRU, whose last gate multiplies the second one: it is added in the first two thirds alone.
GATED = "sum in the first two thirds"
# A fused tensor has at most as many parts as the gates of an LSTM.
_MOST_PARTS = 4


class Rule(NamedTuple):
    """`sources` joined by `join` (along axis 0), then `steps`: ("transpose", axes), ("reshape", shape),
    ("slice", axis, start, stop), ("flip", axes), ("blocks", axis, order). A constant has no sources and the step
    ("full", shape, number).
    """

    sources: tuple[str, ...]
    join: str = ONE
    steps: tuple[tuple[Any, ...], ...] = ()

    def __str__(self) -> str:
        joined = ", ".join(self.sources)
        if self.join == CONSTANT:
            return f"all {self.steps[0][2]:g}"
        told = joined if self.join == ONE else f"{self.join} of {joined}"
        return told + "".join(f" · {_words(step)}" for step in self.steps)


def _words(step: tuple[Any, ...]) -> str:
    kind, *rest = step
    match kind:
        case "slice":
            return f"[{rest[1]}:{rest[2]}] of axis {rest[0]}"
        case "transpose" if rest[0] == (1, 0):
            return "transposed"
        case "transpose":
            return f"axes {rest[0]}"
        case "reshape":
            return f"reshape {rest[0]}"
        case "flip":
            return f"flipped along {rest[0]}"
        case _:
            return f"parts of axis {rest[0]} in the order {rest[1]}"


def apply(rule: Rule, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The leaf that a rule makes. Raises `KeyError` for a tensor that is not there."""
    if rule.join == CONSTANT:
        return np.full(*rule.steps[0][1:])
    found = [np.asarray(tensors[name]) for name in rule.sources]
    match rule.join:
        case "stack":
            x = np.stack(found)
        case "concatenate":
            x = np.concatenate(found)
        case "sum":
            x = np.sum(found, 0)
        case "sum in the first two thirds":
            x = found[0] + np.where(np.arange(len(found[1])) * 3 < 2 * len(found[1]), found[1], 0)
        case _:
            x = found[0]
    for step in rule.steps:
        x = _stepped(x, step)
    return x


def _stepped(x: np.ndarray, step: tuple[Any, ...]) -> np.ndarray:
    kind, *rest = step
    match kind:
        case "transpose":
            return x.transpose(rest[0])
        case "reshape":
            return x.reshape(rest[0])
        case "slice":
            axis, start, stop = rest
            return np.take(x, range(start, stop), axis)
        case "flip":
            return np.flip(x, rest[0])
        case _:
            axis, order = rest
            parts = np.split(x, len(order), axis)
            return np.concatenate([parts[k] for k in order], axis)


class Piece(NamedTuple):
    """A part of a tensor that a leaf holds: the tensor's name, where in it the part lies, and its numbers."""

    name: str
    at: tuple[slice, ...]
    numbers: np.ndarray


def undone(rule: Rule, leaf: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> list[Piece]:
    """Tensors from which a rule makes `leaf` again; `shapes` are theirs. Of a sum each of them is an equal share.

    Together with `shared` it is a linear map and its transpose. A constant has no sources and gives nothing.
    """
    if rule.join == CONSTANT:
        return []
    own = shapes[rule.sources[0]]
    count = len(rule.sources)
    joined = {STACK: (count, *own), CONCATENATE: (count * own[0], *own[1:]) if own else own}.get(rule.join, own)
    before = [joined]
    for step in rule.steps:
        before.append(_shape_after(before[-1], step))
    x, at = np.asarray(leaf), ()
    for step, shape in zip(reversed(rule.steps), reversed(before[:-1]), strict=True):
        if step[0] == "slice":
            # A part is always cut out first.
            axis, start, stop = step[1:]
            at = (*(slice(None),) * axis, slice(start, stop))
        else:
            x = _step_undone(x, step, shape)
    match rule.join:
        case "stack":
            return [Piece(name, at, part) for name, part in zip(rule.sources, x, strict=True)]
        case "concatenate":
            return [Piece(name, at, part) for name, part in zip(rule.sources, np.split(x, count), strict=True)]
        case "sum":
            return [Piece(name, at, x / x.dtype.type(count)) for name in rule.sources]
        case "sum in the first two thirds":
            upto = len(x) * 2 // 3
            half = x[:upto] / x.dtype.type(2)
            first, second = rule.sources
            return [Piece(first, at, np.concatenate([half, x[upto:]])), Piece(second, (slice(0, upto),), half)]
        case _:
            return [Piece(rule.sources[0], at, x)]


def shared(rule: Rule, dtensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The cotangent of a leaf for those of the tensors that `undone` makes of it: the transpose of `undone`."""
    if rule.join not in (SUM, GATED):
        return apply(rule, dtensors)
    found = [np.asarray(dtensors[name]) for name in rule.sources]
    half = found[0].dtype.type(len(found))
    if rule.join == SUM:
        x = np.sum(found, 0) / half
    else:
        upto = len(found[0]) * 2 // 3
        x = np.concatenate([(found[0][:upto] + found[1][:upto]) / half, found[0][upto:]])
    for step in rule.steps:
        x = _stepped(x, step)
    return x


def covered(rule: Rule, name: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers of a tensor a rule takes."""
    size = math.prod(shapes[name])
    cut = next((step for step in rule.steps if step[0] == "slice"), None)
    if rule.join == GATED and name == rule.sources[1]:
        return size * 2 // 3
    return size if cut is None else size * (cut[3] - cut[2]) // shapes[name][cut[1]]


def _shape_after(shape: tuple[int, ...], step: tuple[Any, ...]) -> tuple[int, ...]:
    kind, *rest = step
    match kind:
        case "transpose":
            return tuple(shape[axis] for axis in rest[0])
        case "reshape":
            return tuple(rest[0])
        case "slice":
            axis, start, stop = rest
            return (*shape[:axis], stop - start, *shape[axis + 1 :])
        case _:
            return shape


def _step_undone(x: np.ndarray, step: tuple[Any, ...], shape: tuple[int, ...]) -> np.ndarray:
    """What a step took to make `x`, of `shape`."""
    kind, *rest = step
    match kind:
        case "transpose":
            return x.transpose(np.argsort(rest[0]))
        case "reshape":
            return x.reshape(shape)
        case "flip":
            return np.flip(x, rest[0])
        case _:
            axis, order = rest
            parts = np.split(x, len(order), axis)
            return np.concatenate([parts[k] for k in np.argsort(order)], axis)


def transposed(rule: Rule, dleaf: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The cotangents of a rule's sources for that of the leaf: where each of its numbers came from, added up."""
    if rule.join == CONSTANT:
        return {}
    if rule.join in (SUM, GATED):
        # Every source has the leaf's cotangent, where it is added.
        first = transposed(rule._replace(sources=rule.sources[:1], join=ONE), dleaf, shapes)[rule.sources[0]]
        upto = len(first) * 2 // 3
        rest = np.concatenate([first[:upto], 0 * first[upto:]]) if rule.join == GATED else first
        return {rule.sources[0]: first, **dict.fromkeys(rule.sources[1:], rest)}
    found: dict[str, np.ndarray] = {}
    for name, at, numbers in undone(rule, np.asarray(dleaf, np.float64), shapes):
        if at:
            dx = np.zeros(shapes[name])
            dx[at] = numbers
        else:
            dx = numbers
        found[name] = found[name] + dx if name in found else dx
    return found


def candidates(
    shape: tuple[int, ...], tensors: Mapping[str, tuple[int, ...]], turned: frozenset[str] = frozenset()
) -> Iterator[Rule]:
    """Every rule that makes a leaf of this shape from these tensors, the plain ones first.

    `turned` are the tensors whose windows may be flipped, as those of transposed convolutions.
    """
    size = math.prod(shape)
    for name, own in tensors.items():
        if math.prod(own) == size:
            yield from (Rule((name,), ONE, steps) for steps in arranged(own, shape))
    for name, own in tensors.items():
        for axis, parts in itertools.product(range(min(len(own), 2)), range(2, _MOST_PARTS + 1)):
            if math.prod(own) == parts * size and own[axis] % parts == 0:
                yield from _slices(name, own, axis, parts, shape)
    yield from _joined(shape, tensors)
    for name, own in tensors.items():
        if name in turned and math.prod(own) == size and len(own) >= 3:
            for steps in arranged(own, shape):
                # A transposed convolution and a convolution differ in the direction of the window.
                yield Rule((name,), ONE, (("flip", tuple(range(2, len(own)))), *steps))
    for name, own in tensors.items():
        for parts in (3, 4):
            if math.prod(own) == size and own and own[0] % parts == 0 and own[0] > parts:
                for order in list(itertools.permutations(range(parts)))[1:]:
                    yield from (Rule((name,), ONE, (("blocks", 0, order), *s)) for s in arranged(own, shape))


def constant(shape: tuple[int, ...], number: float) -> Rule:
    """The rule of a leaf that is one number all over."""
    return Rule((), CONSTANT, (("full", shape, number),))


def arranged(own: Sequence[int], shape: Sequence[int]) -> Iterator[tuple[tuple[Any, ...], ...]]:
    """Steps that bring one shape to another: axes transposed, then joined, split, or unit axes added."""
    axes = tuple(range(len(own)))
    big = [n for n in shape if n > 1]
    found = []
    for order in itertools.permutations(axes) if len(axes) <= 5 else [axes]:
        sizes = [own[axis] for axis in order if own[axis] > 1]
        if not _nested(sizes, big):
            continue
        steps: list[tuple[Any, ...]] = [] if order == axes else [("transpose", order)]
        if [own[axis] for axis in order] != list(shape):
            steps.append(("reshape", tuple(shape)))
        found.append((len(sizes) != len(big), len(steps), tuple(steps)))
    yield from (steps for _, _, steps in sorted(found, key=lambda each: each[:2]))


def _nested(sizes: Sequence[int], others: Sequence[int]) -> bool:
    ends = set(itertools.accumulate(sizes, lambda a, b: a * b))
    of_others = set(itertools.accumulate(others, lambda a, b: a * b))
    return ends <= of_others or of_others <= ends


def _slices(name: str, own: tuple[int, ...], axis: int, parts: int, shape: tuple[int, ...]) -> Iterator[Rule]:
    width = own[axis] // parts
    part = (*own[:axis], width, *own[axis + 1 :])
    for k in range(parts):
        for steps in arranged(part, shape):
            yield Rule((name,), ONE, (("slice", axis, k * width, (k + 1) * width), *steps))


def _joined(shape: tuple[int, ...], tensors: Mapping[str, tuple[int, ...]]) -> Iterator[Rule]:
    size = math.prod(shape)
    for names in _series(tensors):
        own = tensors[names[0]]
        if len(names) * math.prod(own) == size and shape and shape[0] == len(names):
            for steps in arranged(own, shape[1:]):
                lifted = [_lifted(step, len(names)) for step in steps]
                yield Rule(names, STACK, tuple(lifted))
    for names in _siblings(tensors):
        own = tensors[names[0]]
        for some in (names[k : k + n] for n in range(2, _MOST_PARTS + 1) for k in range(len(names) - n + 1)):
            if len(some) * math.prod(own) == size and own:
                for order in itertools.permutations(some):
                    joined = (len(some) * own[0], *own[1:])
                    yield from (Rule(order, CONCATENATE, steps) for steps in arranged(joined, shape))
        for pair in itertools.combinations(names, 2):
            if len(own) != 1:
                continue
            if own[0] == size:
                yield from (Rule(pair, SUM, steps) for steps in arranged(own, shape))
                if size % 3 == 0:
                    yield from (Rule(pair, GATED, steps) for steps in arranged(own, shape))
            for parts in range(2, _MOST_PARTS + 1):
                if own[0] == parts * size:
                    for k in range(parts):
                        cut = ("slice", 0, k * size, (k + 1) * size)
                        yield from (Rule(pair, SUM, (cut, *steps)) for steps in arranged((size,), shape))


def _lifted(step: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """A step for one array as the same step for a stack of them."""
    kind, given = step
    return (kind, (0, *(axis + 1 for axis in given))) if kind == "transpose" else (kind, (count, *given))


def _series(tensors: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, ...]]:
    """Names that differ in one number alone, which counts from the first to the last, of one shape."""
    groups: dict[Any, dict[int, str]] = {}
    for name, shape in tensors.items():
        for found in re.finditer(r"\d+", name):
            key = (name[: found.start()], name[found.end() :], shape)
            groups.setdefault(key, {})[int(found[0])] = name
    for group in groups.values():
        if len(group) > 1:
            yield tuple(group[number] for number in sorted(group))


def _siblings(tensors: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, ...]]:
    """Names of one shape and one last word in modules beside each other, or in one module."""
    groups: dict[Any, list[str]] = {}
    for name, shape in tensors.items():
        *modules, last = name.split(".")
        groups.setdefault((tuple(modules[:-1]), last, shape), []).append(name)
        groups.setdefault((tuple(modules), "", shape), []).append(name)
    yield from (tuple(dict.fromkeys(group)) for group in groups.values() if 1 < len(set(group)) <= 12)


def as_code(rule: Rule) -> str:
    """A rule as a Python expression of `state`, a mapping of arrays."""
    if rule.join == CONSTANT:
        return "np.full({}, {})".format(*rule.steps[0][1:])
    named = [f"state[{name!r}]" for name in rule.sources]
    match rule.join:
        case "stack" | "concatenate":
            code = f"np.{rule.join}([{', '.join(named)}])"
        case "sum":
            code = "(" + " + ".join(named) + ")"
        case "sum in the first two thirds":
            code = "({0} + {1} * (np.arange(len({1})) * 3 < 2 * len({1})))".format(*named)
        case _:
            code = named[0]
    for kind, *rest in rule.steps:
        match kind:
            case "transpose":
                code += ".T" if rest[0] == (1, 0) else f".transpose{rest[0]}"
            case "reshape":
                code += f".reshape({rest[0]})"
            case "slice":
                axis, start, stop = rest
                code += f"[{':, ' * axis}{start}:{stop}]"
            case "flip":
                code = f"np.flip({code}, {rest[0]})"
            case _:
                axis, order = rest
                parts = f"np.split({code}, {len(order)}, {axis})"
                code = f"np.concatenate([{parts}[k] for k in {order}], {axis})"
    return code
