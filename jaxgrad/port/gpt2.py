"""GPT-2's checkpoints as parameters of our GPT, by a state dict with the names of transformers."""

from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any

import jax
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxgrad import port
from jaxgrad.checking.oracles.rules import ONE, STACK, Rule
from jaxgrad.errors import JaxgradError
from jaxgrad.models.gpt.params import Params, shapes
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.port.mapping import Entry, Mapping

# GPT-2's weights are (inputs, outputs), as ours are, so none is transposed.
_OF_BLOCK = {
    "ln1_gain": "ln_1.weight",
    "ln1_bias": "ln_1.bias",
    "qkv_w": "attn.c_attn.weight",
    "qkv_b": "attn.c_attn.bias",
    "proj_w": "attn.c_proj.weight",
    "proj_b": "attn.c_proj.bias",
    "ln2_gain": "ln_2.weight",
    "ln2_bias": "ln_2.bias",
    "fc_w": "mlp.c_fc.weight",
    "fc_b": "mlp.c_fc.bias",
    "out_w": "mlp.c_proj.weight",
    "out_b": "mlp.c_proj.bias",
}
_OF_MODEL = {
    "tokens": "wte.weight",
    "positions": "wpe.weight",
    "ln_gain": "ln_f.weight",
    "ln_bias": "ln_f.bias",
}
# The base model's own files, such as the first ones of GPT-2, lack it.
MODULE = "transformer."
# Every published size of GPT-2 has heads of so many numbers.
HEAD_SIZE = 64


def mapping(sizes: Sizes, vocab_size: int, prefix: str = MODULE) -> Mapping:
    """The rules that make `Params` from the tensors of `GPT2LMHeadModel`, or with an empty prefix of `GPT2Model`.

    Raises `JaxgradError` for sizes that GPT-2 has not: rotary positions, or a head of its own.
    """
    if sizes.rope or not sizes.tied:
        raise JaxgradError("GPT-2 has learned positions and its embedding for a head; leave rope off and tied on")
    wanted = shapes(sizes, vocab_size)
    tensors: dict[str, tuple[int, ...]] = {}
    entries = []
    for path, shape in jax.tree.leaves_with_path(wanted, is_leaf=lambda node: type(node) is tuple):
        name = path[-1].name
        if name in _OF_BLOCK:
            sources = tuple(f"{prefix}h.{layer}.{_OF_BLOCK[name]}" for layer in range(sizes.layers))
            rule, each = Rule(sources, STACK), shape[1:]
        else:
            rule, each = Rule((prefix + _OF_MODEL[name],), ONE), shape
        tensors |= dict.fromkeys(rule.sources, each)
        entries.append(Entry(jax.tree_util.keystr(path), shape, rule, proved=False))
    return Mapping(tuple(entries), tensors)


def sizes_of(tensors: MappingType[str, tuple[int, ...]], heads: int | None = None, dropout: float = 0.0) -> Sizes:
    """The sizes of a state dict, from its tensors' shapes by name.

    Shapes do not tell the number of heads; without it heads have 64 numbers, as in all published sizes of GPT-2.
    Raises `JaxgradError` for a state dict of another model.
    """
    prefix = prefix_of(tensors)
    (block, width) = tensors[f"{prefix}wpe.weight"]
    layers = sum(name.startswith(f"{prefix}h.") and name.endswith(".ln_1.weight") for name in tensors)
    return Sizes(layers, heads or max(width // HEAD_SIZE, 1), width, block, dropout)


def prefix_of(tensors: MappingType[str, Any]) -> str:
    """What stands before every name. Raises `JaxgradError` where the embeddings of positions have neither."""
    for prefix in (MODULE, ""):
        if f"{prefix}wpe.weight" in tensors:
            return prefix
    raise JaxgradError("the state dict has no wpe.weight, GPT-2's embeddings of positions; it is another model's")


def load(path: str | Path, heads: int | None = None, dtype: Any = jax.numpy.float32) -> tuple[Params, Sizes]:
    """The parameters and the sizes of a GPT-2 in a `.safetensors` file; dropout is 0, as for evaluation.

    Raises `JaxgradError` where there is no such file, and as `sizes_of` and `jaxgrad.port.load` do.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise JaxgradError(f"{path} is no safetensors file that can be read ({error}); give a checkpoint") from None
    tensors = {name: tuple(array.shape) for name, array in state.items()}
    sizes, prefix = sizes_of(tensors, heads), prefix_of(tensors)
    vocab_size = tensors[f"{prefix}wte.weight"][0]
    like = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        shapes(sizes, vocab_size),
        is_leaf=lambda node: type(node) is tuple,
    )
    return port.load(like, state, mapping(sizes, vocab_size, prefix)), sizes
