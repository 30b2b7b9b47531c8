"""The kernel lowers for platforms that this machine need not have."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

from jaxgrad.models.mlp.forward import Batch, Params
from jaxgrad.models.mlp.kernel.launch import gradients, run_models

# JAX exports only calls that it promises to keep; a kernel's is none of them, under any of its names.
KERNEL_CALLS = [
    export.DisabledSafetyCheck.custom_call(name)
    for name in ("tpu_custom_call", "__gpu$xla.gpu.triton", "triton_kernel_call", "triton_kernel_call_ffi")
]
PLATFORMS = [("gpu", "cuda"), ("tpu", "tpu")]
# The notebook's, then odd ones: batch, n, vocab, emb_size, h_size.
SIZES = [(32, 3, 27, 10, 200), (31, 5, 53, 7, 333)]


def arguments(sizes: tuple[int, ...], leading: tuple[int, ...], steps: tuple[int, ...], dtype) -> tuple[Params, Batch]:
    batch, n, vocab, emb_size, h_size = sizes
    shapes = [(vocab, emb_size), (n * emb_size, h_size), (h_size, vocab), (vocab,), (1, h_size), (1, h_size)]
    params = Params(*(jax.ShapeDtypeStruct((*leading, *shape), dtype) for shape in shapes))
    symbols = [(*leading, *steps, batch, n), (*leading, *steps, batch)]
    return params, Batch(*(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in symbols))


def lowered(fn, platform: str, args, **options) -> str:
    # Exported and not only lowered: this is what a machine without an accelerator can do for one that has it.
    of_platform = dict(PLATFORMS)[platform]
    exported = export.export(fn, platforms=[of_platform], disabled_checks=KERNEL_CALLS)
    return exported(*args, platform=platform, **options).mlir_module()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", [name for name, _ in PLATFORMS])
def test_a_run_of_132_models_lowers_to_one_kernel(platform: str, dtype: str, sizes):
    params, batch = arguments(sizes, (132,), (1000,), jnp.float32)
    rates = jax.ShapeDtypeStruct((132, 1000), jnp.float32)
    text = lowered(run_models, platform, (params, batch, rates), dtype=dtype)
    assert text.count("stablehlo.custom_call") == 1
    assert "stablehlo.while" not in text


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("platform", [name for name, _ in PLATFORMS])
def test_gradients_lower_to_one_kernel(platform: str, sizes):
    assert lowered(gradients, platform, arguments(sizes, (), (), jnp.float32)).count("stablehlo.custom_call") == 1


def test_float64_lowers_for_a_gpu():
    with jax.enable_x64(True):
        text = lowered(gradients, "gpu", arguments(SIZES[0], (), (), jnp.float64))
    assert text.count("stablehlo.custom_call") == 1
