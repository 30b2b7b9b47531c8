"""What a run starts from: parameters that are drawn, or a checkpoint that others have made."""

import importlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxgrad import files, models
from jaxgrad.errors import JaxgradError, not_installed
from jaxgrad.models.model import Model, named
from jaxgrad.training.config import Config, flat_sizes, record


def drawn_params(config: Config, key: jax.Array) -> Any:
    """The model's own initialisation; float64 runs keep float64 parameters, all others float32."""
    return record(config).init(key, config.sizes, len(config.vocabulary), _dtype(config))


def initial_params(config: Config, key: jax.Array) -> Any:
    """The parameters that a run starts from, of the types of `drawn_params`.

    Raises `JaxgradError` where they are in a file that is missing, was changed, or has another vocabulary.
    """
    if config.init is None:
        return drawn_params(config, key)
    path = Path(config.init)
    params, _ = read(record(config), path, _dtype(config), **flat_sizes(config))
    if files.sha256(path) != config.init_sha256:
        raise JaxgradError(f"{path}: is not what the run started from (sha256 {config.init_sha256}); put it back")
    symbols = vocabulary_size(record(config), params)
    if symbols != len(config.vocabulary):
        raise JaxgradError(
            f"{path}: has embeddings of {symbols:,} symbols, and the corpus has {len(config.vocabulary):,}; a"
            " checkpoint goes on with symbols of its own only, so give it a corpus of as many"
        )
    return params


def check_initial(config: Config) -> None:
    """Raise `JaxgradError` where a run cannot start from its checkpoint, before anything of the run is written."""
    if config.init is not None:
        initial_params(config, jax.random.key(config.seed))


def read(model: Model, path: Path, dtype: Any = jnp.float32, **sizes: Any) -> tuple[Any, Any]:
    """The parameters and the sizes of a checkpoint that others have made; `sizes` are those that it may not say.

    Raises `JaxgradError` for a model of which there are none, where a library is missing, and what its reader raises.
    """
    if model.checkpoints is None:
        known = ", ".join(name for name in models.MODELS if models.record(name).checkpoints is not None)
        raise JaxgradError(f"nobody else has checkpoints of the model {model.name}; choose from {known}")
    try:
        reader = importlib.import_module(model.checkpoints.reader)
    except ModuleNotFoundError as error:
        raise (not_installed(error) or error) from None
    return reader.load(path, dtype, **sizes)


def vocabulary_size(model: Model, params: Any) -> int:
    """How many symbols the parameters know."""
    return int(named(params)[str(model.embedding)].shape[0])


def _dtype(config: Config) -> Any:
    return jnp.float64 if config.dtype == "float64" else jnp.float32
