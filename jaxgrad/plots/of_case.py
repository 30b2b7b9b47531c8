"""What pictures of one batch show: its gradients, and how far they are from the truth."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from jaxgrad.checking.compare import Difference, limit
from jaxgrad.errors import JaxgradError
from jaxgrad.parity import own_score
from jaxgrad.parity.cases import Case
from jaxgrad.parity.engines import DTYPES, Target, run
from jaxgrad.parity.verdict import judge
from jaxgrad.plots.errors import Errors
from jaxgrad.plots.noise import Judged


def dlogits(case: Case) -> Float64[np.ndarray, "positions vocab"]:
    """The cotangent of the logits, by the model's first derivatives written by hand, in float64: a row for each target.

    Raises `JaxgradError` for a model that does not say which node its logits are.
    """
    way, node = next(iter(case.model.nodes)), case.model.logits
    if node is None:
        raise JaxgradError(f"the model {case.model.name} has no node for its logits")
    found = run((way,), case, Target())[way].nodes[node]
    return found.reshape(-1, found.shape[-1])


def errors(case: Case, report: Callable[[int], None] = lambda types: None) -> tuple[tuple[str, ...], list[Errors]]:
    """The names of the loss and of all cotangents, in backward order, and the errors of `by-node`, the
    first of the model's hand-written ways, in every type.

    An error is the 2-norm of the difference to `jax.grad` in float64, over that of the latter. Both are given
    parameters that the narrow type holds exactly, so that it is the error of the arithmetic alone. `report` is given
    the number of types done.
    """
    found: list[Errors] = []
    names: tuple[str, ...] = ()
    for done, dtype in enumerate(DTYPES, 1):
        way = next(iter(case.model.nodes))
        tensors = judge(case, Target(dtype), (way, "jax.grad")).tensors
        # In float64 the other side is jax.grad, and in a narrower type it is the truth in float64.
        differences = [next(d for (engine, _), d in t.pairs.items() if engine == way) for t in tensors]
        relative, tolerance = np.array([_relative(d, dtype) for d in differences]).T
        found.append(Errors(dtype, relative, tolerance))
        names = tuple(t.name for t in tensors)
        report(done)
    return names, found


def judged(case: Case, report: Callable[[int], None] = lambda types: None) -> Judged:
    """How far the model's first hand-written way is from `jax.grad` in float64, in every type, in units of the noise
    that it is judged with, and how far every mutant of its backward passes is. `report` is given the number of types
    done.
    """
    distances: dict[str, np.ndarray] = {}
    shares: dict[str, list[float]] = {}
    way = next(iter(case.model.nodes))
    samples = 1
    for done, dtype in enumerate(DTYPES, 1):
        tensors = [t for t in judge(case, Target(dtype), (way, "jax.grad")).tensors if t.pairs]
        of_way = [(t, *next((pair, d) for pair, d in t.pairs.items() if pair[0] == way)) for t in tensors]
        shares[dtype] = [d.share for _, _, d in of_way]
        # In float64 both sides are rounded, and in a narrower type the other side is not.
        widened = 2**0.5 if dtype == "float64" else 1.0
        parts = [
            np.abs(np.asarray(t.values[pair[0]], np.float64) - np.asarray(t.values[pair[1]], np.float64)).ravel()
            / np.where(t.noise.deviation > 0, widened * t.noise.deviation, np.inf).ravel()
            for t, pair, _ in of_way
        ]
        distances[dtype] = np.concatenate(parts)
        samples = max(samples, *(t.noise.samples for t in tensors))
        report(done)
    return Judged(distances, shares, own_score.shares(case), samples, limit(1.0, samples))


def _relative(d: Difference, dtype: str) -> tuple[float, float]:
    """A relative error and its limit.

    The terms of `logit_maxes` cancel to 0, of which no error is a part. What is no more than noise in float64 too is
    measured against those terms instead: the size of which its noise is one rounding.
    """
    unit = float(jnp.finfo(dtype).eps) / 2
    in_float64 = d.noise * 2.0**-53 / unit
    terms = d.noise / unit if in_float64 > 1 else 1.0
    return d.relative / terms, d.tolerance / terms
