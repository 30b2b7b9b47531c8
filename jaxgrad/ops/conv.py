"""Convolution over one or more axes of places, channels last."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import jax
from jaxtyping import Array, Float

from jaxgrad.errors import JaxgradError
from jaxgrad.ops._shards import together
from jaxgrad.ops.precision import accumulation_dtype, widen

Padding: TypeAlias = Literal["same", "valid"] | Sequence[tuple[int, int]]


class Options(NamedTuple):
    """What is static, for each axis of places."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


Residuals: TypeAlias = tuple[Float[Array, "b *places c"], Float[Array, "*kernel n o"], Float[Array, " o"] | None]


def conv(
    x: Float[Array, "b *places c"],
    w: Float[Array, "*kernel n o"],
    bias: Float[Array, " o"] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Float[Array, "b *out o"]:
    r"""Cross-correlation of `x` with `w`, in 1-D, 2-D and so on, as layers called convolutions have it.

    In 1-D with stride $a$, dilation $e$ and $l$ zeros before the start,
    $$y_{po} = \sum_{k,c} x_{p a + k e - l,\,c}\,w_{kco} + b_o .$$
    A place $i$ of the input is used where $i = p a + k e - l$, so
    $$dx_{ic} = \sum_{k,o} [\,p a = i + l - k e\,]\,dy_{po}\,w_{kco},\qquad
      dw_{kco} = \sum_{p} x_{p a + k e - l,\,c}\,dy_{po}, \qquad db_o = \sum_p dy_{po},$$
    summed over the batch too. The first is a correlation with the kernel reversed, of $dy$ with $a - 1$ zeros between
    its places; the second one of $x$ with $dy$ as its kernel, in which stride and dilation have changed places and the
    batch is what is contracted. Groups are convolutions side by side, in all three.

    Products accumulate in float32 at least. Residuals: `x`, `w`, and of `bias` its presence and type.
    Source: Dumoulin & Visin 2016, arXiv:1603.07285; derivation ours.

    Args:
        x: a batch of rows, images and so on.
        w: the kernel, of `c // groups` input channels.
        bias: one number for each output channel.
        stride: places between two outputs, one number or one for each axis.
        padding: "same" (as many outputs as inputs, over the stride), "valid", or `(before, after)` for each axis.
        dilation: places between two numbers of the kernel.
        groups: of channels, each with its own kernel; divides both numbers of channels.

    Raises:
        JaxgradError: shapes or options that do not fit.

    Examples:
        >>> import jax.numpy as jnp
        >>> conv(jnp.arange(4.0).reshape(1, 4, 1), jnp.ones((2, 1, 1)), padding="valid")[0, :, 0].tolist()
        [1.0, 3.0, 5.0]
    """
    places = x.ndim - 2
    if places < 1 or w.ndim != x.ndim or x.shape[-1] != groups * w.shape[-2] or w.shape[-1] % groups:
        raise JaxgradError(
            f"x has shape {x.shape} and w {w.shape} with {groups} groups; x is (b, *places, c), w is"
            " (*kernel, c / groups, o), and groups divide o"
        )
    strides, dilations = ((n,) * places if isinstance(n, int) else tuple(n) for n in (stride, dilation))
    if not len(strides) == len(dilations) == places:
        raise JaxgradError(f"stride and dilation need one entry for each of {places} axes of places")
    if padding == "valid":
        pads: tuple[tuple[int, int], ...] = ((0, 0),) * places
    elif padding == "same":
        sizes = zip(x.shape[1:-1], w.shape[:-2], strides, dilations, strict=True)
        missing = (max((-(-n // a) - 1) * a + (k - 1) * e + 1 - n, 0) for n, k, a, e in sizes)
        pads = tuple((total // 2, total - total // 2) for total in missing)
    else:
        pads = tuple((before, after) for before, after in padding)
    if len(pads) != places:
        raise JaxgradError(f"padding needs one entry for each of {places} axes of places")
    arrays = together(x, w, bias)
    return _conv(*arrays, Options(strides, pads, dilations, groups))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _conv(
    x: Float[Array, "b *places c"], w: Float[Array, "*kernel n o"], bias: Float[Array, " o"] | None, options: Options
) -> Float[Array, "b *out o"]:
    return conv_fwd(x, w, bias, options)[0]


def conv_fwd(
    x: Float[Array, "b *places c"], w: Float[Array, "*kernel n o"], bias: Float[Array, " o"] | None, options: Options
) -> tuple[Float[Array, "b *out o"], Residuals]:
    """The output and the residuals `(x, w, bias[:0])`."""
    y = _correlate(x, w, options.stride, options.padding, (1,) * len(options.stride), options.dilation, options.groups)
    if bias is None:
        return y.astype(x.dtype), (x, w, None)
    return (y + jax.lax.broadcast_to_rank(widen(bias), y.ndim)).astype(x.dtype), (x, w, bias[:0])


def conv_bwd(
    options: Options, residuals: Residuals, dy: Float[Array, "b *out o"]
) -> tuple[Float[Array, "b *places c"], Float[Array, "*kernel n o"], Float[Array, " o"] | None]:
    """Cotangents of `x`, `w` and `bias` (None without one)."""
    x, w, bias = residuals
    sizes = zip(
        x.shape[1:-1], w.shape[:-2], dy.shape[1:-1], options.stride, options.dilation, options.padding, strict=True
    )
    of_x, of_w = [], []
    for n, k, p, a, e, (before, _) in sizes:
        kernel, spread = (k - 1) * e + 1, (p - 1) * a + 1
        # What each correlation needs in zeros at its end to have n and k results; below 0 it leaves out numbers.
        of_x.append((kernel - 1 - before, n - spread + before))
        of_w.append((before, kernel - 1 + spread - n - before))
    one = (1,) * len(options.stride)
    dx = _correlate(dy, _reversed(w, options.groups), one, of_x, options.stride, options.dilation, options.groups)
    dw = _correlate(
        *_batch_as_channels(x, dy, options.groups), options.dilation, of_w, one, options.stride, options.groups
    )
    # Its batch is the channels of a group's input.
    dw = dw.transpose(*range(1, dw.ndim - 1), 0, dw.ndim - 1)
    db = None if bias is None else widen(dy).sum(tuple(range(dy.ndim - 1))).astype(bias.dtype)
    return dx.astype(x.dtype), dw.astype(w.dtype), db


def _correlate(
    x: Array,
    w: Array,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    spread: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    places = "".join(chr(ord("0") + axis) for axis in range(x.ndim - 2))
    return jax.lax.conv_general_dilated(
        x, w, stride, padding, spread, dilation, (f"N{places}C", f"{places}IO", f"N{places}C"), groups,
        preferred_element_type=accumulation_dtype(x, w),
    )  # fmt: skip


def _reversed(w: Float[Array, "*kernel n o"], groups: int) -> Float[Array, "*kernel m c"]:
    """The kernel back to front, from the output's channels of each group to the input's."""
    *kernel, n, o = w.shape
    split = jax.lax.rev(w, tuple(range(len(kernel)))).reshape(*kernel, n, groups, o // groups)
    places = range(len(kernel))
    return split.transpose(*places, w.ndim, w.ndim - 1, w.ndim - 2).reshape(*kernel, o // groups, groups * n)


def _batch_as_channels(x: Array, dy: Array, groups: int) -> tuple[Array, Array]:
    """`x` as `(n, *places, groups * b)` and `dy` as a kernel `(*out, b, o)`."""
    b, *places, c = x.shape
    split = x.reshape(b, *places, groups, c // groups)
    axes = range(1, x.ndim - 1)
    lhs = split.transpose(x.ndim, *axes, x.ndim - 1, 0).reshape(c // groups, *places, groups * b)
    return lhs, dy.transpose(*range(1, dy.ndim - 1), 0, dy.ndim - 1)


_conv.defvjp(conv_fwd, conv_bwd)
