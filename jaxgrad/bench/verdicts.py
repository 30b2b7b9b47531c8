"""Right gradients that are written otherwise than their oracle: how many are accused, and how small a fault is seen.

A program is a chain of one to three rows of `rewrites.ROWS`, each in a form that is not the plain one; its oracle is
the same chain of plain forms. Its name, such as "4x8 softmax:unshifted > product:padded", says all of it. Compiling a
program costs most of its time, so each is checked in every type with several draws of its arguments.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from jaxgrad.bench.rewrites import ROWS
from jaxgrad.checking.compare import compare, independent, scaled
from jaxgrad.checking.findings import AGREES, DIFFERS, HAND, NOT_JUDGED, TRUTH, Finding, GradientMismatch, Tensor
from jaxgrad.checking.three_way import check
from jaxgrad.errors import JaxgradError
from jaxgrad.progress import kept

DTYPES = ("float64", "float32", "bfloat16")
# Rows that are written out column by column compile slowly, so sums over many terms are those along m.
SIZES = ((4, 8), (8, 16), (3, 12), (64, 8), (16, 4))
DRAWS = 5
# The largest factor that may pass, as a multiple of the noise of the tensor that it is planted in.
WANTED = {"float64": 30.0, "float32": 30.0, "bfloat16": 10.0}


class Program(NamedTuple):
    """A size (m, n) and a chain of (row, form)."""

    size: tuple[int, int]
    steps: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "x".join(map(str, self.size)) + " " + " > ".join(map(":".join, self.steps))


class Verdict(NamedTuple):
    """What `check` said of a program in one type with one draw.

    `share` is the largest part of its limit that any tensor takes. `planted` says, by input, the smallest factor
    1 + delta on its cotangent that is seen: delta as a multiple of the relative noise.
    """

    program: str
    dtype: str
    seed: int
    outcome: str
    why: str
    share: float
    planted: dict[str, float]


def parsed(text: str) -> Program:
    """The program of a name. Raises `JaxgradError` for one that cannot be."""
    try:
        size, chain = text.split(" ", 1)
        m, n = map(int, size.split("x"))
        steps = [step.split(":") for step in chain.split(" > ")]
        made = Program((m, n), tuple((row, form) for row, form in steps))
        # "plain" is the oracle's own form: it is never drawn, and is there to narrow an accusation down.
        known = n % 4 == 0 and all(form == "plain" or form in ROWS[row].others for row, form in made.steps)
    except (ValueError, KeyError):
        known = False
    if not known:
        raise JaxgradError(f"there is no program {text!r}; write one such as '4x8 softmax:unshifted > product:padded'")
    return made


def drawn(seed: int) -> Iterator[Program]:
    """Programs without end, drawn at random: first each form alone, in an order drawn by the seed, then chains."""
    rng = np.random.default_rng(seed)
    forms = [(row, form) for row, of in ROWS.items() for form in of.others]

    def some(steps: tuple[tuple[str, str], ...]) -> Program:
        return Program(SIZES[rng.integers(len(SIZES))], steps)

    alone = rng.permutation(len(forms))
    for number in range(10**9):
        # Every other program is a chain, so that a short run has both.
        if number % 2 == 0 and number // 2 < len(alone):
            yield some((forms[alone[number // 2]],))
        else:
            yield some(tuple(forms[i] for i in rng.integers(len(forms), size=rng.integers(2, 4))))


def functions(program: Program) -> tuple[Callable[..., Array], Callable[..., Array], list[jax.ShapeDtypeStruct]]:
    """The function under test, its reference, and the shapes of their arguments."""
    shapes = [program.size]
    counts = []
    for row, _ in program.steps:
        of_row = ROWS[row].parameters(*program.size)
        shapes += of_row  # type: ignore[arg-type]
        counts.append(len(of_row))

    def chained(forms: Sequence[Callable[..., Array]]) -> Callable[..., Array]:
        def run(x: Array, *parameters: Array) -> Array:
            rest = list(parameters)
            for form, count in zip(forms, counts, strict=True):
                x, rest = form(x, *rest[:count]), rest[count:]
            return x

        return run

    forms = [ROWS[row].plain if form == "plain" else ROWS[row].others[form] for row, form in program.steps]
    plain = [ROWS[row].plain for row, _ in program.steps]
    return chained(forms), chained(plain), [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]


def judged(program: Program, dtypes: Sequence[str], seeds: Sequence[int]) -> Iterator[Verdict]:
    """A verdict for each type and draw."""
    fn, reference, shapes = functions(program)

    def found(fn: Callable[..., Array], dtype: str, seed: int) -> Finding:
        try:
            report = check(
                fn, *shapes, reference=reference, dtypes=(dtype,), transforms=("jit",), seeds=(seed,), name="twin"
            )
        except GradientMismatch as mismatch:
            report = mismatch.report
        return report.findings[0]

    for dtype in dtypes:
        for seed in seeds:
            of_right = found(fn, dtype, seed)
            # What agrees was settled by a few samples; of what is wrong by far noise is measured whole.
            of_wrong = found(_doubled(fn), dtype, seed) if of_right.outcome == AGREES else of_right
            yield _verdict(program, of_right, of_wrong)


def _doubled(fn: Callable[..., Array]) -> Callable[..., Array]:
    """The function with a rule that gives every cotangent twice."""
    rule = jax.custom_vjp(fn)
    rule.defvjp(lambda *args: jax.vjp(fn, *args), lambda pullback, dy: jax.tree.map(lambda dx: dx + dx, pullback(dy)))
    return rule


def _verdict(program: Program, found: Finding, of_wrong: Finding) -> Verdict:
    dtype, seed = found.setting.dtype, found.setting.seed
    share = max((d.share for t in found.tensors for d in t.pairs.values()), default=math.nan)
    seen = {}
    if found.outcome == AGREES:
        wholes = {t.name: t for t in of_wrong.tensors}
        cotangents = [t for t in found.tensors if t.kind == "input" and t.pairs]
        # What was measured whole already may have the noise of the function's own arithmetic in it.
        seen = {t.name: smallest_seen(t, wholes[t.name] if _at_first_look(t) else t, dtype) for t in cotangents}
    why = found.why or (f"{found.first} differs" if found.first else "")
    return Verdict(
        str(program), dtype, seed, found.outcome, why, share, {k: v for k, v in seen.items() if math.isfinite(v)}
    )


def _at_first_look(tensor: Tensor) -> bool:
    return tensor.noise.freedom == independent(tensor.noise.deviation.shape)


def smallest_seen(tensor: Tensor, whole: Tensor, dtype: str) -> float:
    """The smallest delta, in steps of 2 ** 0.25, for which (1 + delta) times a cotangent is seen, over the noise.

    It has to be seen beside the noise of the tensor, which may be that of a first look, and beside that of the same
    tensor measured `whole`. NaN for a cotangent that is 0, which no factor changes.
    """
    pair = next(pair for pair in tensor.pairs if HAND in pair)
    expected = tensor.values[TRUTH if dtype != "float64" else next(one for one in pair if one != HAND)]
    noises = [scaled(t.noise, 2**0.5) if dtype == "float64" else t.noise for t in (tensor, whole)]
    hand = np.asarray(tensor.values[HAND], np.float64)
    unit = whole.pairs[pair].noise
    if not (0 < unit < math.inf and hand.any()):
        return math.nan

    def is_seen(step: int) -> bool:
        planted = hand * (1 + unit * 2 ** (step / 4))
        found = [compare(expected, planted, noise, dtype) for noise in noises]
        # What cannot be judged does not pass.
        return not any(d.agrees and d.judged for d in found)

    low, high = -17, 80
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_seen(middle) else (middle, high)
    return math.inf if high == 80 else 2 ** (high / 4)


def smaller(program: Program, dtype: str, seeds: Sequence[int]) -> Program:
    """The smallest program that is accused in the place of one that is, with some draw: fewer steps, plain forms."""
    steps = program.steps
    fewer = [steps[:i] + steps[i + 1 :] for i in range(len(steps))] if len(steps) > 1 else []
    plainer = [
        (*steps[:i], (row, "plain"), *steps[i + 1 :])
        for i, (row, form) in enumerate(steps)
        if form != "plain" and sum(other != "plain" for _, other in steps) > 1
    ]
    for candidate in (*fewer, *plainer):
        if any(form != "plain" for _, form in candidate):
            tried = program._replace(steps=candidate)
            if any(v.outcome == DIFFERS for v in judged(tried, (dtype,), seeds)):
                return smaller(tried, dtype, seeds)
    return program


def run(count: int, seed: int, update: Callable[[int, str], None] = lambda done, note: None) -> list[Verdict]:
    """`count` verdicts: programs drawn by the seed, each in every type, with `DRAWS` draws of its arguments.

    A `KeyboardInterrupt` has those so far as its `found`.
    """
    found: list[Verdict] = []
    with kept(lambda: found, lambda: f"{len(found)} of {count} verdicts were found"):
        for number, program in enumerate(drawn(seed)):
            seeds = range(seed + number * DRAWS, seed + (number + 1) * DRAWS)
            for verdict in judged(program, DTYPES, seeds):
                found.append(verdict)
                if len(found) == count:
                    return found
            update(len(found), str(program))
            # Compiled programs are not asked for again, and would fill the memory.
            jax.clear_caches()
    return found


def summary(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """A row for each type: counts of outcomes, the largest share of those that agree, and the factors seen."""
    rows = []
    for dtype in dict.fromkeys(v.dtype for v in verdicts):
        of = [v for v in verdicts if v.dtype == dtype]
        counts = {outcome: sum(v.outcome == outcome for v in of) for outcome in (AGREES, DIFFERS, NOT_JUDGED)}
        shares = [v.share for v in of if v.outcome == AGREES]
        seen = [factor for v in of for factor in v.planted.values()]
        rows.append(
            {
                "dtype": dtype,
                **counts,
                "median share": float(np.median(shares)) if shares else None,
                "largest share": max(shares, default=None),
                "planted": len(seen),
                "median seen": float(np.median(seen)) if seen else None,
                "largest seen": max(seen, default=None),
                "wanted": WANTED[dtype],
            }
        )
    return rows
