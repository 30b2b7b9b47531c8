"""The ways in which a function is used, a row each: what is run, on which examples, and what should come of it.

What should come of it is always made of the oracle's plain answers, one an example, so that an oracle is compiled
once however many transformations a function is tried under.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxgrad.checking.oracles.jax import Function, on_host, pullback
from jaxgrad.checking.programs import Program, run, traced
from jaxgrad.checking.pullback import Pulled, inner_product, pull
from jaxgrad.checking.question import CARRIED, INPUT, Call, Question, asked, drawn, numbers_of, variants
from jaxgrad.jax_seam import ClosedJaxpr, jaxpr_as_fun

# The names of the examples that several settings ask: the first, and the second of a batch of all inputs.
FIRST, SECOND = "", "second"


class Group(NamedTuple):
    """Examples that one run is made of. `batched` are the numbers of the arguments that differ between them.

    `examples` are the names of the questions: of one seed, type and order, those of one name are the same.
    """

    label: str
    questions: list[Question]
    batched: frozenset[int]
    examples: tuple[str, ...]


class Asked(NamedTuple):
    """What a row makes its examples from, and the shardings that the caller gave.

    `every` asks for all patterns of batched arguments: in one type, because a batching rule is the same in all.
    """

    fn: Function
    call: Call
    dtype: str
    seed: int
    shardings: Any
    every: bool = True


class Transform(NamedTuple):
    """A row. `programs(group, asked)` give a `Pulled` for each example of a group; with `together`, one gives all.

    `second` is true where the answers are of second order. `expect` makes of an oracle's answer to an example what
    the programs should give, and `inputs` names that, where it is not a cotangent of each input. `doc` says in words
    what the row is.
    """

    doc: str
    groups: Callable[[Asked], list[Group]]
    programs: Callable[[Group, Asked], list[Program]]
    together: bool = False
    second: bool = False
    expect: Callable[[Pulled, Question], Pulled] = lambda answer, question: answer
    inputs: tuple[str, ...] | None = None


def question(of: Asked, variant: str | None = None, along: bool = False) -> Question:
    """The question of a function in a type, by the seed; with directions where it is asked `along` some."""
    return asked(of.fn, *drawn(of.call, of.dtype, of.seed, variant), of.dtype, of.seed, along)


def _one(of: Asked) -> list[Group]:
    return [Group("", [question(of)], frozenset(), (FIRST,))]


def _one_along(of: Asked) -> list[Group]:
    return [Group("", [question(of, along=True)], frozenset(), (FIRST,))]


def _patterns(of: Asked) -> list[Group]:
    """All arguments batched, each of them alone, and all but each."""
    held = sorted({leaf.argument for leaf in of.call.leaves if leaf.kind in (INPUT, CARRIED)})
    every = frozenset(held)
    chosen = {every: ""}
    for number in held if of.every else ():
        chosen.setdefault(frozenset((number,)), f"only {of.call.arguments[number]} batched")
        chosen.setdefault(every - {number}, f"all but {of.call.arguments[number]} batched")
    base, inputs = question(of), {leaf.argument for leaf in of.call.of_kind(INPUT)}
    return [
        Group(label, [base, _other(base, of.call, batched)], batched, (FIRST, SECOND if inputs <= batched else label))
        for batched, label in chosen.items()
        if batched
    ]


def _pair(of: Asked) -> list[Group]:
    return _patterns(of._replace(every=False))


def _reaches(of: Asked) -> list[Group]:
    return [Group(variant, [question(of, variant)], frozenset(), (variant,)) for variant in variants(of.call)]


def _other(base: Question, call: Call, batched: frozenset[int]) -> Question:
    """A second example: half of each batched input, so that signs stay, and other cotangents."""
    places = [leaf.argument for leaf in call.of_kind(INPUT)]
    inputs = [x * x.dtype.type(0.5) if place in batched else x for x, place in zip(base.inputs, places, strict=True)]
    return base._replace(inputs=inputs, dys=[dy * dy.dtype.type(-2) for dy in base.dys])


def _stack(leaves: Sequence[Any]) -> Any:
    return np.stack(leaves) if isinstance(leaves[0], np.ndarray) else jnp.stack(leaves)


def _together(group: Group, call: Call) -> tuple[Question, Question]:
    """The examples in one question, batched leaves stacked, and the axes of its leaves."""
    first = group.questions[0]

    def joined(kind: str, part: str) -> tuple[list[Any], list[int | None]]:
        arguments = [leaf.argument for leaf in call.of_kind(kind)]
        each = zip(arguments, *(getattr(q, part) for q in group.questions), strict=True)
        axes = [0 if argument in group.batched else None for argument in arguments]
        return [_stack(xs) if argument in group.batched else xs[0] for argument, *xs in each], axes

    (inputs, of_inputs), (carried, of_carried) = joined(INPUT, "inputs"), joined(CARRIED, "carried")
    dys = [_stack(xs) for xs in zip(*(q.dys for q in group.questions), strict=True)]
    axes = Question(of_inputs, of_carried, [0 for _ in dys], [None for _ in first.directions])
    return Question(inputs, carried, dys, first.directions), axes


def answered(row: Transform, group: Group, of: Asked) -> list[Pulled]:
    """What a function gives for each example of a group, as host arrays."""
    answers = [on_host(run(program)) for program in row.programs(group, of)]
    if not row.together:
        return answers
    (stacked,) = answers
    return [jax.tree.map(lambda leaf, at=at: leaf[at], stacked) for at in range(len(group.questions))]


def _by_jit(group: Group, of: Asked) -> list[Program]:
    return [pullback(of.fn, q, False, as_used=True) for q in group.questions]


def _by_second(group: Group, of: Asked) -> list[Program]:
    return [pullback(of.fn, q, True) for q in group.questions]


def _by_remat(group: Group, of: Asked) -> list[Program]:
    return [Program(_remat, (of.fn,), (q,)) for q in group.questions]


def _by_vmap(group: Group, of: Asked) -> list[Program]:
    together, axes = _together(group, of.call)
    flat = tuple(axis for part in axes for axis in part)
    return [Program(_vmap, (*_of_one(group, of), flat), (together,))]


def _by_scan(group: Group, of: Asked) -> list[Program]:
    together, _ = _together(group, of.call)
    return [Program(_scan, _of_one(group, of), (together,))]


def _of_one(group: Group, of: Asked) -> tuple[ClosedJaxpr, Any]:
    """The pullback of one example, traced, and the tree of what it gives.

    A transformation is given the same equations by the function itself, which would be traced for each anew.
    """
    alone = pullback(of.fn, group.questions[0], False)
    return traced(alone.fn, alone.static, alone.args)


def _by_jvp(group: Group, of: Asked) -> list[Program]:
    return [Program(_jvp, (of.fn,), (q,)) for q in group.questions]


def _by_mesh(group: Group, of: Asked) -> list[Program]:
    (only,) = group.questions
    inputs = [jax.device_put(x, sharding) for x, sharding in zip(only.inputs, of.shardings, strict=True)]
    # Where the axes of a mesh are explicit, a sharding is a part of a type, and so of a cotangent's.
    outputs = numbers_of(jax.eval_shape(of.fn, inputs, only.carried))
    dys = [_placed_like(y, dy, of.shardings) for y, dy in zip(outputs, only.dys, strict=True)]
    return [pullback(of.fn, only._replace(inputs=inputs, dys=dys), False, as_used=True)]


def _placed_like(output: Any, dy: Any, shardings: Sequence[Any]) -> Any:
    """A cotangent as its output is split over the mesh of the inputs, if its type says how."""
    told = getattr(output, "sharding", None)
    return dy if told is None else jax.device_put(dy, NamedSharding(shardings[0].mesh, told.spec))


def _remat(fn: Function, q: Question) -> Pulled:
    return pull(fn, q.inputs, q.carried, q.dys, jax.checkpoint)


def _vmap(pullback: ClosedJaxpr, answer: Any, axes: tuple[int | None, ...], q: Question) -> Pulled:
    results = jax.vmap(jaxpr_as_fun(pullback), in_axes=axes)(*jax.tree.leaves(q))
    return jax.tree.unflatten(answer, results)


def _scan(pullback: ClosedJaxpr, answer: Any, q: Question) -> Pulled:
    _, results = jax.lax.scan(lambda carry, xs: (carry, jaxpr_as_fun(pullback)(*xs)), 0, jax.tree.leaves(q))
    return jax.tree.unflatten(answer, results)


def _jvp(fn: Function, q: Question) -> Pulled:
    def outputs(inputs: list[Any]) -> list[Any]:
        return numbers_of(fn(inputs, q.carried))

    _, tangents = jax.jvp(outputs, (q.inputs,), (q.directions,))
    return Pulled([], [], [inner_product(tangents, q.dys)])


def _along(answer: Pulled, q: Question) -> Pulled:
    """What the tangents along the directions, paired with the cotangents, should be: the transpose's own pairing."""
    paired = sum(np.real(np.sum(v.astype(dx.dtype) * dx)) for v, dx in zip(q.directions, answer.inputs, strict=True))
    return Pulled([], [], [np.asarray(paired)])


TRANSFORMS: dict[str, Transform] = {
    "jit": Transform("one call, compiled", _one, _by_jit),
    "vmap": Transform(
        "batched: all arguments; in one type also each of them alone, and all but each",
        _patterns,
        _by_vmap,
        together=True,
    ),
    "scan": Transform("as the body of a scan", _pair, _by_scan, together=True),
    "remat": Transform("recomputed in the backward pass, by jax.checkpoint", _one, _by_remat),
    "grad_of_grad": Transform("the gradient of the gradient along a direction", _one_along, _by_second, second=True),
    "jvp": Transform(
        "forward mode", _one_along, _by_jvp, expect=_along, inputs=("the tangents, along directions and cotangents",)
    ),
    "reach": Transform("inputs of other sizes and at the edges of the type; given ones moved", _reaches, _by_jit),
    "sharded": Transform("split over a mesh by `shardings`", _one, _by_mesh),
}
# Those that `check` runs unless it is told which; forward mode where a rule is its own, a mesh where it is given one.
DEFAULT = ("jit", "vmap", "scan", "remat", "grad_of_grad", "jvp", "reach", "sharded")
