"""The recurrent model's sizes."""

import dataclasses
from typing import Any

from jaxgrad.errors import JaxgradError


def _option(default: Any, text: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, **more})


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What decides the arrays' shapes and the program. Raises `JaxgradError` for a value out of its range."""

    embedding: int = _option(64, "Numbers of a symbol's embedding.")
    hidden: int = _option(128, "Numbers of the state.")
    block: int = _option(16, "The most symbols that a sequence has.", examples=True)
    dropout: float = _option(0.1, "The share dropped of the states that the head reads.")

    def __post_init__(self) -> None:
        for name in ("embedding", "hidden", "block"):
            if getattr(self, name) < 1:
                raise JaxgradError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise JaxgradError(f"dropout is {self.dropout}; it is a probability below 1")
