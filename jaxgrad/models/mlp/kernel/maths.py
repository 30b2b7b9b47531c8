r"""One batch's loss and gradients by hand, in the few operations that every kernel compiler has.

The model's neurons are handled a block at a time: batch norm and tanh know only their own neuron, so all that blocks
share are the rows $e_j$ of C that came in and the logits that go out. The derivatives are those of `jaxgrad.ops`,
where they are derived. With $O_j$ (vocab, batch) the one-hot matrix of the characters at place $j$ of the context,
$O_j[s, i] = [x_{ij} = s]$, the embedding and the first layer become
$$e_j = O_j^\top C, \qquad a = \sum_j e_j W_{1j}, \qquad dW_{1j} = e_j^\top da, \qquad de_j = da\,W_{1j}^\top, \qquad
  dC = \sum_j O_j\,de_j,$$
because $(e_j)_i = C_{x_{ij}}$ picks a row, and $\sum_i [x_{ij} = s]\,(de_j)_i$ adds up the places that picked it.
Side by side the $e_j$ are `embcat`, so $W_{1j}$ are the rows of W1 that meet character $j$.

Padding changes no number, because all that it adds is an exact zero:

- *symbols, and numbers of a symbol*: their rows and columns of C, W1, W2 and b2 are zero. Their logits are set to
  -inf, so that their probability and with it $dl$ is 0.
- *neurons*: their columns of W1 are zero and so are $a$ and $\hat x$; gain and bias are zero, so $h = \tanh 0 = 0$.
  Then $dW_2 = h^\top dl = 0$ and $dg = 0$, and $dh = dl\,W_2^\top = 0$ makes $db$ and $da$ zero.
- *rows*: their one-hot columns are zero, and so is $a$. Three places are left where such a row would enter by itself,
  its distance from the mean, its $dl$ and the means' share of $da$; all three are masked, and n counts true rows.

Source: `jaxgrad.models.mlp.backward.fused`; the masks are ours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgrad.models.mlp.forward import EPS
from jaxgrad.models.mlp.kernel.padding import Sizes
from jaxgrad.ops.precision import accumulation_dtype
from jaxgrad.ops.tanh import tanh_bwd, tanh_fwd


class Block(NamedTuple):
    """What belongs to a block of neurons, or its cotangents; of W1 one matrix for each character of context."""

    W1: tuple[Float[Array, "e hb"], ...]
    W2: Float[Array, "hb v"]
    bn_gain: Float[Array, "1 hb"]
    bn_bias: Float[Array, "1 hb"]


class Kept(NamedTuple):
    """What the backward needs of a block's forward: the residuals of batch norm and of tanh."""

    x_hat: Float[Array, "b hb"]
    h: Float[Array, "b hb"]
    var_inv: Float[Array, "1 hb"]


class Between(NamedTuple):
    """A block's cotangents of the nodes between operations."""

    h: Float[Array, "b hb"]
    h_norm: Float[Array, "b hb"]
    h_prenorm: Float[Array, "b hb"]


Embedded = tuple[Float[Array, "b e"], ...]


def dot(a: Array, b: Array, contract: tuple[int, int], precision: jax.lax.Precision) -> Array:
    """The product of two matrices over the named axes, accumulated and returned in float32 at least."""
    wide = accumulation_dtype(a, b)
    # A narrow type has one way of being multiplied, and some compilers refuse to be told it.
    chosen = precision if a.dtype == wide else None
    return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((), ())), chosen, wide)


def one_hot(symbols: Int[Array, "1 b"], like: Float[Array, "v e"]) -> Float[Array, "v b"]:
    """1 where a column's symbol is the row's number; a column without symbol is zero."""
    rows = jax.lax.broadcasted_iota(jnp.int32, (like.shape[0], symbols.shape[1]), 0)
    return (rows == symbols).astype(like.dtype)


def is_row(size: Sizes, b: int) -> Bool[Array, "b 1"]:
    """True for the rows of the batch, false for those that fill it up."""
    return jax.lax.broadcasted_iota(jnp.int32, (b, 1), 0) < size.batch


def embed(C: Float[Array, "v e"], context: list[Float[Array, "v b"]], precision: jax.lax.Precision) -> Embedded:
    """The rows of C that one-hot matrices pick, one array for each character of context."""
    return tuple(dot(pick, C, (0, 0), precision).astype(C.dtype) for pick in context)


def block_forward(emb: Embedded, block: Block, size: Sizes, precision: jax.lax.Precision) -> Kept:
    """Linear, batch norm and tanh of one block of neurons."""
    dtype, wide = block.W2.dtype, accumulation_dtype(block.W2)
    products = [dot(e, w, (1, 0), precision) for e, w in zip(emb, block.W1, strict=True)]
    h_prenorm = sum(products[1:], products[0]).astype(dtype).astype(wide)
    diff = h_prenorm - h_prenorm.sum(0, keepdims=True) / size.batch
    diff = jnp.where(is_row(size, len(diff)), diff, 0)
    var_inv = jax.lax.rsqrt((diff * diff).sum(0, keepdims=True) / (size.batch - 1) + EPS)
    x_hat = (diff * var_inv).astype(dtype)
    # Triton has no tanh of narrow types.
    h, _ = tanh_fwd((block.bn_gain * x_hat + block.bn_bias).astype(wide))
    return Kept(x_hat, h.astype(dtype), var_inv)


def cross_entropy(
    logits: Float[Array, "b v"], target: Float[Array, "v b"], size: Sizes
) -> tuple[Float[Array, "1 1"], Float[Array, "b v"]]:
    """The loss, and the cotangent of the logits."""
    wide = accumulation_dtype(logits)
    rows, targets = is_row(size, len(logits)), target.astype(wide).T
    is_symbol = jax.lax.broadcasted_iota(jnp.int32, (1, logits.shape[1]), 1) < size.vocab
    reachable = jnp.where(is_symbol, logits.astype(wide), -jnp.inf)
    norm_logits = reachable - reachable.max(1, keepdims=True)
    counts = jnp.exp(norm_logits)
    counts_sum = counts.sum(1, keepdims=True)
    # Chosen and not multiplied, because -inf times 0 is NaN.
    picked = jnp.where(targets > 0, norm_logits, 0).sum(1, keepdims=True)
    loss = jnp.where(rows, jnp.log(counts_sum) - picked, 0).sum(0, keepdims=True) / size.batch
    probs = (counts / counts_sum).astype(logits.dtype)
    return loss, jnp.where(rows, (probs - targets) / size.batch, 0).astype(logits.dtype)


def block_backward(
    emb: Embedded, block: Block, kept: Kept, dlogits: Float[Array, "b v"], size: Sizes, precision: jax.lax.Precision
) -> tuple[Block, Embedded, Between]:
    """Cotangents of one block's parameters, its part of those of the embedded characters (wide), and its nodes'."""
    dtype, wide = block.W2.dtype, accumulation_dtype(block.W2)
    dh = dot(dlogits, block.W2, (1, 1), precision).astype(dtype)
    dW2 = dot(kept.h, dlogits, (0, 0), precision).astype(dtype)
    (dh_norm,) = tanh_bwd(kept.h, dh)

    dy = dh_norm.astype(wide)
    dbias = dy.sum(0, keepdims=True)
    dgain = (dy * kept.x_hat).sum(0, keepdims=True)
    means = dbias / size.batch + kept.x_hat * (dgain / (size.batch - 1))
    means = jnp.where(is_row(size, len(means)), means, 0)
    dh_prenorm = (block.bn_gain * kept.var_inv * (dy - means)).astype(dtype)

    dW1 = tuple(dot(e, dh_prenorm, (0, 0), precision).astype(dtype) for e in emb)
    demb = tuple(dot(dh_prenorm, w, (1, 1), precision) for w in block.W1)
    return Block(dW1, dW2, dgain.astype(dtype), dbias.astype(dtype)), demb, Between(dh, dh_norm, dh_prenorm)
