# ruff: noqa: E501
"""torch.nn layers with their ports to linen, NNX, Equinox and plain functions: what the tests of matching run on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx


class Ported(NamedTuple):
    """A right port: a function of a tree and inputs, the tree, the module, JAX's inputs and the module's."""

    fn: Callable[..., Any]
    params: Any
    module: torch.nn.Module
    inputs: tuple[Any, ...]
    torch_inputs: tuple[Any, ...] | None = None


KEY = jax.random.key(0)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def linen(
    module: nn.Module, torch_module: torch.nn.Module, *inputs: Any, torch_inputs: Any = None, **kwargs: Any
) -> Ported:
    variables = module.init(KEY, *inputs, **kwargs)
    return Ported(lambda p, *x: module.apply(p, *x, **kwargs), variables, torch_module, inputs, torch_inputs)


def of_nnx(module: Any, torch_module: torch.nn.Module, *inputs: Any, torch_inputs: Any = None) -> Ported:
    graph, state = nnx.split(module)
    return Ported(lambda p, *x: nnx.merge(graph, p)(*x), state, torch_module, inputs, torch_inputs)


def equinox(module: Any, torch_module: torch.nn.Module, *inputs: Any, **kwargs: Any) -> Ported:
    return Ported(lambda p, *x: jax.vmap(p)(*x), module, torch_module, inputs, **kwargs)


def last(x: np.ndarray) -> np.ndarray:
    """From channels last to channels first."""
    return np.moveaxis(x, -1, 1)


def _eqx_gru() -> Ported:
    cell, module = eqx.nn.GRUCell(3, 4, key=KEY), torch.nn.GRUCell(3, 4)
    return Ported(lambda p, x, h: jax.vmap(p)(x, h), cell, module, (normal(2, 3), normal(2, 4)))


def _eqx_lstm() -> Ported:
    cell = eqx.nn.LSTMCell(3, 4, key=KEY)

    def run(p: Any, x: Any) -> Any:
        def sequence(xs: Any) -> Any:
            def step(carry: Any, each: Any) -> Any:
                carry = p(each, carry)
                return carry, carry[0]

            return jax.lax.scan(step, (jnp.zeros(4), jnp.zeros(4)), xs)[1]

        return jax.vmap(sequence)(x)

    class Outputs(torch.nn.LSTM):
        def forward(self, x: Any) -> Any:
            return super().forward(x)[0]

    return Ported(run, cell, Outputs(3, 4, batch_first=True), (normal(2, 5, 3),))


def _linen_lstm() -> Ported:
    class Outputs(torch.nn.LSTM):
        def forward(self, x: Any) -> Any:
            return super().forward(x)[0]

    return linen(nn.RNN(nn.LSTMCell(4)), Outputs(3, 4, batch_first=True), normal(2, 5, 3))


def _linen_gru() -> Ported:
    class Outputs(torch.nn.GRU):
        def forward(self, x: Any) -> Any:
            return super().forward(x)[0]

    return linen(nn.RNN(nn.GRUCell(4)), Outputs(3, 4, batch_first=True), normal(2, 5, 3))


class _Attended(torch.nn.MultiheadAttention):
    def forward(self, x: Any) -> Any:
        return super().forward(x, x, x, need_weights=False)[0]


def _eqx_attention() -> Ported:
    module = eqx.nn.MultiheadAttention(2, 8, use_query_bias=True, use_key_bias=True, use_value_bias=True, use_output_bias=True, key=KEY)  # fmt: skip
    return Ported(
        lambda p, x: jax.vmap(lambda y: p(y, y, y))(x), module, _Attended(8, 2, batch_first=True), (normal(2, 5, 8),)
    )


class _Encoder(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        attended = nn.MultiHeadDotProductAttention(2, qkv_features=8)(x, x)
        x = nn.LayerNorm(epsilon=1e-5)(x + attended)
        fed = nn.Dense(8)(nn.relu(nn.Dense(16)(x)))
        return nn.LayerNorm(epsilon=1e-5)(x + fed)


class _Scanned(nn.Module):
    """Three layers as one scan: each leaf holds those of all layers."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        layers = nn.scan(_Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return layers()(x, None)[0]


class _Layer(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        return jnp.tanh(nn.Dense(4)(x)), None


def _scan() -> Ported:
    rows = [torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()) for _ in range(3)]
    return linen(_Scanned(), torch.nn.Sequential(*rows), normal(2, 4))


class _Separate(torch.nn.Module):
    """Queries, keys and values by layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Any) -> Any:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return torch.softmax(q @ k.mT, -1) @ v


def _fused() -> Ported:
    """The port has them in one kernel."""

    def run(p: Any, x: Any) -> Any:
        q, k, v = jnp.split(x @ p["qkv"]["kernel"] + p["qkv"]["bias"], 3, -1)
        return jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2), -1) @ v

    return Ported(run, {"qkv": {"kernel": normal(4, 12), "bias": normal(12)}}, _Separate(), (normal(2, 5, 4),))


def _batch_norm_training() -> Ported:
    module = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
    variables = module.init(KEY, normal(6, 4))

    def run(v: Any, x: Any) -> Any:
        y, new = module.apply(v, x, mutable=["batch_stats"])
        # Torch keeps the unbiased variance, flax the biased one.
        old, biased = v["batch_stats"]["var"], new["batch_stats"]["var"]
        return y, {"mean": new["batch_stats"]["mean"], "var": old * 0.9 + (biased - old * 0.9) * 6 / 5}

    return Ported(run, variables, torch.nn.BatchNorm1d(4), (normal(6, 4),))


def layers() -> dict[str, Callable[[], Ported]]:
    """Every port by name, made when it is called."""
    rngs = nnx.Rngs(0)
    image, sequence, volume = normal(2, 5, 7, 3), normal(2, 7, 3), normal(1, 3, 4, 5, 2)
    t = torch.nn
    return {
        "linen.Dense": lambda: linen(nn.Dense(4), t.Linear(4, 4), normal(2, 4)),
        "nnx.Linear": lambda: of_nnx(nnx.Linear(4, 4, rngs=rngs), t.Linear(4, 4), normal(2, 4)),
        "eqx.Linear": lambda: equinox(eqx.nn.Linear(4, 4, key=KEY), t.Linear(4, 4), normal(2, 4)),
        "linen.Conv 1d": lambda: linen(nn.Conv(4, (3,), padding="VALID"), t.Conv1d(3, 4, 3), sequence, torch_inputs=(last(sequence),)),
        "linen.Conv 2d": lambda: linen(nn.Conv(3, (3, 3), padding=1), t.Conv2d(3, 3, 3, padding=1), image, torch_inputs=(last(image),)),
        "nnx.Conv 2d": lambda: of_nnx(nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs), t.Conv2d(3, 4, 3, padding=1), image, torch_inputs=(last(image),)),
        "linen.Conv 3d": lambda: linen(nn.Conv(3, (2, 2, 2), padding="VALID"), t.Conv3d(2, 3, 2), volume, torch_inputs=(last(volume),)),
        "eqx.Conv2d": lambda: equinox(eqx.nn.Conv2d(3, 4, 3, key=KEY), t.Conv2d(3, 4, 3), last(image)),
        "eqx.ConvTranspose2d": lambda: equinox(eqx.nn.ConvTranspose2d(3, 4, 3, stride=2, key=KEY), t.ConvTranspose2d(3, 4, 3, stride=2), last(image)),
        "linen.ConvTranspose": lambda: linen(nn.ConvTranspose(4, (3, 3), strides=(2, 2), padding="VALID"), t.ConvTranspose2d(3, 4, 3, stride=2), image, torch_inputs=(last(image),)),
        "linen.LayerNorm": lambda: linen(nn.LayerNorm(epsilon=1e-5), t.LayerNorm(4), normal(3, 4)),
        "nnx.LayerNorm": lambda: of_nnx(nnx.LayerNorm(4, epsilon=1e-5, rngs=rngs), t.LayerNorm(4), normal(3, 4)),
        "linen.GroupNorm": lambda: linen(nn.GroupNorm(2, epsilon=1e-5), t.GroupNorm(2, 4), normal(2, 5, 4), torch_inputs=(last(normal(2, 5, 4)),)),
        "eqx.GroupNorm": lambda: equinox(eqx.nn.GroupNorm(2, 4), t.GroupNorm(2, 4), normal(2, 4, 5)),
        "linen.RMSNorm": lambda: linen(nn.RMSNorm(epsilon=1e-6), t.RMSNorm(4, eps=1e-6), normal(3, 4)),
        "linen.BatchNorm eval": lambda: linen(nn.BatchNorm(use_running_average=True, epsilon=1e-5), t.BatchNorm1d(4).eval(), normal(6, 4)),
        "nnx.BatchNorm eval": lambda: of_nnx(nnx.BatchNorm(4, use_running_average=True, epsilon=1e-5, rngs=rngs), t.BatchNorm1d(4).eval(), normal(6, 4)),
        "linen.BatchNorm training": _batch_norm_training,
        "linen.Embed": lambda: linen(nn.Embed(5, 4), t.Embedding(5, 4), np.array([[0, 3, 2], [4, 1, 3]])),
        "nnx.Embed": lambda: of_nnx(nnx.Embed(5, 4, rngs=rngs), t.Embedding(5, 4), np.array([[0, 3, 2], [4, 1, 3]])),
        "eqx.GRUCell": _eqx_gru,
        "eqx.LSTM sequence": _eqx_lstm,
        "linen.LSTM sequence": _linen_lstm,
        "linen.GRU sequence": _linen_gru,
        "linen.MultiHeadAttention": lambda: linen(nn.MultiHeadDotProductAttention(2, qkv_features=8), _Attended(8, 2, batch_first=True), normal(2, 5, 8)),
        "eqx.MultiheadAttention": _eqx_attention,
        "linen encoder layer": lambda: linen(_Encoder(), t.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), normal(2, 5, 8)),
        "linen.PReLU": lambda: linen(nn.PReLU(), t.PReLU(), normal(3, 4)),
        "eqx.PReLU": lambda: equinox(eqx.nn.PReLU(), t.PReLU(), normal(3, 4)),
        "linen scan over layers": _scan,
        "fused qkv": _fused,
        "linen dtype=float32": lambda: linen(nn.Dense(3, dtype=jnp.float32), t.Linear(4, 3), normal(2, 4)),
    }  # fmt: skip
