"""Models as pure functions, and the one list of them: whatever trains, compares, draws or times one takes it from here.

A row is a model's name and the module that holds its `Sizes` and its `MODEL`, a `jaxgrad.models.model.Model`. A module
is imported when its model is asked for; that JAX is not loaded for `Sizes` alone keeps the command line's help instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxgrad.errors import JaxgradError

if TYPE_CHECKING:
    from jaxgrad.models.model import Model

MODELS = {
    "mlp": "jaxgrad.models.mlp",
    "gpt": "jaxgrad.models.gpt",
    "gru": "jaxgrad.models.gru",
}

# The model of runs that were begun when there was no other, and of commands that are told of none.
DEFAULT = "mlp"


def sizes_of(name: str) -> Any:
    """The dataclass of a model's sizes; raises `JaxgradError` for a model that is not on the list."""
    return _module(name).Sizes


def record(name: str) -> "Model":
    """The record of a model; raises `JaxgradError` for a model that is not on the list."""
    return _module(name).MODEL


def _module(name: str) -> Any:
    if name not in MODELS:
        raise JaxgradError(f"there is no model {name!r}; choose from {', '.join(MODELS)}")
    return importlib.import_module(MODELS[name])
