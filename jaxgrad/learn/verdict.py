"""A reader's derivative -> right, or which mistake it looks like.

The checker takes the array and not a function: an array is what the notebook's lines make, it can be looked at, and
it needs no agreement on which values and cotangents a function would be given.

A wrong array is compared with what known mistakes would have given: first those that need no derivation (a shape, a
sign, a constant factor, another variable), then every mutant of our own derivation of that node (`parity.mutants`).
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxgrad.checking.compare import compare
from jaxgrad.errors import JaxgradError
from jaxgrad.learn.reference import NAMES, Answers, answers, is_sum_of_uses, mistakes
from jaxgrad.parity.cases import seed_case


class Verdict(NamedTuple):
    """Right or not; the `kind` of mistake in a word or two, "unknown" if it is none that we know; and a sentence."""

    right: bool
    kind: str
    sentence: str

    def __repr__(self) -> str:
        return self.sentence

    def __bool__(self) -> bool:
        return self.right


class _Guess(NamedTuple):
    """A mistake, and whether the reader's array is what it gives."""

    fits: bool
    kind: str
    words: str


def check(name: str, derivative: Any, known: Answers | None = None) -> Verdict:
    """Whether an array is the derivative of the loss with respect to the node or parameter `name`.

    `derivative` is any array or number; float32 and bfloat16 are given the tolerance of their type. It is held
    against the notebook's batch, or that of `known`, from `answers(case)`. An Ellipsis or None is not answered yet.
    Raises `JaxgradError` for a name that the model does not have, and, for the notebook's batch, without PyTorch.
    """
    if name not in NAMES:
        raise JaxgradError(f"there is no node or parameter {name!r}; choose from {', '.join(NAMES)}")
    if derivative is None or derivative is ...:
        return Verdict(False, "no answer", f"d{name}: write your answer first, in place of the dots.")
    if callable(derivative):
        return _wrong(name, "no answer", "is a function; give the array that it returns")
    known = _notebooks() if known is None else known
    try:
        given = np.asarray(derivative)
        wide = np.asarray(given, np.float64)
    except (TypeError, ValueError, RuntimeError):
        return _wrong(name, "no answer", f"is of the type {type(derivative).__name__}; give an array of numbers")
    right = known.right[name]
    if wide.shape != right.shape:
        kind, words = _of_shape(known, name, wide)
        return _wrong(name, kind, words)
    dtype = given.dtype if given.dtype.name in ("float32", "bfloat16") else np.dtype(np.float64)
    difference = compare(wide, right, known.scales[name], dtype)
    if difference.agrees:
        same = "to the last bit" if difference.exact else f"up to rounding, {difference.max_abs:.1e} at most"
        return Verdict(True, "right", f"d{name}: right, {same}.")
    if difference.not_finite:
        return _wrong(name, "not finite", f"is not finite: {difference.not_finite}")
    # Mistakes are told apart by far more than rounding, which the reader's own order of operations may enlarge.
    alike = functools.partial(_alike, within=float(np.sqrt(np.finfo(np.float32 if dtype != np.float64 else dtype).eps)))
    for guess in _guesses(known, name, wide, alike):
        if guess.fits:
            return _wrong(name, guess.kind, guess.words)
    at = ", ".join(map(str, difference.at))
    return _wrong(
        name,
        "unknown",
        f"differs by {_norm(wide - right) / _norm(right):.1e} of its norm, most at [{at}]:"
        f" {difference.values[0]:.6g} for {difference.values[1]:.6g}. It is no mistake that the checker knows",
    )


def or_answer(name: str, derivative: Any, known: Answers | None = None) -> np.ndarray:
    """`derivative` as an array if `check` says that it is right, and if not ours, so that the rest can go on.

    Raises what `check` raises.
    """
    known = _notebooks() if known is None else known
    return np.asarray(derivative) if check(name, derivative, known).right else known.ours[name]


@functools.cache
def _notebooks() -> Answers:
    return answers(seed_case())


def _wrong(name: str, kind: str, words: str) -> Verdict:
    return Verdict(False, kind, f"d{name} {words}.")


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x))


def _alike(a: np.ndarray, b: np.ndarray, within: float) -> bool:
    return a.shape == b.shape and bool(np.isfinite(b).all()) and _norm(a - b) <= within * max(_norm(a), _norm(b))


def _of_shape(known: Answers, name: str, wide: np.ndarray) -> tuple[str, str]:
    """What an array of another shape than its node looks like."""
    right, alike = known.right[name], functools.partial(_alike, within=1e-3)
    told = f"has the shape {wide.shape}, and a derivative has that of its node, {right.shape}"
    for axes in itertools.chain.from_iterable(itertools.combinations(range(wide.ndim), k) for k in (1, 2)):
        summed = wide.sum(axes)
        for sign, also in ((1, ""), (-1, ", and the sign is wrong")):
            if summed.size == right.size and alike(sign * summed.reshape(right.shape), right):
                where = _axes(axes, wide.shape, known)
                return "missing sum", (
                    f"{told}: the sum over {where} is missing. Forward spread {name} there, so backward sums{also}"
                )
    for sign, also in ((1, ""), (-1, ", and the sign is wrong")):
        if wide.size == right.size and alike(sign * wide.reshape(right.shape), right):
            kept = "keepdims=True keeps the summed axis" if 1 in right.shape else "reshape it"
            return "shape", f"{told}; its numbers are right: {kept}{also}"
        if wide.ndim == 2 and alike(sign * wide.T, right):
            return "transposed", f"{told}: it is transposed; its numbers are right{also}"
        if _spreads(wide, right) and alike(sign * np.broadcast_to(wide, right.shape), right):
            return "not spread", f"{told}; its numbers are right, each for several entries: spread it{also}"
        for axes in itertools.chain.from_iterable(itertools.combinations(range(right.ndim), k) for k in (1, 2)):
            summed = right.sum(axes)
            if summed.size == wide.size and alike(sign * wide.reshape(summed.shape), summed):
                return "summed too much", (
                    f"{told}: it is summed over {_axes(axes, right.shape, known)}, which {name} has itself{also}"
                )
    return "shape", told


def _spreads(small: np.ndarray, large: np.ndarray) -> bool:
    try:
        return np.broadcast_shapes(small.shape, large.shape) == large.shape
    except ValueError:
        return False


def _axes(axes: tuple[int, ...], shape: tuple[int, ...], known: Answers) -> str:
    n, symbols = known.primals["logits"].shape
    sizes = {known.primals["h"].shape[1]: "the neurons", symbols: "the symbols", n: "the batch"}
    return " and ".join(f"axis {axis} ({sizes.get(shape[axis], shape[axis])})" for axis in axes)


def _guesses(
    known: Answers, name: str, wide: np.ndarray, alike: Callable[[np.ndarray, np.ndarray], bool]
) -> Iterator[_Guess]:
    """Known mistakes, the plainest first."""
    right = known.right[name]
    yield _Guess(not wide.any(), "zero", "is zero everywhere: no path from the loss has been followed")
    yield _Guess(alike(wide, -right), "sign", "has the wrong sign everywhere")
    # Before the constant factors: where two uses differ by a constant, one alone looks like a wrong factor.
    found = [(mutant, wrong) for mutant, wrong in mistakes(known, name) if alike(wide, wrong)]
    found.sort(key=lambda one: one[0].operator == "a stale operand")  # what is missing explains more
    for mutant, _ in found:
        yield _Guess(
            is_sum_of_uses(known, name, mutant) and len(mutant.step.operands) == 2,
            "second use",
            f"has one of its uses only: {name} is used twice in forward, and the cotangents of both add up",
        )
    for factor, kind, words in _factors(known):
        yield _Guess(alike(wide, factor * right), kind, words)
    for other in known.right:
        yield _Guess(alike(wide, known.right[other]), "another variable", f"is the derivative of {other}")
        yield _Guess(alike(wide, known.primals[other]), "another variable", f"is the value of {other}, no derivative")
    for other, value in known.primals.items():
        if value.size > 1 and _spreads(value, right):
            yield _Guess(alike(wide * value, right), "missing factor", f"lacks the factor {other}")
            yield _Guess(alike(wide, right * value), "extra factor", f"has the factor {other} once too often")
    for mutant, _ in found:
        words = re.sub(r" \(\w+\.py:\d+\)", "", mutant.words)
        yield _Guess(True, _KINDS[mutant.operator], f"looks as if {_clause(words)}")
    for other, value in known.primals.items():
        if value.size > 1 and _spreads(value, right):
            inverse = alike(wide, right * value**2) or alike(wide * value**2, right)
            yield _Guess(inverse, "inverse", f"multiplies by {other} where it should divide, or the other way round")
    if right.ndim == 2 and right.shape[0] == right.shape[1]:
        yield _Guess(alike(wide, right.T), "transposed", "is transposed")
    best = float((wide * right).sum() / (right * right).sum())
    yield _Guess(alike(wide, best * right), "factor", f"is {best:.4g} times what it should be, everywhere")
    # Zeros that are right tell nothing: most of a loss's derivatives are zero.
    share = float(np.mean(np.abs(wide - right)[(wide != 0) | (right != 0)] <= 1e-6 * np.abs(right).max()))
    yield _Guess(
        0.05 < share < 1, "partly right", f"is right in {share:.0%} of its entries, so some rows or columns lack a term"
    )


_KINDS = {
    "an addend dropped": "missing term",
    "a sign flipped": "sign",
    "a factor dropped": "missing factor",
    "a sum over the wrong axis": "wrong axis",
    "a mean for a sum": "mean for sum",
    "a broadcast's sum missing": "missing sum",
    "n and n - 1 mistaken": "n and n - 1",
    "a transpose left out": "transposed",
    "the other side of a non-linearity": "before or after",
    "a stale operand": "another variable",
    "a path stopped": "missing path",
    "a power off by one": "power",
}


def _clause(words: str) -> str:
    """The words of a mutant as the end of a sentence that begins with "looks as if"."""
    verb = " is " in words or " are " in words or "overwrite" in words
    return words if verb else f"it had {words}"


def _factors(known: Answers) -> Iterator[tuple[float, str, str]]:
    """Constants by which a derivative is likely to be too large."""
    n = len(known.primals["logits"])
    bessel = "n - 1 is Bessel's correction, in the variance; the mean has n"
    constants = (
        (2.0, "factor", "is twice too large: look for a 2 that is there once too often, or a sum counted twice"),
        (0.5, "factor", "is half of what it should be: look for the 2 of d(x^2) = 2x dx, or a half too many"),
        (float(n), "sum for mean", f"is n = {n} times too large: the 1/n of a mean is missing"),
        (1 / n, "mean for sum", f"is n = {n} times too small: a mean where a sum should be, or 1/n twice"),
        (n - 1.0, "missing n - 1", f"is n - 1 = {n - 1} times too large: the 1/(n - 1) of the variance is missing"),
        (1 / (n - 1), "n and n - 1", f"is n - 1 = {n - 1} times too small: it has 1/(n - 1) once too often"),
        ((n - 1) / n, "n and n - 1", f"has 1/n where 1/(n - 1) should be: {bessel}"),
        (n / (n - 1), "n and n - 1", f"has 1/(n - 1) where 1/n should be: {bessel}"),
    )
    for factor, kind, words in constants:
        yield factor, kind, words
        yield -factor, kind, f"{words}; and the sign is wrong"
    for size, what in ((known.primals["logits"].shape[1], "symbols"), (known.primals["h"].shape[1], "neurons")):
        yield 1 / size, "mean for sum", f"is {size} times too small, the number of {what}: a mean where a sum should be"
