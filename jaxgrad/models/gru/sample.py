"""Logits without a loss, and symbols drawn from them one after another, with the state for a memory."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgrad import ops
from jaxgrad.models.gru.forward import embedded
from jaxgrad.models.gru.params import Params
from jaxgrad.models.sequence_sampling import checked_draw, draw


def predict(params: Params, X: Int[Array, "b t"]) -> Float[Array, "b t vocab"]:
    """Logits of the symbol after each place, without dropout, for sequences of any length."""
    return extend(params, start_state(params, X.shape[0]), X)[0]


def start_state(params: Params, rows: int) -> Float[Array, "b n"]:
    """The state before the first symbol."""
    return jnp.broadcast_to(params.start, (rows, params.start.size))


def extend(
    params: Params, state: Float[Array, "b n"], symbols: Int[Array, "b t"]
) -> tuple[Float[Array, "b t vocab"], Float[Array, "b n"]]:
    """Logits after each of the next symbols, and the state after the last."""
    states = ops.gru(embedded(params, symbols), state, params.gru)
    return ops.linear(states.swapaxes(0, 1), params.head, params.head_bias), states[-1]


def sample(
    params: Params,
    key: PRNGKeyArray,
    prompts: Int[Array, "b n"],
    count: int,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
) -> Int[Array, "b count"]:
    """`count` symbols after each prompt, each drawn from the logits of all before it.

    Temperature 0 takes the likeliest symbol always; `top_k` draws among so many of the likeliest only.
    Raises `JaxgradError` for an empty prompt, no count, a temperature below 0, or a `top_k` below 1.
    """
    checked_draw(prompts, count, temperature, top_k)
    keys = jax.random.split(key, count)
    logits, state = extend(params, start_state(params, prompts.shape[0]), prompts)
    first = draw(keys[0], logits[:, -1], temperature, top_k)

    def step(carried: tuple[Array, Array], key: PRNGKeyArray) -> tuple[tuple[Array, Array], Array]:
        symbols, state = carried
        logits, state = extend(params, state, symbols[:, None])
        new = draw(key, logits[:, -1], temperature, top_k)
        return (new, state), new

    _, rest = jax.lax.scan(step, (first, state), keys[1:])
    return jnp.concatenate((first[:, None], rest.T), 1)
