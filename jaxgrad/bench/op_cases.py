"""Which operations are timed, at which sizes, beside whose, and how cheap each has to be."""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxgrad import ops
from jaxgrad.bench import op_plain
from jaxgrad.errors import JaxgradError, not_installed

Shape: TypeAlias = tuple[int, ...]
# The names of forms that every report speaks of.
OURS, PLAIN, TORCH = "jaxgrad", "jax.numpy", "torch"


class Limits(NamedTuple):
    """The most that ours may take, as a multiple of plain JAX under `jax.grad` or of PyTorch; None where none is set.

    `memory` is of temporary bytes, `time` and `torch` of seconds.
    """

    memory: float | None = 1.0
    time: float | None = 1.05
    torch: float | None = None


class Case(NamedTuple):
    """An operation at one size. `forms` make functions of its arrays, first the differentiated ones.

    `integers` are shapes of ids with the number that they lie below; `constants` are shapes of float arrays without a
    cotangent, which come last.
    """

    op: str
    size: Shape
    shapes: tuple[Shape, ...]
    forms: Mapping[str, Callable[[], Callable[..., Any]]]
    integers: tuple[tuple[Shape, int], ...] = ()
    constants: tuple[Shape, ...] = ()
    limits: Limits = Limits()

    @property
    def name(self) -> str:
        return f"{self.op} {' x '.join(f'{n:,}' for n in self.size)}"


class Op(NamedTuple):
    """How to make a case of an operation of any size; `size` is the one of the table, `small` one for tests."""

    at: Callable[..., Case]
    size: Shape
    small: Shape


def _forms(
    op: str, own: Callable[..., Any] | None = None, **others: Callable[[], Callable[..., Any]]
) -> dict[str, Callable[[], Callable[..., Any]]]:
    """Ours, the plain one, those of other libraries, and PyTorch's of the same name."""
    return {
        OURS: lambda: own or getattr(ops, op),
        PLAIN: lambda: getattr(op_plain, op),
        **{name.replace("_", "."): form for name, form in others.items()},
        TORCH: lambda: getattr(_library("torchref.ops"), op),
    }


def _library(module: str) -> Any:
    """A module; raises `JaxgradError` that says what to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise (not_installed(error) or error) from None


def _flax(layer: Callable[[Any, Callable[..., Any]], Callable[..., Any]]) -> Callable[[], Callable[..., Any]]:
    """A form by `layer(flax.linen, applied)`, where `applied(module, x, **params)` is that module's output.

    `initial_carry` is the state that a recurrent one begins with.
    """

    def applied(module: Any, x: Any, *, initial_carry: Any = None, **params: Any) -> Any:
        carried = {} if initial_carry is None else {"initial_carry": initial_carry}
        return module.apply({"params": params}, x, **carried)

    return lambda: layer(_library("flax.linen"), applied)


def _tokamax(function: str, **options: Any) -> Callable[[], Callable[..., Any]]:
    def form() -> Callable[..., Any]:
        library = _library("tokamax")
        # It would read our command line, and refuse its options, unless told that somebody has.
        _library("absl.flags").FLAGS.mark_as_parsed()
        return functools.partial(getattr(library, function), **options)

    return form


def _elementwise(op: str, arrays: int = 1, **others: Callable[[], Callable[..., Any]]) -> Op:
    return Op(lambda *size: Case(op, size, (size,) * arrays, _forms(op, **others)), (2048, 2048), (4, 8))


def _rows(op: str, arrays: int = 1, **others: Callable[[], Callable[..., Any]]) -> Op:
    """Of rows of logits."""
    return Op(lambda *size: Case(op, size, (size,) * arrays, _forms(op, **others)), (1024, 4096), (4, 8))


def _norm(op: str, size: Shape, vectors: int, small: Shape = (6, 8), **options: Any) -> Op:
    """Of an array and some vectors as long as its last axis."""
    forms = options.pop("forms", {})
    own = options.pop("own", None)

    def at(*size: int) -> Case:
        return Case(op, size, (size, *((size[-1],),) * vectors), _forms(op, own, **forms), **options)

    return Op(at, size, small)


def linear_cross_entropy(rows: int, width: int, vocabulary: int) -> Case:
    """The loss of `rows` of `width` numbers over a vocabulary."""
    forms = _forms(
        "linear_cross_entropy",
        optax=lambda: lambda x, w, targets: _optax()(x @ w, targets).mean(),
        tokamax=lambda: (
            lambda x, w, targets: _tokamax(
                "linear_softmax_cross_entropy_loss", reduction="mean", implementation="xla"
            )()(x, targets, w)
        ),
    )
    return Case(
        "linear_cross_entropy", (rows, width, vocabulary), ((rows, width), (width, vocabulary)), forms,
        (((rows,), vocabulary),), limits=Limits(0.2, 0.95),
    )  # fmt: skip


def attention(batch: int, length: int, heads: int, width: int) -> Case:
    """Causal attention."""
    forms = _forms(
        "attention",
        functools.partial(ops.attention, causal=True),
        jax_nn=lambda: functools.partial(jax.nn.dot_product_attention, is_causal=True),
        tokamax=_tokamax("dot_product_attention", is_causal=True, implementation="xla"),
        tokamax_chunked=_tokamax("dot_product_attention", is_causal=True, implementation="xla_chunked"),
        flax=_flax(
            lambda nn, _: (
                lambda q, k, v: nn.dot_product_attention(
                    q, k, v, mask=jnp.tril(jnp.ones((q.shape[1],) * 2, bool))[None, None]
                )
            )
        ),
    )
    limits = Limits(0.07, 0.17, 1.0) if length <= 2048 else Limits(None, None, 1.1)
    size = (batch, length, heads, width)
    return Case("attention", size, (size,) * 3, forms, limits=limits)


def _optax() -> Callable[..., Any]:
    loss: Callable[..., Any] = _library("optax.losses").softmax_cross_entropy_with_integer_labels
    return loss


def _kl_of_optax() -> Callable[..., Any]:
    divergence = _library("optax.losses").kl_divergence_with_log_targets
    return lambda a, b: divergence(jax.nn.log_softmax(b), jax.nn.log_softmax(a))


def _no_mask() -> Callable[..., Any]:
    raise JaxgradError("draws another mask: its values cannot be held beside ours")


def _linear(rows: int, width: int, out: int) -> Case:
    return Case("linear", (rows, width, out), ((rows, width), (width, out), (out,)), _forms("linear"))


def _cross_entropy(rows: int, vocabulary: int) -> Case:
    forms = _forms("cross_entropy", optax=lambda: lambda z, t: _optax()(z, t).mean())
    return Case("cross_entropy", (rows, vocabulary), ((rows, vocabulary),), forms, (((rows,), vocabulary),))


def _embedding(n: int, width: int, rows: int) -> Case:
    forms = _forms("embedding", flax=_flax(lambda nn, on: lambda t, i: on(nn.Embed(*t.shape), i, embedding=t)))
    return Case("embedding", (n, width, rows), ((rows, width),), forms, (((n,), rows),))


def _rope(batch: int, length: int, heads: int, width: int) -> Case:
    shape = (batch, length, heads, width)
    tables = ((length, width // 2),) * 2
    return Case("rope", shape, (shape,), _forms("rope"), constants=tables)


def _dropout(*size: int) -> Case:
    own = functools.partial(ops.dropout, rate=0.25)
    forms = _forms("dropout", lambda x: own(x, jax.random.key(0)), flax=_no_mask) | {TORCH: _no_mask}
    return Case("dropout", size, (size,), forms)


def _conv(batch: int, side: int, kernel: int, channels: int) -> Case:
    shapes = (batch, side, side, channels), (kernel, kernel, channels, channels), (channels,)
    flax = _flax(
        lambda nn, on: lambda x, w, b: on(nn.Conv(w.shape[-1], w.shape[:2], padding="SAME"), x, kernel=w, bias=b)
    )
    return Case("conv", (batch, side, kernel, channels), shapes, _forms("conv", flax=flax))


def _gru(steps: int, rows: int, width: int) -> Case:
    shapes = (steps, rows, width), (rows, width), *((width, 3 * width),) * 2, *((3 * width,),) * 2
    forms = _forms("gru", lambda x, h, *w: ops.gru(x, h, ops.GruWeights(*w)), flax=_flax(_gru_of_flax))
    return Case("gru", (steps, rows, width), shapes, forms)


def _gru_of_flax(nn: Any, applied: Callable[..., Any]) -> Callable[..., Any]:
    """Its cell has one bias of the two that the reset and the update gate add up."""

    def form(x: Any, h: Any, *weights: Any) -> Any:
        of_x, of_h, bias_x, bias_h = (dict(zip("rzn", jnp.split(w, 3, -1), strict=True)) for w in weights)
        cell = {
            **{f"i{gate}": {"kernel": of_x[gate], "bias": bias_x[gate] + bias_h[gate]} for gate in "rz"},
            **{f"h{gate}": {"kernel": of_h[gate]} for gate in "rz"},
            "in": {"kernel": of_x["n"], "bias": bias_x["n"]},
            "hn": {"kernel": of_h["n"], "bias": bias_h["n"]},
        }
        return applied(nn.RNN(nn.GRUCell(h.shape[-1]), time_major=True), x, initial_carry=h, cell=cell)

    return form


def _lstm(steps: int, rows: int, width: int) -> Case:
    shapes = (steps, rows, width), *((rows, width),) * 2, *((width, 4 * width),) * 2, (4 * width,)
    own = _forms("lstm", lambda x, h, c, *w: ops.lstm(x, h, c, ops.LstmWeights(*w))[0], flax=_flax(_lstm_of_flax))
    return Case("lstm", (steps, rows, width), shapes, own)


def _lstm_of_flax(nn: Any, applied: Callable[..., Any]) -> Callable[..., Any]:
    def form(x: Any, h: Any, c: Any, *weights: Any) -> Any:
        of_x, of_h, bias = (dict(zip("ifgo", jnp.split(w, 4, -1), strict=True)) for w in weights)
        cell = {f"i{gate}": {"kernel": of_x[gate]} for gate in "ifgo"}
        cell |= {f"h{gate}": {"kernel": of_h[gate], "bias": bias[gate]} for gate in "ifgo"}
        return applied(nn.RNN(nn.OptimizedLSTMCell(h.shape[-1]), time_major=True), x, initial_carry=(c, h), cell=cell)

    return form


def _running(*size: int) -> Case:
    d = (size[-1],)
    forms = _forms("batch_norm_running", lambda *args: ops.batch_norm_running(*args)[0])
    plain = {PLAIN: lambda: lambda *args: op_plain.batch_norm_running(*args)[0]}
    return Case("batch_norm_running", size, (size, d, d), forms | plain, constants=(d, d))


# In the order of the report. Sizes have 2^22 numbers, but for the first two.
OPS: dict[str, Op] = {
    "linear_cross_entropy": Op(linear_cross_entropy, (1024, 256, 50_257), (6, 4, 40)),
    "attention": Op(attention, (1, 2048, 4, 64), (1, 8, 2, 4)),
    "cross_entropy": Op(_cross_entropy, (1024, 4096), (4, 8)),
    "linear": Op(_linear, (4096, 1024, 1024), (4, 8, 8)),
    "layer_norm": _norm(
        "layer_norm", (4096, 1024), 2,
        forms={
            "flax": _flax(lambda nn, on: lambda x, g, b: on(nn.LayerNorm(epsilon=1e-5), x, scale=g, bias=b)),
            "tokamax": _tokamax("layer_norm", epsilon=1e-5, implementation="xla"),
        },
    ),
    "rms_norm": _norm(
        "rms_norm", (4096, 1024), 1,
        forms={
            "flax": _flax(lambda nn, on: lambda x, g: on(nn.RMSNorm(epsilon=1e-6), x, scale=g)),
            "tokamax": lambda: lambda x, g: _tokamax(
                "layer_norm", epsilon=1e-6, subtract_mean=False, implementation="xla"
            )()(x, g, None),
        },
    ),
    "group_norm": _norm(
        "group_norm", (16, 32, 32, 256), 2, (2, 3, 2, 64), own=functools.partial(ops.group_norm, groups=32),
        forms={
            "flax": _flax(
                lambda nn, on: lambda x, g, b: on(nn.GroupNorm(32, epsilon=1e-5), x, scale=g, bias=b)
            )
        },
    ),
    "batch_norm": _norm("batch_norm", (16_384, 256), 2),
    "batch_norm_running": Op(_running, (16_384, 256), (6, 8)),
    "softmax": _rows("softmax", jax_nn=lambda: jax.nn.softmax),
    "log_softmax": _rows("log_softmax", jax_nn=lambda: jax.nn.log_softmax),
    "logsumexp": _rows("logsumexp", jax_nn=lambda: functools.partial(jax.nn.logsumexp, axis=-1)),
    "kl_div": _rows("kl_div", 2, optax=_kl_of_optax),
    "jsd": _rows("jsd", 2),
    "l2_normalize": _norm("l2_normalize", (4096, 1024), 0),
    "rope": Op(_rope, (2, 1024, 16, 128), (1, 3, 2, 4)),
    "gelu": _elementwise("gelu", jax_nn=lambda: functools.partial(jax.nn.gelu, approximate=False)),
    "geglu": _elementwise(
        "geglu", 2, jax_nn=lambda: lambda gate, up: jax.nn.gelu(gate, approximate=False) * up
    ),
    "silu": _elementwise("silu", jax_nn=lambda: jax.nn.silu),
    "swiglu": _elementwise("swiglu", 2, jax_nn=lambda: lambda gate, up: jax.nn.silu(gate) * up),
    "relu": _elementwise("relu", jax_nn=lambda: jax.nn.relu),
    "relu_squared": _elementwise("relu_squared", jax_nn=lambda: lambda x: jnp.square(jax.nn.relu(x))),
    "tanh": _elementwise("tanh") ,
    "dropout": Op(_dropout, (2048, 2048), (4, 8)),
    "embedding": Op(_embedding, (16_384, 256, 4096), (6, 4, 5)),
    "conv": Op(_conv, (16, 64, 3, 64), (2, 5, 3, 4)),
    "gru": Op(_gru, (128, 128, 256), (3, 2, 4)),
    "lstm": Op(_lstm, (128, 128, 256), (3, 2, 4)),
}  # fmt: skip

# What the picture shows: which number of a size grows, and through which values.
GROWTH: tuple[tuple[str, str, tuple[Shape, ...]], ...] = (
    ("linear_cross_entropy", "rows", tuple((n, 256, 16_384) for n in (256, 1024, 4096))),
    ("linear_cross_entropy", "vocabulary", tuple((1024, 256, n) for n in (8192, 32_768, 131_072))),
    ("attention", "sequence", tuple((1, n, 4, 64) for n in (512, 2048, 8192, 32_768))),
)


def chosen(names: list[str]) -> list[Case]:
    """The cases of the table for these operations, all for none; raises `JaxgradError` for one that is not there."""
    for name in names:
        if name not in OPS:
            raise JaxgradError(f"there is no operation {name!r}; choose from {', '.join(OPS)}")
    return [OPS[name].at(*OPS[name].size) for name in names or OPS]


def growing() -> list[Case]:
    """The cases of the picture, ours beside plain JAX and PyTorch."""
    return [_growing(OPS[op].at(*size)) for op, _, sizes in GROWTH for size in sizes]


def _growing(case: Case) -> Case:
    """Without limits, which are set at the sizes of the table, but that of PyTorch's time."""
    forms = {name: case.forms[name] for name in (OURS, PLAIN, TORCH)}
    return case._replace(forms=forms, limits=Limits(None, None, case.limits.torch))
