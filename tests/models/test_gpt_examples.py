"""Words and texts as sequences with ignored targets; sizes; initialisation."""

import jax
import numpy as np
import pytest

from jaxgrad.errors import JaxgradError
from jaxgrad.models.gpt.forward import forward, loss
from jaxgrad.models.gpt.params import init, nowhere_zero
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.models.model import named
from jaxgrad.models.sequences import of_text, of_words, text_vocabulary

ABC = (".", "a", "b", "c")


def jitted(initialise):
    return jax.jit(initialise, static_argnums=(1, 2))


def test_a_word_is_a_row_from_its_boundary_to_the_one_after_it():
    X, Y = of_words(["ab", "cab"], ABC, 5)
    assert X.tolist() == [[0, 1, 2, 0, 0], [0, 3, 1, 2, 0]]
    assert Y.tolist() == [[1, 2, 0, -1, -1], [3, 1, 2, 0, -1]]
    assert X.dtype == Y.dtype == np.int32


def test_a_long_word_goes_on_in_another_row_and_every_symbol_is_a_target_once():
    X, Y = of_words(["abcab"], ABC, 4)
    assert X.tolist() == [[0, 1, 2, 3], [1, 2, 0, 0]]
    assert Y.tolist() == [[1, 2, 3, 1], [2, 0, -1, -1]]


def test_a_text_is_one_stream():
    assert text_vocabulary("banana, naïve") == tuple(" ,abenvï")
    X, Y = of_text("bcabc", ("a", "b", "c"), 3)
    assert X.tolist() == [[1, 2, 0], [1, 0, 0]]
    assert Y.tolist() == [[2, 0, 1], [2, -1, -1]]


def test_what_cannot_be_examples_is_refused():
    with pytest.raises(JaxgradError, match="'d' is not in the vocabulary of 4"):
        of_words(["ad"], ABC, 5)
    for empty in (lambda: of_words([], ABC, 5), lambda: of_text("a", ABC, 5)):
        with pytest.raises(JaxgradError, match="nothing to predict"):
            empty()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"heads": 3}, "64 cannot be split among 3 heads"),
        ({"rope": True, "width": 12, "heads": 4}, "a head has 3 numbers"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong, words):
    with pytest.raises(JaxgradError, match=words):
        Sizes(**wrong)


def test_gpt2s_initialisation():
    sizes = Sizes(layers=8, heads=4, width=64, block=32, rope=False, tied=False)
    arrays = named(jitted(init)(jax.random.key(0), sizes, 100))
    for name, array in arrays.items():
        if name.endswith(("_b", "_bias")):
            assert not array.any(), name
        elif name.endswith("_gain"):
            assert (array == 1).all(), name
        else:
            std = 0.02 / 16**0.5 if name in ("blocks.proj_w", "blocks.out_w") else 0.02
            # Five deviations of the measured one.
            assert abs(float(array.std()) / std - 1) < 5 / (2 * array.size) ** 0.5, name
    assert sum(array.size for array in arrays.values()) == 8 * (12 * 64**2 + 13 * 64) + (2 * 100 + 32 + 2) * 64


def test_parameters_for_parity_are_nowhere_zero_or_one():
    for sizes in (Sizes(width=8), Sizes(width=8, rope=True, tied=False)):
        arrays = named(jitted(nowhere_zero)(jax.random.key(0), sizes, 5))
        assert all(((array != 0) & (array != 1)).all() for array in arrays.values())
        assert ("positions" in arrays, "head" in arrays) == (not sizes.rope, not sizes.tied)


def test_symbols_out_of_range_make_the_loss_nan_and_a_batch_without_targets_makes_it_0():
    sizes = Sizes(layers=1, heads=1, width=4, block=3, dropout=0.0)
    params = jitted(nowhere_zero)(jax.random.key(0), sizes, 4)
    batch = of_words(["ab"], ABC, 3)
    run = jax.jit(lambda batch: loss(params, batch, sizes))
    assert np.isfinite(run(batch))
    assert np.isnan(run(batch._replace(X=batch.X + 4)))
    assert np.isnan(run(batch._replace(Y=batch.Y + 4)))
    assert run(batch._replace(Y=0 * batch.Y - 1)) == 0


def test_a_sequence_longer_than_the_block_is_refused():
    sizes = Sizes(layers=1, heads=1, width=4, block=2)
    params = jitted(init)(jax.random.key(0), sizes, 4)
    with pytest.raises(JaxgradError, match="sequences of 3 symbols; this model's block is 2"):
        forward(params, of_words(["ab"], ABC, 3), sizes)
