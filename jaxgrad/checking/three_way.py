"""`check`: a function with a gradient of its own against oracles, in every type and under every transformation."""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.compare import Scale, compare, scale, stands_alone
from jaxgrad.checking.explain import explain
from jaxgrad.checking.findings import (
    HAND,
    REFERENCE,
    TORCH,
    WRONG_ORDER,
    Finding,
    GradientMismatch,
    Report,
    Setting,
    Tensor,
)
from jaxgrad.checking.oracles.align import as_function
from jaxgrad.checking.oracles.torch import under_torch
from jaxgrad.checking.pullback import (
    TRANSFORMS,
    Pulled,
    floats_of,
    is_float,
    names,
    pair,
    parameter_names,
    pull,
    pull_again,
    under,
    with_floats,
)
from jaxgrad.checking.taylor import random_direction, remainder_orders
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs.rounding import accumulated

DTYPES = ("float64", "float32", "bfloat16")
TAYLOR_DIRECTIONS = 3


def check(
    fn: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    torch_reference: Any = None,
    torch_names: Mapping[str, str] | None = None,
    dtypes: Sequence[str] = DTYPES,
    transforms: Sequence[str] = TRANSFORMS,
    seeds: Sequence[int] = (0, 1),
    static_argnums: Sequence[int] = (),
    tolerance: float | Mapping[str, float] | None = None,
    expected: str = "agrees",
    name: str | None = None,
    reproduce: Callable[[Setting], str] | None = None,
) -> Report:
    """Compare the outputs of `fn` and its cotangents of every float input with those of independent oracles.

    `reference` is the same function in plain JAX, differentiated by `jax.grad`; `torch_reference` the same in
    PyTorch, a function of tensors or an `nn.Module` (see `parity.align`, whose `names` are `torch_names`),
    differentiated by autograd. Where both are absent, or differ, Taylor's remainder in float64 decides (see
    `parity.taylor`).

    `args` are trees of arrays, numbers and None; a float `jax.ShapeDtypeStruct` is filled with normal numbers by
    the seed. Each of `dtypes` is compared under each of `transforms` with the first seed, and under jit with the
    others; output cotangents are normal numbers by the seed. Arguments in `static_argnums` are passed as they are.
    `tap` marks nodes. `tolerance`, one number or one by dtype, replaces the derived one, and the report says so.
    `expected="differs"` is for a gradient that is meant not to be the derivative: then outputs must agree, the
    oracles too, and the cotangents of `fn` must differ from theirs. `reproduce` turns a setting into the command
    that runs it alone.

    Returns the report. Raises `GradientMismatch`, whose message explains it, where the gradient is not as
    expected, and `JaxgradError` for arguments that cannot be checked.
    """
    if expected not in ("agrees", "differs"):
        raise JaxgradError(f"expected is {expected!r}; choose 'agrees' or 'differs'")
    for kind, given, choices in (("dtype", dtypes, DTYPES), ("transform", transforms, TRANSFORMS)):
        for one in given:
            if one not in choices:
                raise JaxgradError(f"there is no {kind} {one!r}; choose from {', '.join(choices)}")
    if expected == "differs" and reference is None and torch_reference is None:
        raise JaxgradError("expected='differs' needs an oracle to differ from; give a reference or a torch_reference")
    if not seeds:
        raise JaxgradError("seeds is empty; give at least one whole number")
    dynamic, join = _static_apart(args, static_argnums)
    hand = join(fn)
    plain = None if reference is None else join(reference)
    in_torch = None if torch_reference is None else join(as_function(torch_reference, args, torch_names))
    title = name or str(getattr(fn, "__name__", type(fn).__name__))

    findings = []
    known: dict[tuple[str, int, float], Pulled] = {}
    for setting in _settings(dtypes, transforms, seeds):
        with jax.default_matmul_precision("highest"):
            scales = _scales(setting, hand, plain, dynamic, known)
            with jax.enable_x64(setting.dtype == "float64"):
                found = _find(setting, hand, plain, in_torch, dynamic, scales, tolerance)
        findings.append(found._replace(passed=_as_expected(found, expected)))
    wrong = [f for f in findings if not f.passed]
    report = Report(title, not wrong, tuple(findings), "")
    if not wrong:
        return report
    said = explain(title, wrong, tuple(findings), expected, reproduce or _call_again)
    raise GradientMismatch(report._replace(message=said))


def _as_expected(finding: Finding, expected: str) -> bool:
    if expected == "agrees":
        return finding.agree
    # A gradient that is meant to differ has to differ from oracles that agree with one another, and only the gradient.
    return not finding.agree and all(
        d.agrees
        for tensor in finding.tensors
        for pair, d in tensor.pairs.items()
        if HAND not in pair or tensor.kind == "output"
    )


def _call_again(setting: Setting) -> str:
    return f"check(..., dtypes=({setting.dtype!r},), transforms=({setting.transform!r},), seeds=({setting.seed},))"


def _settings(dtypes: Sequence[str], transforms: Sequence[str], seeds: Sequence[int]) -> Iterator[Setting]:
    for dtype in dtypes:
        for transform in transforms:
            yield Setting(dtype, transform, seeds[0])
        for seed in seeds[1:]:
            yield Setting(dtype, "jit", seed)


def _static_apart(
    args: tuple[Any, ...], static_argnums: Sequence[int]
) -> tuple[tuple[Any, ...], Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """The arguments that are not static, and how to make a function of all into one of these."""
    static = {number % len(args): args[number] for number in static_argnums}
    dynamic = tuple(arg for number, arg in enumerate(args) if number not in static)

    def join(fn: Callable[..., Any]) -> Callable[..., Any]:
        if not static:
            return fn

        def of_dynamic(*given: Any) -> Any:
            rest = iter(given)
            return fn(*(static[number] if number in static else next(rest) for number in range(len(args))))

        # Inputs are reported under the names of the function's own parameters.
        own = parameter_names(fn, len(args))
        left = [name for number, name in enumerate(own) if number not in static]
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in left]
        of_dynamic.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return of_dynamic

    return dynamic, join


def _drawn(args: tuple[Any, ...], setting: Setting) -> tuple[Any, ...]:
    """Arguments as arrays, floats in the setting's type, shapes filled with normal numbers by its seed."""
    leaves, structure = jax.tree.flatten(args)
    filled = []
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            if not is_float(leaf):
                raise JaxgradError(f"a shape of {leaf.dtype} cannot be filled: give an array of values that make sense")
            key = jax.random.fold_in(jax.random.key(setting.seed), number)
            # Drawn in float32, so that every type is given the same numbers up to its own rounding.
            leaf = jax.random.normal(key, leaf.shape, jnp.float32)
        filled.append(jnp.asarray(leaf, setting.dtype) if is_float(leaf) else jnp.asarray(leaf))
    return jax.tree.unflatten(structure, filled)


def _find(
    setting: Setting,
    hand: Callable[..., Any],
    plain: Callable[..., Any] | None,
    in_torch: Callable[..., Any] | None,
    args: tuple[Any, ...],
    scales: Pulled,
    given: float | Mapping[str, float] | None,
) -> Finding:
    drawn = _drawn(args, setting)
    dys, directions = _cotangents(hand, drawn, setting)
    labels = names(hand, drawn, setting.transform)
    pulled = {HAND: (under(setting.transform, hand, drawn, dys, directions), labels.nodes)}
    if plain is not None:
        nodes = names(plain, drawn, setting.transform).nodes
        pulled[REFERENCE] = under(setting.transform, plain, drawn, dys, directions), nodes
    if in_torch is not None:
        pulled[TORCH] = under_torch(setting.transform, in_torch, drawn, dys, directions)

    tensors = tuple(_tensors(pulled, labels, scales, setting.dtype, given))
    first = next((t.name for t in tensors if not all(d.agrees for d in t.pairs.values())), None)
    orders: dict[str, dict[str, float]] = {}
    # Where engines differ, and where there is only one, the definition of the derivative decides.
    if _taylor_applies(setting) and (first is not None or len(pulled) == 1):
        value = partial(_inner, hand, setting.transform, dys, directions)
        # What is differentiated is the function under test: where outputs differ, an oracle has another function.
        other = any(t.kind == "output" and not all(d.agrees for d in t.pairs.values()) for t in tensors)
        judged = {engine: p.inputs for engine, (p, _) in pulled.items() if engine == HAND or not other}
        of_engines = _orders(value, drawn, judged, setting.seed)
        orders = {engine: dict(zip(labels.inputs, of, strict=True)) for engine, of in of_engines.items()}
    wrong = [engine for engine, of_input in orders.items() if min(of_input.values()) < WRONG_ORDER]
    if len(pulled) == 1 and wrong:
        first = next(name for name, order in orders[HAND].items() if order < WRONG_ORDER)
    alone = next((stands_alone(t.pairs) for t in tensors if t.name == first), None)
    if alone is None and len(wrong) == 1:
        alone = wrong[0]
    return Finding(setting, tensors, orders, first is None, first, alone, first is None)


def _cotangents(fn: Callable[..., Any], args: tuple[Any, ...], setting: Setting) -> tuple[list[Any], list[Any]]:
    """Normal numbers by the seed for the float outputs and for the float inputs, in the setting's type."""
    key = jax.random.fold_in(jax.random.key(setting.seed), 1_000_003)
    outs, floats = floats_of(jax.eval_shape(fn, *args)), floats_of(args)
    return _directions(key, outs, setting.dtype), _directions(jax.random.fold_in(key, 1), floats, setting.dtype)


def _directions(key: Any, like: list[Any], dtype: str) -> list[Any]:
    drawn = random_direction(key, [jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for leaf in like])
    return [d.astype(dtype) for d in drawn]


def _scales(
    setting: Setting,
    hand: Callable[..., Any],
    plain: Callable[..., Any] | None,
    args: tuple[Any, ...],
    known: dict[tuple[str, int, float], Pulled],
) -> Pulled:
    """The scale of every tensor, from the roundings that the oracle's pullback accumulates in float64.

    Where there is no plain function with the same taps, it is the pullback under test that is followed.
    jit and remat compute the same, as do vmap and scan, and float64 and float32 round alike: `known` keeps what
    was found for one for the other.
    """
    kind = {"remat": "jit", "scan": "vmap"}.get(setting.transform, setting.transform)
    wide_sums = 2.0**-16 if setting.dtype == "bfloat16" else 1.0
    key = (kind, setting.seed, wide_sums)
    if key not in known:
        with jax.enable_x64(True):
            drawn = _drawn(args, setting._replace(dtype="float64"))
            nodes = names(hand, drawn, "jit").nodes
            fn = plain if plain is not None and names(plain, drawn, "jit").nodes == nodes else hand
            dys, directions = _cotangents(fn, drawn, setting._replace(dtype="float64"))
            match kind:
                case "grad_of_grad":
                    both = accumulated(partial(pull_again, fn), drawn, dys, directions, wide_sums=wide_sums)
                case "vmap":
                    both = accumulated(jax.vmap(partial(pull, fn)), *pair(drawn, dys), wide_sums=wide_sums)
                case _:
                    both = accumulated(partial(pull, fn), drawn, dys, wide_sums=wide_sums)
            known[key] = jax.tree.map(lambda value, variance: _scale(np.asarray(value), np.asarray(variance)), *both)
    return known[key]


def _scale(value: np.ndarray, variance: np.ndarray) -> Scale:
    if np.issubdtype(value.dtype, np.floating):
        return scale(value, variance)
    # Integers and booleans are not rounded, so nothing but equality will do.
    return Scale("norm", 1.0, 0.0)


def _tensors(
    pulled: dict[str, tuple[Pulled, list[str]]],
    labels: Pulled,
    scales: Pulled,
    dtype: str,
    given: float | Mapping[str, float] | None,
) -> Iterator[Tensor]:
    limit = given.get(dtype) if isinstance(given, Mapping) else given
    for kind, part in (("output", "outputs"), ("node", "nodes"), ("input", "inputs")):
        for number, (name, own_scale) in enumerate(zip(getattr(labels, part), getattr(scales, part), strict=True)):
            values = {}
            for engine, (of_engine, nodes) in pulled.items():
                # Nodes go by name, because an oracle need not tap them all.
                if kind != "node":
                    values[engine] = np.asarray(getattr(of_engine, part)[number])
                elif name in nodes:
                    values[engine] = np.asarray(of_engine.nodes[nodes.index(name)])
            pairs = {
                (a, b): compare(values[a], values[b], own_scale, dtype, limit)
                for a, b in itertools.combinations(values, 2)
            }
            yield Tensor(name, kind, own_scale, limit is not None, values, pairs)


def _taylor_applies(setting: Setting) -> bool:
    return setting.dtype == "float64" and setting.transform in ("jit", "grad_of_grad")


def _inner(fn: Callable[..., Any], transform: str, dys: list[Any], directions: list[Any], *args: Any) -> Any:
    """The number whose gradient the pullback is: outputs against their cotangents, or cotangents against directions."""
    if transform == "grad_of_grad":
        return sum(jnp.vdot(v, dx) for v, dx in zip(directions, pull(fn, args, dys).inputs, strict=True))
    return sum(jnp.vdot(dy, y) for dy, y in zip(dys, floats_of(fn(*args)), strict=True))


def _orders(
    value: Callable[..., Any], args: tuple[Any, ...], gradients: dict[str, list[Any]], seed: int
) -> dict[str, list[float]]:
    """By engine, the least order of Taylor's remainder over several directions, for each float input alone."""
    x = floats_of(args)
    directions = []
    for number in range(len(x)):
        for again in range(TAYLOR_DIRECTIONS):
            key = jax.random.fold_in(jax.random.key(seed), TAYLOR_DIRECTIONS * number + again)
            drawn = random_direction(key, x)
            directions.append([v if at == number else jnp.zeros_like(v) for at, v in enumerate(drawn)])
    found = remainder_orders(lambda floats: value(*with_floats(args, floats)), x, gradients, directions)
    return {
        engine: [min(orders[at : at + TAYLOR_DIRECTIONS]) for at in range(0, len(orders), TAYLOR_DIRECTIONS)]
        for engine, orders in found.items()
    }
