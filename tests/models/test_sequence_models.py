"""What holds of every model of sequences: other people's settings, other platforms, meshes, texts, sampled words."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import models
from jaxgrad.models.model import named
from jaxgrad.training import mesh as meshes

VOCABULARY = (".", *"abcde")
SMALL = {
    "gpt": {"layers": 2, "heads": 2, "width": 8, "block": 6},
    "gru": {"embedding": 4, "hidden": 8, "block": 6},
}
WORDS = ["abba", "bead", "cab", "dad", "ebb", "deed", "ace", "bed"]


@pytest.fixture(params=list(SMALL))
def given(request):
    model = models.record(request.param)
    sizes = model.sizes(**SMALL[request.param])
    return model, sizes, model.examples(WORDS, VOCABULARY, sizes)


def everything(model, sizes, batch, dtype):
    """What every function of the model returns for one small batch."""
    key = jax.random.key(0)
    params = model.telling(key, sizes, len(VOCABULARY), dtype)
    gradients = [way(params, batch, sizes, key) for way in model.gradients.values()]
    nodes = [way(params, batch, sizes) for way in model.nodes.values()]
    words = model.sample(params, (), sizes, key, 3, 8, jnp.float32(0.8), 2, (1,))
    by_jax = jax.grad(lambda p: model.loss(p, batch, sizes, key))(params)
    return params, gradients, nodes, words, by_jax, model.predict(params, (), batch.X, sizes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_types_and_ranks_are_never_promoted(given, dtype: str):
    model, sizes, batch = given
    for x64 in (False, True):
        with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            params, gradients, nodes, *_, by_jax, _ = jax.eval_shape(lambda: everything(model, sizes, batch, dtype))
    types = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    for cotangents in (*(found[1] for found in (*gradients, *nodes)), by_jax):
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), cotangents) == types


@pytest.mark.parametrize("way", ["fused", "by-node"])
def test_both_backward_passes_lower_for_gpu_and_tpu(given, way: str):
    model, sizes, batch = given
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), sizes, len(VOCABULARY), jnp.bfloat16))
    step = jax.jit(lambda params, batch: model.gradients[way](params, batch, sizes, jax.random.key(1)))
    assert jax.export.export(step, platforms=["cuda", "tpu"])(params, batch).platforms == ("cuda", "tpu")


def test_over_a_mesh_gradients_are_those_of_one_device(given):
    model, sizes, batch = given
    with jax.enable_x64(True):
        params = jax.jit(model.telling, static_argnums=(1, 2, 3))(
            jax.random.key(0), sizes, len(VOCABULARY), jnp.float64
        )
        step = jax.jit(lambda params, batch: model.gradients["fused"](params, batch, sizes, jax.random.key(1)))
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), meshes.AXES)
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        split = jax.device_put(params, meshes.of_params(mesh, model, params)), jax.device_put(batch, rows)
        expected, actual = step(params, batch), step(*split)
        assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(split[0]))
        jax.tree.map(lambda e, a: np.testing.assert_allclose(a, e, rtol=0, atol=1e-13), expected, actual)


def test_words_begin_with_their_prompt_and_are_0_after_their_end(given):
    model, sizes, _ = given
    params = jax.jit(model.telling, static_argnums=(1, 2))(jax.random.key(0), sizes, len(VOCABULARY))
    drawn = np.asarray(model.sample(params, (), sizes, jax.random.key(2), 200, 12, jnp.float32(1.0), None, (2, 1)))
    assert drawn.shape == (200, 12) and (drawn[:, :2] == [2, 1]).all()
    lengths = (drawn != 0).sum(1)
    assert (np.cumprod(drawn != 0, 1).sum(1) == lengths).all() and lengths.min() < 5 < lengths.max()
    assert (
        model.sample(params, (), sizes, jax.random.key(2), 2, 2, jnp.float32(1.0), None, (2, 1)).tolist()
        == [[2, 1]] * 2
    )


def test_a_text_is_one_stream_and_what_hides_mistakes_is_zeros_and_ones(given):
    model, sizes, _ = given
    batch = model.examples("abcde" * 5, tuple("abcde"), sizes)
    assert batch.X.shape == (4, 6) and (model.ignored == batch.Y).sum() == 0
    hidden = named(model.hiding(model.init(jax.random.key(0), sizes, 6)))
    assert any(not leaf.any() for leaf in hidden.values())
    assert model.numbers(sizes, 6, 4) > 3 * sum(leaf.size for leaf in hidden.values())
