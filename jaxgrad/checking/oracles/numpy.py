"""Somebody's own answer to a question: a function of arrays that gives outputs and cotangents, in NumPy or anything."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxgrad.checking.oracles import Oracle
from jaxgrad.checking.pullback import Pulled
from jaxgrad.checking.question import Call, Question, arguments
from jaxgrad.errors import JaxgradError


def numpy_oracle(name: str, fn: Callable[..., Any], asked: Call) -> Oracle:
    """`fn(*args, *dys, **kwargs) -> (outputs, cotangents)` as an oracle; cotangents are of the inputs, in their order.

    It has no second order, and its program cannot be followed, so that noise is that of another program.
    """

    def answered(q: Question, second: bool) -> tuple[Pulled, list[str]]:
        if second:
            raise JaxgradError(f"{name} has no second order")
        args, kwargs = arguments(asked, q.inputs, q.carried)
        outputs, cotangents = fn(*args, *q.dys, **kwargs)
        made = [np.asarray(leaf) for leaf in jax.tree.leaves(cotangents)]
        if len(made) != len(q.inputs):
            raise JaxgradError(f"{name} gives {len(made)} cotangents; there are {len(q.inputs)} inputs")
        return Pulled([np.asarray(leaf) for leaf in jax.tree.leaves(outputs)], [], made), []

    return Oracle(name, answered, None, lambda q: [])
