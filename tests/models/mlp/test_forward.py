"""The model: initialisation, nodes, taps, predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.models.mlp.forward import Batch, Nodes, Params, Statistics, forward, init, predict, prenorm, zero_taps

SEED_SHAPES = Params((27, 10), (30, 200), (200, 27), (27,), (1, 200), (1, 200))


def test_the_notebooks_sizes_make_12097_numbers():
    params = init(jax.random.key(0), 27)
    assert tuple(p.shape for p in params) == tuple(SEED_SHAPES)
    assert sum(p.size for p in params) == 12_097


def test_the_scales_are_the_seeds():
    params = init(jax.random.key(0), 60, n=8, emb_size=50, h_size=3000)
    expected = Params(C=1.0, W1=(5 / 3) / 400**0.5, W2=0.1, b2=0.1, bn_gain=0.1, bn_bias=0.1)
    for name, p, scale in zip(Params._fields, params, expected, strict=True):
        mean = 1.0 if name == "bn_gain" else 0.0
        # Of n normal draws, the mean has the deviation 1/sqrt(n) and the deviation has 1/sqrt(2n): five of each.
        assert abs(float(p.mean()) - mean) < 5 * scale / p.size**0.5, name
        assert abs(float(p.std()) / scale - 1) < 5 / (2 * p.size) ** 0.5, name


@pytest.mark.parametrize("size", ["vocab_size", "n", "emb_size", "h_size"])
def test_a_size_below_one_is_named(size: str):
    with pytest.raises(ValueError, match=f"{size} is 0; it must be at least 1"):
        init(jax.random.key(0), **{"vocab_size": 5, size: 0})


def test_forward_returns_the_notebooks_twenty_nodes_in_their_shapes():
    params = init(jax.random.key(0), 5, n=2, emb_size=3, h_size=7)
    nodes = forward(params, Batch(jnp.zeros((4, 2), jnp.uint8), jnp.arange(4, dtype=jnp.uint8)))
    row, hidden, column, symbols = (1, 7), (4, 7), (4, 1), (4, 5)
    expected = Nodes(
        (4, 2, 3), (4, 6), hidden, row, hidden, hidden, row, row, hidden, hidden, hidden, symbols, column, symbols,
        symbols, column, column, symbols, symbols, (),
    )  # fmt: skip
    assert tuple(node.shape for node in nodes) == tuple(expected)


def test_the_cotangent_of_logit_maxes_goes_to_the_first_of_equal_maxima():
    params = init(jax.random.key(0), 3, h_size=4)
    batch = Batch(jnp.zeros((2, 3), jnp.int32), jnp.array([0, 1]))
    taps = zero_taps(params, batch)

    def maxima(logits_tap: jax.Array) -> jax.Array:
        tied = params._replace(W2=jnp.zeros_like(params.W2), b2=jnp.zeros_like(params.b2))
        return forward(tied, batch, taps._replace(logits=logits_tap)).logit_maxes.sum()

    assert jax.grad(maxima)(taps.logits).tolist() == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_taps_do_not_change_the_nodes():
    params = init(jax.random.key(0), 9)
    batch = Batch(jax.random.randint(jax.random.key(1), (6, 3), 0, 9), jnp.arange(6))
    for tapped, plain in zip(forward(params, batch, zero_taps(params, batch)), forward(params, batch), strict=True):
        assert np.array_equal(tapped, plain)


def test_a_batch_of_one_is_refused_because_its_variance_divides_by_zero():
    params = init(jax.random.key(0), 3)
    with pytest.raises(ValueError, match=r"batch of 1.*at least 2"):
        forward(params, Batch(jnp.zeros((1, 3), jnp.int32), jnp.zeros(1, jnp.int32)))


def test_symbols_out_of_range_make_the_loss_nan_rather_than_wrong():
    params = init(jax.random.key(0), 3)
    good = Batch(jnp.zeros((2, 3), jnp.int32), jnp.zeros(2, jnp.int32))
    assert np.isnan(forward(params, good._replace(X=good.X.at[0, 0].set(3))).loss)
    assert np.isnan(forward(params, good._replace(Y=good.Y.at[0].set(3))).loss)


def test_predict_with_a_batchs_own_statistics_gives_its_logits():
    params = init(jax.random.key(0), 9)
    batch = Batch(jax.random.randint(jax.random.key(1), (6, 3), 0, 9), jnp.arange(6))
    h_prenorm = prenorm(params, batch.X)
    statistics = Statistics(h_prenorm.mean(0, keepdims=True), h_prenorm.var(0, keepdims=True, ddof=1))
    # Sums in another order: float32's unit roundoff times the 200 terms of a logit of size 1, generously.
    np.testing.assert_allclose(predict(params, statistics, batch.X), forward(params, batch).logits, atol=200 * 2.0**-24)
