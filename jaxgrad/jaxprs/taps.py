"""Mark a value inside a function, so that its cotangent can be compared and the first wrong node named."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxgrad import jax_seam
from jaxgrad.errors import JaxgradError
from jaxgrad.jax_seam import ClosedJaxpr, Literal, jaxpr_as_fun

_PREFIX = "jaxgrad.tap:"

# PyTorch runs eagerly, so a torch reference's taps can only be caught while it runs; JAX's are found in its jaxpr.
_torch_taps: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("torch_taps", default=None)


def tap(name: str, x: Any) -> Any:
    """`x` itself, marked as the node `name`: a JAX array, or a PyTorch tensor in a torch reference.

    Outside of a check it does nothing. In a check, mark the same nodes under the same names in the function and
    in its references. A node in a `scan` is that of all turns, stacked. Taps inside `while_loop`, `cond`, `shard_map`
    or a custom rule are not seen, and the check says so.
    """
    if not isinstance(name, str):
        raise JaxgradError(f"the name of a tap is {name!r}; it is a text, and comes first: tap('name', x)")
    if isinstance(x, (jax.Array, jax.core.Tracer)):
        return checkpoint_name(x, _PREFIX + name)
    collected = _torch_taps.get()
    if collected is not None and getattr(x, "requires_grad", False):
        if name in collected:
            raise JaxgradError(f"the tap {name!r} is set twice; give every node a name of its own")
        collected[name] = x
    return x


@contextlib.contextmanager
def collecting_torch_taps() -> Iterator[dict[str, Any]]:
    """While open, tensors that pass through `tap` are kept by name."""
    collected: dict[str, Any] = {}
    token = _torch_taps.set(collected)
    try:
        yield collected
    finally:
        _torch_taps.reset(token)


def tapped(
    fn: Callable[..., Any], *args: Any, in_scans: bool = False
) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    """`fn` with an array added at each of its taps, as `g(taps, *args)`, and zero taps by name, in forward order.

    The gradient with respect to a tap is its node's cotangent. `g` holds for arguments of these shapes and types.
    With `in_scans` taps inside a scan are seen too: such a node is that of all turns, stacked on axis 0.
    Raises `JaxgradError` for a name that is set twice.
    """
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    zeros: dict[str, jax.Array] = {}
    for name, aval in _taps_in(closed, in_scans):
        if name in zeros:
            raise JaxgradError(f"the tap {name!r} is set twice; give every node a name of its own")
        zeros[name] = jnp.zeros(aval.shape, aval.dtype)
    if not zeros:
        return lambda taps, *args: fn(*args), zeros
    structure = jax.tree.structure(shapes)

    def with_taps(taps: dict[str, jax.Array], *args: Any) -> Any:
        return jax.tree.unflatten(structure, _run(closed, jax.tree.leaves(args), taps, {}))

    return with_taps, zeros


def node_values(fn: Callable[..., Any], *args: Any) -> dict[str, jax.Array]:
    """The value of every node that `fn` marks, by name, in forward order; those in a scan stacked on axis 0."""
    closed = jax.make_jaxpr(fn)(*args)
    kept: dict[str, jax.Array] = {}
    _run(closed, jax.tree.leaves(args), None, kept)
    return kept


class Graph(NamedTuple):
    """How nodes hang together. `order` is that in which a backward pass forms cotangents: those of a node, or of a
    named argument, come after those of all that use it. `users` are the nodes that use each directly, and `last` those
    that the result is made of.
    """

    order: tuple[str, ...]
    users: dict[str, tuple[str, ...]]
    last: tuple[str, ...]


def graph(fn: Callable[..., Any], names: Sequence[str], *args: Any) -> Graph:
    """The graph of the nodes that `fn` marks and of its arguments' first leaves, which have the names `names`.

    Loops and branches other than scans are looked at from outside: all that goes in is used by all that comes out.
    Raises `JaxgradError` for a node that has the name of an argument.
    """
    closed = jax.make_jaxpr(fn)(*args)
    if shared := sorted({name for name, _ in _taps_in(closed)} & set(names)):
        raise JaxgradError(f"the tap {shared[0]!r} has the name of a parameter; give the node a name of its own")
    forward: list[str] = []
    users: dict[str, dict[str, None]] = {name: {} for name in names}
    origins = [_Origin(frozenset({name}), name) for name in names]
    others = [_Origin(frozenset(), None)] * (len(closed.jaxpr.invars) - len(names))
    made = _follow(closed, [*origins, *others], forward, users)
    order = tuple(reversed(list(dict.fromkeys(forward))))
    result = frozenset[str]().union(*(one.sources for one in made))
    return Graph(
        order,
        {name: tuple(found) for name, found in users.items() if found},
        tuple(name for name in order if name in result),
    )


class _Origin(NamedTuple):
    """Which nodes and arguments a value is made of without another node between, and which argument it still is."""

    sources: frozenset[str]
    argument: str | None


def _follow(
    closed: ClosedJaxpr, origins: list[_Origin], forward: list[str], users: dict[str, dict[str, None]]
) -> list[_Origin]:
    """The origins of a program's results; nodes and the first use of arguments are written down in `forward`."""
    jaxpr = closed.jaxpr
    nothing = _Origin(frozenset(), None)
    known: dict[Any, _Origin] = dict(zip(jaxpr.invars, origins, strict=True))

    def read(atom: Any) -> _Origin:
        return nothing if isinstance(atom, Literal) else known.get(atom, nothing)

    for eqn in jaxpr.eqns:
        operands = list(map(read, eqn.invars))
        if (name := _tap_name(eqn)) is not None:
            _used(operands, forward)
            for source in sorted(operands[0].sources):
                users.setdefault(source, {})[name] = None
            forward.append(name)
            users.setdefault(name, {})
            outs = [_Origin(frozenset({name}), None)]
        elif (body := jax_seam.called(eqn)) is not None:
            outs = _follow(body, operands, forward, users)
        elif (scan := jax_seam.scan(eqn)) is not None:
            outs = _turns(scan, operands, forward, users)
        else:
            _used(operands, forward)
            together = _Origin(frozenset[str]().union(*(one.sources for one in operands)), None)
            outs = [together] * len(eqn.outvars)
        known.update(zip(eqn.outvars, outs, strict=True))
    return list(map(read, jaxpr.outvars))


def _used(operands: list[_Origin], forward: list[str]) -> None:
    forward.extend(one.argument for one in operands if one.argument is not None)


def _turns(
    scan: jax_seam.Scan, operands: list[_Origin], forward: list[str], users: dict[str, dict[str, None]]
) -> list[_Origin]:
    """A scan's results: what a turn carries on is made of what was carried into it, until nothing is added."""
    while True:
        outs = _follow(scan.body, operands, forward, users)
        carried = slice(scan.constants, scan.constants + scan.carried)
        joined = [
            _Origin(before.sources | after.sources, None)
            for before, after in zip(operands[carried], outs[: scan.carried], strict=True)
        ]
        if [one.sources for one in joined] == [one.sources for one in operands[carried]]:
            return outs
        operands = [*operands[: scan.constants], *joined, *operands[scan.constants + scan.carried :]]


def marked(eqn: Any) -> bool:
    """Whether an equation is a tap, which computes nothing."""
    return _tap_name(eqn) is not None


def _tap_name(eqn: Any) -> str | None:
    name = eqn.params.get("name") if eqn.primitive.name == "name" else None
    return name.removeprefix(_PREFIX) if isinstance(name, str) and name.startswith(_PREFIX) else None


def _inlined(eqn: Any) -> ClosedJaxpr | None:
    """The body of a nested jit or `jax.checkpoint`, which taps are seen through; it computes the same without them."""
    return jax_seam.called(eqn) if eqn.primitive.name in ("jit", "pjit", "checkpoint", "remat", "remat2") else None


def unseen(fn: Callable[..., Any], *args: Any) -> tuple[str, ...]:
    """The names of taps inside what `tapped` does not look into: `while_loop`, `cond`, `shard_map` and custom rules."""
    closed = jax.make_jaxpr(fn)(*args)
    seen = {name for name, _ in _taps_in(closed)}
    return tuple(name for name in dict.fromkeys(_all_taps(closed.jaxpr)) if name not in seen)


def _all_taps(jaxpr: Any) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        if (name := _tap_name(eqn)) is not None:
            yield name
        for body in jax_seam.inner(eqn):
            yield from _all_taps(body)


def _taps_in(closed: ClosedJaxpr, in_scans: bool = True) -> Iterator[tuple[str, jax.ShapeDtypeStruct]]:
    for eqn in closed.jaxpr.eqns:
        name, inner, scan = _tap_name(eqn), _inlined(eqn), jax_seam.scan(eqn)
        if name is not None:
            yield name, jax.ShapeDtypeStruct(eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype)
        elif inner is not None:
            yield from _taps_in(inner, in_scans)
        elif scan is not None and in_scans:
            for found, one in _taps_in(scan.body):
                yield found, jax.ShapeDtypeStruct((scan.length, *one.shape), one.dtype)


def _run(closed: ClosedJaxpr, args: Sequence[Any], taps: Mapping[str, Any] | None, kept: dict[str, Any]) -> list[Any]:
    """The program's results with `taps` added, where they are given; the values of nodes are `kept`."""
    jaxpr = closed.jaxpr
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        name, inner, scan = _tap_name(eqn), _inlined(eqn), jax_seam.scan(eqn)
        if name is not None:
            value = read(eqn.invars[0])
            kept[name] = value if taps is None or name not in taps else value + taps[name]
            outs = [kept[name]]
        elif inner is not None and any(_taps_in(inner)):
            outs = _run(inner, [read(atom) for atom in eqn.invars], taps, kept)
        elif scan is not None and _wanted(scan, taps):
            outs = _run_scan(scan, [read(atom) for atom in eqn.invars], taps, kept)
        else:
            # A program of this one equation: run so, an operation keeps its custom rules.
            inputs = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
            alone = jaxpr.replace(constvars=[], invars=inputs, outvars=eqn.outvars, eqns=[eqn])
            outs = jaxpr_as_fun(ClosedJaxpr(alone, []))(*(known[var] for var in inputs))
        known.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _wanted(scan: jax_seam.Scan, taps: Mapping[str, Any] | None) -> bool:
    return any(taps is None or name in taps for name, _ in _taps_in(scan.body))


def _run_scan(
    scan: jax_seam.Scan, operands: list[Any], taps: Mapping[str, Any] | None, kept: dict[str, Any]
) -> list[Any]:
    """A scan whose turns each take their part of the taps, and whose nodes are stacked."""
    constants, rest = operands[: scan.constants], operands[scan.constants :]
    inside = None if taps is None else {name: taps[name] for name, _ in _taps_in(scan.body) if name in taps}

    def step(carry: list[Any], slices: tuple[list[Any], Any]) -> tuple[list[Any], tuple[list[Any], dict[str, Any]]]:
        scanned, turns_taps = slices
        found: dict[str, Any] = {}
        made = _run(scan.body, [*constants, *carry, *scanned], turns_taps, found)
        return made[: scan.carried], (made[scan.carried :], found)

    last, (stacked, found) = jax.lax.scan(
        step, rest[: scan.carried], (rest[scan.carried :], inside), length=scan.length, reverse=scan.reverse
    )
    # JAX sorts the names of a dict that a scan returns.
    kept.update({name: found[name] for name, _ in _taps_in(scan.body)})
    return [*last, *stacked]
