"""What PyTorch's operations round, drawn at random: a dispatch mode over a reference and its backward pass."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

FLOAT32 = 2.0**-24  # The unit roundoff of float32.
# Beyond this a value stands for infinity, as in a mask of the lowest float; a rounding of it would be anything.
_INFINITE = 1e30
# The fewest signs that are drawn in advance, so that small arrays seldom share a stretch.
_FEWEST = 2**16
# More terms than this are summed in blocks by every library that we know.
_BLOCK = 512

# Operations that only move, make or choose numbers. Those that return views are known by their schemas.
_MOVES = frozenset(
    "_adaptive_max_pool2d _conj_physical _reshape_copy _unique _unique2 _unsafe_index _unsafe_masked_index "
    "_unsafe_view abs adaptive_max_pool2d adaptive_max_pool3d alias alias_copy amax amin aminmax arange "
    "as_strided_copy as_strided_scatter bernoulli block_diag cat cauchy ceil channel_shuffle clamp clamp_max "
    "clamp_min clone complex conj_physical constant_pad_nd copysign cummax cummin detach detach_copy diag_embed "
    "diagonal_copy diagonal_scatter embedding empty empty_like empty_permuted empty_strided expand_copy exponential "
    "eye fill flip floor floor_divide fmax fmin fmod frac full full_like gather geometric hardshrink hardtanh "
    "hardtanh_backward heaviside im2col imag index index_copy index_select kthvalue lift lift_fresh lift_fresh_copy "
    "linspace log_normal logspace masked_fill masked_scatter masked_scatter_backward masked_select max "
    "max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d maximum median min minimum mode "
    "multinomial nan_to_num nanmedian narrow_copy neg new_empty new_empty_strided new_full new_ones new_zeros normal "
    "ones ones_like permute_copy pixel_shuffle pixel_unshuffle poisson rand rand_like randint randint_like randn "
    "randn_like real reflection_pad1d reflection_pad2d reflection_pad3d relu repeat repeat_interleave "
    "replication_pad1d replication_pad2d replication_pad3d resize resize_as roll rot90 round scalar_tensor scatter "
    "select_backward select_copy select_scatter set sign slice_backward slice_copy slice_scatter sort "
    "split_with_sizes_copy squeeze_copy stack t_copy take threshold threshold_backward topk transpose_copy tril triu "
    "trunc unbind_copy unfold_copy uniform unique_consecutive unsafe_split unsafe_split_with_sizes unsqueeze_copy "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d view_as_complex_copy view_as_real_copy view_copy where "
    "zero zeros zeros_like "
    # Questions, whose answers are no numbers.
    "bitwise_and bitwise_not bitwise_or bitwise_xor eq ge gt isfinite isinf isnan isneginf isposinf le logical_and "
    "logical_not logical_or logical_xor lt ne signbit".split()
)
# Elementwise operations that are one rounding of an exact result, or that libraries compute as well as one.
_SINGLE = frozenset(
    "acos acosh add asin asinh atan atan2 atanh cos cosh div erf erfc exp exp2 expm1 ldexp log log10 "
    "log1p log2 mul pow reciprocal remainder rsqrt rsub sgn sigmoid sin sinh sqrt square sub tan tanh angle hypot "
    "leaky_relu leaky_relu_backward deg2rad rad2deg _masked_scale native_dropout native_dropout_backward".split()
)
# Products of matrices, and where among their operands the first matrix is: its last axis is summed over.
_PRODUCTS = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "vdot": 0, "addmm": 1, "addmv": 1, "baddbmm": 1, "addbmm": 1}
# `native_batch_norm` writes to these, and its schema does not say so.
_STATISTICS = frozenset(("running_mean", "running_var"))


@dataclasses.dataclass
class Draws:
    """Where a run's noise is drawn from, and signs s drawn in advance, as s, -s, s.

    Operations take overlapping stretches of them, because one draw for each operation would take most of the time.
    What two stretches share they have as often with the same sign as with the other, so that over samples it adds
    nothing to the variance of any sum.
    """

    generator: np.random.Generator
    signs: Any = None


class Roundings(NamedTuple):
    """Where noise is drawn from, the unit roundoff of results and that of sums, and by how much both are enlarged."""

    draws: Draws
    unit: float
    sums: float
    enlarged: float


def differentiable(x: Any) -> bool:
    return (x.dtype.is_floating_point or x.dtype.is_complex) and x.dtype.itemsize > 1


def rounding_mode(roundings: Roundings) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Rounding(TorchDispatchMode):  # type: ignore[misc]
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # Otherwise torch imports its compiler, which takes seconds, in order not to compile this method.
            return False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return _rounded(roundings, func, args, kwargs or {})

    return Rounding()


def _rounded(roundings: Roundings, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation `func` of torch with noise for what it rounds inside and for what it rounds at its end."""
    kind = _kind(func, args, kwargs)
    if roundings.unit < FLOAT32:
        args, kwargs = _with_float32_as_known(roundings, func, args, kwargs)
    if kind == "sum":
        amount = roundings.sums * _growth(func.overloadpacket.__name__, args)
        args, kwargs = _with_operands(lambda x: _perturbed(x, amount, roundings), func, args, kwargs)
    elif kind == "fused":
        args, kwargs = _with_operands(lambda x: _perturbed(x, roundings.unit, roundings), func, args, kwargs)
    out = _computed(roundings, kind, func, args, kwargs)
    if kind == "move":
        return out
    written = [r.alias_info is not None for r in func._schema.returns]
    if not written:
        return out
    if len(written) == 1:
        return _rounded_result(roundings, out, written[0])
    return type(out)(_rounded_result(roundings, x, w) for x, w in zip(out, written, strict=True))


def _computed(roundings: Roundings, kind: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the operation gives; a fused one step by step, since a difference inside, as in 1 + erf, may cancel.

    Its steps are not rounded to the type of its result but to that of sums.
    """
    from torch._decomp import decomposition_table

    steps = decomposition_table.get(func) if kind == "fused" else None
    if steps is None:
        return func(*args, **kwargs)
    with rounding_mode(roundings._replace(unit=roundings.sums)):
        return steps(*args, **kwargs)


def _rounded_result(roundings: Roundings, out: Any, in_place: bool) -> Any:
    import torch

    if isinstance(out, (tuple, list)):
        return type(out)(_rounded_result(roundings, x, in_place) for x in out)
    if not isinstance(out, torch.Tensor):
        return out
    noisy = _perturbed(out, roundings.unit, roundings)
    # The result of an in-place operation is its operand, which has to be the one that holds the noise.
    return out.copy_(noisy) if in_place and noisy is not out else noisy


def _kind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What an operation does to numbers: "move", "single", "fused" (elementwise, several roundings) or "sum"."""
    base, kind = _usual_kind(func)
    if base in ("copy", "_to_copy"):
        return "single" if _narrows(args, kwargs) else "move"
    if base in ("index_put", "_unsafe_index_put", "_index_put_impl"):
        accumulate = kwargs.get("accumulate", args[3] if len(args) > 3 else False)
        return "sum" if accumulate else "move"
    if base == "div" and kwargs.get("rounding_mode"):
        return "move"
    return kind


@functools.cache
def _usual_kind(func: Any) -> tuple[str, str]:
    """The name of an operation without the sign of those in place, and its kind, whatever its arguments."""
    import torch

    schema = func._schema
    name = func.overloadpacket.__name__
    if not schema.is_mutable and any(r.alias_info is not None for r in schema.returns):
        return "", "move"  # a view
    if func.namespace != "aten":
        return "", "sum"  # of an operation that somebody registered nothing is known
    base = name if name.startswith("__") else name.removesuffix("_")
    if base == "scatter" and "reduce" in func._overloadname:
        return base, "sum"
    if base in _MOVES:
        return base, "move"
    if base in _SINGLE:
        return base, "single"
    # Torch tags elementwise operations, but of `gelu_` and `gelu` only the latter.
    functional = getattr(getattr(torch.ops.aten, base, None), func._overloadname, func)
    return base, "fused" if torch.Tag.pointwise in functional.tags else "sum"


def _narrows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a copy is into a type of fewer digits."""
    import torch

    source = args[1] if len(args) > 1 and isinstance(args[1], torch.Tensor) else args[0]
    target = kwargs.get("dtype") or args[0].dtype
    if not (source.is_floating_point() and target.is_floating_point):
        return False
    return torch.finfo(target).eps > torch.finfo(source.dtype).eps


def _growth(name: str, args: tuple[Any, ...]) -> float:
    """How much n partial sums, each rounded, add to the error of one operand: the square root of n/2, at least 1.

    n is told by the shapes of products and plain sums, and bounded by the largest sum of a backward operation, such
    as a bias's over the batch. Of others it is taken as small.
    """
    terms = 1.0
    base = name.removesuffix("_")
    if base in _PRODUCTS:
        terms = args[_PRODUCTS[base]].shape[-1]
    elif base == "convolution":
        terms = args[1][0].numel()  # a weight has the axes (out, in, *window)
    elif base == "convolution_backward":
        terms = args[0][:, 0].numel()  # a cotangent has the axes (batch, out, *places)
    elif base in ("sum", "mean", "nansum", "cumsum"):
        x, dims = args[0], args[1] if len(args) > 1 else None
        over = [dims] if isinstance(dims, int) else dims if isinstance(dims, (list, tuple)) and dims else range(x.dim())
        terms = math.prod(x.shape[dim] for dim in over if x.dim())
    elif base.endswith("_backward"):
        sizes = [x.numel() for x in args if _is_noisy(x) and x.dim()]
        terms = max(sizes, default=1) / max(min(sizes, default=1), 1)
    return max(1.0, (min(float(terms), _BLOCK) / 2) ** 0.5)


def _is_noisy(x: Any) -> bool:
    """Whether something is a tensor of a type that arithmetic rounds to, with numbers in memory.

    Autograd has zeros without memory, which torch's kernels below its dispatcher read all the same, and crash.
    """
    import torch

    return isinstance(x, torch.Tensor) and x.layout == torch.strided and differentiable(x) and not x._is_zerotensor()


def _perturbed(x: Any, amount: float, roundings: Roundings) -> Any:
    r"""`x` times $1 + a\xi$ with $\xi = \pm1$ drawn for every element; what arithmetic does not round as it is."""
    import torch

    if not _is_noisy(x):
        return x
    # Below torch's dispatcher a lazy conjugate or minus would be lost: what lies in memory is perturbed instead.
    if x.is_conj():
        return _perturbed(x.conj(), amount, roundings).conj()
    if x.is_neg():
        return torch._neg_view(_perturbed(torch._neg_view(x), amount, roundings))
    # 1 + a is 1 for an a below the spacing at 1, so an a that no rounding of this type is below.
    narrow = x.dtype.to_real() != torch.float64
    amount = max(amount, torch.finfo(x.dtype).eps * (roundings.enlarged if narrow else 1))
    signs = _signs(x, roundings.draws)
    if x.is_complex():
        # The parts of a complex product round apart, each by what is lost of the whole.
        signs = torch.complex(signs, _signs(x, roundings.draws))
    noisy = torch.addcmul(x, x, signs, value=amount)
    # One pass to see that nothing is infinite or stands for it is cheaper than two to choose.
    low, high = (x.abs() if x.is_complex() else x).aminmax() if x.numel() else (-math.inf, math.inf)
    return noisy if low > -_INFINITE and high < _INFINITE else torch.where(x.abs() < _INFINITE, noisy, x)


def _signs(x: Any, draws: Draws) -> Any:
    """An array of 1 and -1, real, in the shape of `x`: a stretch of those drawn, from a place of its own."""
    import torch

    if draws.signs is None or draws.signs.numel() < 3 * x.numel():
        bits = np.unpackbits(np.frombuffer(draws.generator.bytes(max(_FEWEST, x.numel()) // 8 + 1), np.uint8))
        half = torch.from_numpy(bits).to(torch.float64).mul_(2).sub_(1)
        draws.signs = torch.cat([half, -half, half])
    start = int(draws.generator.integers(draws.signs.numel() // 3 * 2))
    return draws.signs[start : start + x.numel()].view(x.shape).to(x.dtype.to_real())


def known_to_float32(x: Any, roundings: Roundings) -> Any:
    """A constant that was written in float32, with the noise of that; one of few digits, such as 0.5, is exact."""
    import torch

    return torch.where(x.to(torch.bfloat16).to(x.dtype) == x, x, _perturbed(x, FLOAT32 * roundings.enlarged, roundings))


def _with_float32_as_known(
    roundings: Roundings, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Operands with float32 among float64 in float64, with the noise of float32: the other engine has its own."""
    import torch

    tensors = [x for x in args if isinstance(x, torch.Tensor)]
    if kwargs.get("dtype") != torch.float64 and not any(x.dtype == torch.float64 and x.dim() for x in tensors):
        return args, kwargs

    def known(x: Any) -> Any:
        return known_to_float32(x.double(), roundings) if x.dtype == torch.float32 else x

    return _with_operands(known, func, args, kwargs)


def _with_operands(
    change: Callable[[Any], Any], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with every tensor changed that the operation does not write to."""
    places, read = _read(func)
    by_place = tuple(_changed(change, x) if name in read else x for name, x in zip(places, args, strict=False))
    return by_place, {name: _changed(change, x) if name in read else x for name, x in kwargs.items()}


@functools.cache
def _read(func: Any) -> tuple[tuple[str, ...], frozenset[str]]:
    """The names of an operation's positional arguments, and of all that it does not write to."""
    arguments = func._schema.arguments
    read = {a.name for a in arguments if a.alias_info is None or not a.alias_info.is_write} - _STATISTICS
    return tuple(a.name for a in arguments if not a.kwarg_only), frozenset(read)


def _changed(change: Callable[[Any], Any], argument: Any) -> Any:
    """An argument of an operation with every tensor changed: one, or a list, as operations take them."""
    import torch

    if isinstance(argument, (list, tuple)):
        return [_changed(change, x) for x in argument]
    return change(argument) if isinstance(argument, torch.Tensor) else argument
