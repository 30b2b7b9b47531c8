"""The GPT's sizes."""

import dataclasses
from typing import Any

from jaxgrad.errors import JaxgradError


def _option(default: Any, text: str, **more: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, **more})


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What decides the arrays' shapes and the program. Raises `JaxgradError` for sizes that do not fit one another."""

    layers: int = _option(4, "Blocks, one after another.")
    heads: int = _option(4, "Heads of attention; they divide the width.")
    width: int = _option(64, "Numbers of the residual stream at each place.")
    block: int = _option(16, "The most symbols that a sequence has.", examples=True)
    dropout: float = _option(0.1, "The share dropped of the embedding and of what blocks add.")
    rope: bool = _option(False, "Rotate queries and keys by their place; no learned position embeddings.")
    tied: bool = _option(True, "The head is the transposed table of embeddings.")

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "block"):
            if getattr(self, name) < 1:
                raise JaxgradError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            raise JaxgradError(f"a width of {self.width} cannot be split among {self.heads} heads; take a multiple")
        if self.rope and self.width // self.heads % 2:
            raise JaxgradError(f"rope turns pairs, and a head has {self.width // self.heads} numbers; take an even one")
        if not 0 <= self.dropout < 1:
            raise JaxgradError(f"dropout is {self.dropout}; it is a probability below 1")

    @property
    def head_size(self) -> int:
        """Numbers of a head."""
        return self.width // self.heads
