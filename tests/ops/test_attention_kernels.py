"""The kernels of attention: judged as XLA's form is, in the interpreters, and lowered for what is not here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

# Nothing public tells what the detection of races found.
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from jaxgrad.errors import JaxgradError
from jaxgrad.ops import _attention_kernels as kernels
from jaxgrad.ops import attention
from jaxgrad.ops.attention import Data, Options, _attention

interpreted = functools.partial(attention, implementation="interpret", block=16)
SHAPES = [(1, 21, 2, 3), (1, 18, 1, 3), (1, 18, 1, 3)]
SEGMENTS = np.sort(np.random.default_rng(0).integers(0, 3, (1, 21)).astype(np.int32), 1)
KEY_MASK = np.random.default_rng(1).random((1, 18)) < 0.7
# No block divides a length, heads are shared, and some queries see no key.
KINDS = {
    "causal": {"causal": True},
    "window and cap": {"window": (5, 2), "soft_cap": 2.0},
    "segments and mask": {"segment_ids": SEGMENTS, "key_segment_ids": SEGMENTS[:, :18], "key_mask": KEY_MASK},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_are_right(three_way, kind):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SHAPES]
    three_way(
        functools.partial(interpreted, **KINDS[kind]), *args, reference=functools.partial(attention, **KINDS[kind]),
        dtypes=("float64", "float32", "bfloat16") if kind == "causal" else ("float64",),
        transforms=("jit",), seeds=(0,), name=kind,
    )  # fmt: skip


def test_a_wrong_mask_scale_or_cap_changes_every_cotangent():
    args = [jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate(SHAPES)]

    def cotangents(fn, **options):
        return jax.jit(jax.grad(lambda *args: (fn(*args, **options) ** 2).sum(), (0, 1, 2)))(*args)

    right = cotangents(attention, causal=True)
    for wrong in ({"window": (20, 1)}, {"causal": True, "scale": 0.5}, {"causal": True, "soft_cap": 9.0}):
        found = cotangents(interpreted, **wrong)
        assert not any(np.allclose(r, f, atol=1e-4) for r, f in zip(right, found, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_forward_and_backward_lower_to_three_kernels(platform: str, dtype: str):
    # JAX exports only calls that it promises to keep; a kernel's is none of them.
    names = ("tpu_custom_call", "__gpu$xla.gpu.triton", "triton_kernel_call", "triton_kernel_call_ffi")
    options = Options(None, 0, 0.125, None, 256, platform)

    def pull(q, k, v):
        y, pullback = jax.vjp(lambda *args: _attention(*args, Data(None, None, None, None), options), q, k, v)
        return pullback(y)

    args = [jax.ShapeDtypeStruct((1, 300, heads, 64), dtype) for heads in (4, 2, 2)]
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in names]
    exported = export.export(
        jax.jit(pull), platforms=["cuda" if platform == "gpu" else platform], disabled_checks=checks
    )(*args)
    assert exported.mlir_module().count("stablehlo.custom_call") == 3


def test_in_the_interpreter_of_tpus_no_two_programs_race_for_memory():
    q = jax.random.normal(jax.random.key(0), (1, 200, 2, 8))
    k, own = q[:, :, :1], jnp.zeros((1, 200), jnp.int32)
    static = kernels.Static(None, 0, 0.3, None, 2, 128, "tpu")
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True)):
        y, log_sums = kernels.forward(q, k, k, own, own, static)
        cotangents = kernels.cotangents(q, k, k, own, own, y, log_sums, y, static)
    expected, pullback = jax.vjp(lambda *args: attention(*args, scale=0.3, causal=True), q, k, k)
    for e, a in zip((expected, *pullback(expected)), (y, *cotangents), strict=True):
        assert np.allclose(e, a, atol=1e-5)
    assert not interpret_pallas_call.races.races_found


def test_where_a_kernel_cannot_be_it_is_refused():
    args = [jnp.ones(shape) for shape in SHAPES]
    with pytest.raises(JaxgradError, match="compile for gpu and tpu, and this is cpu; use implementation='xla'"):
        attention(*args, implementation="pallas")
    with pytest.raises(JaxgradError, match="have no bias"):
        interpreted(*args, jnp.ones((1, 1, 1, 1)))
    with pytest.raises(JaxgradError, match="choose 'xla', 'pallas' or 'interpret'"):
        attention(*args, implementation="triton")
