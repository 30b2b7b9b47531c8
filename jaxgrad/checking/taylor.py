r"""The definition of a derivative as a test: how Taylor's remainder falls tells a right gradient from a wrong one.

$$R(h) = \bigl|f(x + hv) - f(x) - h\,\langle g, v\rangle\bigr|$$
falls with $h^2$ where $g = \nabla f(x)$ and with $h$ where it is not. `judge` measures f along a line through x at
many h, so no step size is chosen and no tolerance guessed: it looks for the step at which the slope of f is known
best, and asks whether that slope is $\langle g, v\rangle$. What rounding does to f is measured along the same line.

Four kinds of functions need more than that, and each leaves its own trace on the line:

- a kink at x: the slopes ahead of x and behind it differ however small the step, and any slope between is right;
- a kink near x: large steps show another slope than small ones, and the small ones are right;
- float32 inside: f moves in jumps, small steps show no slope or a wrong one, and the large ones are right;
- f too rough or too large for float64: no step shows a slope.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from jaxgrad.jax_seam import ClosedJaxpr
from jaxgrad.jaxprs import in_numpy
from jaxgrad.jaxprs.casts import holds
from jaxgrad.jaxprs.walk import bounded

# Steps are the size of x times 4^-k, k = 0 to 23: from as large as x to where 1 + h is only just not 1 in float64.
_STEPS = 24
_RATIO = 4.0
# A loop that ends at x within one of these may take eight times as many turns elsewhere.
_TURNS = (2**6, 2**10, 2**14, 2**18)
# A slope has settled when four steps in a row, six halvings, show it: kinks that are crossed give no such run.
_RUN = 4
# Two slopes are the same within this part of the one, and clearly different where their bounds are below it.
_RESOLVED = 0.3
# Noise is the largest of about ten to thirty samples, some two standard deviations; four times that is eight.
_SAFETY = 4.0
_EPS = float(np.finfo(np.float64).eps)
# A gradient has rounding of its own, which no look at f can measure; this part of it is always forgiven.
_GRADIENT_ROUNDING = 2.0**-30
# A function with steps may have a gradient of 0; steps below this part of its size are arithmetic (float32: 2^-24).
_JUMP = 2.0**-20
# A gradient below the one part of f's size over the largest step is 0; f then has to move by less than the other.
_NOTHING, _STILL = 2.0**-46, 2.0**-20
# Noise above this part of what f moves by is not float64's, except where very large terms cancel.
_NARROW = 2.0**-30
# Where a leaf is smaller than this, steps of size 1 are tried as well: f may not know that its input is small.
_SMALL = 2.0**-16
# Where numbers of a leaf differ by more than this factor, each is moved in proportion to its size too.
_UNEVEN = 2.0**10
# Sets of coordinates that are looked at to find those with a kink.
_SPLITS = 48

_SEVERITY = ("right", "kink", "undecided", "narrow", "wrong")

_NARROW_TYPES = {"f32": 2.0**-23, "c64": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7, "f8": 2.0**-2, "f4": 2.0**-1}

# Of a function of fewer numbers one call evaluates all steps: calls would take longer than f.
_SMALL_CALL = 2**16
# Of a function of so few equations NumPy evaluates some five hundred steps before XLA has compiled it.
_FEW_EQUATIONS = 200

# f along a direction: from the direction and steps to a number for each.
_Evaluate = Callable[[np.ndarray, Sequence[float] | np.ndarray], np.ndarray]


class Judgement(NamedTuple):
    """What the definition of a derivative says of a gradient.

    `verdict` is "right", "wrong", "kink" (a right subgradient where f has no derivative), "narrow" (f computes in
    float32 or less, and as far as that shows the gradient is right) or "undecided". `order` is the measured power of
    h of the remainder, infinite where the remainder is all rounding. `why` is a sentence for a person.
    `error` is how far the gradient's slope is from the one of f, as a part of the gradient's terms along the direction.
    """

    verdict: str
    order: float
    why: str
    error: float = float("inf")


class _Line(NamedTuple):
    """f along one line through x: `ahead[k]` is f(x + h[k] v), `behind[k]` is f(x - h[k] v), h falls with k.

    `blur` is the error of x + h v, which is rounded, in units of h v. A type narrower than float64 in f's program may
    make f jump over steps below `trusted`.
    """

    at_x: float
    h: np.ndarray
    ahead: np.ndarray
    behind: np.ndarray
    blur: np.ndarray
    trusted: float


class _Slopes(NamedTuple):
    """The slope of f at each step, how much more it is ahead of x than behind, and a bound on the error of both.

    `noise` is the part of that bound that f itself has, in units of f. Bounds are infinite where nothing is known.
    """

    slope: np.ndarray
    gap: np.ndarray
    bound: np.ndarray
    noise: np.ndarray


class _Given(NamedTuple):
    """A gradient along a direction: `<g, v>`, and the size of its terms, the norm of `g v`."""

    slope: float
    size: float


def judge(
    f: Callable[[list[Array]], Array],
    x: list[Array],
    gradients: Mapping[str, list[Array]],
    key: PRNGKeyArray,
    *,
    inputs: Sequence[int] | None = None,
    directions: int = 3,
) -> dict[str, list[Judgement]]:
    """Whether each of `gradients` is the gradient of `f` at `x`, by leaf of `x`.

    Every leaf is moved alone, along random directions; the worst direction counts. f is traced once, compiled if it is
    not small, and evaluated at one step after another, some 50 times a direction, for all gradients together. An error
    below 1e-9 of the gradient is forgiven, and so is what the rounding of f hides.

    Args:
        f: from a list of arrays to a real float64 scalar; traceable by JAX.
        x: float64 or complex128 arrays; 64-bit types are enabled in JAX.
        gradients: by a name, arrays like `x` in JAX's convention: the slope along v is `Re(sum(g * v))`.
        key: of the random directions.
        inputs: numbers of the leaves to judge, in the order of the answer; all of them by default.
        directions: random directions a leaf.

    Returns:
        By the name of the gradient, a judgement for each of `inputs`.

    Raises:
        ValueError: a leaf is not float64 or complex128: rounding would bury the remainder before it shows its rate.

    Examples:
        >>> with jax.enable_x64(True):
        ...     x = jnp.arange(3.0)
        ...     found = judge(lambda x: jnp.sin(x[0]).sum(), [x], {"hand": [jnp.cos(x)]}, jax.random.key(0))
        >>> found["hand"][0].verdict
        'right'
    """
    if any(leaf.dtype not in (np.float64, np.complex128) for leaf in x):
        raise ValueError("Taylor's remainder needs float64; convert x, and enable 64-bit types in JAX")
    program = jax.make_jaxpr(f)(x)
    f = _ending(f, program, x)
    along = _along_steps(f, program, x)
    point: list[Any] = [np.asarray(leaf) for leaf in x]
    still = [np.zeros_like(leaf) for leaf in point]
    coarsest = _coarsest(program)
    found: dict[str, list[Judgement]] = {engine: [] for engine in gradients}
    for number in range(len(x)) if inputs is None else inputs:
        of_engine = {engine: np.asarray(of[number]) for engine, of in gradients.items()}

        def evaluate(direction: np.ndarray, steps: Sequence[float] | np.ndarray, number: int = number) -> np.ndarray:
            return along(point, [*still[:number], direction, *still[number + 1 :]], np.asarray(steps))

        keys = jax.random.split(jax.random.fold_in(key, number), directions)
        for engine, judgement in _leaf(evaluate, point[number], of_engine, keys, coarsest).items():
            found[engine].append(judgement)
    return found


def _along_steps(
    f: Callable[[list[Array]], Array], program: ClosedJaxpr, x: list[Array]
) -> Callable[[list[Any], list[Any], np.ndarray], np.ndarray]:
    """The values of f at x + h v for each of up to `2 _STEPS + 1` steps h."""
    work = in_numpy.work(program)
    small = work is not None and work.equations <= _FEW_EQUATIONS and work.numbers <= _SMALL_CALL and not work.others
    if small and in_numpy.if_normal(program, x) is not None:
        return lambda x, v, steps: np.array(
            [in_numpy.evaluate(program, [leaf + h * d for leaf, d in zip(x, v, strict=True)])[0] for h in steps]
        )
    most = 2 * _STEPS + 1

    def at(x: list[Array], v: list[Array], h: Array) -> Array:
        return f([leaf + h.astype(leaf.dtype) * d for leaf, d in zip(x, v, strict=True)])

    def at_each(x: list[Array], v: list[Array], steps: Array, count: Array) -> Array:
        one = lambda k, found: found.at[k].set(at(x, v, steps[k]))  # noqa: E731
        return jax.lax.fori_loop(0, count, one, jnp.zeros(most))

    if sum(leaf.size for leaf in x) > _SMALL_CALL:
        step = jax.jit(at)
        return lambda x, v, steps: np.array([float(step(x, v, jnp.float64(h))) for h in steps])
    together = jax.jit(at_each)
    return lambda x, v, steps: np.asarray(
        together(x, v, np.pad(steps, (0, most - len(steps))), len(steps))[: len(steps)]
    )


def _ending(f: Callable[[list[Array]], Array], program: ClosedJaxpr, x: list[Array]) -> Callable[[list[Array]], Array]:
    """f, which is NaN where one of its loops has not ended after many times the turns that x needs.

    A step may lead out of the domain in which an iteration converges, and it would go on for ever.
    """
    if not holds(program, ("while",)):
        return f

    def up_to(turns: int) -> Callable[[list[Array]], Array]:
        return lambda x: bounded(program, x, turns)[0]

    for turns in _TURNS:
        if not np.isnan(jax.jit(up_to(turns))(x)):
            return up_to(8 * turns)
    return f


def _coarsest(program: ClosedJaxpr) -> float:
    """The largest machine epsilon of the types narrower than float64 in f's program; 0 without any."""
    found = re.findall(r"\b(bf16|f16|f32|c64|f8|f4)\w*\[", str(program))
    return max((_NARROW_TYPES[name] for name in found), default=0.0)


def _leaf(
    evaluate: _Evaluate, x: np.ndarray, gradients: dict[str, np.ndarray], keys: PRNGKeyArray, coarsest: float
) -> dict[str, Judgement]:
    """The judgement of each gradient by one leaf: the worst over directions."""
    if not x.size:
        return dict.fromkeys(gradients, Judgement("right", float("inf"), "the array is empty"))
    worst: dict[str, Judgement] = {}
    for key in keys:
        direction = np.asarray(jax.random.normal(key, x.shape, x.dtype))
        ways = [(direction, _line(evaluate, x, direction, scale, 16 * coarsest * scale)) for scale in _scales(x)]
        judged = _each_way(evaluate, x, gradients, ways, worst)
        if _uneven(x) and any(_unseen(of) for of in judged.values()):
            relative = direction * _own_sizes(x)
            ways = [(relative, _line(evaluate, x, relative, 1.0, 16 * coarsest))]
            again = _each_way(evaluate, x, gradients, ways, worst)
            judged = {engine: [*of, *again[engine]] if _unseen(of) else of for engine, of in judged.items()}
        for engine, of in judged.items():
            # Steps of the wrong scale see nothing; then only the other scale counts.
            seen = [judgement for judgement in of if judgement.verdict != "undecided"] or of
            worst[engine] = max([worst.get(engine, seen[0]), *seen], key=_severity)
    return worst


def _each_way(
    evaluate: _Evaluate,
    x: np.ndarray,
    gradients: Mapping[str, np.ndarray],
    ways: Sequence[tuple[np.ndarray, _Line]],
    earlier: Mapping[str, Judgement],
) -> dict[str, list[Judgement]]:
    """The judgement of each gradient along every direction, of which `earlier` has none yet for the first."""
    return {
        engine: [_direction(evaluate, x, direction, gradient, line, engine not in earlier) for direction, line in ways]
        for engine, gradient in gradients.items()
    }


def _unseen(judged: Sequence[Judgement]) -> bool:
    return all(judgement.verdict == "undecided" for judgement in judged)


def _uneven(x: np.ndarray) -> bool:
    """Whether numbers of x are of such different sizes that one step is too large for some or too small for others."""
    sizes = np.abs(x[(x != 0) & np.isfinite(x)])
    return bool(sizes.size) and bool(sizes.max() > _UNEVEN * sizes.min())


def _own_sizes(x: np.ndarray) -> np.ndarray:
    """The size of each number of x; for 0 that of the smallest other."""
    sizes = np.abs(x)
    return np.where(sizes == 0, np.min(sizes, where=sizes > 0, initial=np.inf), sizes)


def _severity(judgement: Judgement) -> int:
    return _SEVERITY.index(judgement.verdict)


def _scales(x: np.ndarray) -> list[float]:
    """The largest step: the size of x, as a power of two; and 1 too where x is small."""
    largest = float(np.abs(x).max())
    if largest == 0 or not np.isfinite(largest):
        return [1.0]
    scale = float(2.0 ** np.round(np.log2(_norm(x) / np.sqrt(x.size))))
    return [scale, 1.0] if scale < _SMALL else [scale]


def _line(evaluate: _Evaluate, x: np.ndarray, direction: np.ndarray, scale: float, trusted: float) -> _Line:
    h = scale * _RATIO ** -np.arange(_STEPS)
    at_x, ahead, behind = np.split(evaluate(direction, [0.0, *h, *-h]), [1, 1 + _STEPS])
    blur = _EPS / 2 * _norm(x) / (h * _norm(direction))
    return _Line(float(at_x[0]), h, ahead, behind, blur, trusted)


def _norm(x: np.ndarray) -> float:
    """The Euclidean norm, of numbers whose squares may be too large or too small as well."""
    largest = float(np.abs(x).max())
    return largest * float(np.linalg.norm((x / largest).ravel())) if 0 < largest < np.inf else largest


def _direction(
    evaluate: _Evaluate, x: np.ndarray, direction: np.ndarray, gradient: np.ndarray, line: _Line, first: bool
) -> Judgement:
    """The judgement of a gradient along one direction; where a kink leaves doubt, along parts of it.

    A gradient between the slopes at a kink may be wrong all the same. As that takes many evaluations, it is looked
    into along the first direction only.
    """
    near = np.concatenate([[line.at_x], line.ahead[_STEPS // 2 :], line.behind[_STEPS // 2 :]])
    if not np.isfinite(near).all():
        return Judgement("undecided", float("nan"), "f is NaN or infinite at x or close to it")
    if not np.isfinite(gradient).all():
        return Judgement("wrong", float("nan"), "the gradient is NaN or infinite where f is finite")
    judged = _on_line(line, _along(gradient, direction))
    if judged.why == _OUTSIDE or (judged.verdict == "kink" and first):
        return _by_parts(evaluate, x, direction, gradient, line, judged)
    return judged


def _along(gradient: np.ndarray, direction: np.ndarray) -> _Given:
    terms = np.real(gradient * direction)
    return _Given(float(terms.sum()), _norm(terms))


# Why a gradient at a kink of several coordinates may be undecided.
SEVERAL = ("a kink here, of many coordinates together", "several kinks meet here")
_OUTSIDE = "a kink here, and the gradient lies outside the one-sided slopes"


def _on_line(line: _Line, given: _Given) -> Judgement:
    """The judgement from f along a line, and the slope that a gradient claims there."""
    seen = _slopes(line, given)
    error = seen.slope - given.slope
    best = _smallest_scale(seen, error)
    if best is None:
        return Judgement("undecided", float("nan"), "no step shows a slope")
    size = max(abs(given.slope), given.size)
    apart = float(abs(error[best]) / size) if size else float("inf")
    return _at_best(line, seen, given, error, best)._replace(error=apart)


def _at_best(line: _Line, seen: _Slopes, given: _Given, error: np.ndarray, best: int) -> Judgement:
    """The judgement by the step at which the slope is known best."""
    order = _order(line, seen, given, best)
    if abs(seen.gap[best]) > seen.bound[best]:
        return _at_kink(line, seen, error, best, order)
    wide = _other_slope_of_large_steps(line, seen, error, best)
    if abs(error[best]) <= seen.bound[best]:
        return _where_slopes_agree(line, seen, given, best, wide, order)
    if wide is not None:
        return _over_jumps(seen, error, wide, order)
    still = _still(line)
    if still[best] and given.size * line.h[still].max() <= _EPS * _span(line):
        return Judgement("right", order, "f stands still, as it does to its last digit by the gradient")
    run = _run(error, seen.bound, best)
    if len(run) < _RUN or _is_noise(line, seen, best):
        return Judgement("undecided", order, "too few steps above the noise of f show the same other slope")
    if np.sum(line.h[run] >= line.trusted) < _RUN:
        return Judgement("undecided", order, "f computes in a narrow type, and shows another slope at tiny steps only")
    return Judgement("wrong", order, f"the remainder falls with h^{order:.2f} over {2 * (len(run) - 1)} halvings of h")


def _at_kink(line: _Line, seen: _Slopes, error: np.ndarray, best: int, order: float) -> Judgement:
    if len(_run(seen.gap, seen.bound, best)) < _RUN or _is_noise(line, seen, best):
        return Judgement("undecided", order, "f bends at x, but too few steps show the same two slopes")
    if abs(error[best]) > abs(seen.gap[best]) / 2 + seen.bound[best]:
        return Judgement("wrong", order, _OUTSIDE)
    return Judgement("kink", order, "a kink here: the gradient lies between the one-sided slopes")


def _where_slopes_agree(
    line: _Line, seen: _Slopes, given: _Given, best: int, wide: int | None, order: float
) -> Judgement:
    """The judgement where the slope known best is the gradient's: right, if that slope is known well."""
    if _still(line)[best] and not _still(line).all():
        # f stands still at small steps, and the gradient is 0: right for a function with steps, wrong for a float32.
        if wide is not None and len(_run(seen.slope, seen.bound, wide)) >= _RUN:
            if line.trusted or abs(seen.slope[wide]) * line.h[best] < _JUMP * _span(line):
                return Judgement("wrong", 1.0, "f moves in jumps of rounding, and over many of them with another slope")
        elif line.h[best] < line.trusted:
            return Judgement("undecided", order, "f computes in a narrow type, and moves in few large jumps")
    size, steepest = max(abs(given.slope), given.size), _span(line) / line.h[0]
    if size <= _NOTHING * steepest:
        # Such a gradient may be 0 but for its own rounding; then f need not stand stiller than this.
        size = _STILL * steepest
    noisy = seen.noise[best] > max(_NARROW * _moved(line), 2.0**6 * _rounding(line)[best])
    if line.trusted and noisy and seen.bound[best] < size / 2:
        return Judgement("narrow", order, _jumps(seen, best))
    if seen.bound[best] > 2.0**-7 * size:
        return Judgement("undecided", order, "the noise of f hides its slope")
    falls = "is all rounding" if np.isinf(order) else f"falls with h^{order:.2f} down to rounding"
    return Judgement("right", order, f"the remainder {falls}")


def _over_jumps(seen: _Slopes, error: np.ndarray, wide: int, order: float) -> Judgement:
    """The judgement by large steps alone, where small ones show another slope: that of jumps, and none between them."""
    if abs(error[wide]) <= seen.bound[wide]:
        return Judgement("narrow", order, _jumps(seen, wide))
    if len(_run(error, seen.bound, wide)) < _RUN:
        return Judgement("undecided", order, "f moves in jumps, and too few steps are larger than they")
    return Judgement("wrong", 1.0, "f moves in jumps, and over many of them with another slope")


def _jumps(seen: _Slopes, step: int) -> str:
    size = seen.noise[step] / _SAFETY
    return f"f moves in jumps of about {size:.0e}, as in float32; over larger steps the gradient is right"


def _slopes(line: _Line, given: _Given) -> _Slopes:
    r"""Slopes by central differences, $s(h) = (f(x+hv) - f(x-hv)) / 2h$, and the gap $s_+ - s_-$ of one-sided ones.

    The gap of a smooth f is proportional to h; Richardson's extrapolation takes that away, and leaves a kink's.
    The error is measured by how much h s(h), and h times the gap, change from one step to the next: for a smooth f
    they change by fifteen times the error of truncation, for a noisy one by the noise. A smaller step has no more
    noise than a larger one, so the largest change of all smaller steps counts.
    """
    with np.errstate(all="ignore"):
        odd, even = (line.ahead - line.behind) / 2, line.ahead + line.behind - 2 * line.at_x
        slope, bend = odd / line.h, even / line.h
        gap = (_RATIO * bend - _before(bend)) / (_RATIO - 1)
        change = np.maximum(np.abs(odd - _before(odd) / _RATIO), line.h * np.abs(gap - _before(gap)))
        change = np.where(np.isfinite(change), change, np.inf)
        noise = _SAFETY * np.maximum.accumulate(change[::-1])[::-1] + _rounding(line)
        # Linear functions would be known to the last bit by their largest steps, and gradients are not.
        bound = noise / np.minimum(line.h, line.h[0] * 2.0**-8) + _GRADIENT_ROUNDING * given.size
        bound += _SAFETY * line.blur * np.maximum(np.abs(slope), max(abs(given.slope), given.size))
    known = np.isfinite(bound) & (line.blur < 0.25)
    return _Slopes(np.where(known, slope, 0), np.where(known, gap, 0), np.where(known, bound, np.inf), noise)


def _before(of_step: np.ndarray) -> np.ndarray:
    """The value at the next larger step."""
    return np.concatenate([[np.nan], of_step[:-1]])


def _rounding(line: _Line) -> np.ndarray:
    """The least noise that f can have: its values are rounded, if nothing before them is."""
    return 4 * _EPS * np.maximum(np.maximum(np.abs(line.ahead), np.abs(line.behind)), abs(line.at_x))


def _smallest_scale(seen: _Slopes, error: np.ndarray) -> int | None:
    """The step that knows the slope best, unless smaller ones know it to be another: then the best of those.

    Large steps see f well and across kinks: only what no smaller step denies is a property of f at x.
    """
    best = int(np.argmin(seen.bound))
    while np.isfinite(seen.bound[best]):
        size = max(abs(error[best]), abs(seen.gap[best]))
        smaller = np.arange(best + 1, len(error))
        limit = seen.bound[smaller] + _RESOLVED * size
        denied = (np.abs(error[smaller] - error[best]) > limit) | (np.abs(seen.gap[smaller] - seen.gap[best]) > limit)
        if size <= seen.bound[best] or not np.any(denied & (seen.bound[smaller] < _RESOLVED * size)):
            return best
        best += 1 + int(np.argmin(seen.bound[smaller]))
    return None


def _run(values: np.ndarray, bound: np.ndarray, at: int) -> np.ndarray:
    """The steps in a row around `at` that show its value, each by itself."""
    same = (np.abs(values - values[at]) <= np.maximum(_RESOLVED * abs(values[at]), bound)) & (bound <= abs(values[at]))
    others = np.concatenate([[-1], np.flatnonzero(~same), [len(same)]])
    return np.arange(others[others < at].max() + 1, others[others > at].min()) if same[at] else np.arange(0)


def _other_slope_of_large_steps(line: _Line, seen: _Slopes, error: np.ndarray, best: int) -> int | None:
    """The step that knows best another slope than `best`, the same on both sides of x; there may be none."""
    differs = np.abs(seen.slope - seen.slope[best])
    clear = (seen.bound < _RESOLVED * differs) & (differs > _RESOLVED * abs(error[best]))
    clear &= (np.abs(seen.gap) <= seen.bound) & (np.arange(len(error)) < best)
    # Over steps longer than its waves, sin(10^6 x) has a slope of 0 within its own size.
    clear &= seen.noise < 2.0**-6 * _span(line)
    return int(np.argmin(np.where(clear, seen.bound, np.inf))) if clear.any() else None


def _still(line: _Line) -> np.ndarray:
    """Whether f does not move at all, at each step and all smaller ones."""
    still = (line.ahead == line.at_x) & (line.behind == line.at_x)
    return np.logical_and.accumulate(still[::-1])[::-1]


def _is_noise(line: _Line, seen: _Slopes, step: int) -> bool:
    """Whether f is nothing but noise at this step, so that a slope of 0 within that noise says nothing."""
    return bool(seen.noise[step] > 2.0**-10 * _span(line))


def _moved(line: _Line) -> float:
    values = np.concatenate([line.ahead, line.behind])
    return float(np.abs(values[np.isfinite(values)] - line.at_x).max())


def _span(line: _Line) -> float:
    """The size of f along the line."""
    return max(abs(line.at_x), _moved(line))


def _order(line: _Line, seen: _Slopes, given: _Given, best: int) -> float:
    """The power of h with which the remainder falls over the smallest steps that show it; infinite if none do."""
    with np.errstate(all="ignore"):
        ahead = np.abs(line.ahead - line.at_x - line.h * given.slope)
        behind = np.abs(line.behind - line.at_x + line.h * given.slope)
        remainder = np.maximum(ahead, behind)
        above = np.flatnonzero(remainder > seen.bound * line.h)
    if len(above) < _RUN or above[-1] < best:
        return float("inf")
    last = above[-_RUN:]
    return float(np.polyfit(np.log2(line.h[last]), np.log2(remainder[last]), 1)[0])


def _by_parts(
    evaluate: _Evaluate, x: np.ndarray, direction: np.ndarray, gradient: np.ndarray, line: _Line, judged: Judgement
) -> Judgement:
    r"""The judgement of a gradient outside the slopes along a line with a kink, by the coordinates that have the kink.

    $\sum_i c_i\,\mathrm{relu}(x_i)$ at $x = 0$ has the gradient 0 by convention, and with signs of c that differ it
    need not lie between the slopes of the sum. It does along each coordinate; and along the coordinates without a
    kink it is right or wrong.
    """
    smooth, kinked = _split(evaluate, x, direction, gradient, line)
    if not kinked:
        return judged if judged.verdict == "kink" else Judgement("undecided", judged.order, SEVERAL[0])
    parts = []
    if smooth.any():
        part = np.where(smooth, direction, 0)
        parts.append(_on_line(_line(evaluate, x, part, line.h[0], line.trusted), _along(gradient, part)))
    for coordinate in kinked[:_RUN]:
        part = _only(direction, np.array([coordinate]))
        along = _line(evaluate, x, part, line.h[0], line.trusted)
        found = _on_line(along, _along(gradient, part))
        if found.why == _OUTSIDE and not _stays(evaluate, along, part, direction - part):
            found = Judgement("undecided", found.order, SEVERAL[1])
        parts.append(found)
    return max(parts, key=_severity)


def _stays(evaluate: _Evaluate, line: _Line, part: np.ndarray, rest: np.ndarray) -> bool:
    """Whether the kink of a coordinate is there, and the same, when x has moved a little along the others.

    If not, several units have their kink at x, as in relu(x @ w) at x = 0. Then the gradient follows the convention
    of each unit, and their sum need not lie between the slopes of the sum.
    """
    h, shift = line.h[13], line.h[9] * rest

    def gap(shift: np.ndarray) -> float:
        ahead, behind, between = (float(evaluate(v, [1.0])[0]) for v in (shift + h * part, shift - h * part, shift))
        return (ahead + behind - 2 * between) / h

    here, there = gap(0 * rest), gap(shift)
    return abs(here - there) < _RESOLVED * abs(here)


def _split(
    evaluate: _Evaluate, x: np.ndarray, direction: np.ndarray, gradient: np.ndarray, line: _Line
) -> tuple[np.ndarray, list[int]]:
    """Which coordinates have no kink, as a mask, and some that have one, by halving sets of coordinates.

    Coordinates for which `_SPLITS` does not suffice are in neither.
    """
    seen = _slopes(line, _along(gradient, direction))
    best = int(np.argmin(seen.bound))

    def bends(coordinates: np.ndarray) -> bool:
        part = _only(direction, coordinates)
        h = line.h[best] * np.array([1.0, _RATIO])
        ahead, behind = np.split(evaluate(part, [*h, *-h]), 2)
        small, large = (ahead + behind - 2 * line.at_x) / h
        return abs(_RATIO * small - large) / (_RATIO - 1) > seen.bound[best]

    smooth, kinked = np.zeros(x.size, bool), list[int]()
    sets, looked = [np.arange(x.size)], 0
    while sets and looked < _SPLITS:
        coordinates = sets.pop()
        looked += 1
        if not bends(coordinates):
            smooth[coordinates] = True
        elif len(coordinates) == 1:
            kinked.append(int(coordinates[0]))
        else:
            sets += np.array_split(coordinates, 2)
    return smooth.reshape(x.shape), kinked


def _only(direction: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """The direction along these coordinates alone."""
    part = np.zeros(direction.size, direction.dtype)
    part[coordinates] = direction.ravel()[coordinates]
    return part.reshape(direction.shape)


def random_direction(key: PRNGKeyArray, like: Any) -> Any:
    """A tree of standard normal arrays of the shapes and types of `like`; zeros for what is no float."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.normal(k, leaf.shape, leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)
