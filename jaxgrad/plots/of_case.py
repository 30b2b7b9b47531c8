"""What pictures of one batch show: its gradients, and how far they are from the truth."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from jaxgrad.checking.compare import Difference
from jaxgrad.errors import JaxgradError
from jaxgrad.parity.cases import Case
from jaxgrad.parity.engines import DTYPES, Target, run
from jaxgrad.parity.verdict import judge
from jaxgrad.plots.errors import Errors


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


def _relative(d: Difference, dtype: str) -> tuple[float, float]:
    """A relative error and its limit.

    The terms of `logit_maxes` cancel to 0, of which no error is a part. What is no more than noise in float64 too is
    measured against those terms instead: the size of which its noise is one rounding.
    """
    unit = float(jnp.finfo(dtype).eps) / 2
    in_float64 = d.noise * 2.0**-53 / unit
    terms = d.noise / unit if in_float64 > 1 else 1.0
    return d.relative / terms, d.tolerance / terms
