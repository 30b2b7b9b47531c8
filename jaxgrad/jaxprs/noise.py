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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import jax_seam
from jaxgrad.jax_seam import ClosedJaxpr
from jaxgrad.jaxprs.walk import evaluate

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
    "all_gather_invariant reduce_scatter_move".split()
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
# Of the number of bits that are set in 32, each by chance.
_VARIANCE = 8
# What is done around every equation is traced once for each shape and type, and then copied into the program: most of
# the time of tracing a program with its noise would else be that of these same lines.
_traced_once = functools.partial(jax.jit, inline=True)
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


class _Drawn(NamedTuple):
    """A `Rounding` beside the table that one sample's noise is taken from."""

    unit: Any
    sums: Any
    reductions: Any
    enlarged: Any
    table: jax.Array


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


def repeated(program: ClosedJaxpr) -> Callable[..., list[Any]]:
    """The program as a function `(count, seeds, roundings, *values)`: `noisy` for each draw, results stacked.

    Draws beyond the first `count` are not computed. Keys are given as their data.
    """
    once = noisy(program)

    def run(count: Any, seeds: Any, roundings: Rounding, *values: Any) -> list[Any]:
        def draw(number: Any, seed: Any, rounding: Rounding) -> list[Any]:
            def computed() -> list[Any]:
                return [_data(x) for x in once(seed, rounding, *values)]

            def left_out() -> list[Any]:
                shapes = [jax.eval_shape(_data, jax.ShapeDtypeStruct(x.shape, x.dtype)) for x in program.out_avals]
                return [jnp.zeros(x.shape, x.dtype) for x in shapes]

            return jax.lax.cond(number < count, computed, left_out)

        return jax.lax.map(lambda given: draw(*given), (jnp.arange(len(seeds)), seeds, roundings))

    return run


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
        drawn = _Drawn(*rounding, _table(seed, longest))
        # By identity, and kept alive so that none is taken for another: what is a product, moved or not.
        products: dict[int, Any] = {}

        def visit(eqn: Any, operands: list[Any], place: jax.Array) -> list[Any]:
            contracted = [x for x in operands if id(x) in products]
            outs = _rounded(eqn, operands, place, drawn, contracted)
            if jax_seam.name(eqn) in _PRODUCTS or (contracted and jax_seam.name(eqn).replace("-", "_") in MOVES):
                products.update({id(out): out for out in outs})
            return outs

        return evaluate(program, values, visit, seed)

    return run


def _rounded(eqn: Any, operands: list[Any], place: jax.Array, rounding: _Drawn, contracted: Sequence[Any]) -> list[Any]:
    """What an equation gives with its roundings drawn; compilers may leave those of `contracted` operands out."""
    name = jax_seam.name(eqn).replace("-", "_")
    if name in MOVES or not any(_rounds(var.aval) for var in eqn.outvars):
        return jax_seam.bind(eqn, operands)
    if name in _SUMS:
        return [_sum(eqn, name, operands, place, rounding)]
    if name in _CONTRACTING and contracted:
        (out,) = jax_seam.bind(eqn, operands)
        if not _rounds(jax.typeof(out)):
            return [out]
        return [_sum_of_products(out, _deciding(out, operands), list(contracted), place, rounding)]
    if name in _EXACT or name in _ELEMENTARY:
        (out,) = jax_seam.bind(eqn, operands)
        return [_once(out, _deciding(out, operands), place, rounding, units=1 if name in _EXACT else 2)]
    # An algorithm behind one name, such as a factorisation, a special function or somebody's kernel: stable ones give
    # the nearly right result of nearly the right operands.
    shaken = [_shaken(x, rounding, place ^ jnp.uint32(7919 * (k + 1)), _OPAQUE) for k, x in enumerate(operands)]
    if name == "polygamma":
        # There is none of an order that is not whole.
        shaken[0] = operands[0]
    outs = jax_seam.bind(eqn, shaken)
    if name in _WITH_ZEROS:
        of_terms = _shaken(jnp.ones_like(outs[0]), rounding, place ^ jnp.uint32(15485863), _OPAQUE) - 1
        outs = [outs[0] + jnp.where(jnp.isfinite(outs[0]), of_terms, 0)]
    return [_shaken(out, rounding, place ^ jnp.uint32(104729 * (k + 1)), _OPAQUE) for k, out in enumerate(outs)]


@functools.partial(_traced_once, static_argnames="units")
def _once(out: Any, operands: list[Any], place: jax.Array, rounding: _Drawn, *, units: int) -> Any:
    """A result that is rounded once, to so many units, where it is no whole number."""
    return jnp.where(_whole(out, rounding, operands), out, _shaken(out, rounding, place, units))


@_traced_once
def _sum_of_products(
    out: Any, operands: Sequence[Any], products: Sequence[Any], place: jax.Array, rounding: _Drawn
) -> Any:
    """A sum or difference, shaken by the rounding of the largest of itself and the products in it."""
    size, whole = jnp.abs(out), _whole(out, rounding, operands)
    for x in products:
        size, whole = jnp.maximum(size, jnp.abs(x)), whole & _whole(x, rounding, ())
    noise = _shaken(jnp.ones_like(out), rounding, place) - 1
    return jnp.where(whole | ~jnp.isfinite(size), out, out + size * noise)


def _whole(x: Any, rounding: _Drawn, operands: Sequence[Any]) -> Any:
    """Where a result is a whole number that its type holds, such as a float that counts: nothing is rounded there.

    `operands` are those that decide it too.
    """
    whole = (x == jnp.round(x)) & (jnp.abs(x) * rounding.unit <= 1)
    for operand in operands:
        whole &= jnp.all(operand == jnp.round(operand))
    return whole


def _deciding(x: Any, operands: Sequence[Any]) -> list[Any]:
    """The operands that decide, beside the result itself, whether it is whole: the floats, of a 16-bit result.

    In a 16-bit type many results are rounded to whole numbers, and are exact only where all operands are whole too.
    """
    if not _rounds(jax.typeof(x)) or float(jnp.finfo(x.dtype).eps) <= float(jnp.finfo(np.float32).eps):
        return []
    return [operand for operand in operands if _rounds(jax.typeof(operand))]


def _rounds(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def _shaken(x: Any, rounding: _Drawn, place: jax.Array, units: int = 1) -> Any:
    """Multiply each element by 1 + unit xi."""
    return _multiplied(x, rounding, place, units=units) if _rounds(jax.typeof(x)) else x


@functools.partial(_traced_once, static_argnames="units")
def _multiplied(x: Any, rounding: _Drawn, place: jax.Array, *, units: int) -> Any:
    """`_shaken` of what arithmetic rounds."""
    size = _at_least(units * rounding.unit, rounding, x.dtype)
    factor = 1 + _normal(place, x, size, rounding.table)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return x * jax.lax.complex(factor, _normal(place ^ jnp.uint32(0x2545F491), x, size, rounding.table))
    return x * factor


def _at_least(unit: Any, rounding: _Drawn, dtype: Any) -> Any:
    """The unit, or that of a narrower type inside: its eps, as it holds nothing finer around 1."""
    eps = float(jnp.finfo(dtype).eps)
    narrow = 0.0 if eps <= np.finfo(np.float64).eps else eps
    return jnp.maximum(unit, rounding.enlarged * narrow).astype(_real(dtype))


def _real(dtype: Any) -> Any:
    return jnp.finfo(dtype).dtype


def _normal(place: jax.Array, x: jax.Array, deviation: Any, table: jax.Array) -> jax.Array:
    """A real number for each of `x`, of mean 0, nearly normal, that `place` alone decides: a stretch of the table."""
    spread = (place ^ (place >> 15)) * jnp.uint32(0x2C1B3C6D)
    start = ((spread ^ (spread >> 12)) * jnp.uint32(0x297A2D39)) >> (32 - _starts(table.size).bit_length() + 1)
    drawn = jax.lax.dynamic_slice(table, (start.astype(jnp.int32),), (x.size,)).reshape(x.shape)
    return (deviation / math.sqrt(_VARIANCE)) * drawn.astype(_real(x.dtype))


def _table(seed: jax.Array, longest: int) -> jax.Array:
    """Numbers t of mean 0 and variance `_VARIANCE`, as t, -t, t, of which any stretch of `longest` can be taken.

    One draw for every rounding would take most of the time. Two stretches share numbers, and as often with the same
    sign as with the other: over samples, what they share adds nothing to the variance of any sum.

    The bits set in a hash of 32 bits are binomial, with mean 16: cheaper than a normal draw, and unlike a mere sign it
    does not make every error the same size. A byte holds one, and of large arrays it is memory that takes the time.
    """
    size = max(1 << (longest - 1).bit_length(), _FEWEST)
    h = jax.lax.iota(jnp.uint32, size) * jnp.uint32(0x9E3779B1) + seed * jnp.uint32(0xC2B2AE3D)
    # The finaliser of murmur3: every bit of its result depends on every bit of what it is given.
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    t = jax.lax.population_count(h ^ (h >> 16)).astype(jnp.int8) - jnp.int8(16)
    return jnp.concatenate([t, -t, t])


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


def _sum(eqn: Any, name: str, operands: list[Any], place: jax.Array, rounding: _Drawn) -> Any:
    (out,) = jax_seam.bind(eqn, operands)
    terms, squares = _SUMS[name](eqn, operands, out)
    product = name in ("dot_general", "conv_general_dilated")
    scattered = name == "scatter_add"
    decide = _deciding(out, operands)
    return _summed(out, terms, squares, decide, place, rounding, product=product, scattered=scattered)


@functools.partial(_traced_once, static_argnames=("product", "scattered"))
def _summed(
    out: Any,
    terms: Any,
    squares: Any,
    operands: list[Any],
    place: jax.Array,
    rounding: _Drawn,
    *,
    product: bool,
    scattered: bool,
) -> Any:
    """A sum of so many terms, whose squares add up to `squares`, shaken by the rounding of its partial sums."""
    # Engines differ in whether scattered sums are kept in the wide type, so they count as sums in the narrow one.
    unit = rounding.unit if scattered else rounding.sums if product else rounding.reductions
    longest = jnp.where(rounding.reductions > rounding.sums, RUN if product else SHORT_RUN, RUN)
    run = jnp.clip(terms, 1, longest)
    runs = jnp.maximum(terms / run, 1)
    # The terms are rounded once each, beside their partial sums.
    size = jnp.sqrt((1 + (run + runs) / 2) * jnp.abs(squares) + (run / runs + runs) / 3 * jnp.abs(out) ** 2)
    walked = _normal(place ^ jnp.uint32(0x165667B1), out, _at_least(unit, rounding, out.dtype), rounding.table)
    # Where squares overflow although the sum does not, nothing is known of its noise; NaN says so.
    size = jnp.where(jnp.isfinite(size), size, jnp.where(jnp.isfinite(jnp.abs(out)), jnp.nan, 0))
    walked = walked * size.astype(walked.dtype)
    return jnp.where(_whole(out, rounding, operands), out, _shaken(out + walked.astype(out.dtype), rounding, place))


def _square(x: Any) -> Any:
    """|x|^2, in the type of x: what an operation that is linear in x adds up for the variance of its result."""
    x = jnp.asarray(x)
    return (x * x.conj()).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.complexfloating) else x * x


def _of_product(eqn: Any, operands: list[Any], out: Any) -> tuple[Any, Any]:
    (squares,) = jax_seam.bind(eqn, [_square(x) for x in operands])
    terms = jax_seam.contracted(eqn) if jax_seam.name(eqn) == "dot_general" else jax_seam.convolved(eqn)
    return float(terms), squares


def _of_sum(eqn: Any, operands: list[Any], out: Any) -> tuple[Any, Any]:
    (squares,) = jax_seam.bind(eqn, [_square(operands[0])])
    return operands[0].size / max(out.size, 1), squares


def _of_prefixes(eqn: Any, operands: list[Any], out: Any) -> tuple[Any, Any]:
    (squares,) = jax_seam.bind(eqn, [_square(operands[0])])
    axis = eqn.params["axis"]
    turn = out.shape[axis] if eqn.params["reverse"] else -1
    numbers = jnp.abs(jax.lax.broadcasted_iota(squares.dtype, out.shape, axis) - turn)
    return numbers, squares


def _of_windows(eqn: Any, operands: list[Any], out: Any) -> tuple[Any, Any]:
    (squares,) = jax_seam.bind(eqn, [_square(operands[0])])
    return float(math.prod(eqn.params["window_dimensions"])), squares


def _of_scatter(eqn: Any, operands: list[Any], out: Any) -> tuple[Any, Any]:
    into, at, added = operands
    (squares,) = jax_seam.bind(eqn, [_square(into), at, _square(added)])
    (terms,) = jax_seam.bind(eqn, [jnp.ones_like(into), at, jnp.ones_like(added)])
    return jnp.abs(terms), squares


_SUMS: dict[str, Callable[[Any, list[Any], Any], tuple[Any, Any]]] = {
    "dot_general": _of_product,
    "conv_general_dilated": _of_product,
    "reduce_sum": _of_sum,
    "cumsum": _of_prefixes,
    "reduce_window_sum": _of_windows,
    "scatter_add": _of_scatter,
}
