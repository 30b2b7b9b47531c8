"""Hand-written gradients in JAX: proved against jax.grad and PyTorch node by node, then trained with."""

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
