"""What pictures of one batch show: its gradients, and how far they are from the truth."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from jaxgrad.parity.cases import Case
from jaxgrad.parity.engines import DTYPES, Target, jax_grad, run
from jaxgrad.parity.verdict import verdict
from jaxgrad.plots.errors import Errors


def dlogits(case: Case) -> Float64[np.ndarray, "batch vocab"]:
    """The cotangent of the logits, by the derivatives written by hand, in float64."""
    return run(("by-node",), case, Target())["by-node"].nodes.logits


def errors(case: Case, report: Callable[[int], None] = lambda types: None) -> tuple[tuple[str, ...], list[Errors]]:
    """The names of the loss and of all cotangents, in backward order, and the errors of `by_node` in every type.

    An error is the 2-norm of the difference to `jax.grad` in float64, over the scale of `parity.compare`. Both are
    given parameters that the narrow type holds exactly, so that it is the error of the arithmetic alone. `report` is
    given the number of types done.
    """
    found: list[Errors] = []
    names: tuple[str, ...] = ()
    for done, dtype in enumerate(DTYPES, 1):
        narrow = _held_by(case, dtype)
        gradients = {**run(("by-node",), narrow, Target(dtype)), "truth": jax_grad(narrow, Target("float64"))}
        rows = verdict(narrow, Target(dtype), gradients).rows
        differences = [row.pairs["by-node", "truth"] for row in rows]
        relative, tolerance = (np.array([getattr(d, of) for d in differences]) for of in ("relative", "tolerance"))
        found.append(Errors(dtype, relative, tolerance))
        names = tuple(row.name for row in rows)
        report(done)
    return names, found


def _held_by(case: Case, dtype: str) -> Case:
    return case._replace(params=jax.tree.map(lambda p: p.astype(jnp.dtype(dtype)).astype(np.float64), case.params))
