"""Hand-written gradients in JAX: proved against jax.grad and PyTorch node by node, then trained with."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxgrad.batches import indices
    from jaxgrad.corpus import Corpus, CorpusError, Split, load
    from jaxgrad.models.mlp import Batch, Gradients, Nodes, Params, forward, init
    from jaxgrad.models.mlp_backward import by_node, fused
    from jaxgrad.ops import batch_norm, cross_entropy, embedding, linear, tanh

__all__ = [
    "Batch",
    "Corpus",
    "CorpusError",
    "Gradients",
    "Nodes",
    "Params",
    "Split",
    "batch_norm",
    "by_node",
    "cross_entropy",
    "embedding",
    "forward",
    "fused",
    "indices",
    "init",
    "linear",
    "load",
    "tanh",
]

_FROM = {
    "jaxgrad.batches": ("indices",),
    "jaxgrad.corpus": ("Corpus", "CorpusError", "Split", "load"),
    "jaxgrad.models.mlp": ("Batch", "Gradients", "Nodes", "Params", "forward", "init"),
    "jaxgrad.models.mlp_backward": ("by_node", "fused"),
    "jaxgrad.ops": ("batch_norm", "cross_entropy", "embedding", "linear", "tanh"),
}


def __getattr__(name: str) -> Any:
    # Imported when first used: the command line shows its help, and sets JAX up, before JAX is loaded.
    for module, names in _FROM.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
