"""What the notebook's model tells the rest: the row that the list of models names."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import batches, ops
from jaxgrad.corpus import build_dataset
from jaxgrad.models.mlp import backward, sampling, statistics
from jaxgrad.models.mlp import forward as forwards
from jaxgrad.models.mlp import fused as closed_forms
from jaxgrad.models.mlp.forward import Batch, Gradients, Params, Statistics, forward
from jaxgrad.models.mlp.lesson import LESSON
from jaxgrad.models.mlp.per_device import per_device
from jaxgrad.models.mlp.sizes import Sizes
from jaxgrad.models.model import Benchmark, Kernel, Model, Operation

Cotangents = tuple[Float[Array, ""], Params, dict[str, Array]]


def loss(params: Params, batch: Batch, sizes: Sizes, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
    """The loss of a batch, every node of it marked."""
    return forward(params, batch).loss


def fused(
    params: Params, batch: Batch, sizes: Sizes, key: PRNGKeyArray | None = None
) -> tuple[Float[Array, ""], Params]:
    """Loss and gradients of the hand-written closed forms."""
    found = closed_forms.fused(params, batch)
    return found.loss, found.params


def by_node(
    params: Params, batch: Batch, sizes: Sizes, key: PRNGKeyArray | None = None
) -> tuple[Float[Array, ""], Params]:
    """Loss and gradients of the hand-written derivatives, node by node."""
    found = _by_node(params, batch)
    return found.loss, found.params


def _by_node(params: Params, batch: Batch) -> Gradients:
    return backward.by_node(params, batch, forward(params, batch))


def _told(found: Gradients) -> Cotangents:
    nodes = {name: node for name, node in found.nodes._asdict().items() if node is not None}
    return found.loss, found.params, nodes


def nodes_by_node(params: Params, batch: Batch, sizes: Sizes) -> Cotangents:
    """The cotangents of all 20 nodes and 6 parameters."""
    return _told(_by_node(params, batch))


def nodes_fused(params: Params, batch: Batch, sizes: Sizes) -> Cotangents:
    """The cotangents of the parameters and of the nodes between operations."""
    return _told(closed_forms.fused(params, batch))


def _init(key: PRNGKeyArray, sizes: Sizes, vocab_size: int, dtype: Any = jnp.float32) -> Params:
    return forwards.init(key, vocab_size, sizes.context, sizes.embedding, sizes.hidden, dtype)


def _examples(words: list[str], vocabulary: tuple[str, ...], sizes: Sizes) -> Batch:
    return Batch(*build_dataset(words, vocabulary, sizes.context))  # type: ignore[arg-type]


def _numbers(sizes: Sizes, vocab_size: int, batch_size: int) -> int:
    n_emb = sizes.context * sizes.embedding
    of_params = sizes.hidden * (n_emb + vocab_size + 3) + vocab_size * (sizes.embedding + 1)
    # The parameters, their gradients and their next values; the embedded contexts, hidden layer and logits of a batch.
    return 3 * of_params + batch_size * (n_emb + sizes.hidden + vocab_size)


def flops(params: Params, sizes: Sizes, rows: int) -> int:
    r"""Floating-point operations of one step's products and of the embedding's sum.

    A product of (m, k) and (k, n) takes $2mnk$. Each of the two linear layers has three of one size: $xW$ forward;
    $dy\,W^T$ and $x^T dy$ backward. With B rows, E = n · emb_size inputs, H neurons and V symbols that is
    $3 \cdot 2BEH + 3 \cdot 2BHV = 6BH(E + V)$. Looking rows up computes nothing; the scatter-add of their
    cotangents takes BE additions. Elementwise operations are left out, as is usual.
    """
    n_emb, h_size = params.W1.shape
    return 6 * rows * h_size * (n_emb + params.C.shape[0]) + rows * n_emb


def zeros_and_ones(params: Params) -> Params:
    """The usual initialisation instead of the seed's: W2, b2 and bn_bias zero, bn_gain one."""
    zeros = {name: np.zeros_like(getattr(params, name)) for name in ("W2", "b2", "bn_bias")}
    return params._replace(bn_gain=np.ones_like(params.bn_gain), **zeros)  # type: ignore[arg-type]


def random_batch(key: PRNGKeyArray, sizes: Sizes, vocab_size: int, batch_size: int) -> Batch:
    """Uniformly random contexts and targets."""
    shape = (4 * batch_size, sizes.context + 1)
    symbols = np.asarray(jax.random.randint(key, shape, 0, vocab_size, dtype=jnp.int32))
    rows = np.asarray(batches.indices(key, 0, batch_size, len(symbols)))
    return Batch(symbols[rows, : sizes.context], symbols[rows, sizes.context])  # type: ignore[arg-type]


# Pallas takes as long to import as the rest of training, so the kernel is imported when it is asked for.
def _kernel_check(platform: str | None, backend: str) -> None:
    from jaxgrad.models.mlp.kernel.launch import require_support

    require_support(platform or backend)


def _kernel_steps(platform: str | None, *args: Any) -> Any:
    from jaxgrad.models.mlp.kernel.steps import kernel_steps

    *given, dtype = args
    return kernel_steps(*given, platform=platform or jax.default_backend(), dtype=dtype)


@functools.cache
def nodes_in_kernel(platform: str) -> Any:
    """The one-kernel step's cotangents on a platform, where "interpret" is any; one object for each."""

    def nodes(params: Params, batch: Batch, sizes: Sizes) -> Cotangents:
        from jaxgrad.models.mlp.kernel import launch

        return _told(launch.gradients(params, batch, platform=platform))

    return nodes


def _kernel(platform: str | None) -> Kernel:
    return Kernel(functools.partial(_kernel_check, platform), functools.partial(_kernel_steps, platform))


def _operations() -> dict[str, Operation]:
    """Each operation with its arguments where the model uses it."""

    def of(name: str, *arguments: str) -> Operation:
        def where(params: Params, batch: Batch) -> tuple[Any, ...]:
            known = {**forward(params, batch)._asdict(), **params._asdict(), **batch._asdict()}
            return tuple(known[argument] for argument in arguments)

        return Operation(getattr(ops, name), getattr(ops, f"{name}_fwd"), where)

    return {
        "embedding": of("embedding", "C", "X"),
        "linear": of("linear", "h", "W2", "b2"),
        "batch_norm": of("batch_norm", "h_prenorm", "bn_gain", "bn_bias"),
        "tanh": of("tanh", "h_norm"),
        "cross_entropy": of("cross_entropy", "logits", "Y"),
    }


MODEL = Model(
    name="mlp",
    sizes=Sizes,
    batch=Batch,
    init=_init,
    examples=_examples,
    shapes=lambda sizes: ((sizes.context,), ()),
    loss=loss,
    gradients={"fused": fused, "by-node": by_node},
    nodes={"by-node": nodes_by_node, "fused": nodes_fused},
    predict=lambda params, extra, X, sizes: forwards.predict(params, extra, X),
    sample=sampling.sample,
    numbers=_numbers,
    finish=lambda params, split, sizes: statistics.calibrate(params, split.X),
    extra=lambda params, sizes: Statistics(params.bn_gain, params.bn_gain),
    # What has hidden neurons is split, the rest is on every device.
    axes={"W1": (None, "model"), "bn_gain": (None, "model"), "bn_bias": (None, "model"), "W2": ("model",)},
    split=lambda sizes: {"hidden layer": sizes.hidden},
    per_device=per_device,
    kernels={"kernel": _kernel(None), "kernel-interpreted": _kernel("interpret")},
    by_platform={"kernel": nodes_in_kernel},
    twins={"torch": "notebook", "torch.nn": "module"},
    # Neither a Pallas kernel nor PyTorch's operations can be followed inside, and both compute the closed forms.
    formulas={"kernel": "fused", "torch.nn": "fused"},
    hand=(backward.__file__,),
    least_rows=2,
    few_rows="Bessel's correction divides by n - 1",
    apart=False,
    together="batch norm's statistics are those of the whole batch",
    hiding=zeros_and_ones,
    # With every size the same, each transpose can be left out and each sum taken over the other axis.
    tiny=Sizes(hidden=6, context=2, embedding=3),
    random_batch=random_batch,
    operations=_operations(),
    swept="hidden",
    embedding="C",
    hidden=("h", "h_norm", "bnmean", "bn_var"),
    logits="logits",
    lesson=LESSON,
    benchmark=Benchmark(
        sizes={
            "seed": (32, Sizes()),
            "middle": (1024, Sizes(hidden=1024)),
            "large": (8192, Sizes(hidden=4096)),
        },
        usual=("seed", "middle"),
        trial=(8, Sizes(hidden=16)),
        flops=flops,
        shown=("hidden",),
        # n for n - 1 in one term of a gradient moves losses by more than rounding does on batches up to this one, where
        # it is 1 part in 32; on 1,024 rows it no longer does.
        telling_rows=32,
        peers={"flax": "flax_mlp", "equinox": "equinox_mlp", "torch": "steps"},
    ),
)
