"""What the GPT tells the rest: the row that the list of models names."""

import math
from typing import Any

import jax

from jaxgrad.models import sequences
from jaxgrad.models.gpt import by_node, fused, params, sample
from jaxgrad.models.gpt.forward import loss
from jaxgrad.models.gpt.lesson import LESSON
from jaxgrad.models.gpt.params import Params
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.models.model import Benchmark, Checkpoints, Model, named, without_nodes
from jaxgrad.models.sequence_sampling import words_by
from jaxgrad.models.sequences import IGNORED, RECIPE, Batch


def numbers(sizes: Sizes, vocab_size: int, batch_size: int) -> int:
    """How many numbers a step holds at least: three times the parameters, and what the backward keeps of a batch."""
    of_params = sum(math.prod(shape) for shape in named(params.shapes(sizes, vocab_size), _is_shape).values())
    places = batch_size * sizes.block
    return 3 * of_params + places * (10 * sizes.layers * sizes.width + 1)


def flops(params: Params, sizes: Sizes, rows: int) -> int:
    r"""Floating-point operations of one step's products and of the embedding's sum; of recomputation none are counted.

    With N numbers in the matrices and the head, every place takes $3 \cdot 2N$: a product forward and two of its size
    backward. A layer's scores and their sums over values take $2 \cdot 2T^2d$ a sequence, and twice that backward;
    those that causality leaves out are counted too, as is usual. The scatter-add of the embedding is an addition each.
    """
    b, t, d = rows, sizes.block, sizes.width
    matrices = sum(p.size for name, p in named(params.blocks).items() if name.endswith("_w")) + params.tokens.size
    return 6 * b * t * matrices + 12 * sizes.layers * b * t**2 * d + b * t * d


def _is_shape(node: Any) -> bool:
    return type(node) is tuple


def zeros_and_ones(params: Params) -> Params:
    """GPT-2's own initialisation of biases and gains, zero and one, which hides mistakes."""

    def usual(name: str, leaf: Any) -> Any:
        return 0 * leaf if name.endswith(("_b", "_bias")) else 0 * leaf + 1 if name.endswith("_gain") else leaf

    leaves = {name: usual(name, leaf) for name, leaf in named(params).items()}
    return jax.tree.unflatten(jax.tree.structure(params), leaves.values())


MODEL = Model(
    name="gpt",
    sizes=Sizes,
    batch=Batch,
    init=params.init,
    examples=lambda words, vocabulary, sizes: sequences.examples(words, vocabulary, sizes.block),
    shapes=lambda sizes: ((sizes.block,), (sizes.block,)),
    loss=loss,
    gradients={"fused": fused.fused, "by-node": without_nodes(by_node.nodes_by_node)},
    nodes={"by-node": by_node.nodes_by_node, "fused": fused.nodes_fused},
    predict=lambda params, extra, X, sizes: sample.predict(params, X, sizes),
    sample=words_by(sample.sample),
    numbers=numbers,
    recipe={"steps": 25_000, **RECIPE},
    # What is inside of the MLPs, and the rows of a projection, which are those of heads.
    axes={
        "blocks.fc_w": (None, None, "model"),
        "blocks.fc_b": (None, "model"),
        "blocks.out_w": (None, "model"),
        "blocks.proj_w": (None, "model"),
    },
    split=lambda sizes: {"number of heads": sizes.heads, "layer inside the MLPs": 4 * sizes.width},
    twins={"torch": "gpt"},
    hand=(by_node.__file__,),
    ignored=IGNORED,
    streams=True,
    checkpoints=Checkpoints("jaxgrad.port.gpt2", jax.jit(sample.sample, static_argnames=("count", "sizes", "top_k"))),
    telling=params.nowhere_zero,
    hiding=zeros_and_ones,
    tiny=Sizes(layers=2, heads=2, width=4, block=4, dropout=0.0),
    swept="width",
    embedding="tokens",
    logits="logits",
    lesson=LESSON,
    benchmark=Benchmark(
        sizes={
            "small": (32, Sizes(dropout=0.0)),
            "middle": (8, Sizes(layers=6, heads=6, width=384, block=256, dropout=0.0)),
            "large": (4, Sizes(layers=12, heads=12, width=768, block=256, dropout=0.0)),
        },
        usual=("small",),
        trial=(4, Sizes(layers=2, heads=2, width=8, block=8, dropout=0.0)),
        flops=flops,
        learning_rate=0.01,
        shown=("layers", "width", "block"),
        peers={"flax": "flax_gpt", "equinox": "equinox_gpt", "torch": "gpt_steps"},
    ),
)
