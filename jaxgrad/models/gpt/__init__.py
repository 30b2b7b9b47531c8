"""GPT-2's transformer: forward by named nodes, backward by node and fused, sampling with a cache of keys and values."""

from typing import Any

from jaxgrad.models.gpt.sizes import Sizes

__all__ = ["MODEL", "Sizes"]


def __getattr__(name: str) -> Any:
    # Imported when first used: sizes are asked for before JAX is loaded.
    if name == "MODEL":
        from jaxgrad.models.gpt.record import MODEL

        return MODEL
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
