r"""The noise of a program's arithmetic, measured by making every rounding at random: Monte Carlo arithmetic.

A program is evaluated in float64, several times, with the result of each rounding operation multiplied by
$1 + u\,\xi$, where $u$ is the unit roundoff of the type under test and $\xi$ has mean 0 and variance 1. What the
results then scatter by is what rounding does to them, amplified and cancelled as the program does it; no operation
needs an error analysis of its own. Moves and choices (reshape, gather, select, max) round nothing.

A sum of n terms rounds its terms and its partial sums $s_k$. In an unknown order $s_k$ is $\frac kn S$ and a random
walk around it. Compilers and BLAS add at most some `RUN` terms one after another and then add the partial sums of
such runs, so with $b = \min(n, \mathrm{RUN})$ terms a run and $m = n/b$ runs
$$\sum_k s_k^2 \approx \tfrac{b + m}2 \sum_i t_i^2 + \bigl(\tfrac{b}{3m} + \tfrac m3\bigr) S^2,$$
which times $u^2$ is the variance that a sum's partial sums add to it. $\sum_i t_i^2$ is the same operation applied to
the squares of its operands.

Compilers contract a product and a sum into one operation, fma(a, b, c), which does not round the product. Where the
same product is also used as it was rounded, as in $y - \max y$ with $y = ab$, what cancels exactly in one program
leaves the product's rounding in another: such sums get noise of the size of their largest operand.

Sources: Parker 1997, "Monte Carlo arithmetic"; Denis, de Oliveira Castro & Petit 2016, Verificarlo,
arXiv:1509.01347; the walk of the partial sums is ours.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import jax_seam
from jaxgrad.jax_seam import ClosedJaxpr
from jaxgrad.jaxprs import in_numpy
from jaxgrad.jaxprs.walk import evaluate, evaluate_now

# The longest run of terms that an engine adds one after another: the panels of Eigen, MKL and oneDNN products are 256
# to 512 long, XLA's reductions on a CPU take 32.
RUN = 512
SHORT_RUN = 32

# What only moves, copies, compares or chooses numbers.
MOVES = frozenset(
    "broadcast_in_dim reshape squeeze transpose expand_dims slice dynamic_slice dynamic_update_slice concatenate pad "
    "rev copy copy_p gather scatter select_n reduce_max reduce_min max min argmax argmin sort top_k approx_top_k "
    "stop_gradient device_put neg abs sign real imag complex conj clamp floor ceil round rem optimization_barrier name "
    "iota cummax cummin scatter_max scatter_min select_and_scatter_add select_and_gather_add reduce_window_max "
    "reduce_window_min convert_element_type reduce_precision bitcast_convert_type nextafter pvary pbroadcast "
    "all_gather all_to_all ppermute pmax pmin sharding_constraint split tile copysign is_finite random_bits "
    "random_seed random_wrap random_unwrap random_fold_in random_split rng_bit_generator empty2 empty get swap "
    "all_gather_invariant reduce_scatter_move stack unstack".split()
)
# Correctly rounded by every engine: one unit.
_EXACT = frozenset("add sub mul div sqrt add_any square".split())
# What a compiler may contract with a product, and what it takes for one.
_CONTRACTING = frozenset("add sub add_any".split())
_PRODUCTS = frozenset("mul integer_pow square".split())
# What libraries compute to about two units of the result.
_ELEMENTARY = frozenset(
    "exp exp2 log log1p expm1 tanh sin cos tan asin acos atan sinh cosh asinh acosh atanh logistic erf erfc pow "
    "integer_pow rsqrt cbrt atan2".split()
)
# Of these, those that are whole of whole numbers other than 0 too; the rest, such as tanh, are only rounded so.
_ALGEBRAIC = frozenset("exp2 pow integer_pow cbrt rsqrt".split())
_TRANSCENDENTAL = _ELEMENTARY - _ALGEBRAIC
# Numbers of so many bits are made by counting: of those that arithmetic rounds in types of at most this eps, few are.
_SHORT, _WIDE = 8, 2.0**-23
# Of the number of bits that are set in 32, each by chance.
_VARIANCE = 8
# The fewest numbers in a table of noise, so that small arrays seldom share any.
_FEWEST = 2**14
# XLA's special functions in float32 are off by up to some ten units.
_OPAQUE = 8
# Of these, which have zeros in their domain, by so many units of 1: they are made of terms of at least that size.
_WITH_ZEROS = frozenset(("lgamma", "digamma"))


class Rounding(NamedTuple):
    """How a type rounds: its unit roundoff, those of the types that sums are kept in, and by how much all are enlarged.

    `sums` are those of products of matrices and convolutions, `reductions` all others.

    float64 is evaluated in float64 itself, where a factor of 1 + 2^-53 is 1: its noise is measured enlarged, and
    brought back to its size afterwards, as noise that small is linear.
    """

    unit: float
    sums: float
    reductions: float
    enlarged: float


# An equation's results for other operands.
_Bind: TypeAlias = Callable[[list[Any]], list[Any]]


class _Drawn(NamedTuple):
    """A `Rounding` beside the table that one sample's noise is taken from: NumPy's where all values are."""

    unit: Any
    sums: Any
    reductions: Any
    enlarged: Any
    table: Any

    @property
    def np(self) -> Any:
        """The library that computes with it: one formula is traced by JAX, and computed by NumPy."""
        return np if type(self.table) is np.ndarray else jnp


def _traced_once(fn: Callable[..., Any], static: tuple[str, ...] = ()) -> Callable[..., Any]:
    """What is done around every equation: for NumPy as it stands, for JAX a program for each shape and type.

    It is copied into the programs that are traced: most of the time to trace them would else be that of these lines.
    """
    traced = jax.jit(fn, inline=True, static_argnames=static)

    @functools.wraps(fn)
    def run(rounding: _Drawn, *args: Any, **options: Any) -> Any:
        return (fn if rounding.np is np else traced)(rounding, *args, **options)

    return run


def rounding(dtype: Any, enlarged: float = 1.0, narrow: bool = False) -> Rounding:
    """The rounding of a float type, times `enlarged`; 16-bit types keep their sums in float32.

    With `narrow` they keep those of reductions, which are not products, in the type itself, as XLA does where a
    program does not widen them.
    """
    unit = float(jnp.finfo(dtype).eps) / 2
    wide = min(unit, 2.0**-24)
    return Rounding(enlarged * unit, enlarged * wide, enlarged * (unit if narrow else wide), enlarged)


EXACT = Rounding(0.0, 0.0, 0.0, 0.0)


class Draw(NamedTuple):
    """One evaluation with its roundings drawn at random, by a seed."""

    rounding: Rounding
    seed: int


def repeated(program: ClosedJaxpr, count: Any, seeds: Any, roundings: Rounding, *values: Any) -> list[Any]:
    """What `noisy` of a program gives for each draw, results stacked.

    Draws beyond the first `count` are not computed. Keys are given as their data.
    """
    once = noisy(program)

    def draw(number: Any, seed: Any, rounding: Rounding) -> list[Any]:
        def computed() -> list[Any]:
            return [_data(x) for x in once(seed, rounding, *values)]

        def left_out() -> list[Any]:
            shapes = [jax.eval_shape(_data, jax.ShapeDtypeStruct(x.shape, x.dtype)) for x in program.out_avals]
            return [jnp.zeros(x.shape, x.dtype) for x in shapes]

        return jax.lax.cond(number < count, computed, left_out)

    return jax.lax.map(lambda given: draw(*given), (jnp.arange(len(seeds)), seeds, roundings))


def _data(x: Any) -> Any:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def noisy(program: ClosedJaxpr) -> Callable[..., list[Any]]:
    """The program as a function `(seed, rounding, *values)` that rounds at random, or not at all for `EXACT`.

    `seed` is a uint32; values and results are the program's own, in float64. A value that the program keeps in a
    narrower type is rounded in that type, whatever `rounding` says of the type under test.
    """
    longest = _longest(program.jaxpr)

    def run(seed: Any, rounding: Rounding, *values: Any) -> list[Any]:
        seed = jnp.asarray(seed, jnp.uint32)
        drawn = _Drawn(*rounding, jnp.asarray(_table(seed, _size(longest))))
        return evaluate(program, values, _rounding_with(drawn), seed)

    return run


def noisy_now(program: ClosedJaxpr) -> Callable[..., list[Any]]:
    """`noisy` in NumPy, for a program that `in_numpy.work` is known of: the draws are the same."""
    longest = _longest(program.jaxpr)

    def run(seed: int, rounding: Rounding, *values: np.ndarray) -> list[np.ndarray]:
        if not any(rounding):
            return in_numpy.evaluate(program, values)
        unit, sums, reductions, enlarged = map(np.float64, rounding)
        drawn = _Drawn(unit, sums, reductions, enlarged, _table_now(seed, _size(longest)))
        return evaluate_now(program, values, _rounding_with(drawn), np.uint32(seed))

    return run


def _rounding_with(drawn: _Drawn) -> Callable[[Any, list[Any], Any], list[Any]]:
    """The visitor that rounds at random."""
    # By identity, and kept alive so that none is taken for another: what is a product, moved or not.
    products: dict[int, Any] = {}

    def visit(eqn: Any, operands: list[Any], place: Any) -> list[Any]:
        contracted = [x for x in operands if id(x) in products]
        name = _plain_name(eqn.primitive)
        outs = _rounded(eqn, name, operands, place, drawn, contracted)
        if name in _PRODUCTS or (contracted and name in MOVES):
            products.update({id(out): out for out in outs})
        return outs

    return visit


@functools.cache
def _plain_name(primitive: Any) -> str:
    return str(primitive.name).replace("-", "_")


def _rounded(
    eqn: Any, name: str, operands: list[Any], place: Any, rounding: _Drawn, contracted: Sequence[Any]
) -> list[Any]:
    """What an equation gives with its roundings drawn; compilers may leave those of `contracted` operands out."""
    bind = _binding(rounding)
    if name in MOVES or not any(_rounds(var.aval) for var in eqn.outvars):
        return bind(eqn, operands)
    if name in _SUMS:
        return [_sum(eqn, name, operands, place, rounding)]
    if name in _CONTRACTING and contracted:
        (out,) = bind(eqn, operands)
        if not _rounds(out):
            return [out]
        return [_sum_of_products(rounding, out, _floats(operands), list(contracted), place)]
    if name in _EXACT or name in _ELEMENTARY:
        (out,) = bind(eqn, operands)
        units = 1 if name in _EXACT else 2
        return [_once(rounding, out, _floats(operands), place, units=units, at_0=name in _TRANSCENDENTAL)]
    # An algorithm behind one name, such as a factorisation, a special function or somebody's kernel: stable ones give
    # the nearly right result of nearly the right operands.
    shaken = [_shaken(x, rounding, place ^ np.uint32(7919 * (k + 1)), _OPAQUE) for k, x in enumerate(operands)]
    if name == "polygamma":
        # There is none of an order that is not whole.
        shaken[0] = operands[0]
    outs = bind(eqn, shaken)
    if name in _WITH_ZEROS:
        of_terms = _shaken(rounding.np.ones_like(outs[0]), rounding, place ^ np.uint32(15485863), _OPAQUE) - 1
        outs = [outs[0] + rounding.np.where(rounding.np.isfinite(outs[0]), of_terms, 0)]
    return [_shaken(out, rounding, place ^ np.uint32(104729 * (k + 1)), _OPAQUE) for k, out in enumerate(outs)]


@functools.partial(_traced_once, static=("units", "at_0"))
def _once(rounding: _Drawn, out: Any, operands: list[Any], place: Any, *, units: int, at_0: bool) -> Any:
    """A result that is rounded once, to so many units, where it is no whole number; or, `at_0`, not made of 0."""
    whole = _whole(out, rounding, [] if at_0 else operands)
    for operand in operands if at_0 else ():
        whole = whole & (operand == 0)
    return rounding.np.where(whole, out, _shaken(out, rounding, place, units))


@_traced_once
def _sum_of_products(rounding: _Drawn, out: Any, operands: Sequence[Any], products: Sequence[Any], place: Any) -> Any:
    """A sum or difference, shaken by the rounding of the largest of itself and the products in it."""
    xp = rounding.np
    size, whole = xp.abs(out), _whole(out, rounding, operands)
    for x in products:
        size, whole = xp.maximum(size, xp.abs(x)), whole & _whole(x, rounding, ())
    noise = _shaken(xp.ones_like(out), rounding, place) - 1
    return xp.where(whole | ~xp.isfinite(size), out, out + size * noise)


def _whole(x: Any, rounding: _Drawn, operands: Sequence[Any], apart: bool = True) -> Any:
    """Where a result is a whole number made of short ones, as a float is that counts: nothing is rounded there.

    With `apart` an element is made of those at its own place, if the shapes are the same.
    1 + tanh(x) is 0 for many x that are not whole, and log(1 + exp(x)) too: there it is all rounding.
    """
    xp = rounding.np
    whole = (x == xp.rint(x)) & (xp.abs(x) * rounding.unit <= 1)
    if xp is np and not whole.any():
        return whole
    for operand in operands:
        short = _short(operand, xp)
        by_element = apart and _number(x.dtype).eps <= _WIDE and operand.shape in ((), x.shape)
        whole = whole & (short if by_element else xp.all(short))
    return whole


def _short(x: Any, xp: Any) -> Any:
    """Where a number has few bits, as one that is counted, halved or doubled; in a 16-bit type, where it is whole."""
    eps = _number(x.dtype).eps
    if eps > _WIDE:
        return x == xp.rint(x)
    # Dekker's splitting: what is left is rounded to `_SHORT` bits.
    wide = x * np.asarray(2.0 ** (1 - _SHORT) / eps + 1, _number(x.dtype).real)
    return wide - (wide - x) == x


def _floats(operands: list[Any]) -> list[Any]:
    return [operand for operand in operands if _rounds(operand)]


class _Number(NamedTuple):
    """What is asked for every equation of a type that arithmetic rounds: its eps, its real type, if it is complex."""

    eps: float
    real: np.dtype
    is_complex: bool


@functools.cache
def _number(dtype: Any) -> _Number:
    """A type that arithmetic rounds."""
    info = jnp.finfo(dtype)
    return _Number(float(info.eps), info.dtype, bool(jnp.issubdtype(dtype, jnp.complexfloating)))


def _rounds(x: Any) -> bool:
    """Whether arithmetic rounds a value, or one like it."""
    return hasattr(x, "dtype") and _is_inexact(x.dtype)


@functools.cache
def _is_inexact(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def _binding(rounding: _Drawn) -> Callable[[Any, list[Any]], list[Any]]:
    return in_numpy.bind if rounding.np is np else jax_seam.bind


def _shaken(x: Any, rounding: _Drawn, place: Any, units: int = 1) -> Any:
    """Multiply each element by 1 + unit xi."""
    return _multiplied(rounding, x, place, units=units) if _rounds(x) else x


@functools.partial(_traced_once, static=("units",))
def _multiplied(rounding: _Drawn, x: Any, place: Any, *, units: int) -> Any:
    """`_shaken` of what arithmetic rounds."""
    number = _number(x.dtype)
    size = _at_least(units * rounding.unit, rounding, number)
    factor = 1 + _normal(place, x, size, rounding)
    if number.is_complex:
        return x * jax.lax.complex(factor, _normal(place ^ np.uint32(0x2545F491), x, size, rounding))
    return x * factor


def _at_least(unit: Any, rounding: _Drawn, number: _Number) -> Any:
    """The unit, or that of a narrower type inside: its eps, as it holds nothing finer around 1."""
    narrow = 0.0 if number.eps <= 2.0**-52 else number.eps
    return rounding.np.maximum(unit, rounding.enlarged * narrow).astype(number.real)


def _normal(place: Any, x: Any, deviation: Any, rounding: _Drawn) -> Any:
    """A real number for each of `x`, of mean 0, nearly normal, that `place` alone decides: a stretch of the table."""
    table = rounding.table
    spread = (place ^ (place >> 15)) * np.uint32(0x2C1B3C6D)
    start = ((spread ^ (spread >> 12)) * np.uint32(0x297A2D39)) >> (32 - _starts(table.size).bit_length() + 1)
    if rounding.np is np:
        drawn = table[int(start) : int(start) + x.size]
    else:
        drawn = jax.lax.dynamic_slice(table, (start.astype(jnp.int32),), (x.size,))
    wide = _number(x.dtype).real
    drawn = drawn if drawn.dtype == wide else drawn.astype(wide)
    return (deviation / math.sqrt(_VARIANCE)) * drawn.reshape(x.shape)


def _table(seed: Any, size: int) -> Any:
    """So many numbers t of mean 0 and variance `_VARIANCE`, as t, -t, t, of which any stretch of `size` can be taken.

    One draw for every rounding would take most of the time. Two stretches share numbers, and as often with the same
    sign as with the other: over samples, what they share adds nothing to the variance of any sum.

    The bits set in a hash of 32 bits are binomial, with mean 16: cheaper than a normal draw, and unlike a mere sign it
    does not make every error the same size. A byte holds one, and of large arrays it is memory that takes the time.
    """
    xp = np if isinstance(seed, np.ndarray) else jnp
    h = xp.arange(size, dtype=np.uint32) * np.uint32(0x9E3779B1) + seed * np.uint32(0xC2B2AE3D)
    # The finaliser of murmur3: every bit of its result depends on every bit of what it is given.
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    t = xp.bitwise_count(h ^ (h >> 16)).astype(np.int8) - np.int8(16)
    return xp.concatenate([t, -t, t])


# A program is asked with the same few dozen seeds for every type and example.
@functools.lru_cache(maxsize=64)
def _table_now(seed: int, size: int) -> np.ndarray:
    """The table in float64, in which nearly all numbers are: of bytes each stretch would have to be converted."""
    return np.asarray(_table(np.array([seed], np.uint32), size), np.float64)


def _size(longest: int) -> int:
    """How many numbers a table has for arrays of at most so many."""
    return max(1 << (longest - 1).bit_length(), _FEWEST)


def _starts(size: int) -> int:
    """How many stretches of a table of `size` numbers there are to choose from, a power of two."""
    return size // 3 * 2


def _longest(jaxpr: Any) -> int:
    """The size of the largest array that a program computes with."""
    sizes = [
        max([math.prod(getattr(var.aval, "shape", ())) for var in (*eqn.invars, *eqn.outvars)], default=1)
        for eqn in jaxpr.eqns
    ]
    return max([1, *sizes, *(_longest(inner) for eqn in jaxpr.eqns for inner in jax_seam.inner(eqn))])


def _sum(eqn: Any, name: str, operands: list[Any], place: Any, rounding: _Drawn) -> Any:
    bind = functools.partial(_binding(rounding), eqn)
    (out,) = bind(operands)
    terms, squares = _SUMS[name](eqn, bind, operands, out)
    product = name in ("dot_general", "conv_general_dilated")
    scattered = name == "scatter_add"
    return _summed(rounding, out, terms, squares, _floats(operands), place, product=product, scattered=scattered)


@functools.partial(_traced_once, static=("product", "scattered"))
def _summed(
    rounding: _Drawn,
    out: Any,
    terms: Any,
    squares: Any,
    operands: list[Any],
    place: Any,
    *,
    product: bool,
    scattered: bool,
) -> Any:
    """A sum of so many terms, whose squares add up to `squares`, shaken by the rounding of its partial sums."""
    xp = rounding.np
    # Engines differ in whether scattered sums are kept in the wide type, so they count as sums in the narrow one.
    unit = rounding.unit if scattered else rounding.sums if product else rounding.reductions
    longest = xp.where(rounding.reductions > rounding.sums, RUN if product else SHORT_RUN, RUN)
    run = xp.minimum(xp.maximum(terms, 1), longest)
    runs = xp.maximum(terms / run, 1)
    # The terms are rounded once each, beside their partial sums.
    size = xp.sqrt((1 + (run + runs) / 2) * xp.abs(squares) + (run / runs + runs) / 3 * xp.abs(out) ** 2)
    walked = _normal(place ^ np.uint32(0x165667B1), out, _at_least(unit, rounding, _number(out.dtype)), rounding)
    # Where squares overflow although the sum does not, nothing is known of its noise; NaN says so.
    size = xp.where(xp.isfinite(size), size, xp.where(xp.isfinite(xp.abs(out)), np.nan, 0))
    walked = walked * size.astype(walked.dtype)
    whole = _whole(out, rounding, operands, apart=False)
    return xp.where(whole, out, _shaken(out + walked.astype(out.dtype), rounding, place))


def _square(x: Any) -> Any:
    """|x|^2, in the type of x: what an operation that is linear in x adds up for the variance of its result."""
    return (x * x.conj()).astype(x.dtype) if _number(x.dtype).is_complex else x * x


def _of_product(eqn: Any, bind: _Bind, operands: list[Any], out: Any) -> tuple[Any, Any]:
    (squares,) = bind([_square(x) for x in operands])
    terms = jax_seam.contracted(eqn) if jax_seam.name(eqn) == "dot_general" else jax_seam.convolved(eqn)
    return float(terms), squares


def _of_sum(eqn: Any, bind: _Bind, operands: list[Any], out: Any) -> tuple[Any, Any]:
    (squares,) = bind([_square(operands[0])])
    return operands[0].size / max(out.size, 1), squares


def _of_prefixes(eqn: Any, bind: _Bind, operands: list[Any], out: Any) -> tuple[Any, Any]:
    (squares,) = bind([_square(operands[0])])
    axis = eqn.params["axis"]
    turn = out.shape[axis] if eqn.params["reverse"] else -1
    numbers = in_numpy.along(np.arange(out.shape[axis]), axis, out.ndim)
    return np.abs(numbers - turn).astype(squares.dtype), squares


def _of_windows(eqn: Any, bind: _Bind, operands: list[Any], out: Any) -> tuple[Any, Any]:
    (squares,) = bind([_square(operands[0])])
    return float(math.prod(eqn.params["window_dimensions"])), squares


def _of_scatter(eqn: Any, bind: _Bind, operands: list[Any], out: Any) -> tuple[Any, Any]:
    into, at, added = operands
    (squares,) = bind([_square(into), at, _square(added)])
    (terms,) = bind([np.ones(into.shape, into.dtype), at, np.ones(added.shape, added.dtype)])
    return abs(terms), squares


_SUMS: dict[str, Callable[[Any, _Bind, list[Any], Any], tuple[Any, Any]]] = {
    "dot_general": _of_product,
    "conv_general_dilated": _of_product,
    "reduce_sum": _of_sum,
    "cumsum": _of_prefixes,
    "reduce_window_sum": _of_windows,
    "scatter_add": _of_scatter,
}
