"""Would the check have noticed? A backward pass with one mistake at a time, and how many of them a check kills.

A backward pass is traced, the calls in it are inlined, and each of its steps is given each mistake of
`operators.OPERATORS` that fits. `mutation_score` runs a user's check on every mutant of a function's pullback;
`score_on` judges those of a program on fixed cases, and runs only the steps that a mistake changes again. Steps are
dispatched one by one and compiled once for their shapes, so that nothing is compiled for a mutant.

A mutant that lives may be right: to drop a factor of 1 changes nothing, and to drop a path whose terms cancel, such
as the cotangent of a maximum that was subtracted for range only, changes nothing but the rounding. So a mutant counts
as equivalent if on many random inputs in float64 all its results are within the measured noise of the right ones
(`_within_noise`). Bodies of loops and branches are looked into; a Pallas kernel is one step, and mistakes inside it
are not made.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import jax_seam, modules
from jaxgrad.checking.compare import compare, scaled
from jaxgrad.checking.measure import measure, shaken
from jaxgrad.checking.question import static_numbers
from jaxgrad.checking.report import dated
from jaxgrad.checking.subject import first_line
from jaxgrad.checking.taylor import random_direction
from jaxgrad.errors import JaxgradError
from jaxgrad.jax_seam import ClosedJaxpr, jaxpr_as_fun
from jaxgrad.mutation.operators import OPERATORS, Mistake, holds_floats, numbered, operator, used_steps
from jaxgrad.mutation.program import (
    Place,
    Program,
    Rule,
    Step,
    Tape,
    Traced,
    bound,
    is_float,
    positional,
    results,
    rule_of,
    trace,
    trace_pullback,
    values,
)
from jaxgrad.progress import Progress, kept, silent
from jaxgrad.settings import compared_in

SCHEMA = "jaxgrad.mutation/1"
# A mistake in the body of a loop of at most so many turns compiles nothing: the turns are taken one by one, their steps
# as those of a program are. One loop in another may have the square of it, as long as it takes to compile the two.
MOST_TURNS = 32


class Mutant(NamedTuple):
    """A program's step with one mistake in it.

    `key` finds it again in another trace of the same code, by the step's number among those of its primitive: other
    types and sizes add conversions and broadcasts, but no arithmetic.
    """

    operator: str
    words: str
    place: Place
    key: tuple[Any, ...]
    at: int
    step: Step


class Score(NamedTuple):
    """What became of the mutants. A check that nothing escapes leaves none in `survived`.

    Where it was stopped, `untried` are those that it had not come to, and some of `survived` may be equivalent.
    """

    killed: tuple[Mutant, ...]
    survived: tuple[Mutant, ...]
    equivalent: tuple[Mutant, ...]
    untried: tuple[Mutant, ...] = ()


def mutants(fn: Callable[..., Any], *args: Any, starts: Callable[[Place], bool] | None = None) -> tuple[Mutant, ...]:
    """Every mutant of a backward pass, as `trace` records it; `as_backward` makes a function of one."""
    return tuple(mutants_of(trace(fn, *args, starts=starts).program))


def mutants_of(program: Program, key: tuple[Any, ...] | None = None) -> Iterator[Mutant]:
    """Every mutant of the program's backward pass, or only the one with this key, if there is room for it here.

    Steps that no output depends on are left alone, and two operators that make the same change make one mutant.
    """
    live, names = used_steps(program), numbered(program)
    for at, step in enumerate(program.steps):
        if not step.backward or at not in live or (key is not None and key[0] != names[at]):
            continue
        swaps = {step.operands}
        for kind, mistake, place in _mistakes(program, at):
            if mistake.step.run is step.run:
                if mistake.step.operands in swaps:
                    continue
                swaps.add(mistake.step.operands)
            own_key = (names[at], kind, mistake.variant)
            if key in (None, own_key):
                yield Mutant(kind, mistake.words, place, own_key, at, mistake.step)


def _mistakes(program: Program, index: int) -> Iterator[tuple[str, Mistake, Place]]:
    """The operators' mistakes in a step, and in the bodies of a loop or a choice those in their steps."""
    step = program.steps[index]
    for kind in OPERATORS if holds_floats(program, step.results[0]) else ():
        yield from ((kind, mistake, step.place) for mistake in operator(kind).make(program, index))
    if step.name == "pallas_call":
        return
    for name, held in step.params.items():
        bodies = held if isinstance(held, tuple) else (held,)
        for number, body in enumerate(bodies):
            if isinstance(body, ClosedJaxpr):
                for mutant, program in _mutated_bodies(body):
                    run = _with_body(step, name, number, program)
                    wrong = step._replace(run=_turn_by_turn(step, program, run))
                    yield mutant.operator, Mistake(f"{name} {number} {mutant.key}", mutant.words, wrong), mutant.place


def _mutated_bodies(body: Any) -> Iterator[tuple[Mutant, Program]]:
    tape = Tape()
    inputs = {tape.slot(aval): f"the loop's variable {number}" for number, aval in enumerate(body.in_avals)}
    made = tape.record(body, list(inputs), backward=True)
    program = tape.program(inputs, {str(number): slot for number, slot in enumerate(made)})
    for mutant in mutants_of(program):
        yield mutant, _placed(program, mutant)


def _with_body(step: Step, name: str, number: int, program: Program) -> Callable[..., Sequence[Any]]:
    """A loop or a choice with `program` as one of the bodies that its parameter `name` holds."""

    @functools.cache
    def run() -> Callable[..., Sequence[Any]]:
        held = step.params[name]
        bodies = held if isinstance(held, tuple) else (held,)
        changed = jax.make_jaxpr(lambda *leaves: [*results(program, leaves).values()])(*bodies[number].in_avals)
        others = (*bodies[:number], changed, *bodies[number + 1 :])
        return bound(step.primitive, {**step.params, name: others if isinstance(held, tuple) else changed})

    # Traced only where the mutant comes to run so.
    return lambda *operands: run()(*operands)


def _turn_by_turn(
    step: Step, program: Program, otherwise: Callable[..., Sequence[Any]]
) -> Callable[..., Sequence[Any]]:
    """A scan with `program` as its body, turn by turn on values that are known; `otherwise` for any other step."""
    scan = jax_seam.scan(step)
    if scan is None or not 0 < scan.length <= MOST_TURNS:
        return otherwise

    def run(*operands: Any) -> Sequence[Any]:
        if any(isinstance(x, jax.core.Tracer) for x in operands):
            return otherwise(*operands)
        first = scan.constants + scan.carried
        constants, carried = operands[: scan.constants], operands[scan.constants : first]
        turns = [*zip(*operands[first:], strict=True)] if operands[first:] else [()] * scan.length
        stacked: list[Any] = [None] * scan.length
        for turn in sorted(range(scan.length), reverse=scan.reverse):
            made = tuple(results(program, (*constants, *carried, *turns[turn])).values())
            carried, stacked[turn] = made[: scan.carried], made[scan.carried :]
        return *carried, *(jnp.stack(slices) for slices in zip(*stacked, strict=True))

    return run


def _with_mistake(program: Program, mutant: Mutant | None) -> Program:
    """The program with the mutant's mistake, if there is one and this trace of the code has room for it."""
    return _placed(program, next(mutants_of(program, mutant.key), None) if mutant else None)


def _placed(program: Program, here: Mutant | None) -> Program:
    """The program with a mutant's step, if there is one."""
    if here is None:
        return program
    return program._replace(steps=(*program.steps[: here.at], here.step, *program.steps[here.at + 1 :]))


def as_backward(
    fn: Callable[..., Any], mutant: Mutant | None, starts: Callable[[Place], bool] | None = None
) -> Callable[..., Any]:
    """A backward pass with the mistake of a mutant of its `trace`, or as it is without one.

    For arguments of any shapes; where they leave no room for the mistake, it is not made.
    """

    @functools.wraps(fn)
    def wrong(*args: Any) -> Any:
        traced = trace(fn, *args, starts=starts)
        made = results(_with_mistake(traced.program, mutant), jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(traced.results), made.values())

    return wrong


class _Known(NamedTuple):
    """A traced pullback, all its mutants by their keys, and the function itself, traced from its dynamic arguments."""

    traced: Traced
    mutants: dict[tuple[Any, ...], Mutant]
    forward: Callable[..., Any]


def _traced_once(
    fn: Callable[..., Any], args: tuple[Any, ...], static_argnums: Sequence[int], rule: Rule, traces: dict[Any, _Known]
) -> _Known:
    """The function and its pullback at arguments of these shapes, types and static values, which all mutants share.

    To trace it for each, and each mistake in the body of a loop anew, would take most of a score's time. One that
    closes over what JAX is tracing is not kept.
    """
    dynamic, structure = jax.tree.flatten(rule.dynamic)
    static = rule.join([None] * len(rule.dynamic))
    settings = (jnp.result_type(float), getattr(jax.config, "jax_default_matmul_precision", None))
    key: tuple[Any, ...] | None = (structure, tuple(map(jax.typeof, dynamic)), *static, *settings)
    try:
        if key in traces:
            return traces[key]
    except TypeError:
        # A static argument that cannot be a key.
        key = None
    traced = trace_pullback(fn, *args, static_argnums=static_argnums)
    closed, out = jax.make_jaxpr(lambda *given: fn(*rule.join(given)), return_shape=True)(*rule.dynamic)

    def forward(*given: Any) -> Any:
        return jax.tree.unflatten(jax.tree.structure(out), jaxpr_as_fun(closed)(*jax.tree.leaves(given)))

    known = _Known(traced, {mutant.key: mutant for mutant in mutants_of(traced.program)}, forward)
    constants = (*traced.program.constants.values(), *closed.consts)
    if key is not None and not any(isinstance(x, jax.core.Tracer) for x in constants):
        traces[key] = known
    return known


def as_custom_vjp(
    fn: Callable[..., Any],
    mutant: Mutant | None,
    static_argnums: Sequence[int] = (),
    traces: dict[Any, _Known] | None = None,
) -> Callable[..., Any]:
    """`fn` with the mistake of a mutant of its `trace_pullback`, or as it is without one; its outputs are the same.

    It is used as `fn` is, under transformations and with arguments of any shapes; where they leave no room for the
    mistake, it is not made. Mutants of one function share what is traced by a dict of `traces`.
    """
    known_traces = {} if traces is None else traces

    @functools.wraps(fn)
    def wrong(*args: Any, **kwargs: Any) -> Any:
        given = positional(fn, args, kwargs)
        rule = rule_of(fn, given, static_argnums)
        # Traced here and not in `backward`, where JAX tells no lines but the one that it differentiates.
        traced, here, forward = _traced_once(fn, given, static_argnums, rule, known_traces)
        program = _placed(traced.program, None if mutant is None else here.get(mutant.key))

        @jax.custom_vjp
        def same(*dynamic: Any) -> Any:
            return forward(*dynamic)

        def backward(dynamic: Any, dy: Any) -> Any:
            made = results(program, jax.tree.leaves((dynamic, dy)))
            return jax.tree.unflatten(jax.tree.structure(traced.results), made.values())

        same.defvjp(lambda *dynamic: (same(*dynamic), dynamic), backward)
        return same(*rule.dynamic)

    return wrong


def mutation_score(
    fn: Callable[..., Any],
    check: Callable[[Callable[..., Any]], object],
    *args: Any,
    static_argnums: int | Sequence[int] = (),
    draw: Callable[[int], tuple[Any, ...]] | None = None,
    draws: int = 20,
    progress: Progress = silent,
) -> Score:
    """Run `check` on `fn` with each mistake in its pullback that `args` leave room for.

    `check` takes a function that is used as `fn` is, and notices a mistake by raising any exception. `args` are
    trees of arrays, numbers and `jax.ShapeDtypeStruct`s of floats, of sizes that `check` uses too; those in
    `static_argnums`, and in the `nondiff_argnums` of a `jax.custom_vjp`, are passed as they are. A mutant that lives
    is tried for equivalence on `draws` inputs: `draw(k)` gives the k-th in place of `args`. Without it, floats are
    normal numbers in every second one, and in the others those of `args`, each times a positive random number.
    `progress` is told how many mutants of how many are judged, and which is next. A `KeyboardInterrupt` carries the
    score so far as its `found`.

    Raises `JaxgradError` where `check` fails on `fn` as it is, for no draws and where none has finite cotangents.
    """
    if draws < 1:
        raise JaxgradError(f"draws is {draws}; at least 1 is needed to tell which mutants are equivalent")
    static_argnums = sorted(static_numbers(static_argnums, len(args)))
    traces: dict[Any, _Known] = {}
    for name, right in (
        ("the function", fn),
        ("the function with its pullback traced", as_custom_vjp(fn, None, static_argnums, traces)),
    ):
        try:
            check(right)
        except Exception as error:
            raise JaxgradError(f"the check fails on {name}, without a mistake in it: {error}") from error
    try:
        program = trace_pullback(fn, *args, static_argnums=static_argnums).program
    except Exception as error:
        raise JaxgradError(f"the check passes, but with the arguments given after it: {first_line(error)}") from error
    if not program.outputs:
        raise JaxgradError("the function has no cotangent of a float, so there is no gradient to make a mistake in")
    found = tuple(mutants_of(program))
    noticed: list[bool] = []

    def so_far() -> Score:
        tried = list(zip(found, noticed, strict=False))
        killed, alive = (tuple(m for m, seen in tried if seen is wanted) for wanted in (True, False))
        return Score(killed, alive, (), found[len(noticed) :])

    with kept(so_far, lambda: f"mutation_score was stopped: {describe(so_far()).splitlines()[0]}"):
        for mutant in found:
            progress(len(noticed), len(found), mutant.operator)
            noticed.append(_notices(check, as_custom_vjp(fn, mutant, static_argnums, traces)))
        living = so_far().survived
        if not living:
            return Score(found, (), ())
        progress(len(found), len(found), "which of the living are equivalent")
        return _score(found, living, _equivalent(fn, args, static_argnums, living, draw, draws))


def _equivalent(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    static_argnums: Sequence[int],
    living: Sequence[Mutant],
    draw: Callable[[int], tuple[Any, ...]] | None,
    draws: int,
) -> tuple[Mutant, ...]:
    """The mutants that change nothing but rounding on so many inputs, as `mutation_score` has them."""
    with compared_in("float64"):
        drawn = [_drawn(fn, _given(draw, k) if draw else args, static_argnums, k, draw is None) for k in range(draws)]
        program = trace_pullback(fn, *drawn[0], static_argnums=static_argnums).program
        wide = [again for m in living if (again := next(mutants_of(program, m.key), None))]
        return _equal(
            program, wide, (_inputs(fn, program, of_args, static_argnums, k) for k, of_args in enumerate(drawn))
        )


def _given(draw: Callable[[int], tuple[Any, ...]], k: int) -> tuple[Any, ...]:
    args = draw(k)
    if not isinstance(args, (tuple, list)):
        raise JaxgradError(f"draw({k}) gave {type(args).__name__}; it gives a tuple of all arguments")
    return tuple(args)


def _notices(check: Callable[[Callable[..., Any]], object], wrong: Callable[..., Any]) -> bool:
    try:
        check(wrong)
    except Exception:
        return True
    return False


def _drawn(fn: Callable[..., Any], args: tuple[Any, ...], static: Sequence[int], k: int, vary: bool) -> tuple[Any, ...]:
    """The arguments with floats in float64, and other floats where they should vary."""
    rule = rule_of(fn, args, static)

    def drawn(number: int, leaf: Any) -> Any:
        if not is_float(leaf):
            return leaf
        shape = getattr(leaf, "shape", ())
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(k), number), shape, jnp.float64)
        if isinstance(leaf, jax.ShapeDtypeStruct) or (vary and k % 2):
            return noise
        return jnp.asarray(leaf, jnp.float64) * (jnp.exp(noise / 2) if vary else 1)

    leaves, structure = jax.tree.flatten(rule.dynamic)
    return rule.join(jax.tree.unflatten(structure, [drawn(number, leaf) for number, leaf in enumerate(leaves)]))


def _inputs(
    fn: Callable[..., Any], program: Program, args: tuple[Any, ...], static: Sequence[int], k: int
) -> list[Any]:
    """The leaves of the arguments, and a normal cotangent of the output."""
    leaves = jax.tree.leaves(rule_of(fn, args, static).dynamic)
    dys = [program.shapes[slot] for slot in [*program.inputs][len(leaves) :]]
    return [*leaves, *random_direction(jax.random.fold_in(jax.random.key(k), len(leaves)), dys)]


def score_on(
    program: Program,
    cases: Sequence[Sequence[Any]],
    agrees: Callable[[int, dict[str, Any]], bool],
    draws: Iterable[Sequence[Any]],
) -> Score:
    """Judge every mutant of a program on cases: values of its inputs, which all have the shapes of its trace.

    `agrees(case_number, results)` says whether results, by the names of `program.outputs`, are right; a mutant that
    is right in every case lives, and counts as equivalent if on the inputs of `draws` it gives what the program
    gives. Raises `JaxgradError` where the program itself is wrong in a case. Floats should be float64.
    """
    found = tuple(mutants_of(program))
    living = survivors(program, found, cases, agrees)
    return _score(found, living, _equal(program, living, draws) if living else ())


def _score(found: Sequence[Mutant], living: Sequence[Mutant], equal: Sequence[Mutant]) -> Score:
    lives, same = {m.key for m in living}, {m.key for m in equal}
    return Score(
        tuple(m for m in found if m.key not in lives),
        tuple(m for m in living if m.key not in same),
        tuple(m for m in living if m.key in same),
    )


def survivors(
    program: Program,
    among: Sequence[Mutant],
    cases: Sequence[Sequence[Any]],
    agrees: Callable[[int, dict[str, Any]], bool],
) -> tuple[Mutant, ...]:
    """The mutants that are right in every case, as in `score_on`."""
    living = tuple(among)
    for number, leaves in enumerate(cases):
        known = values(program, leaves)
        if not agrees(number, {name: known[slot] for name, slot in program.outputs.items()}):
            raise JaxgradError(f"the backward pass is wrong in case {number} without a mistake in it")
        living = tuple(m for m in living if agrees(number, _results(program, m, known)))
    return living


def _results(program: Program, mutant: Mutant, known: dict[int, Any]) -> dict[str, Any]:
    """The program's results with the mistake, from all its values without: only what depends on it runs again."""
    changed: dict[int, Any] = {}
    for step in (mutant.step, *program.steps[mutant.at + 1 :]):
        if step is mutant.step or not changed.keys().isdisjoint(step.operands):
            made = step.run(*(changed.get(slot, known[slot]) for slot in step.operands))
            changed.update(zip(step.results, made, strict=True))
    return {name: changed.get(slot, known[slot]) for name, slot in program.outputs.items()}


def _equal(program: Program, among: Sequence[Mutant], draws: Iterable[Sequence[Any]]) -> tuple[Mutant, ...]:
    """The mutants that give what the program gives, but for its noise, wherever that is finite."""
    living, tried, judge = tuple(among), False, _within_noise(program)
    for leaves in draws:
        same = judge(leaves)
        if same is None:
            continue
        tried, known = True, values(program, leaves)
        living = tuple(m for m in living if same(_results(program, m, known)))
    if living and not tried:
        raise JaxgradError("no draw has finite cotangents, so no mutant can be compared; give `draw` other inputs")
    return living


def _within_noise(program: Program) -> Callable[[Sequence[Any]], Callable[[dict[str, Any]], bool] | None]:
    """On inputs, whether results are the program's own but for its noise; None where its own are not finite."""
    run = shaken(lambda *leaves: results(program, leaves))

    def judge(leaves: Sequence[Any]) -> Callable[[dict[str, Any]], bool] | None:
        right, noises = measure(run, "float64", *leaves)
        if not all(np.isfinite(x).all() for x in (*right.values(), *(n.deviation for n in noises.values()))):
            return None
        # Both are rounded. What hangs on a choice counts too: a mutant that chooses otherwise is not equivalent.
        allowed = {name: scaled(n, 2**0.5)._replace(unsure=np.zeros_like(n.unsure)) for name, n in noises.items()}
        return lambda given: all(compare(right[n], np.asarray(given[n]), allowed[n], "float64").agrees for n in right)

    return judge


def describe(score: Score) -> str:
    """The counts, then every mutant that survived with its source line and the mistake, then the equivalent ones."""
    counts = ", ".join(f"{len(getattr(score, name))} {name}" for name in ("killed", "survived", "equivalent"))
    if score.untried:
        counts += f", {len(score.untried)} not tried"
    told = [_told("SURVIVED", m) for m in score.survived] + [_told("equivalent", m) for m in score.equivalent]
    return "\n".join([f"{sum(map(len, score))} mutants: {counts}", *told])


def as_json(score: Score) -> dict[str, Any]:
    """The counts, and every mutant that survived: its operator, file, line, source and the mistake in words."""
    survived = [
        {"operator": m.operator, "file": m.place.file, "line": m.place.line, "text": m.place.text, "mistake": m.words}
        for m in score.survived
    ]
    counts = {name: len(getattr(score, name)) for name in ("killed", "equivalent", "untried")}
    return {**counts, "survived": survived}


def to_json(scores: Mapping[str, Score], complete: bool = True) -> dict[str, Any]:
    """Scores by name as one JSON object of the schema `jaxgrad.mutation/1`.

    `complete` is false where Ctrl-C stopped it · `date` and `environment` as in `jaxgrad.check/1` · `scores`: for each
    name the numbers of mutants killed, equivalent and untried, and `survived`, as `as_json` gives them.
    """
    return dated(SCHEMA, complete=complete, scores={name: as_json(score) for name, score in scores.items()})


def _told(fate: str, mutant: Mutant) -> str:
    place = mutant.place
    where = f"{place.file}:{place.line}" if place.line else "JAX does not tell where"
    called = f", called at {place.callers[0]}" if place.callers else ""
    return f"{fate}: {mutant.operator} · {where}{called}\n    {place.text}\n    {mutant.words}"


class Subject(NamedTuple):
    """What to score: a function with a gradient of its own, the check of it, and arguments to trace it with."""

    fn: Callable[..., Any]
    check: Callable[[Callable[..., Any]], object]
    args: tuple[Any, ...]


def load(name: str) -> Subject:
    """The subject that `MODULE:FUNCTION` names: a function without arguments that returns `(fn, check, args)`.

    MODULE is the path of a Python file or the name of a module, looked for in the working directory too.
    Raises `JaxgradError`, with what to do, where any of that is missing, and where the module or the function raises.
    """
    module, _, function = name.rpartition(":")
    if not module or not function:
        raise JaxgradError(f"{name[:80]!r} is not MODULE:FUNCTION; write for example tests/test_norm.py:subject")
    with modules.imported(module) as given:
        subject = getattr(given, function, None)
        made = subject() if callable(subject) else None
    if not (isinstance(made, tuple) and len(made) == 3 and callable(made[0]) and callable(made[1])):
        raise JaxgradError(
            f"{module} must have a function {function} without arguments that returns (fn, check, args):"
            " a function with a gradient of its own, a function that checks it, and a tuple of arguments for it"
        )
    if not isinstance(made[2], (tuple, list)):
        raise JaxgradError(f"{module}: the args of {function} are {str(made[2])[:80]}; give a tuple of arguments")
    return Subject(made[0], made[1], tuple(made[2]))
