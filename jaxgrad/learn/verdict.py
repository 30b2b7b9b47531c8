"""A reader's derivative -> right, or which mistake it looks like.

The checker takes the array and not a function: an array is what the notebook's lines make, it can be looked at, and
it needs no agreement on which values and cotangents a function would be given.

A wrong array is compared with what known mistakes would have given: first those that need no derivation (a shape, a
sign, a constant factor, another variable), then every mutant of our own derivation of that node
(`mutation.operators`), whose row says what a reader is told.
"""

import difflib
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.compare import Difference, compare
from jaxgrad.errors import JaxgradError
from jaxgrad.learn.reference import (
    EPSILONS,
    Answers,
    answers,
    is_sum_of_uses,
    mistakes,
    other_variables,
    with_epsilon,
    without_paths,
)
from jaxgrad.models.model import Factor, Lesson
from jaxgrad.mutation.operators import operator
from jaxgrad.parity.cases import seed_case, seed_names

Alike = Callable[[np.ndarray, np.ndarray], bool]


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

    `name` is ours or one that the model's lesson has for it, with or without a leading d; the verdict uses the same
    words. A node inside of a scan has the turns on its first axis, which may be left out where there is one.
    `derivative` is any array, list, tensor or number, also one that requires gradients; float32 and shorter types are
    given the tolerance of their type, and so are numbers of float32 that are held in a wider one. It is held
    against the notebook's batch, or that of `known`, from `answers(case)`. An Ellipsis or None is not answered yet.
    Raises `JaxgradError` for a name that the model does not have, and, for the notebook's batch, without PyTorch.
    """
    lesson, names = _model(known)
    called, node = _names(name, lesson, names)
    verdict = _judged(node, derivative, known)
    if called == node:
        return verdict
    return verdict._replace(sentence=_in_the_readers_words(verdict.sentence, called, lesson))


def or_answer(name: str, derivative: Any, known: Answers | None = None) -> np.ndarray:
    """`derivative` as an array if `check` says that it is right, and if not ours, so that the rest can go on.

    Raises what `check` raises.
    """
    known = _notebooks() if known is None else known
    ours = known.ours[_names(name, *_model(known))[1]]
    return _array(derivative).reshape(ours.shape) if check(name, derivative, known).right else ours


def _model(known: Answers | None) -> tuple[Lesson, tuple[str, ...]]:
    """What is told of the model, and the names of its nodes and parameters."""
    if known is not None:
        return known.case.model.lesson, tuple(known.right)
    model, names = seed_names()
    return model.lesson, names


def _names(name: str, lesson: Lesson, names: tuple[str, ...]) -> tuple[str, str]:
    """What the reader calls a node, without the d of its derivative, and our name for it."""
    if not isinstance(name, str):
        raise JaxgradError(f"the name of a node comes first, such as 'h', and its derivative second; got {type(name)}")
    for called in (name, name.removeprefix("d"), name.removeprefix("d_")):
        if called in names or called in lesson.aliases:
            return called, lesson.aliases.get(called, called)
    if (missing := name.removeprefix("d")) in lesson.absent:
        raise JaxgradError(f"there is no node or parameter {name!r}: {lesson.absent[missing]}")
    near = difflib.get_close_matches(missing, (*names, *lesson.aliases))
    choose = f"did you mean {' or '.join(near)}, or another of" if near else "choose from"
    raise JaxgradError(f"there is no node or parameter {name!r}; {choose} {', '.join(names)}")


def _in_the_readers_words(sentence: str, called: str, lesson: Lesson) -> str:
    """The sentence with the lesson's names for ours, and for one node the name that the reader gave it."""
    theirs = {ours: other for other, ours in reversed([*lesson.aliases.items()])} | {lesson.aliases[called]: called}
    return re.sub(rf"\b(d?)({'|'.join(theirs)})\b", lambda found: found[1] + theirs[found[2]], sentence)


def _judged(name: str, derivative: Any, known: Answers | None) -> Verdict:
    if derivative is None or derivative is ...:
        return Verdict(False, "no answer", f"d{name}: write your answer first, in place of the dots.")
    if callable(derivative):
        return _wrong(name, "no answer", "is a function; give the array that it returns")
    known = _notebooks() if known is None else known
    try:
        given = _array(derivative)
        wide = np.asarray(given, np.float64)
    except (TypeError, ValueError, RuntimeError):
        return _wrong(name, "no answer", f"is of the type {type(derivative).__name__}; give an array of numbers")
    if wide.shape == known.right[name].shape[1:] and known.right[name].shape[:1] == (1,) and "." in name:
        wide = wide[None]
    dtype = given.dtype if given.dtype.name in ("float32", "float16", "bfloat16") else _computed_in(wide)
    if wide.shape != known.right[name].shape:
        kind, words = _of_shape(known, name, wide, dtype)
        return _wrong(name, kind, words)
    difference = _difference(known, name, wide, dtype)
    if difference.agrees and not difference.judged:
        words = f"cannot be judged: rounding in {dtype.name} is as large as it is. Compute it in float32 or float64"
        return _wrong(name, "not judged", words)
    if difference.agrees:
        if not difference.exact and _without_epsilon(known, name, wide):
            return _wrong(name, "epsilon", _epsilon_missing(known))
        same = "to the last bit" if difference.exact else f"up to rounding, {difference.max_abs:.1e} at most"
        return Verdict(True, "right", f"d{name}: right, {same}.")
    if difference.not_finite:
        return _wrong(name, "not finite", f"is not finite: {difference.not_finite}")
    for guess in _guesses(known, name, wide, dtype):
        if guess.fits:
            return _wrong(name, guess.kind, guess.words)
    at = ", ".join(map(str, difference.at))
    return _wrong(
        name,
        "unknown",
        f"differs by {_distance(wide, known.right[name]):.1e} of its norm, most at [{at}]:"
        f" {difference.values[1]:.6g} for {difference.values[0]:.6g}. It is no mistake that the checker knows",
    )


def _computed_in(wide: np.ndarray) -> np.dtype:
    """float32 where all numbers are of that type, as in a list or a float64 array that was made of a float32 one."""
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    return np.dtype(np.float32 if np.array_equal(narrow, wide, equal_nan=True) else np.float64)


def _array(derivative: Any) -> np.ndarray:
    """The numbers as NumPy holds them; those of a PyTorch tensor are taken out of its graph."""
    if not hasattr(derivative, "detach"):
        array = np.asarray(derivative)
    elif str(derivative.dtype) == "torch.bfloat16":  # a type that PyTorch does not give to NumPy
        array = derivative.float().numpy(force=True).astype(jnp.bfloat16)
    else:
        array = derivative.numpy(force=True)
    if array.dtype.kind == "c":
        raise TypeError("complex numbers are no derivative of this loss")
    return array


def _difference(known: Answers, name: str, given: np.ndarray, dtype: Any) -> Difference:
    """How an array of the right shape differs from the right one; the one use of `checking.compare` here."""
    dtype = np.dtype(dtype)
    return compare(known.right[name], given, known.noise(dtype.name)[name], dtype)


@functools.cache
def _notebooks() -> Answers:
    return answers(seed_case())


def _wrong(name: str, kind: str, words: str) -> Verdict:
    return Verdict(False, kind, f"d{name} {words}.")


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return _norm(a - b) / _norm(b) if b.any() else float("inf")


def _alike(a: np.ndarray, b: np.ndarray, within: float, floor: float = 0.0) -> bool:
    """Whether they differ by no more than a part `within` of the larger norm, or both are below `floor`."""
    if a.shape != b.shape or not np.isfinite(b).all():
        return False
    return _norm(a - b) <= max(within * max(_norm(a), _norm(b)), floor)


def _of_shape(known: Answers, name: str, wide: np.ndarray, dtype: Any) -> tuple[str, str]:
    """What an array of another shape than its node looks like."""
    right = known.right[name]
    # Sums whose terms cancel are all rounding, so that none of their digits need agree.
    alike = functools.partial(_alike, within=1e-3, floor=1e-6 * _norm(right))
    told = f"has the shape {wide.shape}, and a derivative has that of its node, {right.shape}"

    def is_right(given: np.ndarray) -> bool:
        return _difference(known, name, given, dtype).agrees or alike(given, right)

    for sign, also in ((1, ""), (-1, ", and the sign is wrong")):
        if wide.size == right.size and is_right(sign * wide.reshape(right.shape)):
            return "shape", f"{told}; {_of_axes(wide.shape, right.shape)}{also}"
    for axes in _axes_of(wide.ndim):
        summed = wide.sum(axes)
        for sign, also in ((1, ""), (-1, ", and the sign is wrong")):
            if wide.size > right.size == summed.size and is_right(sign * summed.reshape(right.shape)):
                where = _axes(axes, wide.shape, known)
                return "missing sum", (
                    f"{told}: the sum over {where} is missing. Forward spread {name} there, so backward sums{also}"
                )
    for sign, also in ((1, ""), (-1, ", and the sign is wrong")):
        if wide.T.shape == right.shape and is_right(sign * wide.T):
            return "transposed", f"{told}: it is transposed; its numbers are right{also}"
        if _spreads(wide, right) and is_right(sign * np.broadcast_to(wide, right.shape)):
            return "not spread", f"{told}; its numbers are right, each for several entries: spread it{also}"
        for axes in _axes_of(right.ndim):
            summed = right.sum(axes)
            if summed.size == wide.size and alike(sign * wide.reshape(summed.shape), summed):
                return "summed too much", (
                    f"{told}: it is summed over {_axes(axes, right.shape, known)}, which {name} has itself{also}"
                )
    # Whichever axis is summed first, the sum over all is the same.
    total = right.sum()
    if wide.size > 1 and abs(total) > 1e-6 * np.abs(right).sum() and alike(wide.sum(), total):
        return "wrong axis", f"{told}; but its total is right: it is summed over another axis than {name} was spread on"
    return "shape", told


def _of_axes(given: tuple[int, ...], right: tuple[int, ...]) -> str:
    """How a shape differs from the right one of the same size."""
    same = [size for size in given if size > 1] == [size for size in right if size > 1]
    if same and len(given) > len(right):
        return "the axis is kept; the numbers are right: leave keepdims=True out"
    if same and len(given) < len(right):
        return "the axis is dropped; the numbers are right: keepdims=True keeps the summed axis"
    return "the numbers are right: reshape it"


def _axes_of(dimensions: int) -> Iterator[tuple[int, ...]]:
    """One axis or two."""
    return itertools.chain.from_iterable(itertools.combinations(range(dimensions), k) for k in (1, 2))


def _spreads(small: np.ndarray, large: np.ndarray) -> bool:
    try:
        return np.broadcast_shapes(small.shape, large.shape) == large.shape
    except ValueError:
        return False


def _axes(axes: tuple[int, ...], shape: tuple[int, ...], known: Answers) -> str:
    sizes = known.case.model.lesson.lengths(known.primals)
    return " and ".join(f"axis {axis} ({sizes.get(shape[axis], shape[axis])})" for axis in axes)


def _guesses(known: Answers, name: str, wide: np.ndarray, dtype: Any) -> Iterator[_Guess]:
    """Known mistakes, the plainest first."""
    right = known.right[name]
    # Mistakes are told apart by far more than rounding, which the reader's own order of operations may enlarge, and
    # one that explains an array is nearer to it than the right answer is.
    eps = float(jnp.finfo(dtype).eps) if dtype == np.float64 else float(np.finfo(np.float32).eps)
    within = min(eps**0.5, _distance(wide, right) / 2)
    alike: Alike = functools.partial(_alike, within=within)
    yield _Guess(not wide.any(), "zero", "is zero everywhere: no path from the loss has been followed")
    yield _Guess(alike(wide, -right), "sign", "has the wrong sign everywhere")
    yield from _derived_guesses(known, name, wide, alike)
    yield from _plain_guesses(known, name, wide, alike)
    share, where = _share_of_right(wide, right, 64 * eps)
    yield _Guess(0.25 < share < 1, "partly right", f"is right in {share:.1%} of its entries: {where}")
    yield _Guess(
        _difference(known, name, wide, np.float32).agrees,
        "precision",
        "is right as far as float32 goes, but is given in float64: compute all of it in float64",
    )


def _share_of_right(wide: np.ndarray, right: np.ndarray, within: float) -> tuple[float, str]:
    """The share of entries that are right, where most of the others are far off; 0 where all are off by a little.

    Beside it where the others are. Zeros that are right tell nothing: most of a loss's derivatives are zero.
    """
    gap = np.abs(wide - right) / np.abs(right).max()
    wrong, far = gap > within, gap > 30 * within
    looked = ((wide != 0) | (right != 0)).sum()
    share = float(1 - wrong.sum() / looked) if far.sum() >= wrong.sum() / 2 else 0.0
    places = np.argwhere(wrong)
    if len(places) == 1:
        return share, f"the one at {places[0].tolist()} is not"
    for axis, size in enumerate(wrong.shape):
        if size > 1 and len(places) and len(only := np.unique(places[:, axis])) == 1:
            return share, f"the others are all at {only[0]} of axis {axis}"
    return share, "some rows or columns lack a term"


def _derived_guesses(known: Answers, name: str, wide: np.ndarray, alike: Alike) -> Iterator[_Guess]:
    """Mistakes in a derivation like ours, and among them those that the look of an array tells better."""
    right = known.right[name]
    lesson = known.case.model.lesson
    taken = (words for nodes, words in lesson.constants.items() if alike(wide, without_paths(known, name, nodes)))
    constant = next(taken, "")
    found = [(mutant, wrong) for mutant, wrong in mistakes(known, name) if alike(wide, wrong)]
    found.sort(key=lambda one: one[0].operator == "a stale operand")  # what is missing explains more
    # Before the constant factors: where two uses differ by a constant, one alone looks like a wrong factor.
    for mutant, _ in found:
        yield _Guess(
            is_sum_of_uses(known, name, mutant) and len(mutant.step.operands) == 2,
            "second use",
            f"has one of its uses only: {name} is used twice in forward, and the cotangents of both add up"
            + (f"; it {constant}" if constant else ""),
        )
    yield _Guess(bool(constant), "missing path", constant)
    for factor, kind, words in _factors(known):
        yield _Guess(alike(wide, factor * right), kind, words)
    for other in known.right:
        yield _Guess(alike(wide, known.right[other]), "another variable", f"is the derivative of {other}")
        yield _Guess(alike(wide, known.primals[other]), "another variable", f"is the value of {other}, no derivative")
    epsilon = _epsilon(known, name, wide, alike)
    if epsilon is not None and lesson.epsilon is not None:
        other = f"has an epsilon of about {epsilon:.1g}, and {lesson.epsilon_in.format(lesson.epsilon)}"
        yield _Guess(True, "epsilon", other if epsilon > 0.01 * lesson.epsilon else _epsilon_missing(known))
    # A wrong power of a value is one factor of it too many or too few, and the power says which.
    for mutant, _ in found:
        kind = operator(mutant.operator).told_as
        yield _Guess(kind == "power", kind, f"looks as if {_told(mutant.words)}")
    for other, value in known.primals.items():
        if value.size > 1 and _spreads(value, right):
            yield _Guess(alike(wide * value, right), "missing factor", f"lacks the factor {other}")
            yield _Guess(alike(wide, right * value), "extra factor", f"has the factor {other} once too often")
    for mutant, _ in found:
        yield _Guess(True, operator(mutant.operator).told_as, f"looks as if {_told(mutant.words)}")


def _plain_guesses(known: Answers, name: str, wide: np.ndarray, alike: Alike) -> Iterator[_Guess]:
    """What is left when no single mistake in a derivation like ours explains an array."""
    right = known.right[name]
    for other, value in known.primals.items():
        if value.size > 1 and _spreads(value, right):
            inverse = alike(wide, right * value**2) or alike(wide * value**2, right)
            yield _Guess(inverse, "inverse", f"multiplies by {other} where it should divide, or the other way round")
            for power in _POWERS if (value > 0).all() else ():
                words = f"has {other} to a power that is {abs(power):g} too {'high' if power > 0 else 'low'}"
                yield _Guess(alike(wide, right * value**power), "power", words)
    formulas = known.case.model.lesson.formulas
    for words, wrong in formulas[name](known.primals, known.right) if name in formulas else ():
        yield _Guess(alike(wide, wrong), "formula", words)
    for words, wrong in other_variables(known, name):
        yield _Guess(alike(wide, wrong), "another variable", f"looks as if {_told(words)}")
    if right.ndim == 2 and right.shape[0] == right.shape[1]:
        yield _Guess(alike(wide, right.T), "transposed", "is transposed")
    yield _Guess(
        _difference(known, name, np.zeros_like(right), np.float64).agrees,
        "not zero",
        f"is up to {np.abs(wide).max():.1e}, and the derivative is zero but for rounding: its terms cancel",
    )
    yield _Guess(
        not right.all() and alike(np.where(right, wide, 0), right),
        "extra entries",
        "is right where it is not zero, and is not zero in entries that the loss does not depend on",
    )
    best = float((wide * right).sum() / (right * right).sum())
    yield _Guess(alike(wide, best * right), "factor", f"is {best:.4g} times what it should be, everywhere")


_POWERS = (0.5, -0.5, 1.5, -1.5, 2.0, -2.0, 3.0, -3.0)


def _epsilon_missing(known: Answers) -> str:
    lesson = known.case.model.lesson
    return f"leaves epsilon out: {lesson.epsilon_in.format(lesson.epsilon)} before it takes the root"


def _without_epsilon(known: Answers, name: str, wide: np.ndarray) -> bool:
    """Whether an array that rounding lets pass is nearer to the answer without epsilon, if float64 tells the two apart.

    In float32 epsilon is about as large as rounding, but it is not random.
    """
    if known.case.model.lesson.epsilon is None:
        return False
    without = [with_epsilon(known, name, 0.0, *place) for place in EPSILONS]
    apart = [wrong for wrong in without if not _difference(known, name, wrong, np.float64).agrees]
    return any(_norm(wide - wrong) < _norm(wide - known.right[name]) / 2 for wrong in apart)


def _epsilon(known: Answers, name: str, wide: np.ndarray, alike: Alike) -> float | None:
    """The epsilon that explains an array, by least squares; None if there is none."""
    right, own = known.right[name], known.case.model.lesson.epsilon
    if own is None:
        return None
    for place in EPSILONS if _distance(wide, right) < 1 else ():

        def at(epsilon: float, place: Any = place) -> np.ndarray:
            return with_epsilon(known, name, epsilon, *place)

        direction = at(0.0) - at(own)
        if abs((direction * (wide - right)).sum()) <= 0.5 * _norm(direction) * _norm(wide - right):
            continue
        # Newton's method: nearly linear in epsilon while that is small beside the variance.
        epsilon = own
        for _ in range(8):
            value, step = at(epsilon), 0.01 * max(epsilon, own)
            if alike(wide, value):
                return epsilon
            slope = (at(epsilon + step) - value) / step
            if not slope.any():
                break
            epsilon = max(0.0, epsilon + float(((wide - value) * slope).sum() / (slope * slope).sum()))
    return None


def _told(words: str) -> str:
    """The words of a mutant, without its lines in our files, as the end of a sentence that begins "looks as if"."""
    return _clause(re.sub(r" \(\w+\.py:\d+\)", "", words))


def _clause(words: str) -> str:
    """The words of a mutant as the end of a sentence that begins with "looks as if"."""
    verb = " is " in words or " are " in words or "overwrite" in words
    return words if verb else f"it had {words}"


def _factors(known: Answers) -> Iterator[Factor]:
    """Constants by which a derivative is likely to be too large."""
    n = len(known.primals["logits"])
    constants = (
        Factor(2.0, "factor", "is twice too large: look for a 2 that is there once too often, or a sum counted twice"),
        Factor(0.5, "factor", "is half of what it should be: look for the 2 of d(x^2) = 2x dx, or a half too many"),
        Factor(float(n), "sum for mean", f"is n = {n} times too large: the 1/n of a mean is missing"),
        Factor(1 / n, "mean for sum", f"is n = {n} times too small: a mean where a sum should be, or 1/n twice"),
        *known.case.model.lesson.factors(known.primals, known.case.batch),
    )
    for factor, kind, words in constants:
        yield Factor(factor, kind, words)
        yield Factor(-factor, kind, f"{words}; and the sign is wrong")
    for size, what in known.case.model.lesson.lengths(known.primals).items():
        if size not in (1, n):
            of = what.removeprefix("the ")
            words = f"is {size} times too small, the number of {of}: a mean where a sum should be"
            yield Factor(1 / size, "mean for sum", words)
