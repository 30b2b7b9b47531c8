"""Steps: the same whatever the chunks, on the batches of `batches.indices`, and the same as PyTorch's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad import batches, corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch, Params, forward, init
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.training.config import Config, config_of, optimizer, schedule
from jaxgrad.training.step import check_support, run_steps, start
from torchref import training

KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def examples() -> Batch:
    train = corpus.load().train
    return Batch(jnp.asarray(train.X), jnp.asarray(train.Y))


def run(config: Config, params: Params, examples: Batch, chunks: list[int]):
    transformation = optimizer(config)
    # A state is donated to the step, so each run starts from a copy.
    state, losses = start(jax.tree.map(jnp.copy, params), transformation), []
    for n_steps in chunks:
        state, of_chunk = run_steps(
            state, KEY, examples,
            model=MODEL, sizes=config.sizes, gradients=config.gradients, optimizer=transformation, dtype=config.dtype,
            batch_size=config.batch_size, n_steps=n_steps,
        )  # fmt: skip
        losses.append(np.asarray(of_chunk))
    return state, np.concatenate(losses)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_chunks_of_any_size_give_the_same_run_bit_for_bit(examples, name: str):
    config = config_of(steps=24, optimizer=name, hidden=16)
    params = init(KEY, 27, h_size=16)
    whole, losses = run(config, params, examples, [24])
    for chunks in ([8, 8, 8], [5, 19], [1, 1, 22]):
        state, of_chunks = run(config, params, examples, chunks)
        assert np.array_equal(losses, of_chunks)
        assert all(map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(whole)))
    assert int(whole.step) == 24


def test_the_batch_of_a_step_is_the_one_that_batches_draws(examples):
    config = config_of(hidden=16, learning_rate=1e-30)
    params = init(KEY, 27, h_size=16)
    _, losses = run(config, params, examples, [3])
    for step, loss in enumerate(losses):
        rows = batches.indices(KEY, step, 32, len(examples.Y))
        expected = forward(params, Batch(examples.X[rows], examples.Y[rows])).loss
        # Two orders of summing 32 losses of some 3 nats, after some thirty roundings each, in float32.
        np.testing.assert_allclose(loss, expected, rtol=64 * 2.0**-24)


@pytest.fixture(scope="module")
def a_thousand_steps_in_torch(examples):
    """The notebook's recipe in float64, PyTorch's loop on PyTorch's gradients, fed JAX's parameters and batches."""
    config = config_of(steps=1000, dtype="float64")
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), init(KEY, 27))
        rate = schedule(config)
        rows = jax.vmap(lambda step: batches.indices(KEY, step, 32, len(examples.Y)))(jnp.arange(1000))
        tensors = {name: torch.from_numpy(np.array(p)) for name, p in params._asdict().items()}
        X, Y = (torch.from_numpy(np.array(array)) for array in examples)
        trained, losses = training.train(
            tensors, X, Y, torch.from_numpy(np.array(rows)), [float(rate(step)) for step in range(1000)]
        )
    return config, params, {name: p.numpy() for name, p in trained.items()}, losses.numpy()


@pytest.mark.parametrize("gradients", [*MODEL.gradients, "jax-grad"])
def test_a_thousand_steps_stay_together_with_pytorchs(a_thousand_steps_in_torch, examples, gradients: str):
    config, params, in_torch, torch_losses = a_thousand_steps_in_torch
    with jax.enable_x64(True):
        state, losses = run(dataclasses.replace(config, gradients=gradients), params, examples, [1000])
    for name, p in jax.tree.map(np.asarray, state.params)._asdict().items():
        difference = np.linalg.norm(p - in_torch[name]) / np.linalg.norm(in_torch[name])
        # A step's gradients differ by some 1e-15; SGD's steps multiply a difference by little more than 1 each, and
        # 1e-9 after a thousand of them is the promise that three-way parity makes for a whole run.
        assert difference <= 1e-9, name
    np.testing.assert_allclose(losses, torch_losses, rtol=1e-9)


def test_bfloat16_computes_narrowly_and_keeps_wide_parameters(examples):
    params = init(KEY, 27, h_size=16)
    state, narrow = run(config_of(dtype="bfloat16", hidden=16), params, examples, [200])
    assert {p.dtype for p in state.params} == {jnp.dtype(jnp.float32)}
    _, wide = run(config_of(hidden=16), params, examples, [200])
    assert not np.array_equal(narrow, wide)
    # Losses of some 2.5 nats in bfloat16 are off by parts of 2^-8; training goes the same way all the same.
    assert abs(narrow[-50:].mean() - wide[-50:].mean()) < 2.5 * 2.0**-5


@pytest.mark.parametrize(("batch_size", "hidden"), [(1024, 1024), (8192, 4096)])
def test_the_closed_forms_keep_less_than_jax_grad(batch_size: int, hidden: int, optimised):
    def temporary_bytes(gradients: str) -> int:
        transformation = optimizer(config_of())
        state = jax.eval_shape(lambda: start(init(KEY, 27, h_size=hidden), transformation))
        examples = Batch(jax.ShapeDtypeStruct((200_000, 3), jnp.uint8), jax.ShapeDtypeStruct((200_000,), jnp.uint8))
        lowered = run_steps.lower(
            state, KEY, examples,
            model=MODEL, sizes=MODEL.sizes(), gradients=gradients, optimizer=transformation, dtype="float32",
            batch_size=batch_size, n_steps=2,
        )  # fmt: skip
        return lowered.compile(optimised).memory_analysis().temp_size_in_bytes

    # x_hat is kept in place of the input, and neither bn_diff nor its square nor the logits outlive their use.
    assert temporary_bytes("fused") < temporary_bytes("jax-grad")


def test_a_chunk_in_the_kernel_is_the_chunk_in_the_scan(examples):
    params = init(KEY, 27, h_size=11)
    _, losses = run(config_of(hidden=11, steps=40), params, examples, [25, 15])
    for chunks in ([25, 15], [40]):
        state, in_kernel = run(config_of(hidden=11, steps=40, gradients="kernel-interpreted"), params, examples, chunks)
        # Float32 sums in another order, some eight roundings a step, of up to forty steps one upon the other.
        np.testing.assert_allclose(in_kernel, losses, rtol=8 * 40 * 2.0**-24)
        assert (int(state.step), int(state.opt_state[-1].count)) == (40, 40)


def test_a_platform_without_the_kernel_is_told_what_to_use():
    with pytest.raises(JaxgradError, match="compiles for gpu and tpu, and this is cpu; use --gradients fused"):
        check_support(MODEL, "kernel")
    check_support(MODEL, "kernel-interpreted")
    check_support(MODEL, "fused")
