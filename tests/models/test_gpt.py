"""The GPT's two backward passes, jax.grad and PyTorch agree on every parameter and every node."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.models.gpt import Sizes, by_node, fused
from jaxgrad.models.gpt.forward import loss
from jaxgrad.models.gpt.params import nowhere_zero
from jaxgrad.models.gpt.record import MODEL
from jaxgrad.models.sequences import Batch
from jaxgrad.parity import cases
from jaxgrad.parity.engines import Target, run
from jaxgrad.parity.verdict import judge

ENGINES = ("by-node", "fused", "jax.grad", "torch")
SMALL = {"layers": 2, "heads": 2, "width": 8, "block": 6, "dropout": 0.0}
DRAWN = jax.jit(nowhere_zero, static_argnums=(1, 2, 3))


def small(**sizes):
    """Words of up to 8 characters in rows of 6 symbols, of which some end early and some are a word's second."""
    return cases.random_case(0, 3, 7, "gpt", **SMALL, **sizes)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_all_engines_agree_on_every_parameter_and_node(dtype: str):
    verdict = judge(small(), Target(dtype), ENGINES)
    assert verdict.agree, verdict.sentence
    if dtype == "float64":
        for tensor in verdict.tensors:
            for pair, difference in tensor.pairs.items():
                # 1e-12 is the promise; the measured limit is smaller.
                assert difference.judged and difference.relative <= 1e-12, (tensor.name, pair)


def test_with_rope_and_a_head_of_its_own_too():
    found = run(ENGINES, small(rope=True, tied=False), Target())
    right = found["jax.grad"]
    for engine, gradients in found.items():
        for name, node in gradients.nodes.items():
            assert _relative(right.nodes[name], node) <= 1e-12, (engine, name)
        assert max(jax.tree.leaves(jax.tree.map(_relative, right.params, gradients.params))) <= 1e-12, engine
    assert found["torch"].nodes.keys() == found["by-node"].nodes.keys() == right.nodes.keys()


def _relative(expected: np.ndarray, actual: np.ndarray) -> float:
    return float(np.linalg.norm((actual - expected).ravel()) / np.linalg.norm(expected.ravel()))


def test_fused_has_the_nodes_between_operations():
    case = small()
    shapes = {
        name: jax.eval_shape(lambda p, b, way=way: way(p, b, case.sizes)[2], case.params, case.batch)
        for name, way in (("by-node", by_node.nodes_by_node), ("fused", fused.nodes_fused))
    }
    inside = shapes["by-node"].keys() - shapes["fused"].keys()
    parts = ("mean", "diff", "diff_sq", "var", "var_inv", "hat")
    norms = {f"{norm}_{part}" for norm in ("ln", "block.ln1", "block.ln2") for part in parts}
    of_softmax = {"block.scores", "block.exps", "block.exps_sum", "block.att"}
    assert inside == norms | of_softmax | {"logits", "norm_logits", "counts", "counts_sum", "log_probs"}
    assert all(shapes["fused"][name].shape == shapes["by-node"][name].shape for name in shapes["fused"])


def test_with_dropout_both_backward_passes_are_those_of_the_forward_with_the_same_key():
    sizes = Sizes(**{**SMALL, "dropout": 0.4})
    with jax.enable_x64(True):
        params = DRAWN(jax.random.key(0), sizes, 7, jnp.float64)
        # Shorter than a block.
        X = jax.random.randint(jax.random.key(1), (3, 5), 0, 7)
        batch, key = Batch(X, jnp.roll(X, -1, 1).at[0, 3:].set(-1)), jax.random.key(5)
        expected = jax.jit(jax.value_and_grad(lambda p: loss(p, batch, sizes, key)))(params)
        for backward in MODEL.gradients.values():
            actual = jax.jit(lambda p, backward=backward: backward(p, batch, sizes, key))(params)
            jax.tree.map(lambda e, a: np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-14), expected, actual)
        assert not np.isclose(expected[0], jax.jit(lambda p: loss(p, batch, sizes))(params), rtol=1e-3)


def test_fused_holds_far_less_memory_than_jax_grad(optimised):
    sizes = Sizes(layers=6, heads=4, width=64, block=128, dropout=0.0)
    params = jax.eval_shape(lambda: nowhere_zero(jax.random.key(0), sizes, 27))
    batch = Batch(*(jax.ShapeDtypeStruct((8, 128), jnp.int32),) * 2)

    def temporary_bytes(gradients) -> int:
        return jax.jit(gradients).lower(params, batch).compile(optimised).memory_analysis().temp_size_in_bytes

    by_jax = temporary_bytes(jax.value_and_grad(lambda p, b: loss(p, b, sizes)))
    assert temporary_bytes(lambda p, b: fused.fused(p, b, sizes)) < 0.6 * by_jax
