"""What every engine is asked: a function's arguments, drawn, with the cotangents of its outputs.

A `Call` tells the leaves of the arguments apart once: inputs, which have cotangents; what is carried to the function
without one (integers, keys, float8); and what is static. `applied` makes of any function with this call one of two
lists, `(inputs, carried) -> outputs`, which is all that the rest of the room knows.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import jax_seam
from jaxgrad.checking import domains as of_domains
from jaxgrad.checking.compare import parts_of
from jaxgrad.checking.domains import Domain
from jaxgrad.errors import JaxgradError

INPUT, CARRIED, STATIC = "input", "carried", "static"
DTYPES = ("float64", "float32", "bfloat16", "float16")


class Leaf(NamedTuple):
    """One leaf of the arguments. `argument` is the number of the argument that holds it; `plain` a Python number's."""

    name: str
    kind: str
    argument: int
    value: Any
    plain: bool


class Call(NamedTuple):
    """How a function is called: the tree of its arguments and keyword arguments, and what each leaf is."""

    structure: Any
    leaves: tuple[Leaf, ...]
    arguments: tuple[str, ...]
    domains: tuple[Domain, ...]

    def of_kind(self, kind: str) -> list[Leaf]:
        """The leaves of a kind, in their order."""
        return [leaf for leaf in self.leaves if leaf.kind == kind]


class Question(NamedTuple):
    """Arguments in a type, with cotangents `dys` of the outputs and `directions` for the inputs.

    All are host arrays, but for keys. `dys` are of the float and complex outputs. `directions` are of the inputs, and
    an empty list where what is asked needs none.
    """

    inputs: list[Any]
    carried: list[Any]
    dys: list[Any]
    directions: list[Any]


def is_number(leaf: Any) -> bool:
    """Whether a leaf is of a float or complex type that gradients are made in; float8 is not."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return False
    return jnp.finfo(dtype).bits >= 16


def call(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    static_argnums: int | Sequence[int] = (),
    no_gradient: str | Sequence[str] = (),
    domains: Domain | Mapping[str, Domain] = "normal",
) -> Call:
    """The call `fn(*args, **kwargs)`, its leaves told apart.

    Leaves that are no arrays or floats (strings, callables, enums, integers and booleans of Python) are static by
    themselves, and so are the `nondiff_argnums` of a `jax.custom_vjp`, which JAX does not trace. `no_gradient` and
    `domains` name arguments or single leaves, as reports do. Raises `JaxgradError` for a name or number that is not
    there, for an array of objects or of another library, and where no leaf has a gradient.
    """
    no_gradient = (no_gradient,) if isinstance(no_gradient, str) else no_gradient
    static = static_numbers(static_argnums, len(args))
    static |= {number for number in jax_seam.options_of_rule(fn) if number < len(args)}
    names = (*parameter_names(fn, len(args)), *kwargs)
    given = (*args, *kwargs.values())
    structure = jax.tree.structure((args, dict(kwargs)))
    # JAX sorts the keys of a dict, and so the leaves of keyword arguments.
    numbers = [*range(len(args)), *(len(args) + list(kwargs).index(key) for key in sorted(kwargs))]
    leaves = []
    for number in numbers:
        for path, value in jax.tree_util.tree_leaves_with_path(given[number]):
            name = names[number] + jax.tree_util.keystr(path)
            kind = STATIC if number in static else _kind(name, value)
            if kind == INPUT and not {name, names[number]}.isdisjoint(no_gradient):
                kind = CARRIED
            plain = isinstance(value, (float, complex)) and not hasattr(value, "dtype")
            leaves.append(Leaf(name, kind, number, value, plain))
    of_domains.known(domains)
    known = {*names, *(leaf.name for leaf in leaves)}
    asked = {} if isinstance(domains, str) or callable(domains) else domains
    for what, names_given in (("no_gradient", no_gradient), ("domains", asked)):
        for name in names_given:
            if name not in known:
                raise JaxgradError(f"{what} names {name!r}; the arguments are {', '.join(sorted(known))}")
    if not any(leaf.kind == INPUT for leaf in leaves):
        raise JaxgradError("no argument is a float array with a gradient, so there is no gradient to check")
    default: Domain = domains if isinstance(domains, str) or callable(domains) else "normal"
    chosen = (asked.get(leaf.name, asked.get(names[leaf.argument], default)) for leaf in leaves)
    return Call(structure, tuple(leaves), tuple(names), tuple(chosen))


def static_numbers(numbers: int | Sequence[int], count: int) -> set[int]:
    """The static ones of so many arguments, counted from the first. Raises `JaxgradError` for one that is not there."""
    numbers = (numbers,) if isinstance(numbers, int) else tuple(numbers)
    for number in numbers:
        if not -count <= number < count:
            raise JaxgradError(f"static_argnums has {number}, and there are {count} arguments, from 0 on")
    return {number % count for number in numbers}


def _kind(name: str, value: Any) -> str:
    if isinstance(value, bool) or (not isinstance(value, (float, complex)) and not hasattr(value, "dtype")):
        return STATIC
    try:
        jnp.issubdtype(getattr(value, "dtype", float), np.generic)
    except TypeError:
        what = f"{type(value).__module__}.{type(value).__name__}"
        raise JaxgradError(f"{name} is a {what} of {value.dtype}; give a NumPy or JAX array") from None
    if isinstance(value, jax.ShapeDtypeStruct) and any(size < 0 for size in value.shape):
        raise JaxgradError(f"{name} has the shape {value.shape}; sizes are 0 or more")
    if isinstance(value, (float, complex)) or is_number(value):
        return INPUT
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) or value.dtype.kind in "biufV":
        return CARRIED
    raise JaxgradError(
        f"{name} is an array of {value.dtype}, which can be neither compared nor carried; put its name in"
        " static_argnums, or close over it"
    )


def applied(fn: Callable[..., Any], asked: Call) -> Callable[[list[Any], list[Any]], Any]:
    """`fn` as a function `(inputs, carried) -> outputs`: the same object for the same function and call.

    One object, so that what JAX compiled for it is found again by the next check.
    """
    fixed = tuple(_Same(leaf.value) if leaf.kind == STATIC else None for leaf in asked.leaves)
    kinds = tuple(leaf.kind for leaf in asked.leaves)
    return _applied(_Same(fn), asked.structure, kinds, fixed)


class _Same:
    """A value that equals another by identity where it cannot be hashed, so that it can be part of a key."""

    def __init__(self, value: Any) -> None:
        self.value = value
        try:
            self.key = (hash(value), type(value))
        except TypeError:
            self.key = (id(value), type(value))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same) or self.key != other.key:
            return False
        return self.value is other.value or (type(self.value) in (int, str, float, bool) and self.value == other.value)


# As many functions as one would check in a session and again; each holds what its function closes over.
@functools.lru_cache(maxsize=256)
def _applied(
    fn: _Same, structure: Any, kinds: tuple[str, ...], fixed: tuple[_Same | None, ...]
) -> Callable[[list[Any], list[Any]], Any]:
    def of_lists(inputs: list[Any], carried: list[Any]) -> Any:
        given = {INPUT: iter(inputs), CARRIED: iter(carried)}
        values = [one.value if one is not None else next(given[kind]) for kind, one in zip(kinds, fixed, strict=True)]
        args, kwargs = jax.tree.unflatten(structure, values)
        return jax.tree.map(_array_of_float, fn.value(*args, **kwargs))

    of_lists.__name__ = str(getattr(fn.value, "__name__", "function"))
    return of_lists


def _array_of_float(output: Any) -> Any:
    """An output that is a number of Python as an array, which JAX makes of it only where the function is traced."""
    plain = isinstance(output, (float, complex)) and not hasattr(output, "dtype")
    return jnp.asarray(output) if plain else output


def arguments(asked: Call, inputs: Sequence[Any], carried: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments with these inputs and carried leaves in their places."""
    given = {INPUT: iter(inputs), CARRIED: iter(carried)}
    values = [leaf.value if leaf.kind == STATIC else next(given[leaf.kind]) for leaf in asked.leaves]
    args, kwargs = jax.tree.unflatten(asked.structure, values)
    return args, kwargs


def parameter_names(fn: Callable[..., Any], count: int) -> list[str]:
    """The names of the first `count` positional parameters, `arg0` and so on where the function does not tell."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    told = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    return told + [f"arg{number}" for number in range(len(told), count)]


def output_names(outputs: Any) -> list[str]:
    """A name for every leaf of a function's output, such as `output` or `output['loss']`."""
    return ["output" + jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(outputs)]


def numbers_of(tree: Any) -> list[Any]:
    """The leaves of a tree that have cotangents, in its order."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_number(leaf)]


def drawn(asked: Call, dtype: str, seed: int, variant: str | None = None) -> tuple[list[Any], list[Any]]:
    """Inputs and carried leaves in a type: shapes filled from their domains by the seed, arrays as they are given.

    With a `variant` of `domains.reaches` those filled from shapes have another size or edges among them, and with
    `domains.MOVED` given arrays are moved. The same numbers, up to rounding, in every type.
    """
    inputs: list[Any] = []
    carried: list[Any] = []
    for number, (leaf, domain) in enumerate(zip(asked.leaves, asked.domains, strict=True)):
        if leaf.kind == STATIC:
            continue
        value = leaf.value
        if isinstance(value, jax.ShapeDtypeStruct):
            value = of_domains.draw(domain, value, seed, number, leaf.name)
            if leaf.kind == INPUT and variant in of_domains.reaches(domain):
                value = of_domains.reached(variant, value, dtype, seed, number)
            value = of_domains.distinct(domain, in_type(value, dtype)) if leaf.kind == INPUT else value
            value = value if leaf.kind == INPUT else value.astype(leaf.value.dtype)
        elif variant == of_domains.MOVED and leaf.kind == INPUT and not leaf.plain:
            value = of_domains.moved(np.asarray(value), seed, number)
        # Numbers that have no gradient, on purpose, are of the type under test all the same.
        value = in_type(value, dtype) if leaf.plain or is_number(value) else value
        (inputs if leaf.kind == INPUT else carried).append(value)
    return inputs, carried


def variants(asked: Call) -> list[str]:
    """The variants of its inputs that a call has room for."""
    found: dict[str, None] = {}
    for leaf, domain in zip(asked.leaves, asked.domains, strict=True):
        if leaf.kind == INPUT and isinstance(leaf.value, jax.ShapeDtypeStruct):
            found.update(dict.fromkeys(of_domains.reaches(domain)))
        elif leaf.kind == INPUT and not leaf.plain:
            found[of_domains.MOVED] = None
    return list(found)


def in_type(value: Any, dtype: str) -> np.ndarray:
    """A number or array in a float type, or in the complex type of that precision; 16-bit types have complex64."""
    array = np.asarray(value)
    with np.errstate(over="ignore"):
        return array.astype(_as_type(array.dtype, dtype), copy=False)


def _as_type(own: np.dtype, dtype: str) -> np.dtype:
    if own.kind == "c":
        return np.dtype(np.complex128 if dtype == "float64" else np.complex64)
    return jnp.dtype(dtype)


def shaped(asked: Call, dtype: str) -> tuple[list[Any], list[Any]]:
    """The shapes and types of what `drawn` gives, which is all that a trace needs; keys as they are."""
    inputs: list[Any] = []
    carried: list[Any] = []
    for leaf in asked.leaves:
        if leaf.kind == STATIC:
            continue
        value = leaf.value
        if leaf.plain:
            value = jax.ShapeDtypeStruct((), _as_type(np.dtype(type(value)), dtype))
        elif is_number(value):
            value = jax.ShapeDtypeStruct(value.shape, _as_type(value.dtype, dtype))
        elif not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.ShapeDtypeStruct(value.shape, jax.dtypes.canonicalize_dtype(value.dtype))
        (inputs if leaf.kind == INPUT else carried).append(value)
    return inputs, carried


def asked(
    fn: Callable[..., Any], inputs: list[Any], carried: list[Any], dtype: str, seed: int, along: bool = False
) -> Question:
    """The question of `fn`, as `applied` makes it, at these arguments: normal cotangents by the seed.

    It has normal directions too where it is asked `along` some.
    Raises what `fn` raises when JAX traces it, and `JaxgradError` where no output has a gradient.
    """
    outputs = numbers_of(jax.eval_shape(fn, inputs, carried))
    if not outputs:
        raise JaxgradError("no output is a float or complex array, so there is no gradient to check")
    directions = _normal(inputs, dtype, seed, 2) if along else []
    return Question(inputs, carried, _normal(outputs, dtype, seed, 1), directions)


def _normal(like: Sequence[Any], dtype: str, seed: int, purpose: int) -> list[np.ndarray]:
    found = []
    for number, leaf in enumerate(like):
        rng = np.random.default_rng((seed, 1_000_003, purpose, number))
        values: Any = rng.standard_normal(leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            values = values + 1j * rng.standard_normal(leaf.shape)
        # Through float32, so that every type is given the same numbers up to its own rounding.
        values = np.asarray(values, np.complex64 if np.iscomplexobj(values) else np.float32)
        found.append(in_type(values, dtype))
    return found


def widened(question: Question) -> Question:
    """The same numbers in float64."""
    return taken_to(question, "float64")


def taken_to(question: Question, dtype: str) -> Question:
    """The same numbers, up to rounding, in a type."""
    return Question(*([in_type(x, dtype) if is_number(x) else x for x in leaves] for leaves in question))


def size_of(question: Question) -> int:
    """How many numbers are asked for, about: the outputs and the cotangents of the inputs."""
    return sum(np.size(x) for leaves in (question.inputs, question.dys) for x in leaves)


def survives(question: Question, dtype: str) -> bool:
    """Whether the numbers of a float64 question are the same ones in a type."""
    leaves = [x for leaves in question for x in leaves if is_number(x)]
    parts = (x[part] for x in map(np.asarray, leaves) for part in parts_of(x.shape))
    return all(np.array_equal(part, in_type(part, dtype), equal_nan=True) for part in parts)
