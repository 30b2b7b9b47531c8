"""Hand-written gradients in JAX: proved against jax.grad and PyTorch node by node, then trained with."""

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxgrad import port
    from jaxgrad.checking.findings import GradientMismatch, Report
    from jaxgrad.front import check
    from jaxgrad.jaxprs.taps import tap
    from jaxgrad.mutation.score import mutation_score

    __version__: str

__all__ = ["GradientMismatch", "Report", "__version__", "check", "mutation_score", "port", "tap"]

_FROM = {
    "GradientMismatch": "jaxgrad.checking.findings",
    "Report": "jaxgrad.checking.findings",
    "check": "jaxgrad.front",
    "mutation_score": "jaxgrad.mutation.score",
    "tap": "jaxgrad.jaxprs.taps",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: the command line shows its help, and sets JAX up, before JAX is loaded.
    if name == "__version__":
        return metadata.version("jaxgrad")
    if name == "port":
        return importlib.import_module("jaxgrad.port")
    if name in _FROM:
        return getattr(importlib.import_module(_FROM[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
