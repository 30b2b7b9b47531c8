"""The notebook's model: forward in named nodes, backward by node and fused, statistics, and one kernel."""

from typing import Any

from jaxgrad.models.mlp.sizes import Sizes

__all__ = ["MODEL", "Sizes"]


def __getattr__(name: str) -> Any:
    # Imported when first used: sizes are asked for before JAX is loaded.
    if name == "MODEL":
        from jaxgrad.models.mlp.record import MODEL

        return MODEL
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
