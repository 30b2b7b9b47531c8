"""Attention and grouped products of jax.experimental.pallas, interpreted: kernels in float32 beside plain JAX."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import pytest

ONCE = {"dtypes": ("float32",), "transforms": ("jit",), "seeds": (0,)}


def struct(*shape: int):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def causal(q, k, v, scale):
    """Causal attention over (batch, heads, time, width)."""
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k) * scale
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    return jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(scores, -1), v)


def gpu_attention():
    from jax.experimental.pallas.ops.gpu import attention

    names = ("block_q", "block_k", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    blocks = attention.BlockSizes(**dict.fromkeys(names, 16))

    def mha(q, k, v):
        return attention.mha(q, k, v, None, sm_scale=0.25, causal=True, block_sizes=blocks, interpret=True)

    def plain(q, k, v):
        return causal(*(x.swapaxes(1, 2) for x in (q, k, v)), 0.25).swapaxes(1, 2)

    return mha, plain, 3 * (struct(1, 32, 2, 16),)


def tpu_flash_attention():
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    blocks = flash.BlockSizes.get_default(1, 1, 128, 128, 128)

    def attention(q, k, v):
        return flash.flash_attention(q, k, v, causal=True, sm_scale=0.25, block_sizes=blocks)

    return attention, functools.partial(causal, scale=0.25), 3 * (struct(1, 1, 128, 128),)


def tpu_splash_attention():
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    mask = masks.MultiHeadMask([masks.CausalMask((128, 128))])
    kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=True)

    def attention(q, k, v):
        return kernel(q, k, v)

    def plain(q, k, v):
        return causal(q[None], k[None], v[None], 1.0)[0]

    return attention, plain, 3 * (struct(1, 128, 128),)


def tpu_grouped_product():
    from jax.experimental.pallas.ops.tpu.megablox import ops

    def grouped(a, b):
        return ops.gmm(a, b, jnp.array([128, 128], jnp.int32), jnp.float32, interpret=True)

    def plain(a, b):
        return jnp.concatenate([a[:128] @ b[0], a[128:] @ b[1]])

    return grouped, plain, (struct(256, 128), struct(2, 128, 128))


KERNELS = [gpu_attention, tpu_flash_attention, tpu_splash_attention, tpu_grouped_product]


def interpreted(kernel):
    """Flash attention has no argument for it."""
    if kernel is not tpu_flash_attention:
        return contextlib.nullcontext()
    from jax.experimental.pallas import tpu

    return tpu.force_tpu_interpret_mode()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_is_right_as_it_is_and_a_mistake_in_its_backward_is_caught(quiet, caught, plant, kernel):
    fn, plain, args = kernel()
    mistake = plant.negated if kernel is tpu_grouped_product else plant.swapped
    with interpreted(kernel):
        assert not quiet(fn, *args, reference=plain, **ONCE).not_judged
        caught(plant.planted(fn, mistake), *args, reference=plain, at="a" if mistake is plant.negated else "q", **ONCE)
