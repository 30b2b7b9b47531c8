"""The kernels of the cross-entropy of a linear map: judged as XLA's form is, in the interpreters, and lowered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

# Nothing public tells what the detection of races found.
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec

from jaxgrad.errors import JaxgradError
from jaxgrad.ops import _linear_cross_entropy_kernels as kernels
from jaxgrad.ops import cross_entropy, linear_cross_entropy
from jaxgrad.ops._shards import together
from jaxgrad.ops.cross_entropy import Options
from jaxgrad.ops.linear_cross_entropy import Blocks, _linear_cross_entropy

# No block divides the rows, the columns or the numbers of a row.
ROWS, D, V = 21, 20, 37
TARGETS = np.random.default_rng(0).integers(0, V, ROWS).astype(np.int8)
TARGETS[3] = -100
OPTIONS = {
    "mean": {},
    "sum": {"z_loss": 1e-2, "soft_cap": 3.0, "reduction": "sum"},
    "none": {"label_smoothing": 0.1, "z_loss": 1e-2, "reduction": "none"},
}
interpreted = functools.partial(linear_cross_entropy, row_block=16, column_block=16, implementation="interpret")


def structs(*shapes):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def plain(x, w, bias, weights, **options):
    """The same through whole logits; `test_cross_entropy` has judged that function."""
    return cross_entropy(x @ w + bias, jnp.asarray(TARGETS), weights, **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_kernels_are_right(three_way, name):
    options = {"ignore_index": -100, **OPTIONS[name]}

    def fn(x, w, bias, weights):
        return interpreted(x, w, jnp.asarray(TARGETS), bias, weights, **options)

    three_way(
        fn, *structs((ROWS, D), (D, V), (V,), (ROWS,)), reference=functools.partial(plain, **options),
        dtypes=("float64", "float32", "bfloat16") if name == "mean" else ("float64",),
        transforms=("jit",), seeds=(0,), domains={"weights": "unit"}, name=name,
    )  # fmt: skip


def test_without_bias_and_weights_mapped_and_scanned_they_are_those_of_the_other_form():
    x, w = jax.random.normal(jax.random.key(0), (2, ROWS, D)), jax.random.normal(jax.random.key(1), (D, V))
    targets = jnp.abs(jnp.asarray(TARGETS)) % V

    def pull(fn, x):
        return jax.value_and_grad(lambda x, w: fn(x, w, targets), (0, 1))(x, w)

    def scanned(fn):
        return jax.jit(lambda x: jax.lax.scan(lambda _, x: (None, pull(fn, x)), None, x)[1])

    expected = scanned(linear_cross_entropy)(x)
    for found in (scanned(interpreted)(x), jax.jit(jax.vmap(functools.partial(pull, interpreted)))(x)):
        for e, a in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            assert np.allclose(e, a, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_forward_and_backward_lower_to_three_kernels(platform: str, dtype: str):
    # JAX exports only calls that it promises to keep; a kernel's is none of them.
    names = ("tpu_custom_call", "__gpu$xla.gpu.triton", "triton_kernel_call", "triton_kernel_call_ffi")
    options, blocks = Options(0, 0.1, 1e-4, 30.0), Blocks(128, 128, False, platform)

    def pull(x, w, targets, bias, weights):
        y, pullback = jax.vjp(
            lambda x, w, *rest: _linear_cross_entropy(x, w, targets, *rest, options, blocks), x, w, bias, weights
        )
        return pullback(y)

    args = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((300, 200), (200, 1000), (1000,), (300,))]
    args.insert(2, jax.ShapeDtypeStruct((300,), jnp.int32))
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in names]
    exported = export.export(
        jax.jit(pull), platforms=["cuda" if platform == "gpu" else platform], disabled_checks=checks
    )(*args)
    assert exported.mlir_module().count("stablehlo.custom_call") == 3


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_with_a_map_that_all_shards_share_they_lower_as_well(platform):
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))

    def loss(x, w):
        args = together(x, w, jnp.arange(x.shape[0]), None, None)
        return jax.lax.pmean(_linear_cross_entropy(*args, Options(), Blocks(128, 128, False, platform)), "rows")

    split = jax.shard_map(loss, mesh=mesh, in_specs=(PartitionSpec("rows"), PartitionSpec()), out_specs=PartitionSpec())
    traced = jax.jit(jax.grad(split, (0, 1))).trace(*structs((8, D), (D, V)))
    lowered = traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))
    assert lowered.as_text().count("stablehlo.custom_call") == 3


def test_in_the_interpreter_of_tpus_no_two_programs_race_for_memory():
    shapes = (140, 130), (130, 200), (200,)
    x, w, bias = (0.1 * jax.random.normal(jax.random.key(k), shape) for k, shape in enumerate(shapes))
    targets, options = jnp.arange(140), Options(reduction="none", label_smoothing=0.1)
    static = kernels.static_of(x, w, options, 128, 128, "tpu")
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True)):
        statistics, picked, total = kernels.forward(x, w, bias, targets, static)
        found = kernels.cotangents(x, w, bias, targets, statistics, jnp.ones(140), static)
    loss = statistics.maximum + statistics.log_sum - 0.9 * picked - 0.1 * total / 200
    expected, pullback = jax.vjp(
        lambda x, w, bias: cross_entropy(x @ w + bias, targets, reduction="none", label_smoothing=0.1), x, w, bias
    )
    for e, a in zip((expected, *pullback(jnp.ones(140))), (loss, *found), strict=True):
        assert np.allclose(e, a, atol=1e-5)
    assert not interpret_pallas_call.races.races_found


def test_what_a_bias_rules_out_and_targets_out_of_range():
    x, w, bias = jnp.ones((2, D)), jnp.ones((D, V)), jnp.zeros(V).at[:20].set(-jnp.inf)
    losses = interpreted(x[:1].repeat(3, 0), w, jnp.array([36, V, -1]), bias, reduction="none")
    assert np.isclose(losses[0], np.log(17)) and np.isnan(losses[1:]).all()
    dx, dw = jax.grad(lambda x, w: interpreted(x, w, jnp.array([36, 36]), bias), (0, 1))(x, w)
    assert np.allclose(dx, 0, atol=1e-6) and not dw[:, :20].any() and np.isfinite(dw).all()


def test_where_a_kernel_cannot_be_it_is_refused():
    args = jnp.ones((2, D)), jnp.ones((D, V)), jnp.zeros(2, int)
    with pytest.raises(JaxgradError, match="kernels of linear_cross_entropy compile for gpu and tpu, and this is cpu"):
        linear_cross_entropy(*args, implementation="pallas")
    with pytest.raises(JaxgradError, match="choose 'xla', 'pallas' or 'interpret'"):
        linear_cross_entropy(*args, implementation="triton")
