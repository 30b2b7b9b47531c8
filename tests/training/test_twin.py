"""A run and its PyTorch twin, trained on the same batches at the same rates, end with the same losses."""

import numpy as np
import pytest

from jaxgrad.corpus import sha256
from jaxgrad.errors import JaxgradError
from jaxgrad.models.model import load_corpus
from jaxgrad.training import run
from jaxgrad.training.config import Config, changed, config_of, record
from jaxgrad.training.twin import train_twin

WORDS = [a + b + c for a in "ab" for b in "cd" for c in "ab"]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    path = tmp_path_factory.mktemp("twin") / "words.txt"
    path.write_text("\n".join(WORDS))
    sizes = {"layers": 1, "heads": 2, "width": 8, "block": 6, "dropout": 0.0}
    return config_of(
        "gpt", steps=40, batch_size=2, learning_rate=0.02, chunk=20, dtype="float64", **sizes, corpus=str(path),
        corpus_sha256=sha256(path), vocabulary=(".", *"abcd"), log_every=1,
    )  # fmt: skip


def corpus_of(config: Config):
    return load_corpus(record(config), config.sizes, config.corpus)


def test_without_dropout_both_end_with_the_same_losses(config, tmp_path):
    by_hand = run.train(config, corpus_of(config), tmp_path / "run")
    taken: list[int] = []
    by_torch = train_twin(config, corpus_of(config), taken.append)
    assert taken == [40]
    # PyTorch divides by the norm and 1e-6 where it clips.
    np.testing.assert_allclose(by_torch, by_hand, rtol=1e-5)
    # They have gone somewhere, so that a rate, a batch or a decay that is not the run's would show.
    assert by_hand.train < 0.8 * np.log(5)


def test_what_has_no_twin_to_train_is_refused(config):
    with pytest.raises(JaxgradError, match="the run by sgd"):
        train_twin(changed(config, optimizer="sgd", optimizer_args=()), corpus_of(config))
    gru = config_of("gru", embedding=2, hidden=2, block=6, vocabulary=config.vocabulary, corpus=config.corpus)
    with pytest.raises(JaxgradError, match="made for one step, not for training"):
        train_twin(gru, corpus_of(gru))
