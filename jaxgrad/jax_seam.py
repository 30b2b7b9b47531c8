"""Every use of what JAX does not promise: names and parameters of its primitives, and what an equation tells of itself.

Nothing else in this package reads `eqn.params` of a primitive that holds a program, or imports `jax.extend`. When a
release of JAX moves one of these, this file is where it is mended, and its tests say which name is gone.
"""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun

__all__ = ["ClosedJaxpr", "Jaxpr", "Literal", "Var", "jaxpr_as_fun"]

# Programs that these hold are not simply called with the equation's operands.
_NOT_CALLS = frozenset(
    ("scan", "while", "cond", "shard_map", "pallas_call", "custom_linear_solve", "reduce", "run_state")
)


class Frame(NamedTuple):
    """A line that made an equation, as JAX tells it."""

    file: str
    line: int
    function: str


class Scan(NamedTuple):
    """The parts of a scan: the program of one step, and how many of its operands are constants and how many carried."""

    body: ClosedJaxpr
    constants: int
    carried: int
    length: int
    reverse: bool


class While(NamedTuple):
    """The programs of a while loop, each with the number of constants that come first among the loop's operands."""

    condition: ClosedJaxpr
    condition_constants: int
    body: ClosedJaxpr
    body_constants: int


class ShardMap(NamedTuple):
    """The program of one shard, how to run another function in its place, and the mesh."""

    body: ClosedJaxpr
    rebuild: Callable[[Callable[..., Any], int], Callable[..., Any]]
    mesh: Any


def closed(jaxpr: Any) -> ClosedJaxpr:
    """A jaxpr with its constants, of which an open one has none."""
    return ClosedJaxpr(jaxpr, ()) if isinstance(jaxpr, Jaxpr) else jaxpr


def literal(atom: Any) -> bool:
    """Whether an operand is a constant written into the equation."""
    return isinstance(atom, Literal)


def name(eqn: Any) -> str:
    """The name of an equation's primitive."""
    return str(eqn.primitive.name)


def bind(eqn: Any, values: Sequence[Any], **changed: Any) -> list[Any]:
    """The results of an equation's primitive, applied to other operands, with some of its parameters changed."""
    out = eqn.primitive.bind(*values, **{**eqn.params, **changed})
    return list(out) if eqn.primitive.multiple_results else [out]


def called(eqn: Any) -> ClosedJaxpr | None:
    """The program of an equation that does nothing but call it: jit, remat, a custom rule's primal, custom_vmap."""
    if name(eqn) in _NOT_CALLS:
        return None
    held = [value for value in eqn.params.values() if isinstance(value, (ClosedJaxpr, Jaxpr))]
    if len(held) != 1 or (isinstance(held[0], Jaxpr) and held[0].constvars):
        return None
    if len(closed(held[0]).jaxpr.invars) != len(eqn.invars):
        return None
    return closed(held[0])


def jitted(eqn: Any) -> str | None:
    """The name of the function that an equation calls under jit; None for another equation."""
    return str(eqn.params["name"]) if name(eqn) in ("jit", "pjit") and "name" in eqn.params else None


def scan(eqn: Any) -> Scan | None:
    """The parts of a scan; None for another equation."""
    if name(eqn) != "scan":
        return None
    p = eqn.params
    return Scan(closed(p["jaxpr"]), p["num_consts"], p["num_carry"], p["length"], p["reverse"])


def while_loop(eqn: Any) -> While | None:
    """The parts of a while loop; None for another equation."""
    if name(eqn) != "while":
        return None
    p = eqn.params
    return While(closed(p["cond_jaxpr"]), p["cond_nconsts"], closed(p["body_jaxpr"]), p["body_nconsts"])


def branches(eqn: Any) -> tuple[ClosedJaxpr, ...] | None:
    """The programs that a cond or a switch chooses from by its first operand; None for another equation."""
    return tuple(map(closed, eqn.params["branches"])) if name(eqn) == "cond" else None


def shard_map(eqn: Any) -> ShardMap | None:
    """The program of a shard_map; None for another equation.

    `rebuild(fn, extra)` maps `fn` over the same mesh; its first `extra` arguments are whole on every device.
    """
    if name(eqn) != "shard_map":
        return None
    p = eqn.params

    def rebuild(fn: Callable[..., Any], extra: int) -> Callable[..., Any]:
        whole = (jax.sharding.PartitionSpec(),) * extra
        axes = p.get("newly_manual_axes", p.get("manual_axes"))
        return jax.shard_map(
            fn,
            mesh=p["mesh"],
            in_specs=(*whole, *p["in_specs"]),
            out_specs=tuple(p["out_specs"]),
            check_vma=p["check_vma"],
            **({} if axes is None else {"axis_names": set(axes)}),
        )

    return ShardMap(closed(p["jaxpr"]), rebuild, p["mesh"])


def over_axes(eqn: Any, names: Sequence[str]) -> bool:
    """Whether an equation communicates over axes of a mesh, some of `names`, or asks for a place along one."""
    given = (x for value in eqn.params.values() for x in (value if isinstance(value, (tuple, list)) else (value,)))
    return any(isinstance(x, str) and x in names for x in given)


def inner(eqn: Any) -> list[Any]:
    """Every program that an equation holds, whatever it does with them, without its constants."""
    found: list[Any] = []
    for value in eqn.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, (ClosedJaxpr, Jaxpr)):
                found.append(getattr(one, "jaxpr", one))
    return found


def contracted(eqn: Any) -> int:
    """How many products a `dot_general` adds up for each of its results."""
    (axes, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    count = 1
    for axis in axes:
        count *= shape[axis]
    return count


def convolved(eqn: Any) -> int:
    """How many products a convolution adds up for each of its results, at most."""
    kernel = eqn.invars[1].aval
    outputs = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    return max(kernel.size // max(outputs, 1), 1)


def name_stack(eqn: Any) -> str:
    """The names of the scopes that an equation was made in, the outermost first, separated by slashes."""
    return str(eqn.source_info.name_stack)


def alone(eqn: Any, jaxpr: Any) -> ClosedJaxpr:
    """A program of one equation of `jaxpr`, whose operands are all its inputs, in their order.

    Run so, an equation keeps its custom rule.
    """
    # An operand that is a literal, or is given twice, becomes an input of its own.
    given: list[Any] = []
    for atom in eqn.invars:
        given.append(Var(atom.aval) if literal(atom) or atom in given else atom)
    return ClosedJaxpr(
        jaxpr.replace(constvars=[], invars=given, outvars=eqn.outvars, eqns=[eqn.replace(invars=given)]), []
    )


def frames(eqn: Any) -> list[Frame]:
    """The lines outside JAX that made an equation, the innermost first."""
    # `file:line:column (function)`, the innermost last.
    told = reversed(source_info_util.summarize(eqn.source_info, num_frames=100).splitlines())
    found = [m for line in told if (m := re.fullmatch(r"(.*?):(\d+)(:\d+)? \((.*)\)", line))]
    return [Frame(m[1], int(m[2]), m[4]) for m in found]


def options_of_rule(fn: Any) -> tuple[int, ...]:
    """The numbers of the arguments that a `jax.custom_vjp` takes as they are; no other function tells."""
    return tuple(fn.nondiff_argnums) if isinstance(fn, jax.custom_vjp) else ()


@contextlib.contextmanager
def noting_rules(note: Callable[[Any, tuple[Any, ...]], object]) -> Iterator[None]:
    """While open, `note(rule, args)` is told of every call of a `jax.custom_vjp`, with all arguments by place.

    A traced program holds the rule's backward pass as a function that cannot be asked for its lines.
    """
    usual = jax.custom_vjp.__call__

    def noted(rule: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(rule).bind(*args, **kwargs)
        given.apply_defaults()
        note(rule, given.args)
        return usual(rule, *args, **kwargs)

    with mock.patch.object(jax.custom_vjp, "__call__", noted):
        yield


def varying_axes(array: Any) -> frozenset[str]:
    """The axes of a `shard_map`'s mesh over which an array's type says that it varies; none outside of one."""
    kind = jax.typeof(array)
    # The name of this attribute has changed from one release to the next.
    told = getattr(kind, "manual_axis_type", None)
    return told.varying if told is not None else getattr(kind, "vma", frozenset())


def vary(array: Any, axes: tuple[str, ...]) -> Any:
    """An array marked as varying over more axes of a `shard_map`'s mesh."""
    # JAX 0.8.1 has this function under its old name only, and 0.10 under the new one only.
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, axes, to="varying")
    return jax.lax.pvary(array, axes)  # type: ignore[attr-defined]


@functools.cache
def quick_options() -> tuple[tuple[str, Any], ...]:
    """What tells XLA's compiler for CPUs to take the least time; nothing where it takes no such options.

    Loops are neither fused nor optimised, which takes a third of the time for programs of a hundred operations.
    """
    options = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    if jax.default_backend() != "cpu":
        return ()
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()
    except Exception:
        return ()
    return tuple(options.items())
