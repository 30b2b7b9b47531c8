"""makemore's recurrent model: forward by named nodes of each step, backward through time by node and fused."""

from typing import Any

from jaxgrad.models.gru.sizes import Sizes

__all__ = ["MODEL", "Sizes"]


def __getattr__(name: str) -> Any:
    # Imported when first used: sizes are asked for before JAX is loaded.
    if name == "MODEL":
        from jaxgrad.models.gru.record import MODEL

        return MODEL
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
