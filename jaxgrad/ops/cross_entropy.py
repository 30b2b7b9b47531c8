"""Cross-entropy of logits against integer targets."""

import functools
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrad.errors import JaxgradError
from jaxgrad.ops._shards import together
from jaxgrad.ops.precision import widen

Reduction: TypeAlias = Literal["mean", "sum", "none"]
Tree = TypeVar("Tree")


class Options(NamedTuple):
    """What is static in a cross-entropy; `cross_entropy` says what each means."""

    ignore_index: int | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    soft_cap: float | None = None
    reduction: Reduction = "mean"


class Statistics(NamedTuple):
    """Of each row of logits: its maximum, and the logarithm of the sum of its exponentials less that maximum."""

    maximum: Float[Array, "*batch"]
    log_sum: Float[Array, "*batch"]


class Residuals(NamedTuple):
    """`counted` is each row's factor in the result but for its weight; `losses` are kept where there are weights."""

    logits: Float[Array, "*batch v"]
    statistics: Statistics
    targets: Int[Array, "*batch"]
    counted: Float[Array, "*batch"]
    weights: Float[Array, "*batch"] | None
    losses: Float[Array, "*batch"] | None


def cross_entropy(
    logits: Float[Array, "*batch v"],
    targets: Int[Array, "*batch"],
    weights: Float[Array, "*batch"] | None = None,
    *,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    reduction: Reduction = "mean",
) -> Float[Array, "..."]:
    r"""`-mean(log_softmax(logits)[targets])`, in nats, with what language models add to it.

    With $l_{ij} = c \tanh(z_{ij}/c)$ for a cap $c$, else the logits $z$ themselves, $S_i = \log\sum_k e^{l_{ik}}$,
    $p_{ij} = e^{l_{ij} - S_i}$, smoothing $s$, z-loss $\zeta$ and $v$ classes, a row's loss is
    $$L_i = S_i - (1-s)\,l_{i t_i} - \tfrac sv \textstyle\sum_j l_{ij} + \zeta S_i^2 .$$
    Because $\partial S_i/\partial l_{ij} = p_{ij}$, and $dl/dz = 1 - \tanh^2 = 1 - (l/c)^2$,
    $$dz_{ij} = dL_i\,\bigl((1 + 2\zeta S_i)\,p_{ij} - (1-s)\,[j = t_i] - \tfrac sv\bigr)\,
      \bigl(1 - (l_{ij}/c)^2\bigr) .$$
    The row's maximum is subtracted for range; it moves no value, so it has no part in the cotangent.
    With weights $a_i$, which are 0 where a target is ignored, the mean is $L = \sum_i a_i L_i / A$, $A = \sum_i a_i$:
    $$dL_i = dL\,a_i/A, \qquad da_i = dL\,(L_i - L)/A .$$

    The loss is float32 at least. Targets must lie in `range(v)`: one that does not makes the loss NaN.
    Residuals: the logits, two numbers a row, and the targets. No array of the logits' size is made but `dlogits`.
    Source: the notebook's loss; z-loss: Chowdhery et al. 2022, arXiv:2204.02311, section 5; derivation ours.

    Args:
        logits: one row of `v` numbers for each target.
        targets: integers of any type.
        weights: a factor of each row's loss; they have a cotangent.
        ignore_index: rows with this target have no loss and no cotangent, and do not count in the mean.
        label_smoothing: the share of the target that is spread over all classes.
        z_loss: the factor of the square of the log-sum-exp, which keeps it near 0.
        soft_cap: bounds the logits by `soft_cap * tanh(logits / soft_cap)`.
        reduction: "mean" over the weights, which is 0 where they sum to 0; "sum"; or "none", a loss for each row.

    Raises:
        JaxgradError: an option that is out of its range.

    Examples:
        >>> import jax.numpy as jnp
        >>> round(float(cross_entropy(jnp.zeros((3, 8)), jnp.array([1, -1, 7]), ignore_index=-1)), 4)
        2.0794
    """
    options = checked(Options(ignore_index, label_smoothing, z_loss, soft_cap, reduction))
    return _cross_entropy(*together(logits, targets, weights), options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cross_entropy(
    logits: Float[Array, "*batch v"],
    targets: Int[Array, "*batch"],
    weights: Float[Array, "*batch"] | None,
    options: Options,
) -> Float[Array, "..."]:
    return cross_entropy_fwd(logits, targets, weights, options)[0]


def cross_entropy_fwd(
    logits: Float[Array, "*batch v"],
    targets: Int[Array, "*batch"],
    weights: Float[Array, "*batch"] | None = None,
    options: Options = Options(),  # noqa: B008
) -> tuple[Float[Array, "..."], Residuals]:
    """The loss and the residuals."""
    wide = capped(widen(logits), options)
    # A shift that cancels: it has no derivative, of any order.
    maximum = jax.lax.stop_gradient(wide.max(-1, keepdims=True))
    shifted = wide - maximum
    log_sum = jnp.log(jnp.exp(shifted).sum(-1))
    counted, row_targets = rows_of(targets, weights, options, wide.dtype)
    # From the logits themselves: what a gather reads is stored.
    # An index below 0 would count from the last class; the largest number is no class either.
    index = jnp.where(row_targets < 0, jnp.iinfo(row_targets.dtype).max, row_targets)[..., None]
    picked = jnp.take_along_axis(wide, index, axis=-1, mode="fill")[..., 0] - maximum[..., 0]
    smooth = shifted.sum(-1) / logits.shape[-1] if options.label_smoothing else None
    statistics = Statistics(maximum[..., 0], log_sum)
    losses = row_losses(statistics, picked, smooth, options)
    residuals = Residuals(logits, statistics, row_targets, counted, weights, None if weights is None else losses)
    return reduced(losses, scaled(counted, weights), options), residuals


def cross_entropy_bwd(
    options: Options, residuals: Residuals, dloss: Float[Array, "..."]
) -> tuple[Float[Array, "*batch v"], None, Float[Array, "*batch"] | None]:
    """Cotangents of `logits` and `weights` (None without weights); integer targets have none."""
    logits, statistics, targets, counted, weights, losses = residuals
    wide = capped(widen(logits), options)
    columns = jax.lax.broadcasted_iota(targets.dtype, wide.shape, wide.ndim - 1)
    # Compared, not scattered: it fuses with the rest into one pass over the logits.
    hit = columns == targets[..., None]
    dlosses = dloss * scaled(counted, weights)
    by_row = as_columns(statistics), as_columns(dlosses)
    dlogits = logits_cotangent(wide, hit, *by_row, wide.shape[-1], options)
    return dlogits.astype(logits.dtype), None, weights_cotangent(losses, weights, counted, dloss, options)


_cross_entropy.defvjp(cross_entropy_fwd, cross_entropy_bwd)


def checked(options: Options) -> Options:
    """The options; raises `JaxgradError` for one that is out of its range."""
    if options.reduction not in ("mean", "sum", "none"):
        raise JaxgradError(f"reduction is {options.reduction!r}; choose 'mean', 'sum' or 'none'")
    if not 0 <= options.label_smoothing <= 1:
        raise JaxgradError(f"label_smoothing is {options.label_smoothing}; it is a share, from 0 to 1")
    if options.soft_cap is not None and not options.soft_cap > 0:
        raise JaxgradError(f"soft_cap is {options.soft_cap}; give a number above 0, or None for logits without a bound")
    return options


def capped(logits: Float[Array, "*shape"], options: Options) -> Float[Array, "*shape"]:
    """The logits, bounded where there is a cap."""
    if options.soft_cap is None:
        return logits
    return options.soft_cap * jnp.tanh(logits / options.soft_cap)


def rows_of(
    targets: Int[Array, "*batch"], weights: Float[Array, "*batch"] | None, options: Options, dtype: jnp.dtype
) -> tuple[Float[Array, "*batch"], Int[Array, "*batch"]]:
    """Each row's factor in the result but for its weight, and the targets with 0 for those that are ignored."""
    # 8-bit targets could not be compared with the numbers of more than 127 columns.
    wide = targets if targets.dtype.itemsize >= 4 else targets.astype(jnp.int32)
    counted = jnp.ones(targets.shape, dtype)
    if options.ignore_index is not None:
        kept = wide != options.ignore_index
        counted, wide = kept.astype(dtype), jnp.where(kept, wide, 0)
    if options.reduction == "mean":
        total = scaled(counted, weights).sum()
        counted = counted * jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))
    return counted, wide


def scaled(counted: Float[Array, "*batch"], weights: Float[Array, "*batch"] | None) -> Float[Array, "*batch"]:
    """The factor of each row's loss in the result, its weight in it."""
    return counted if weights is None else counted * weights.astype(counted.dtype)


def row_losses(
    statistics: Statistics,
    picked: Float[Array, "*batch"],
    smooth: Float[Array, "*batch"] | None,
    options: Options,
) -> Float[Array, "*batch"]:
    """Each row's loss, from its target's logit and the mean of its logits, both less the row's maximum."""
    if smooth is None:
        losses = statistics.log_sum - picked
    else:
        losses = statistics.log_sum - (1 - options.label_smoothing) * picked - options.label_smoothing * smooth
    if options.z_loss:
        losses = losses + options.z_loss * (statistics.maximum + statistics.log_sum) ** 2
    return losses


def reduced(losses: Float[Array, "*batch"], scales: Float[Array, "*batch"], options: Options) -> Float[Array, "..."]:
    """The losses times their factors, added up unless each is wanted."""
    return losses * scales if options.reduction == "none" else (losses * scales).sum()


def as_columns(by_row: Tree) -> Tree:
    """Arrays of a number a row, to be broadcast against the logits."""
    return jax.tree.map(lambda array: array[..., None], by_row)


def logits_cotangent(
    logits: Float[Array, "*batch c"],
    hit: Array,
    statistics: Statistics,
    dlosses: Float[Array, "*batch 1"],
    classes: int,
    options: Options,
) -> Float[Array, "*batch c"]:
    """Cotangent of the logits before the cap, from those after it: all columns of a row, or some of `classes`.

    What belongs to rows is given `as_columns`.
    """
    # The exponentials are those of the forward, which a compiler that sees both passes makes once.
    probs = jnp.exp(logits - statistics.maximum) * jnp.exp(-statistics.log_sum)
    if options.z_loss:
        probs = probs * (1 + 2 * options.z_loss * (statistics.maximum + statistics.log_sum))
    one_hot = hit.astype(logits.dtype)
    if options.label_smoothing:
        one_hot = (1 - options.label_smoothing) * one_hot + options.label_smoothing / classes
    dlogits = (probs - one_hot) * dlosses
    return dlogits if options.soft_cap is None else dlogits * (1 - (logits / options.soft_cap) ** 2)


def weights_cotangent(
    losses: Float[Array, "*batch"] | None,
    weights: Float[Array, "*batch"] | None,
    counted: Float[Array, "*batch"],
    dloss: Float[Array, "..."],
    options: Options,
) -> Float[Array, "*batch"] | None:
    """Cotangent of the weights of the rows; in a mean, a row's weight is in the divisor too."""
    if weights is None or losses is None:
        return None
    if options.reduction == "mean":
        losses = losses - reduced(losses, scaled(counted, weights), options)
    return (dloss * counted * losses).astype(weights.dtype)
