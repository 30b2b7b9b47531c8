"""Other people's functions: `check` is quiet about each as it is, and catches a mistake that is planted in it.

What comes with jax, optax and torch always runs. Files of other packages skip where theirs is missing:
`pip install 'jaxgrad[third-party]'`.
"""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxgrad import GradientMismatch

QUICK = {"dtypes": ("float64",), "transforms": ("jit",), "seeds": (0,)}


@pytest.fixture
def quiet(three_way):
    """The check passes, something was judged, and what was not is told in words that are no traceback."""

    def check(fn: Callable, *args: Any, **options: Any):
        report = three_way(fn, *args, **options)
        for finding in report.not_judged:
            assert finding.why and "Traceback" not in finding.why, finding.why
        return report

    return check


@pytest.fixture
def caught(three_way):
    """The check fails for the function alone, at the input that was named, and not by refusing it."""

    def check(fn: Callable, *args: Any, at: str, **options: Any) -> str:
        with pytest.raises(GradientMismatch) as raised:
            three_way(fn, *args, **{**QUICK, **options})
        message = str(raised.value)
        assert f": the cotangent of input {at} is wrong" in message.splitlines()[0], message
        assert raised.value.report.findings[0].alone == "hand", message
        return message

    return check


def planted(fn: Callable, mistake: Callable) -> Callable:
    """`fn` with a backward pass that is JAX's own, but for `mistake` made in its cotangents."""

    @jax.custom_vjp
    def wrong(*args):
        return fn(*args)

    wrong.defvjp(lambda *args: jax.vjp(fn, *args), lambda pull, dy: tuple(mistake(*pull(dy))))

    # The names of its arguments are for messages. On the rule itself they would fill in defaults, and trace those.
    @functools.wraps(fn)
    def named(*args):
        return wrong(*args)

    return named


def scaled(*cotangents):
    """A thousandth too large, as a constant that was typed is."""
    return (cotangents[0] * jnp.asarray(1.001, cotangents[0].dtype), *cotangents[1:])


def dropped(*cotangents):
    """The first argument's is forgotten."""
    return (jnp.zeros_like(cotangents[0]), *cotangents[1:])


def negated(*cotangents):
    """The first argument's has the wrong sign."""
    return (-cotangents[0], *cotangents[1:])


def shifted(*cotangents):
    """The first argument's is off by one along its last axis."""
    return (jnp.roll(cotangents[0], 1, -1), *cotangents[1:])


def swapped(first, second, *others):
    """The first two are returned in the wrong order."""
    return (second, first, *others)


@pytest.fixture(scope="session")
def plant():
    """`plant.planted(fn, plant.scaled)`: a function with a mistake, and the mistakes there are."""
    mistakes = (scaled, dropped, negated, shifted, swapped)
    return SimpleNamespace(planted=planted, **{mistake.__name__: mistake for mistake in mistakes})
