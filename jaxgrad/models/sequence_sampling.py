"""How a symbol is drawn from logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgrad.errors import JaxgradError


def checked_draw(prompts: Int[Array, "b n"], count: int, temperature: float, top_k: int | None) -> None:
    """Raise `JaxgradError` for an empty prompt, no count, a temperature below 0, or a `top_k` below 1."""
    if prompts.shape[1] < 1 or count < 1:
        raise JaxgradError(f"{prompts.shape[1]} symbols of prompt and {count} to draw; give at least one of each")
    if temperature < 0 or (top_k is not None and top_k < 1):
        raise JaxgradError(f"temperature is {temperature} and top_k {top_k}; give at least 0 and 1")


def draw(
    key: PRNGKeyArray, logits: Float[Array, "b vocab"], temperature: float = 1.0, top_k: int | None = None
) -> Int[Array, " b"]:
    """A symbol for each row of logits; temperature 0 takes the likeliest, `top_k` leaves so many."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    return jax.random.categorical(key, logits / temperature).astype(jnp.int32)
