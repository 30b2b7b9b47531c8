"""A batch in parts has the loss and the gradients of the whole, with ignored targets too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import models
from jaxgrad.errors import JaxgradError
from jaxgrad.models.model import gradients_of, named
from jaxgrad.training.accumulate import accumulated
from jaxgrad.training.config import checked, config_of

WORDS = ["emma", "o", "hannah", "ann", "ha", "mona", "a", "noah"]
VOCABULARY = (".", *"aehmno")


@pytest.fixture(scope="module", params=["gpt", "gru"])
def case(request):
    model = models.record(request.param)
    sizes = {"gpt": {"layers": 1, "heads": 2, "width": 8, "block": 8, "dropout": 0.0}, "gru": {"block": 8}}
    sizes = model.sizes(**{k: v for k, v in sizes[request.param].items() if k in model.sizes.__dataclass_fields__})
    batch = jax.tree.map(jnp.asarray, model.examples(WORDS, VOCABULARY, sizes))
    with jax.enable_x64(True):
        yield model, sizes, batch, model.telling(jax.random.key(0), sizes, len(VOCABULARY), jnp.float64)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_unequal_weight_add_up_to_the_whole(case, parts):
    model, sizes, batch, params = case
    whole = gradients_of(model, "fused")
    expected, of_whole = jax.jit(lambda p, b: whole(p, b, sizes))(params, batch)
    loss, of_parts = jax.jit(lambda p, b: accumulated(model, whole, parts)(p, b, sizes))(params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    for name, dp in named(of_parts).items():
        largest = np.abs(named(of_whole)[name]).max()
        np.testing.assert_allclose(dp, named(of_whole)[name], rtol=0, atol=1e-12 * max(largest, 1e-3), err_msg=name)


def test_a_part_in_which_no_target_counts_adds_nothing(case):
    model, sizes, batch, params = case
    whole = gradients_of(model, "fused")
    half = batch._replace(Y=batch.Y.at[::2].set(model.ignored))
    expected, _ = jax.jit(lambda p, b: whole(p, b, sizes))(params, half)
    loss, gradients = jax.jit(lambda p, b: accumulated(model, whole, 2)(p, b, sizes))(params, half)
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": "gpt", "accumulate": 5}, "cannot be cut into so many equal parts"),
        ({"accumulate": 2}, "batch norm's statistics are those of the whole batch"),
        ({"accumulate": 0}, "accumulate is 0; it must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_cut_is_refused(values, said):
    with pytest.raises(JaxgradError, match=said):
        checked(config_of(**values))
