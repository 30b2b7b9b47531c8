"""The notebook's case is the notebook's, and cases are the same wherever they are made."""

import numpy as np

from jaxgrad import batches, corpus
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.parity import cases


def test_the_seed_case_is_the_batch_that_the_notebook_draws_from_its_corpus(notebook_corpus):
    import torch

    from torchref import seed_case

    generator = torch.Generator().manual_seed(2147483647)
    for shape in ((27, 10), (30, 200), (200, 27), (27,), (1, 200), (1, 200)):
        torch.randn(shape, generator=generator)
    train = corpus.load(notebook_corpus).train
    ix = torch.randint(0, train.X.shape[0], (32,), generator=generator).numpy()

    case = cases.seed_case()
    assert np.array_equal(case.batch.X, train.X[ix])
    assert np.array_equal(case.batch.Y, train.Y[ix])
    drawn = seed_case.parameters(2147483647, 27, 3, 10, 200)
    assert all(np.array_equal(getattr(case.params, name), tensor.numpy()) for name, tensor in drawn.items())


def test_a_corpus_case_is_the_batch_of_a_training_run(notebook_corpus):
    import jax

    data = corpus.load(notebook_corpus)
    case = cases.corpus_case(MODEL, MODEL.sizes(embedding=2, hidden=3), data, seed=5, step=9, batch_size=4)
    rows = batches.indices(jax.random.key(5), 9, 4, len(data.train.Y))
    assert np.array_equal(case.batch.X, data.train.X[np.asarray(rows)])


def test_cases_are_float64_numbers_that_float32_holds_exactly(seeded_case):
    for case in (seeded_case(), seeded_case(seed=3, batch_size=5)):
        for p in case.params:
            assert p.dtype == np.float64
            assert np.array_equal(p, p.astype(np.float32))
        assert case.batch.X.dtype == case.batch.Y.dtype == np.int32


def test_the_same_seed_and_sizes_give_the_same_case(seeded_case):
    a, b, c = seeded_case(seed=1, h_size=5), seeded_case(seed=1, h_size=5), seeded_case(seed=2, h_size=5)
    assert np.array_equal(a.params.W1, b.params.W1) and np.array_equal(a.batch.X, b.batch.X)
    assert not np.array_equal(a.params.W1, c.params.W1)
