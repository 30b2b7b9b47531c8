"""Parameters and a batch, as NumPy arrays that every engine is fed the same copy of."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import batches, corpus, models
from jaxgrad.corpus import BOUNDARY
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs.taps import tapped
from jaxgrad.models.model import Model, named

# Characters of a random word, of a model that draws no batch itself.
LONGEST_WORD = 8


class Case(NamedTuple):
    """One forward and backward to compare, of a model of some sizes, and a name.

    Parameters are float64, which float32 holds exactly; the batch holds int32 symbols below `vocab_size`.
    """

    name: str
    params: Any
    batch: Any
    model: Model
    sizes: Any
    vocab_size: int


def seed_case() -> Case:
    """The notebook's first batch and parameters; its loss is 3.5586. Needs torch, whose generator drew them.

    Raises `JaxgradError` where torch is not installed.
    """
    try:
        from torchref import seed_case as torch_draws
    except ModuleNotFoundError as error:
        raise JaxgradError(
            f"the notebook's case is drawn by PyTorch's generator, and {error.name} is not installed:"
            " pip install 'jaxgrad[parity]', or compare on a random batch with --batches 1"
        ) from None
    kept, model, sizes = _kept()
    X, Y, vocab_size = np.array(kept["X"]), np.array(kept["Y"]), kept["vocab_size"]
    tensors = torch_draws.parameters(
        kept["torch_generator_seed"], vocab_size, X.shape[1], kept["emb_size"], kept["h_size"]
    )
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), sizes, vocab_size, jnp.float32))
    params = type(like)(**{name: tensor.numpy() for name, tensor in tensors.items()})
    return case("the notebook's batch", model, sizes, vocab_size, params, model.batch(X, Y))


def seed_names() -> tuple[Model, tuple[str, ...]]:
    """The model of the seed case, and its `names`. Needs no torch."""
    kept, model, sizes = _kept()
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), sizes, kept["vocab_size"], jnp.float32))
    return model, names(model, sizes, params, model.batch(*(np.array(kept[name], np.int32) for name in "XY")))


def names(model: Model, sizes: Any, params: Any, batch: Any) -> tuple[str, ...]:
    """The names of a model's nodes, in forward order, and of its parameters."""
    _, nodes = tapped(lambda p, b: model.loss(p, b, sizes), params, batch, in_scans=True)
    return (*nodes, *named(params))


def _kept() -> tuple[dict[str, Any], Model, Any]:
    """What is kept of the seed case, its model and its sizes."""
    kept = json.loads(corpus.shipped("seed_case.json").read_text(encoding="utf-8"))
    model = models.record(kept.get("model", models.DEFAULT))
    sizes = model.sizes(context=len(kept["X"][0]), embedding=kept["emb_size"], hidden=kept["h_size"])
    return kept, model, sizes


def corpus_case(model: Model, sizes: Any, data: corpus.Corpus, seed: int, step: int, batch_size: int) -> Case:
    """The batch that a training run with this seed draws at `step`, with freshly initialised parameters."""
    key = jax.random.key(seed)
    params = _telling(model, jax.random.fold_in(key, step), sizes, len(data.vocabulary))
    rows = np.asarray(batches.indices(key, step, batch_size, len(data.train.Y)))
    batch = model.batch(data.train.X[rows], data.train.Y[rows])
    return case(f"seed {seed}, batch {step}", model, sizes, len(data.vocabulary), params, batch)


def random_case(
    seed: int, batch_size: int = 32, vocab_size: int = 27, model: str = models.DEFAULT, **sizes: Any
) -> Case:
    """Random examples, with freshly initialised parameters; `sizes` are the model's own where they are not given.

    Raises `JaxgradError` as `models.sizes_by_name` does.
    """
    key, record = jax.random.key(seed), models.record(model)
    own = models.sizes_by_name(model, sizes)
    params = _telling(record, key, own, vocab_size)
    batch = (record.random_batch or _random_words(record))(key, own, vocab_size, batch_size)
    return case(f"random symbols, seed {seed}", record, own, vocab_size, params, batch)


def case(name: str, model: Model, sizes: Any, vocab_size: int, params: Any, batch: Any) -> Case:
    """A case of any parameters and batch of a model."""
    wide = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    return Case(
        name, wide, jax.tree.map(lambda symbols: np.asarray(symbols, np.int32), batch), model, sizes, vocab_size
    )


def _telling(model: Model, key: Any, sizes: Any, vocab_size: int) -> Any:
    return (model.telling or model.init)(key, sizes, vocab_size, jnp.float32)


def _random_words(model: Model) -> Any:
    """A batch of the examples of random words of one to `LONGEST_WORD` characters."""

    def batch(key: Any, sizes: Any, vocab_size: int, batch_size: int) -> Any:
        vocabulary = (BOUNDARY, *(chr(ord("a") + k) for k in range(vocab_size - 1)))
        draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        lengths = draw.integers(1, LONGEST_WORD + 1, 4 * batch_size)
        words = ["".join(draw.choice(vocabulary[1:], length)) for length in lengths]
        examples = model.examples(words, vocabulary, sizes)
        rows = np.asarray(batches.indices(key, 0, batch_size, len(examples.Y)))
        return model.batch(examples.X[rows], examples.Y[rows])

    return batch
