"""Models as pure functions, and the one list of them: whatever trains, compares, draws or times one takes it from here.

A row is a model's name and the module that holds its `Sizes` and its `MODEL`, a `jaxgrad.models.model.Model`. A module
is imported when its model is asked for; that JAX is not loaded for `Sizes` alone keeps the command line's help instant.
"""

import dataclasses
import importlib
from collections.abc import Mapping
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


def sizes_by_name(name: str, given: Mapping[str, Any]) -> Any:
    """The sizes of a model from some of them by their names, or by those that the maths has for them.

    Raises `JaxgradError` for a name that no size of the model has, and what the sizes themselves raise.
    """
    kind = sizes_of(name)
    known = {field.name: field.name for field in dataclasses.fields(kind)}
    also = {field.metadata["also"]: field.name for field in dataclasses.fields(kind) if "also" in field.metadata}
    if unknown := [other for other in given if other not in known | also]:
        raise JaxgradError(f"the model {name} has no size {unknown[0]!r}; choose from {', '.join(known)}")
    return kind(**{(known | also)[other]: value for other, value in given.items()})


def record(name: str) -> "Model":
    """The record of a model; raises `JaxgradError` for a model that is not on the list."""
    return _module(name).MODEL


def _module(name: str) -> Any:
    if name not in MODELS:
        raise JaxgradError(f"there is no model {name!r}; choose from {', '.join(MODELS)}")
    return importlib.import_module(MODELS[name])
