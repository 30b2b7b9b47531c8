"""GPT-2's checkpoints as parameters of our GPT, by a state dict with the names of transformers."""

from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any

import jax
import numpy as np
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
# Where it is written at all, it is the embedding again.
HEAD = "lm_head.weight"
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


def sizes_of(tensors: MappingType[str, tuple[int, ...]], **given: Any) -> Sizes:
    """The sizes of a state dict, from its tensors' shapes by name, and what shapes do not say from `given`.

    That is dropout, and the number of heads; without it heads have 64 numbers, as in all published sizes of GPT-2.
    Raises `JaxgradError` for a state dict of another model, and for a size in `given` that is not the file's.
    """
    prefix = prefix_of(tensors)
    for name in ("wpe.weight", "wte.weight"):
        if len(tensors.get(prefix + name, ())) != 2:
            raise JaxgradError(f"the state dict has no matrix {prefix + name}, as GPT-2 has; it is another model's")
    block, width = tensors[f"{prefix}wpe.weight"]
    layers = sum(name.startswith(f"{prefix}h.") and name.endswith(".ln_1.weight") for name in tensors)
    of_file = {"layers": layers, "width": width, "block": block, "rope": False, "tied": True}
    for name, value in of_file.items():
        if given.get(name, value) != value:
            raise JaxgradError(f"{name} is {given[name]}, and in the checkpoint {value}; leave it out")
    return Sizes(**{"heads": max(width // HEAD_SIZE, 1), **given, **of_file})


def prefix_of(tensors: MappingType[str, Any]) -> str:
    """What stands before every name. Raises `JaxgradError` where the embeddings of positions have neither."""
    for prefix in (MODULE, ""):
        if f"{prefix}wpe.weight" in tensors:
            return prefix
    raise JaxgradError("the state dict has no wpe.weight, GPT-2's embeddings of positions; it is another model's")


def load(path: str | Path, dtype: Any = jax.numpy.float32, **given: Any) -> tuple[Params, Sizes]:
    """The parameters and the sizes of a GPT-2 in a `.safetensors` file; `given` are sizes that the file may not say.

    Raises `JaxgradError` where there is no such file, for one whose head is not its embedding, and as `sizes_of` and
    `jaxgrad.port.load` do. Each names the file.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise JaxgradError(f"{path} is no safetensors file that can be read ({error}); give a checkpoint") from None
    try:
        return _from_state(state, dtype, **given)
    except JaxgradError as error:
        raise JaxgradError(f"{path}: {error}") from None


def _from_state(state: MappingType[str, Any], dtype: Any, **given: Any) -> tuple[Params, Sizes]:
    tensors = {name: tuple(array.shape) for name, array in state.items()}
    sizes, prefix = sizes_of(tensors, **given), prefix_of(tensors)
    embedding = f"{prefix}wte.weight"
    if not np.array_equal(state.get(HEAD, state[embedding]), state[embedding]):
        raise JaxgradError(f"{HEAD} is not {embedding}; in GPT-2 they are one, so it is another model's")
    vocab_size = tensors[embedding][0]
    like = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        shapes(sizes, vocab_size),
        is_leaf=lambda node: type(node) is tuple,
    )
    return port.load(like, state, mapping(sizes, vocab_size, prefix)), sizes
