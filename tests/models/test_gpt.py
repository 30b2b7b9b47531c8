"""The GPT's two backward passes, jax.grad and PyTorch agree on every parameter and every node."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad.checking.compare import Difference, compare, exact, scaled
from jaxgrad.checking.measure import Measured, excess, measure, shaken
from jaxgrad.checking.oracles.torch import to_numpy
from jaxgrad.models.gpt import by_node, fused
from jaxgrad.models.gpt.forward import loss, zero_taps
from jaxgrad.models.gpt.params import Params, nowhere_zero
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.models.model import named
from jaxgrad.models.sequences import Batch
from torchref import gpt as twin

DRAWN = jax.jit(nowhere_zero, static_argnums=(1, 2, 3))
VOCAB = 7
SIZES = {
    "GPT-2's": Sizes(layers=2, heads=2, width=8, block=6, dropout=0.0),
    "rope, head of its own": Sizes(layers=2, heads=2, width=8, block=6, dropout=0.0, rope=True, tied=False),
}


def case(sizes: Sizes, dtype: Any = np.float64) -> tuple[Params, Batch]:
    """Three sequences, shorter than a block, of which one ends early and another has a hole in its targets."""
    params = DRAWN(jax.random.key(0), sizes, VOCAB, jnp.float64)
    X = np.random.default_rng(0).integers(0, VOCAB, (3, 5), dtype=np.int32)
    Y = np.roll(X, -1, 1)
    Y[0, 3:] = Y[1, 2] = -1
    return jax.tree.map(lambda p: np.asarray(p.astype(dtype).astype(np.float64)), params), Batch(X, Y)


def in_jax_grad(sizes: Sizes) -> Any:
    def run(params: Params, batch: Batch) -> Any:
        value, (dparams, dnodes) = jax.value_and_grad(
            lambda params, taps: loss(params, batch, sizes, taps=taps), argnums=(0, 1)
        )(params, zero_taps(params, batch, sizes))
        return tensors(value, dparams, dnodes)

    return run


@functools.cache
def noisy(sizes: Sizes) -> Any:
    """`jax.grad` with its roundings drawn, compiled once for all types."""
    return shaken(in_jax_grad(sizes))


def by_hand(backward: Any, sizes: Sizes) -> Any:
    return lambda params, batch: tensors(*backward(params, batch, sizes))


def tensors(value: Any, dparams: Params, dnodes: Any) -> dict[str, Any]:
    return {"forward loss": value, **named(dparams), **dnodes}


def engines(sizes: Sizes) -> dict[str, Any]:
    return {
        "by node": by_hand(by_node.nodes_by_node, sizes),
        "fused": by_hand(fused.nodes_fused, sizes),
        "jax.grad": in_jax_grad(sizes),
    }


def in_jax(run: Any, params: Params, batch: Batch, dtype: Any) -> dict[str, np.ndarray]:
    with jax.enable_x64(dtype == jnp.float64), jax.default_matmul_precision("highest"):
        narrow = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
        return jax.tree.map(np.asarray, jax.jit(run)(narrow, Batch(*map(jnp.asarray, batch))))


def in_torch(sizes: Sizes, params: Params, batch: Batch, dtype: torch.dtype) -> dict[str, np.ndarray]:
    given = {name: torch.from_numpy(np.array(p)).to(dtype) for name, p in named(params).items()}
    value, grads, nodes = twin.gradients(given, *map(torch.from_numpy, batch), heads=sizes.heads, rope=sizes.rope)
    return {name: to_numpy(x) for name, x in {"forward loss": value, **grads, **nodes}.items()}


def differences(right: Measured, actual: dict[str, np.ndarray], dtype: Any) -> dict[str, Difference]:
    return {
        name: compare(right.values[name], x, scaled(right.noise[name], 2**0.5), dtype) for name, x in actual.items()
    }


@pytest.fixture(scope="module", params=list(SIZES))
def in_float64(request):
    sizes = SIZES[request.param]
    with jax.enable_x64(True):
        params, batch = case(sizes)
        found = {name: in_jax(run, params, batch, jnp.float64) for name, run in engines(sizes).items()}
        yield sizes, {**found, "torch": in_torch(sizes, params, batch, torch.float64)}


def test_all_engines_agree_on_all_of_the_gradient_in_float64(in_float64):
    _, found = in_float64
    for engine, actual in found.items():
        for name, x in actual.items():
            difference = compare(found["jax.grad"][name], x, exact(x), "float64", tolerance=1e-12)
            assert difference.agrees, (engine, name, difference)


def test_in_float64_they_agree_within_the_measured_noise(in_float64):
    sizes, found = in_float64
    if sizes.rope:
        pytest.skip("the noise is measured for one of the sizes")
    right = measure(noisy(sizes), "float64", *case(sizes))
    for engine, actual in found.items():
        for name, difference in differences(right, actual, "float64").items():
            assert difference.agrees and difference.judged, (engine, name, difference)


def test_all_but_fused_have_every_node_and_fused_those_between_operations(in_float64):
    _, found = in_float64
    for engine in ("by node", "torch"):
        assert found[engine].keys() == found["jax.grad"].keys(), engine
    inside = found["jax.grad"].keys() - found["fused"].keys()
    parts = ("mean", "diff", "diff_sq", "var", "var_inv", "hat")
    norms = {f"{norm}_{part}" for norm in ("ln", "block.ln1", "block.ln2") for part in parts}
    of_softmax = {"block.scores", "block.exps", "block.exps_sum", "block.att"}
    assert inside == norms | of_softmax | {"logits", "norm_logits", "counts", "counts_sum", "log_probs"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_a_narrow_type_every_engine_is_within_the_noise_of_float64(dtype: str):
    sizes = SIZES["GPT-2's"]
    with jax.enable_x64(True):
        params, batch = case(sizes, jnp.dtype(dtype))
        measured = measure(noisy(sizes), dtype, params, batch)
    runs = engines(sizes)
    own = in_jax(runs["jax.grad"], params, batch, jnp.dtype(dtype))
    noise = {name: scaled(n, excess(own[name], measured.values[name], n)) for name, n in measured.noise.items()}
    right = measured._replace(noise=noise)
    found = {name: in_jax(runs[name], params, batch, jnp.dtype(dtype)) for name in ("by node", "fused")}
    found["torch"] = in_torch(sizes, params, batch, getattr(torch, dtype))
    for engine, actual in {**found, "jax.grad": own}.items():
        for name, difference in differences(right, actual, dtype).items():
            assert difference.agrees, (engine, name, difference)
            assert difference.judged or dtype == "bfloat16", (engine, name, difference)


@pytest.mark.parametrize("backward", [by_node.by_node, fused.fused])
def test_with_dropout_both_backward_passes_are_those_of_the_forward_with_the_same_key(backward):
    sizes = Sizes(layers=2, heads=2, width=8, block=6, dropout=0.4)
    with jax.enable_x64(True):
        params, batch = jax.tree.map(jnp.asarray, case(sizes))
        key = jax.random.key(5)
        expected = jax.jit(jax.value_and_grad(lambda p: loss(p, batch, sizes, key)))(params)
        actual = jax.jit(lambda p: backward(p, batch, sizes, key))(params)
        assert not np.isclose(expected[0], loss(params, batch, sizes), rtol=1e-3), "something was dropped"
        jax.tree.map(lambda e, a: np.testing.assert_allclose(a, e, rtol=1e-11, atol=1e-14), expected, actual)
