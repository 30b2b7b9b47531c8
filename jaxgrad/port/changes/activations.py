"""Functions of one value: one in the place of another, or missing."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy import special

from jaxgrad.port import fingerprint, locate
from jaxgrad.port.changes.region import (
    DEEP,
    Change,
    Region,
    changing,
    counterpart,
    giving,
    running,
)

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu (exact, by erf)": lambda x: x * special.ndtr(x),
    "gelu (approximate, by tanh)": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "gelu (quick, by sigmoid)": lambda x: x * special.expit(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * special.expit(x),
    "tanh": np.tanh,
    "sigmoid": special.expit,
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "leaky_relu (0.01)": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky_relu (0.1)": lambda x: np.where(x > 0, x, 0.1 * x),
    "leaky_relu (0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
    "relu6": lambda x: np.clip(x, 0, 6),
    "softplus": lambda x: np.logaddexp(x, 0),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "exp": np.exp,
    "log_sigmoid": lambda x: -np.logaddexp(-x, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "square": np.square,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "softmax over the last axis": lambda x: special.softmax(x, -1),
    "softmax over the axis before the last": lambda x: special.softmax(x, -2),
    "softmax over the first axis": lambda x: special.softmax(x, 0),
    "log_softmax over the last axis": lambda x: special.log_softmax(x, -1),
    "normalised by its length": lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True),
}


def functions(r: Region) -> Iterator[Change]:
    """A function of an agreeing value is another function of it, or is missing."""
    trace = r.parted.own.trace
    before = [n for k in r.ops for n in r.recorded.program.ops[k].operands if locate.agreed(r.parted, n)]
    for n in list(dict.fromkeys(before))[:8]:
        x = r.recorded.values[n]
        if not trace.values[n].varies or not hasattr(x, "dtype") or x.dtype != np.float64 or not np.ndim(x):
            continue
        fit = {name: fn for name, fn in ACTIVATIONS.items() if "before the last" not in name or np.ndim(x) > 1}
        made = {name: np.asarray(fn(np.asarray(x))) for name, fn in fit.items()}
        theirs = [name for name, y in made.items() if np.isfinite(y).all() and counterpart(r, y, n) is not None]
        if not theirs:
            continue
        bad = [b for b in r.bad[: 2 * DEEP] if np.shape(r.recorded.values[b]) == np.shape(x)]
        for b in bad:
            y = trace.values[b].array
            own = next((name for name, z in made.items() if fingerprint.close(y, z)), None)
            for name in theirs:
                if own is not None:
                    yield Change(trace.values[b].place, f"{name} in the place of {own}", {b: made[name]}, {})
        for b in bad[:8]:
            whose = "" if n in locate.ancestors(trace, b) else f" of what {trace.values[n].place.brief} gives"
            for name in theirs:
                yield Change(trace.values[b].place, f"{name}{whose} in its place", {b: made[name]}, {})
        for k, op in list(r.ops.items())[:4]:
            for side, operand in enumerate(op.operands):
                if operand == n:
                    for name in theirs:
                        run = changing(op, side, giving(made[name]))
                        change = running(k, op, op.place, f"{name} before {op.name} is missing", run)
                        yield change._replace(taken=n)
