"""One operation a file: its forward, its hand-written VJP and the derivation in its docstring."""

from jaxgrad.ops.attention import attention, attention_bwd, attention_fwd
from jaxgrad.ops.batch_norm import batch_norm, batch_norm_bwd, batch_norm_fwd
from jaxgrad.ops.batch_norm_running import batch_norm_running, batch_norm_running_bwd, batch_norm_running_fwd
from jaxgrad.ops.conv import conv, conv_bwd, conv_fwd
from jaxgrad.ops.cross_entropy import cross_entropy, cross_entropy_bwd, cross_entropy_fwd
from jaxgrad.ops.dropout import dropout, dropout_bwd, dropout_fwd
from jaxgrad.ops.embedding import embedding, embedding_bwd, embedding_fwd
from jaxgrad.ops.geglu import geglu, geglu_bwd, geglu_fwd
from jaxgrad.ops.gelu import gelu, gelu_bwd, gelu_fwd
from jaxgrad.ops.group_norm import group_norm, group_norm_bwd, group_norm_fwd
from jaxgrad.ops.gru import GruWeights, gru, gru_bwd, gru_fwd
from jaxgrad.ops.jsd import jsd, jsd_bwd, jsd_fwd
from jaxgrad.ops.kl_div import kl_div, kl_div_bwd, kl_div_fwd
from jaxgrad.ops.l2_normalize import l2_normalize, l2_normalize_bwd, l2_normalize_fwd
from jaxgrad.ops.layer_norm import layer_norm, layer_norm_bwd, layer_norm_fwd
from jaxgrad.ops.linear import linear, linear_bwd, linear_fwd
from jaxgrad.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_bwd,
    linear_cross_entropy_fwd,
)
from jaxgrad.ops.log_softmax import log_softmax, log_softmax_bwd, log_softmax_fwd
from jaxgrad.ops.logsumexp import logsumexp, logsumexp_bwd, logsumexp_fwd
from jaxgrad.ops.lstm import LstmWeights, lstm, lstm_bwd, lstm_fwd
from jaxgrad.ops.relu import relu, relu_bwd, relu_fwd
from jaxgrad.ops.relu_squared import relu_squared, relu_squared_bwd, relu_squared_fwd
from jaxgrad.ops.rms_norm import rms_norm, rms_norm_bwd, rms_norm_fwd
from jaxgrad.ops.rope import rope, rope_bwd, rope_fwd, rope_tables
from jaxgrad.ops.silu import silu, silu_bwd, silu_fwd
from jaxgrad.ops.softmax import softmax, softmax_bwd, softmax_fwd
from jaxgrad.ops.swiglu import swiglu, swiglu_bwd, swiglu_fwd
from jaxgrad.ops.tanh import tanh, tanh_bwd, tanh_fwd

__all__ = [
    "GruWeights",
    "LstmWeights",
    "attention",
    "attention_bwd",
    "attention_fwd",
    "batch_norm",
    "batch_norm_bwd",
    "batch_norm_fwd",
    "batch_norm_running",
    "batch_norm_running_bwd",
    "batch_norm_running_fwd",
    "conv",
    "conv_bwd",
    "conv_fwd",
    "cross_entropy",
    "cross_entropy_bwd",
    "cross_entropy_fwd",
    "dropout",
    "dropout_bwd",
    "dropout_fwd",
    "embedding",
    "embedding_bwd",
    "embedding_fwd",
    "geglu",
    "geglu_bwd",
    "geglu_fwd",
    "gelu",
    "gelu_bwd",
    "gelu_fwd",
    "group_norm",
    "group_norm_bwd",
    "group_norm_fwd",
    "gru",
    "gru_bwd",
    "gru_fwd",
    "jsd",
    "jsd_bwd",
    "jsd_fwd",
    "kl_div",
    "kl_div_bwd",
    "kl_div_fwd",
    "l2_normalize",
    "l2_normalize_bwd",
    "l2_normalize_fwd",
    "layer_norm",
    "layer_norm_bwd",
    "layer_norm_fwd",
    "linear",
    "linear_bwd",
    "linear_cross_entropy",
    "linear_cross_entropy_bwd",
    "linear_cross_entropy_fwd",
    "linear_fwd",
    "log_softmax",
    "log_softmax_bwd",
    "log_softmax_fwd",
    "logsumexp",
    "logsumexp_bwd",
    "logsumexp_fwd",
    "lstm",
    "lstm_bwd",
    "lstm_fwd",
    "relu",
    "relu_bwd",
    "relu_fwd",
    "relu_squared",
    "relu_squared_bwd",
    "relu_squared_fwd",
    "rms_norm",
    "rms_norm_bwd",
    "rms_norm_fwd",
    "rope",
    "rope_bwd",
    "rope_fwd",
    "rope_tables",
    "silu",
    "silu_bwd",
    "silu_fwd",
    "softmax",
    "softmax_bwd",
    "softmax_fwd",
    "swiglu",
    "swiglu_bwd",
    "swiglu_fwd",
    "tanh",
    "tanh_bwd",
    "tanh_fwd",
]
