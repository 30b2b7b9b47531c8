"""tokamax's XLA forms of attention and of the cross-entropy of language models."""

import jax
import jax.numpy as jnp
import pytest

tokamax = pytest.importorskip("tokamax", reason="tokamax is not installed: pip install 'jaxgrad[third-party]'")

# It reads a flag of its own, and absl refuses to tell one before flags are parsed.
pytest.importorskip("absl.flags").FLAGS(["pytest"])

ONCE = {"transforms": ("jit", "vmap"), "seeds": (0,)}
TARGETS = (1, 3, 0, 2)


def struct(*shape: int):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def attention(q, k, v):
    return tokamax.dot_product_attention(q, k, v, is_causal=True, implementation="xla")


def plain_attention(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def cross_entropy(x, w):
    return tokamax.linear_softmax_cross_entropy_loss(x, jnp.array(TARGETS), w, implementation="xla")


def plain_cross_entropy(x, w):
    return -jnp.take_along_axis(jax.nn.log_softmax(x @ w), jnp.array(TARGETS)[:, None], 1).sum()


@pytest.mark.parametrize(
    ("fn", "plain", "args", "at"),
    [
        (attention, plain_attention, 3 * (struct(1, 6, 2, 8),), "q"),
        (cross_entropy, plain_cross_entropy, (struct(4, 5), struct(5, 6)), "x"),
    ],
    ids=["attention", "cross_entropy"],
)
def test_it_is_right_as_it_is_and_a_planted_mistake_is_caught(quiet, caught, plant, fn, plain, args, at):
    quiet(fn, *args, reference=plain, **ONCE)
    caught(plant.planted(fn, plant.negated), *args, reference=plain, at=at)
