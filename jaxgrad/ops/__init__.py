"""One operation a file: its forward, its hand-written VJP and the derivation in its docstring."""

from jaxgrad.ops.attention import attention, attention_bwd, attention_fwd
from jaxgrad.ops.batch_norm import batch_norm, batch_norm_bwd, batch_norm_fwd
from jaxgrad.ops.cross_entropy import cross_entropy, cross_entropy_bwd, cross_entropy_fwd
from jaxgrad.ops.embedding import embedding, embedding_bwd, embedding_fwd
from jaxgrad.ops.gelu import gelu, gelu_bwd, gelu_fwd
from jaxgrad.ops.layer_norm import layer_norm, layer_norm_bwd, layer_norm_fwd
from jaxgrad.ops.linear import linear, linear_bwd, linear_fwd
from jaxgrad.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_bwd,
    linear_cross_entropy_fwd,
)
from jaxgrad.ops.tanh import tanh, tanh_bwd, tanh_fwd

__all__ = [
    "attention",
    "attention_bwd",
    "attention_fwd",
    "batch_norm",
    "batch_norm_bwd",
    "batch_norm_fwd",
    "cross_entropy",
    "cross_entropy_bwd",
    "cross_entropy_fwd",
    "embedding",
    "embedding_bwd",
    "embedding_fwd",
    "gelu",
    "gelu_bwd",
    "gelu_fwd",
    "layer_norm",
    "layer_norm_bwd",
    "layer_norm_fwd",
    "linear",
    "linear_bwd",
    "linear_cross_entropy",
    "linear_cross_entropy_bwd",
    "linear_cross_entropy_fwd",
    "linear_fwd",
    "tanh",
    "tanh_bwd",
    "tanh_fwd",
]
