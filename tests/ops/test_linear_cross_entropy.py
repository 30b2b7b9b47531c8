"""Cross-entropy of a linear map's outputs, in blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, PartitionSpec

from jaxgrad import jax_seam
from jaxgrad.errors import JaxgradError
from jaxgrad.ops import cross_entropy, linear_cross_entropy

ROWS, D, V = 7, 5, 37
TARGETS = np.array([3, -100, 0, 36, 7, 7, 20], np.int32)
# No block divides the rows or the columns.
KEPT = {"row_block": 3, "column_block": 16}
TWICE = {**KEPT, "kept_bytes": 0}
ALL = {"label_smoothing": 0.1, "soft_cap": 3.0, "z_loss": 1e-2, "ignore_index": -100}


def plain(x, w, bias, weights, **options):
    """The same through whole logits; `test_cross_entropy` has judged that function."""
    return cross_entropy(x @ w + bias, jnp.asarray(TARGETS), weights, **options)


def by_jnp(x, w, bias=None):
    logits = x @ w if bias is None else x @ w + bias
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.abs(TARGETS)[:, None] % V, -1).mean()


def twin(x, w, bias=None):
    logits = x @ w if bias is None else x @ w + bias
    return torch.nn.functional.cross_entropy(logits, torch.tensor(np.abs(TARGETS) % V).long())


def by_blocks(blocks, options=None):
    def fn(x, w, bias, weights):
        return linear_cross_entropy(x, w, jnp.asarray(TARGETS), bias, weights, **(options or {}), **blocks)

    return fn


def structs(*shapes):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


@pytest.mark.parametrize("blocks", [KEPT, TWICE], ids=["kept", "twice"])
def test_in_every_type_and_use(three_way, blocks):
    def fn(x, w):
        return linear_cross_entropy(x, w, jnp.abs(TARGETS) % V, **blocks)

    args = structs((ROWS, D), (D, V))
    three_way(fn, *args, reference=by_jnp, torch_reference=twin, dtypes=("float64",), seeds=(0,))
    three_way(
        fn, *args, reference=by_jnp, torch_reference=twin,
        dtypes=("float32", "bfloat16", "float16"), transforms=("jit",), seeds=(0,),
    )  # fmt: skip


@pytest.mark.parametrize("blocks", [{}, KEPT, TWICE], ids=["one", "kept", "twice"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_option_is_that_of_the_cross_entropy(blocks, reduction):
    options = {**ALL, "reduction": reduction}
    with jax.enable_x64(True):
        args = [jax.random.normal(jax.random.key(k), s) for k, s in enumerate([(ROWS, D), (D, V), (V,), (ROWS,)])]
        dy = jnp.arange(1.0, 1 + ROWS) if reduction == "none" else 2.0

        @functools.partial(jax.jit, static_argnums=0)
        def both(fn, *args):
            y, pullback = jax.vjp(fn, *args)
            return y, pullback(jnp.asarray(dy))

        expected = both(functools.partial(plain, **options), *args)
        actual = both(by_blocks(blocks, options), *args)
        for e, a in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
            assert np.allclose(e, a, rtol=1e-13, atol=1e-13)


def test_bias_weights_and_options_in_narrow_types_and_second_order(three_way):
    args = structs((ROWS, D), (D, V), (V,), (ROWS,))
    for dtypes, transforms in ((("float64",), ("grad_of_grad",)), (("bfloat16",), ("jit",))):
        three_way(
            by_blocks(TWICE, ALL), *args, reference=functools.partial(plain, **ALL),
            dtypes=dtypes, transforms=transforms, seeds=(0,), domains={"weights": "unit"},
        )  # fmt: skip


@pytest.mark.parametrize("blocks", [KEPT, TWICE], ids=["kept", "twice"])
def test_no_array_has_the_size_of_the_logits(blocks):
    def largest_in(program):
        inner = (largest_in(held) for eqn in program.eqns for held in jax_seam.inner(eqn))
        return max([*inner, *(var.aval.size for eqn in program.eqns for var in eqn.outvars)])

    def largest(fn):
        return largest_in(jax.make_jaxpr(jax.grad(fn, argnums=(0, 1)))(jnp.ones((64, 2)), jnp.ones((2, 300))).jaxpr)

    targets = jnp.zeros(64, jnp.int32)
    options = {**blocks, "row_block": 8}
    assert largest(lambda x, w: linear_cross_entropy(x, w, targets, **options)) < 64 * 300 / 4
    assert largest(lambda x, w: cross_entropy(x @ w, targets)) == 64 * 300


def test_two_batch_axes_and_one_vector():
    x, w = jax.random.normal(jax.random.key(0), (2, 3, D)), jax.random.normal(jax.random.key(1), (D, V))
    targets = jnp.arange(6).reshape(2, 3)
    losses = linear_cross_entropy(x, w, targets, reduction="none")
    assert np.allclose(losses, cross_entropy(x @ w, targets, reduction="none"), rtol=1e-5)
    assert np.allclose(linear_cross_entropy(x[0, 0], w, targets[0, 0]), losses[0, 0])


@pytest.mark.parametrize("blocks", [KEPT, TWICE], ids=["kept", "twice"])
def test_under_shard_map_with_a_map_that_all_shards_share(blocks):
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    x, w = jax.random.normal(jax.random.key(0), (8, D)), jax.random.normal(jax.random.key(1), (D, V))

    def loss(x, w):
        targets = jnp.arange(x.shape[0]) + 8 * jax.lax.axis_index("rows")
        return jax.lax.pmean(linear_cross_entropy(x, w, targets, **blocks), "rows")

    rows, whole = PartitionSpec("rows"), PartitionSpec()
    split = jax.shard_map(loss, mesh=mesh, in_specs=(rows, whole), out_specs=whole)
    actual = jax.jit(jax.grad(split, argnums=(0, 1)))(x, w)
    targets = jnp.array([0, 1, 2, 3, 8, 9, 10, 11])
    expected = jax.grad(lambda x, w: cross_entropy(x @ w, targets), argnums=(0, 1))(x, w)
    assert all(np.allclose(e, a, atol=1e-6) for e, a in zip(expected, actual, strict=True))


@pytest.mark.parametrize("target", [3, -1, -3, -4])
def test_a_target_out_of_range_makes_the_loss_nan_rather_than_wrong(target):
    assert np.isnan(linear_cross_entropy(jnp.ones((1, 2)), jnp.ones((2, 3)), jnp.array([target])))


def test_a_block_of_classes_that_a_bias_rules_out():
    bias = jnp.zeros(V).at[:20].set(-jnp.inf)
    args = [jax.random.normal(jax.random.key(k), shape) for k, shape in enumerate([(2, D), (D, V)])]
    targets = jnp.array([30, 36])
    expected = jax.value_and_grad(lambda x, w: cross_entropy(x @ w + bias, targets), (0, 1))(*args)
    for kept_bytes in (0, 2**20):
        options = {"column_block": 16, "kept_bytes": kept_bytes}
        found = jax.value_and_grad(lambda x, w: linear_cross_entropy(x, w, targets, bias, **options), (0, 1))(*args)  # noqa: B023
        for e, a in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            assert np.allclose(e, a, atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "options", "told"),
    [
        (((2, 3), (4, 5), (2,)), {}, r"w \(4, 5\)"),
        (((2, 3), (3, 5), (3,)), {}, r"targets has shape \(3,\)"),
        (((2, 3), (3, 5), (2,)), {"row_block": 0}, "at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, options, told):
    x, w, targets = map(jnp.zeros, shapes)
    with pytest.raises(JaxgradError, match=told):
        linear_cross_entropy(x, w, targets.astype(int), **options)


def test_every_mistake_in_the_backward_is_noticed(killed):
    # One block of rows, and no option: `test_cross_entropy` has the mutants of the logits' cotangent.
    def fn(x, w):
        return linear_cross_entropy(x, w, jnp.arange(3), column_block=4, kept_bytes=0)

    score = killed(fn, lambda x, w: cross_entropy(x @ w, jnp.arange(3)), (3, 2), (2, 6))
    assert len(score.killed) > 30
    assert score.survived == ()
