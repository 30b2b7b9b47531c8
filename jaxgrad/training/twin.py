"""A run again in PyTorch: from the same parameters, on the same batches, at the same rates."""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.batches import indices
from jaxgrad.corpus import Corpus
from jaxgrad.errors import JaxgradError, not_installed
from jaxgrad.models.model import named, renamed
from jaxgrad.training.config import Config, record, schedule
from jaxgrad.training.run import Losses, fresh, precision, split_losses

# Rows of so many batches are drawn at once.
_DRAWN = 1000

# optax's names of AdamW's options, and PyTorch's; what is not given is as optax has it.
_BETAS = ("b1", 0.9), ("b2", 0.999)
_OTHERS = {"eps": ("eps", 1e-8), "weight_decay": ("weight_decay", 1e-4)}


def train_twin(config: Config, corpus: Corpus, report: Callable[[int], None] = lambda step: None) -> Losses:
    """The losses of the model's PyTorch twin, trained as a run of `config` is; `report` is told of steps taken.

    Dropout is drawn by PyTorch, from the config's seed: it is the one thing that is not the run's own.
    Raises `JaxgradError` for a model whose twin is not made for training, for another optimizer than AdamW, and
    where PyTorch is not installed.
    """
    model = record(config)
    try:
        import torch

        twin = importlib.import_module(f"torchref.{model.twins.get('torch')}")
    except ModuleNotFoundError as error:
        raise (not_installed(error) or error) from None
    if not hasattr(twin, "train"):
        raise JaxgradError(f"the PyTorch twin of the model {config.model} is made for one step, not for training")
    with precision(config):
        state, key, _ = fresh(config)
        params = {name: torch.tensor(np.asarray(p)) for name, p in named(state.params).items()}
        torch.manual_seed(config.seed)
        trained = twin.train(
            params,
            *(torch.tensor(np.asarray(symbols), dtype=torch.int64) for symbols in (corpus.train.X, corpus.train.Y)),
            _batches(config, key, len(corpus.train.Y), report),
            _rates(config),
            config.clip,
            dataclasses.asdict(config.sizes),
            **_adamw(config),
        )
        found = renamed(state.params, {name: jnp.asarray(p.numpy()) for name, p in trained.items()})
        return split_losses(config, found, model.finish(found, corpus.train, config.sizes), corpus)


def _adamw(config: Config) -> dict[str, Any]:
    given = dict(config.optimizer_args)
    betas = tuple(given.pop(name, default) for name, default in _BETAS)
    others = {theirs: given.pop(ours, default) for ours, (theirs, default) in _OTHERS.items()}
    if config.optimizer != "adamw" or given:
        raise JaxgradError(
            f"the twin is trained by AdamW with b1, b2, eps and weight_decay, and the run by {config.optimizer} with"
            f" {dict(config.optimizer_args)}"
        )
    return {"betas": betas, **others}


def _rates(config: Config) -> Iterator[float]:
    rate = schedule(config)
    yield from np.asarray(jax.vmap(rate)(jnp.arange(config.steps, dtype=jnp.int32)), np.float64).tolist()


def _batches(config: Config, key: jax.Array, examples: int, report: Callable[[int], None]) -> Iterator[Any]:
    """The rows of each step, as the run draws them."""
    import torch

    draw = jax.jit(jax.vmap(lambda step: indices(key, step, config.batch_size, examples)))
    for first in range(0, config.steps, _DRAWN):
        rows = np.asarray(draw(first + jnp.arange(_DRAWN, dtype=jnp.int32)))[: config.steps - first]
        yield from torch.from_numpy(rows.astype(np.int64))
        report(first + len(rows))
