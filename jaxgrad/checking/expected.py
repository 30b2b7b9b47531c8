"""What an oracle expects of an example, in float64, and the noise that a type's arithmetic has there."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from jaxgrad.checking import glance
from jaxgrad.checking.compare import USUAL, Noise, Spread, exact, floored, independent, is_number, scaled
from jaxgrad.checking.oracles import Samples
from jaxgrad.checking.pullback import Pulled
from jaxgrad.checking.threads import of_each
from jaxgrad.jaxprs.noise import EXACT, Draw, rounding

# How far a type's roundings are enlarged when noise is measured, and once more to see which elements hang on a choice.
# float64's are, by 2^7, because a factor of 1 + 2^-53 is 1 in it.
_ENLARGED = {"float64": (2.0**7, 2.0**13), "float32": (1.0, 16.0), "bfloat16": (1.0, 4.0), "float16": (1.0, 4.0)}
# Roundings that are k times as large make errors that are, where all is smooth. Errors further from that than by this
# factor are those of a choice that flips: rare ones are seen with larger roundings only, ties with any.
_SMOOTH = 4.0

# Of answers of at most as many elements each is measured by itself, at a first look too.
SMALL = 2**16
# Pairs of samples for small answers at a first look, the part of their noise that counts, and the number of samples by
# which noise is as good as known: then an element's limit is 6.2 deviations, and another 5 of what was found.
_FEW, _STRICT, _KNOWN = 5, 0.8, 2**10
# The name of a type to an oracle's own answer in it, to one question.
Answers: TypeAlias = Callable[[str], Pulled]


class Expected(NamedTuple):
    """An oracle's answer to an example, and the noise of each array of it, in the same places.

    Noise that is not `whole` is that of a first look (`glance`): what differs by it has not been judged. `narrow` is
    the oracle's own answer in float32, where that is what a first look was taken at.
    """

    answer: Pulled
    noise: Pulled
    whole: bool = True
    narrow: Pulled | None = None


def samples_for(answer: Pulled) -> int:
    """How many samples noise is measured with: fewer of large answers, where many elements say what noise is."""
    elements = _elements(answer)
    return USUAL if elements <= SMALL else 16 if elements <= 2**18 else 8


def _elements(answer: Pulled) -> int:
    return sum(leaf.size for leaf in _leaves(answer))


def expect(sampled: Samples, dtype: str) -> Expected:
    """Measure an answer and its noise in a type."""
    answer = exactly(sampled)
    return Expected(answer, measured(sampled, answer, dtype))


def first_look(sampled: Samples, dtype: str, answers: Answers | None = None) -> Expected:
    """A large answer, and its noise at a first look: by an oracle's own error in float32, or by three samples.

    Errors of 16-bit types are not in proportion to those of float32, because their sums are.
    """
    if answers is None or dtype not in glance.LINEAR:
        answer = exactly(sampled)
        return Expected(answer, glanced(sampled, answer, dtype), whole=False)
    answer, narrow = answers("float64"), answers("float32")
    return Expected(answer, by_own_errors(answer, narrow, dtype), whole=False, narrow=narrow)


def by_own_errors(answer: Pulled, narrow: Pulled, dtype: str) -> Pulled:
    """The noise of an answer's arrays in float64 or float32, by the errors that the same program makes in float32."""
    return _like(answer, of_each(functools.partial(_own_error, dtype=dtype), _leaves(answer), _leaves(narrow)))


def _own_error(leaf: np.ndarray, narrow: np.ndarray, dtype: str) -> Noise:
    if is_number(leaf):
        return glance.by_own_error(leaf, narrow, dtype)
    return exact(leaf)._replace(unsure=narrow != leaf)


def exactly(sampled: Samples) -> Pulled:
    """The answer in float64, nothing rounded at random."""
    (answer,) = sampled([Draw(EXACT, 0)])
    return answer


def glanced(sampled: Samples, answer: Pulled, dtype: str) -> Pulled:
    """The noise of an answer's arrays at a first look, as `glance` has it."""
    leaves = _leaves(answer)
    small, large = _ENLARGED[dtype]
    drawn = iter(sampled([Draw(rounding(dtype, by), seed) for by, seed in ((small, 1), (large, 1), (small, 2))]))
    usual, enlarged = (_leaves(next(drawn)) for _ in range(2))
    seen: list[glance.Seen | np.ndarray] = []
    for leaf in leaves:
        # What is no longer needed makes room: of a large model each sample is as much as its parameters.
        a, b = usual.pop(0), enlarged.pop(0)
        seen.append(glance.seen(leaf, a, b, large / small) if is_number(leaf) else a != b)
    again = _leaves(next(drawn))
    return _like(answer, [_at_a_glance(leaf, seen.pop(0), again.pop(0), small, dtype) for leaf in leaves])


def _at_a_glance(
    leaf: np.ndarray, seen: glance.Seen | np.ndarray, again: np.ndarray, scale: float, dtype: str
) -> Noise:
    if isinstance(seen, glance.Seen):
        return glance.noise_of(leaf, seen, again, scale, dtype)
    return exact(leaf)._replace(unsure=seen | (again != leaf))


def measured(sampled: Samples, answer: Pulled, dtype: str, narrow: bool = False) -> Pulled:
    """The noise of an answer's arrays, from samples with a type's roundings drawn at random.

    `narrow` is as in `noise.rounding`: reductions keep their sums in the type itself.
    """
    leaves, samples = _leaves(answer), samples_for(answer)
    pairs = max(4, samples // 4)
    usual, hang = _in_pairs(sampled(_pairs(dtype, pairs, narrow)), leaves, dtype)
    small, _ = _ENLARGED[dtype]
    for sample in sampled([Draw(rounding(dtype, small, narrow), seed) for seed in range(pairs + 1, samples + 1)]):
        _add(usual, sample)
    return _like(answer, _noises(leaves, usual, hang, dtype))


def few_samples(sampled: Samples, dtype: str) -> Expected:
    """A small answer, and its noise at a first look: by a few of the samples that measure it whole.

    Limits are as strict as they can be: as if noise were known exactly, and all elements' errors were independent, and
    of `_STRICT` of the noise that is found. By `_FEW` samples an element's noise is more than twice what it is once in
    800 times; what passes then is still within 10 times its noise. What is right may be measured whole for it.
    """
    # Asked all at once: a program is prepared for each time that it is asked.
    drawn = iter(sampled([Draw(EXACT, 0), *_pairs(dtype, _FEW)]))
    answer = next(drawn)
    leaves = _leaves(answer)
    noises = _noises(leaves, *_in_pairs(drawn, leaves, dtype), dtype)
    strict = [
        scaled(noise, _STRICT)._replace(samples=_KNOWN, freedom=independent(noise.deviation.shape)) for noise in noises
    ]
    return Expected(answer, _like(answer, strict), whole=False)


def _pairs(dtype: str, count: int, narrow: bool = False) -> list[Draw]:
    """Draws for `_in_pairs`: each with small roundings and with large ones."""
    return [Draw(rounding(dtype, by, narrow), seed) for seed in range(1, count + 1) for by in _ENLARGED[dtype]]


def _in_pairs(drawn: Iterable[Pulled], leaves: Sequence[np.ndarray], dtype: str) -> tuple[list[Spread], list["_Hangs"]]:
    """The samples of `_pairs` with small roundings, and which elements of each array hang on a choice.

    Each element's error is measured twice, with small roundings and with large ones, drawn alike. Where the two are
    not in proportion the element is `unsure`.
    """
    small, large = _ENLARGED[dtype]
    usual, enlarged = ([Spread(leaf) for leaf in leaves] for _ in range(2))
    for number, sample in enumerate(drawn):
        _add(enlarged if number % 2 else usual, sample)
    return usual, [_hangs_on_a_choice(*pair, large / small) for pair in zip(usual, enlarged, strict=True)]


def _noises(leaves: Sequence[np.ndarray], usual: list[Spread], hang: Sequence["_Hangs"], dtype: str) -> list[Noise]:
    """The noise of each array by its samples, of which `usual` is emptied."""
    small, _ = _ENLARGED[dtype]
    found = []
    for leaf, hangs in zip(leaves, hang, strict=True):
        # What is no longer needed makes room for the next: of a large model each list is as much as its parameters.
        spread = usual.pop(0)
        if not is_number(leaf):
            found.append(exact(leaf)._replace(unsure=spread.differs | hangs.unsure))
            continue
        noise = scaled(spread.noise(), 1 / small)
        own = noise._replace(unsure=noise.unsure | hangs.unsure, lost=noise.lost | hangs.lost)
        found.append(floored(own, leaf, dtype))
    return found


class _Hangs(NamedTuple):
    """Which elements hang on a choice, and which of them because larger roundings make them infinite."""

    unsure: np.ndarray
    lost: np.ndarray | bool


def _hangs_on_a_choice(usual: Spread, enlarged: Spread, ratio: float) -> _Hangs:
    if not usual.number:
        return _Hangs(enlarged.differs, False)
    smooth, wide = ratio * usual.noise().deviation, enlarged.noise()
    apart = (wide.deviation > _SMOOTH * smooth) | (wide.deviation * _SMOOTH < smooth)
    return _Hangs(apart | wide.unsure, wide.lost)


def _add(spreads: Sequence[Spread], sample: Pulled) -> None:
    for spread, leaf in zip(spreads, _leaves(sample), strict=True):
        spread.add(leaf)


def _leaves(answer: Pulled) -> list[np.ndarray]:
    return [leaf for part in answer for leaf in part]


def _like(answer: Pulled, leaves: Sequence[Noise]) -> Pulled:
    rest = iter(leaves)
    return Pulled(*([next(rest) for _ in part] for part in answer))


def combined(noises: Sequence[Noise]) -> Noise:
    """The noise of several programs' difference from the same value: their variances add up."""
    # The root of the sum of squares, of which those of tiny numbers would underflow.
    deviation = functools.reduce(np.hypot, (noise.deviation for noise in noises))
    unsure = np.any([noise.unsure for noise in noises], 0)
    freedom = tuple(map(min, zip(*(noise.freedom for noise in noises), strict=False)))
    lost = np.any([np.broadcast_to(noise.lost, unsure.shape) for noise in noises], 0)
    return Noise(deviation, min(noise.samples for noise in noises), freedom, unsure, lost)


def stacked(noises: Sequence[Noise]) -> Noise:
    """The noise of several examples' arrays stacked along a new first axis."""
    # Of what is exact no freedom is known along its axes, and of the same array elsewhere it may be.
    whole, *axes = map(min, itertools.zip_longest(*(noise.freedom for noise in noises), fillvalue=1.0))
    return Noise(
        np.stack([noise.deviation for noise in noises]),
        min(noise.samples for noise in noises),
        (whole, whole, *axes),
        np.stack([noise.unsure for noise in noises]),
        np.stack([np.broadcast_to(noise.lost, noise.unsure.shape) for noise in noises]),
    )
