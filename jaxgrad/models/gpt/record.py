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
from jaxgrad.models.model import Checkpoints, Model, named
from jaxgrad.models.sequence_sampling import words_by
from jaxgrad.models.sequences import IGNORED, Batch


def numbers(sizes: Sizes, vocab_size: int, batch_size: int) -> int:
    """How many numbers a step holds at least: three times the parameters, and what the backward keeps of a batch."""
    of_params = sum(math.prod(shape) for shape in named(params.shapes(sizes, vocab_size), _is_shape).values())
    places = batch_size * sizes.block
    return 3 * of_params + places * (10 * sizes.layers * sizes.width + 1)


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
    gradients={"fused": fused.fused, "by-node": by_node.by_node},
    nodes={"by-node": by_node.nodes_by_node, "fused": fused.nodes_fused},
    predict=lambda params, extra, X, sizes: sample.predict(params, X, sizes),
    sample=words_by(sample.sample),
    numbers=numbers,
    # On names.txt the dev loss was 1.986 nats a character after 20,000 steps of such a schedule (seed 0), and 1.978
    # after 25,000 of 30,000 (seed 1).
    recipe={
        "steps": 25_000,
        "batch_size": 32,
        "learning_rate": 3e-3,
        "optimizer": "adamw",
        "optimizer_args": (("b2", 0.99), ("weight_decay", 0.1)),
        # Warm-up over 1 in 40 steps from a hundredth of the rate, and a cosine back to it.
        "schedule": "cosine_onecycle",
        "schedule_args": (("pct_start", 0.025), ("div_factor", 100.0), ("final_div_factor", 1.0)),
        "clip": 1.0,
    },
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
)
