"""Statistics and losses are those of the whole split, however it is cut into blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.corpus import Split
from jaxgrad.models.mlp.forward import EPS, init, prenorm
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.models.mlp.statistics import calibrate
from jaxgrad.training import evaluate


@pytest.fixture(params=[2, 5000, 8192, 8193, 20_001])
def split(request) -> Split:
    symbols = np.random.default_rng(0).integers(0, 9, (request.param, 4), dtype=np.uint8)
    return Split(symbols[:, :3], symbols[:, 3])


def test_statistics_are_those_of_numpy(split):
    with jax.enable_x64(True):
        params = init(jax.random.key(0), 9, h_size=5, dtype=jnp.float64)
        statistics = calibrate(params, split.X)
        h = np.asarray(prenorm(params, split.X))
        # float64 sums of up to 20,001 terms, in two orders.
        np.testing.assert_allclose(statistics.mean, h.mean(0, keepdims=True), atol=20_001**0.5 * 2.0**-50)
        np.testing.assert_allclose(statistics.var, h.var(0, ddof=1, keepdims=True), rtol=20_001**0.5 * 2.0**-50)


def test_the_mean_loss_is_that_of_numpy(split):
    with jax.enable_x64(True):
        params = init(jax.random.key(0), 9, h_size=5, dtype=jnp.float64)
        mean, var = statistics = calibrate(params, split.X)
        h_norm = params.bn_gain * (prenorm(params, split.X) - mean) / np.sqrt(var + EPS) + params.bn_bias
        logits = np.asarray(np.tanh(h_norm) @ params.W2 + params.b2)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), split.Y]
        found = evaluate.mean_loss(MODEL, MODEL.sizes(), params, statistics, split)
    np.testing.assert_allclose(found, losses.mean(), rtol=20_001**0.5 * 2.0**-50)


def test_one_context_has_no_variance():
    with pytest.raises(ValueError, match=r"1 context.*give at least 2"):
        calibrate(init(jax.random.key(0), 9), np.zeros((1, 3), np.uint8))
