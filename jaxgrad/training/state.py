"""What a training step turns into the next."""

from typing import Any, NamedTuple

from jaxtyping import Array, Int


class State(NamedTuple):
    """Parameters, optax's state, and the number of steps taken."""

    params: Any
    opt_state: Any
    step: Int[Array, ""]
