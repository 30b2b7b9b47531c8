"""Parameters and a batch, as NumPy arrays that every engine is fed the same copy of."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import batches, corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch, Params, init


class Case(NamedTuple):
    """One forward and backward to compare: float64 parameters that float32 holds exactly, an integer batch, a name."""

    name: str
    params: Params
    batch: Batch


def seed_case() -> Case:
    """The seed notebook's first batch and parameters; its loss is 3.5586. Needs torch, whose generator drew them.

    Raises `JaxgradError` where torch is not installed.
    """
    try:
        from torchref import seed_case as torch_draws
    except ModuleNotFoundError as error:
        raise JaxgradError(
            f"the seed case is drawn by PyTorch's generator, and {error.name} is not installed:"
            " pip install 'jaxgrad[parity]', or compare on a random batch with --batches 1"
        ) from None
    kept = json.loads(corpus.shipped("seed_case.json").read_text(encoding="utf-8"))
    X, Y = np.array(kept["X"]), np.array(kept["Y"])
    tensors = torch_draws.parameters(
        kept["torch_generator_seed"], kept["vocab_size"], X.shape[1], kept["emb_size"], kept["h_size"]
    )
    return _case("the notebook's batch", Params(**{name: tensor.numpy() for name, tensor in tensors.items()}), X, Y)


def corpus_case(data: corpus.Corpus, seed: int, step: int, batch_size: int, emb_size: int, h_size: int) -> Case:
    """The batch that a training run with this seed draws at `step`, with freshly initialised parameters."""
    key = jax.random.key(seed)
    n = data.train.X.shape[1]
    params = init(jax.random.fold_in(key, step), len(data.vocabulary), n, emb_size, h_size)
    rows = np.asarray(batches.indices(key, step, batch_size, len(data.train.Y)))
    return _case(f"seed {seed}, batch {step}", params, data.train.X[rows], data.train.Y[rows])


def random_case(
    seed: int, batch_size: int = 32, h_size: int = 200, n: int = 3, emb_size: int = 10, vocab_size: int = 27
) -> Case:
    """Uniformly random contexts and targets, with freshly initialised parameters."""
    key = jax.random.key(seed)
    params = init(key, vocab_size, n, emb_size, h_size)
    symbols = np.asarray(jax.random.randint(key, (4 * batch_size, n + 1), 0, vocab_size, dtype=jnp.int32))
    rows = np.asarray(batches.indices(key, 0, batch_size, len(symbols)))
    return _case(f"random symbols, seed {seed}", params, symbols[rows, :n], symbols[rows, n])


def _case(name: str, params: Params, X: Any, Y: Any) -> Case:
    wide = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    return Case(name, wide, jax.tree.map(lambda symbols: np.asarray(symbols, np.int32), Batch(X, Y)))
