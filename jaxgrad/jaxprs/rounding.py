r"""How many roundings a result has accumulated: the measure that tolerances are derived from.

`accumulated` carries beside each value $v$ of a jaxpr the variance $V$ of its rounding error, in units of the
squared unit roundoff $u^2$, with every operation's error taken as independent, of mean 0 and of one unit:
$$a \pm b:\ V_a + V_b + (a \pm b)^2 \qquad ab:\ a^2 V_b + b^2 V_a + (ab)^2 \qquad f(a):\ f'(a)^2\,V_a + 4 f(a)^2$$
(4, because libraries compute transcendental functions to about two units). A sum S of n terms, in whatever order an
engine takes them, rounds n partial sums. The k-th is about $\frac kn S$ and a random walk around it, which makes
$\sum_k s_k^2 \approx \frac n3 S^2 + \frac n2 \sum_i t_i^2$ more. Products of matrices are such sums; moves of data
round nothing.

$\sqrt V / |v|$ then counts roundings: about 1 after one operation, more after long sums, and without bound where
terms cancel, as they do in the cotangent of `logit_maxes`, whose true value is 0.
Source: probabilistic rounding error analysis, Higham & Mary 2019, SIAM J. Sci. Comput. 41(5); the rules are ours.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_MOVES = frozenset(
    "broadcast_in_dim reshape squeeze transpose expand_dims slice dynamic_slice dynamic_update_slice concatenate pad "
    "rev copy copy_p convert_element_type gather scatter select_n reduce_max reduce_min max min stop_gradient "
    "device_put neg abs optimization_barrier".split()
)
_TRANSCENDENTAL_UNITS = 2.0


def accumulated(fn: Callable[..., Any], *args: Any, wide_sums: float = 1.0) -> tuple[Any, Any]:
    """`fn(*args)` and, in the same tree, the variances of its rounding errors in units of u squared.

    `wide_sums` is the unit roundoff of the type that sums accumulate in, over u: 1, or 2^-16 for bfloat16 with
    float32 sums. `fn` must be traceable by JAX; run it in float64, so that the values themselves are exact enough.
    An operation that has no rule here counts as one rounding of its own. Raises what `fn` raises.
    """
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)

    def evaluate(*leaves: Any) -> tuple[list[Any], list[Any]]:
        return _interpret(closed, list(leaves), [_exact(leaf) for leaf in leaves], wide_sums**2)

    values, variances = jax.jit(evaluate)(*jax.tree.leaves(args))
    structure = jax.tree.structure(shapes)
    return jax.tree.unflatten(structure, values), jax.tree.unflatten(structure, variances)


def _exact(x: Any) -> Any:
    return jnp.zeros_like(x) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x


def _interpret(
    closed: ClosedJaxpr, values: list[Any], variances: list[Any], wide: float
) -> tuple[list[Any], list[Any]]:
    jaxpr: Jaxpr = closed.jaxpr
    known: dict[Any, tuple[Any, Any]] = {}
    for var, const in zip(jaxpr.constvars, closed.consts, strict=True):
        known[var] = (const, _exact(const))
    for var, value, variance in zip(jaxpr.invars, values, variances, strict=True):
        known[var] = (value, variance)

    def read(atom: Any) -> tuple[Any, Any]:
        return (atom.val, _exact(atom.val)) if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        results = _apply(eqn, [v for v, _ in operands], [var for _, var in operands], wide)
        for var, result in zip(eqn.outvars, results, strict=True):
            known[var] = result
    outputs = [read(atom) for atom in jaxpr.outvars]
    return [value for value, _ in outputs], [variance for _, variance in outputs]


def _apply(eqn: Any, values: list[Any], variances: list[Any], wide: float) -> list[tuple[Any, Any]]:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if eqn.primitive.name == "scan":
        return _scan(eqn, values, variances, wide)
    if isinstance(inner, Jaxpr):
        inner = ClosedJaxpr(inner, [])
    if isinstance(inner, ClosedJaxpr) and len(inner.jaxpr.invars) == len(values):
        return list(zip(*_interpret(inner, values, variances, wide), strict=True))

    bound = eqn.primitive.bind(*values, **eqn.params)
    outs = list(bound) if eqn.primitive.multiple_results else [bound]
    if len(outs) > 1 or not jnp.issubdtype(outs[0].dtype, jnp.floating):
        return [(out, out * out if jnp.issubdtype(out.dtype, jnp.floating) else out) for out in outs]
    return [(outs[0], _variance(eqn, outs[0], values, variances, wide))]


def _scan(eqn: Any, values: list[Any], variances: list[Any], wide: float) -> list[tuple[Any, Any]]:
    """The scan of the body's own rules, which carries and stacks variances beside values."""
    body, both = eqn.params["jaxpr"], list(zip(values, variances, strict=True))

    def stacked_ones(outside: Any, inside: Any) -> int:
        return sum(jnp.shape(a) != b.shape for a, b in zip(outside, inside, strict=True))

    # What is scanned over has one axis more outside the body than in it; all versions of JAX can be told so.
    carry = len(eqn.outvars) - stacked_ones([var.aval for var in eqn.outvars], body.out_avals)
    consts = len(values) - carry - stacked_ones(values, body.in_avals)

    def step(carried: list[tuple[Any, Any]], xs: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
        operands = [*both[:consts], *carried, *xs]
        of_values, of_variances = [v for v, _ in operands], [var for _, var in operands]
        outs = list(zip(*_interpret(body, of_values, of_variances, wide), strict=True))
        return outs[:carry], outs[carry:]

    last, stacked = jax.lax.scan(
        step,
        both[consts : consts + carry],
        both[consts + carry :],
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
    )
    return [*last, *stacked]


def _variance(eqn: Any, out: Any, values: list[Any], variances: list[Any], wide: float) -> Any:
    def bind(*operands: Any) -> Any:
        return eqn.primitive.bind(*operands, **eqn.params)

    name = eqn.primitive.name
    if name in _MOVES:
        moved = [
            v if jnp.issubdtype(jnp.result_type(v), jnp.floating) else x for v, x in zip(variances, values, strict=True)
        ]
        return jnp.abs(bind(*moved))
    if name in ("add", "sub", "add_any"):
        return variances[0] + variances[1] + out**2
    if name == "mul":
        return values[0] ** 2 * variances[1] + values[1] ** 2 * variances[0] + out**2
    if name == "div":
        return (variances[0] + out**2 * variances[1]) / values[1] ** 2 + out**2
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        terms = jnp.prod(jnp.array([values[0].shape[axis] for axis in contracted], out.dtype))
        a2, b2 = values[0] ** 2, values[1] ** 2
        return bind(a2, variances[1]) + bind(variances[0], b2) + wide * _partial_sums(terms, out, bind(a2, b2)) + out**2
    if name == "reduce_sum":
        terms = values[0].size / max(out.size, 1)
        return bind(variances[0]) + wide * _partial_sums(terms, out, bind(values[0] ** 2)) + out**2
    if name in ("scatter-add", "scatter_add"):
        # Engines differ in whether scattered sums are kept in the wide type, so they count as sums in the narrow one.
        terms = bind(jnp.zeros_like(values[0]), values[1], jnp.ones_like(values[2]))
        squares = bind(values[0] ** 2, values[1], values[2] ** 2)
        return bind(variances[0], values[1], variances[2]) + _partial_sums(terms, out, squares)
    slope = _slope(name, eqn, out, values[0])
    return out**2 if slope is None else slope**2 * variances[0] + (_TRANSCENDENTAL_UNITS * out) ** 2


def _partial_sums(terms: Any, total: Any, squares: Any) -> Any:
    """What rounding the partial sums of `terms` terms adds to the variance; `squares` is the sum of their squares."""
    return terms / 3 * total**2 + terms / 2 * squares


def _slope(name: str, eqn: Any, out: Any, x: Any) -> Any:
    match name:
        case "exp":
            return out
        case "log":
            return 1 / x
        case "tanh":
            return 1 - out * out
        case "logistic":
            return out * (1 - out)
        case "sqrt":
            return 0.5 / out
        case "rsqrt":
            return -0.5 * out / x
        case "square":
            return 2 * x
        case "integer_pow":
            return eqn.params["y"] * x ** (eqn.params["y"] - 1)
        case "pow" if isinstance(eqn.invars[1], Literal):
            return eqn.invars[1].val * x ** (eqn.invars[1].val - 1)
        case _:
            return None
