"""Where inputs are drawn from: numbers that a function is meant for, and numbers that tests forget."""

import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.errors import JaxgradError

# A name of `DOMAINS`, "integers(low, high)", or the caller's own function of a key, which gives the array.
Domain: TypeAlias = str | Callable[[Any], Any]


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def _positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.exp(rng.standard_normal(shape))


def _unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    # Away from the ends, where the functions that are meant for them have poles.
    return rng.uniform(1 / 64, 1 - 1 / 64, shape)


def _probabilities(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    drawn = np.exp(rng.standard_normal(shape))
    return drawn / drawn.sum(-1, keepdims=True)


def _spd(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise JaxgradError(f"the domain 'spd' is of square matrices, and the shape is {shape}")
    root = rng.standard_normal(shape)
    # The unit matrix keeps the smallest eigenvalue, and so the condition number, from being anything at all.
    return root @ np.swapaxes(root, -1, -2) / shape[-1] + np.eye(shape[-1])


def _sorted(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.sort(rng.standard_normal(shape), -1)


DOMAINS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": _normal,
    "positive": _positive,
    "unit": _unit,
    "probabilities": _probabilities,
    "spd": _spd,
    "sorted": _sorted,
}
# Those whose numbers may be made larger or smaller and still belong to it.
_SCALED = frozenset(("normal", "positive", "sorted", "spd"))

_INTEGERS = re.compile(r"integers\((-?\d+),\s*(-?\d+)\)")

# How far inputs drawn from shapes are moved from their usual size, and the edges of a type.
SIZES = ("0.1", "10", "100")
# Normal numbers may be negated too: a choice by the sign of a sum, or of a mean, then falls the other way.
_MIRRORED = ("-0.1", "10", "100")
# Equal numbers are moved by at most so many of the next representable ones: 3 % of a bfloat16.
_FARTHEST = 8
EDGES, LARGE, MOVED = "edges", "large", "moved"


def known(domains: Any) -> None:
    """Raise `JaxgradError` for the name of a domain that does not exist."""
    for domain in domains.values() if isinstance(domains, dict) else (domains,):
        if isinstance(domain, str) and domain not in DOMAINS and not _INTEGERS.fullmatch(domain):
            raise JaxgradError(
                f"there is no domain {domain!r}; choose from {', '.join(DOMAINS)}, 'integers(low, high)', or give a"
                " function of a key"
            )


def draw(domain: Domain, leaf: Any, seed: int, number: int, name: str) -> np.ndarray:
    """An array of the leaf's shape from a domain, by the seed and the leaf's number.

    Floats are float32 numbers, so that every type is given the same ones up to its own rounding. Raises
    `JaxgradError` for a domain that does not fit the leaf.
    """
    rng = np.random.default_rng((seed, number))
    if callable(domain):
        given = np.asarray(domain(jax.random.fold_in(jax.random.key(seed), number)))
        if given.shape != leaf.shape:
            raise JaxgradError(f"the domain of {name} gave an array of shape {given.shape}; its shape is {leaf.shape}")
        return given
    if found := _INTEGERS.fullmatch(domain):
        return rng.integers(int(found[1]), int(found[2]), leaf.shape)
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        raise JaxgradError(
            f"{name} is a shape of {leaf.dtype}, which the domain {domain!r} cannot fill: give an array of values that"
            " make sense, or domains={...: 'integers(low, high)'}"
        )
    drawn = DOMAINS[domain](rng, leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        drawn = drawn + 1j * DOMAINS[domain](rng, leaf.shape)
        return drawn.astype(np.complex64)
    return drawn.astype(np.float32)


def reaches(domain: Domain) -> tuple[str, ...]:
    """The variants of inputs drawn from a domain that `reach` knows."""
    if callable(domain) or domain not in _SCALED:
        return ()
    return (*_MIRRORED, EDGES, LARGE) if domain == "normal" else SIZES


def reached(variant: str, drawn: np.ndarray, dtype: Any, seed: int, number: int) -> np.ndarray:
    """Drawn numbers of another size or sign, or with edges of their type among them: 0, the smallest, or large ones.

    Which zero it is depends on the seed and the number of the input. A large number is some 2^30, or a quarter of the
    root of the type's largest: its square does not overflow yet.
    """
    if variant not in (EDGES, LARGE):
        return drawn * drawn.dtype.type(float(variant))
    info = jnp.finfo(dtype)
    tiny, large = float(info.smallest_normal), min(2.0**30, float(info.max) ** 0.5 / 4)
    edges = {EDGES: (tiny, -tiny, float(info.eps)), LARGE: (large, -large)}[variant]
    rng = np.random.default_rng((seed, number, 1))
    # A quarter of the entries, and at least one.
    places = rng.permutation(drawn.size)[: max(1, math.ceil(drawn.size / 4))]
    wide = np.array(drawn, np.complex128 if drawn.dtype.kind == "c" else np.float64)
    # Each but once, as far as there is room in 7 bits: which of several equal numbers is the largest is a convention.
    again = np.arange(len(places)) // len(edges)
    wide.flat[places] = np.resize(np.array(edges), len(places)) * (1 + again % 2**7 / 2**7)
    # One zero alone, as 0 and -0 are equal too.
    if variant == EDGES:
        wide.flat[places[-1:]] = (0.0, -0.0)[(seed + number) % 2]
    return wide


def distinct(domain: Domain, drawn: np.ndarray) -> np.ndarray:
    """Numbers drawn in a 16-bit type with equal ones moved to the next free ones, where none has to go far.

    Rounding makes equals of many in such types, and which of two equal numbers is the larger is a convention in which
    right functions differ. Numbers that hang together, as in a symmetric matrix, stay as they are.
    """
    if drawn.dtype.itemsize != 2 or drawn.dtype.kind == "c" or callable(domain) or domain not in _SCALED - {"spd"}:
        return drawn
    bits = np.ascontiguousarray(drawn).view(np.int16).astype(np.int32).ravel()
    # In the order of the numbers, -0 just below 0.
    keys = np.where(bits >= 0, bits, -1 - (bits & 0x7FFF))
    order = np.argsort(keys, kind="stable")
    ranks = np.arange(keys.size)
    free = np.maximum.accumulate(keys[order] - ranks) + ranks
    if keys.size < 2 or np.max(free - keys[order]) > _FARTHEST:
        return drawn
    keys[order] = free
    moved_bits = np.where(keys >= 0, keys, (-1 - keys) | 0x8000).astype(np.uint16)
    return moved_bits.view(drawn.dtype).reshape(drawn.shape)


def moved(given: np.ndarray, seed: int, number: int) -> np.ndarray:
    """Given numbers, each moved by about a tenth of the array's size, so that zeros and ones hide nothing.

    What holds of them still does: signs, an order along the last axis, symmetry, rows that add up to 1, the unit
    interval. Zeros move too, away from a sign that all others have.
    """
    rng = np.random.default_rng((seed, number, 2))
    wide = np.asarray(given, np.complex128 if np.iscomplexobj(given) else np.float64)
    sizes = np.abs(wide[np.isfinite(wide)])
    if not sizes.size:
        return wide
    typical = float(np.sqrt(np.mean(sizes**2))) or 1.0
    step = 0.1 * rng.standard_normal(wide.shape)
    if wide.dtype.kind == "c":
        return np.where(np.isfinite(wide), wide + typical * step, wide)
    away = np.where(wide == 0, typical * step, wide * np.exp(step))
    if (wide >= 0).all():
        away = np.abs(away)
    if (wide >= 0).all() and (wide <= 1).all() and ((wide > 0) & (wide < 1)).any():
        away = np.where(wide == 0, np.minimum(away, 0.5), wide ** np.exp(step))
    if wide.ndim and wide.shape[-1] > 1:
        if np.allclose(wide.sum(-1), 1) and (wide >= 0).all():
            away = away / away.sum(-1, keepdims=True)
        elif (np.diff(wide, axis=-1) >= 0).all() and not (np.diff(wide, axis=-1) == 0).all():
            away = np.sort(away, -1)
    if wide.ndim > 1 and wide.shape[-1] == wide.shape[-2] and np.array_equal(wide, np.swapaxes(wide, -1, -2)):
        away = (away + np.swapaxes(away, -1, -2)) / 2
    return np.where(np.isfinite(wide), away, wide)
