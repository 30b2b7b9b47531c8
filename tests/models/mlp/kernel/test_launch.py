"""The one-kernel step, interpreted: the scan's run in one launch, models apart, padding without a trace."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu

from jaxgrad import batches, corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch, Params, init
from jaxgrad.models.mlp.fused import fused
from jaxgrad.models.mlp.kernel import launch, padding
from jaxgrad.models.mlp.kernel.launch import INTERPRET, gradients, require_support, run_models
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.training.config import Config, config_of, optimizer, schedule
from jaxgrad.training.step import run_steps, start

KEY = jax.random.key(11)
# No size is a power of two, and the last block of neurons is not full.
HIDDEN, BATCH = 50, 24


@pytest.fixture(scope="module")
def examples() -> Batch:
    train = corpus.load().train
    return Batch(jnp.asarray(train.X), jnp.asarray(train.Y))


def drawn(examples: Batch, steps: int) -> Batch:
    """The batches that a run with `KEY` draws, for one model."""
    rows = jax.vmap(lambda step: batches.indices(KEY, step, BATCH, len(examples.Y)))(jnp.arange(steps))
    return Batch(examples.X[rows][None], examples.Y[rows][None])


def one_model(dtype=jnp.float32) -> Params:
    return jax.tree.map(lambda p: p.astype(dtype)[None], init(KEY, 27, h_size=HIDDEN))


def rates(config: Config) -> jax.Array:
    return jax.vmap(schedule(config))(jnp.arange(config.steps))[None]


def random_models(models: int, steps: int, batch: int = 7, vocab: int = 11):
    params = jax.vmap(lambda key: init(key, vocab, 2, 5, 40))(jax.random.split(KEY, models))
    symbols = jax.random.randint(KEY, (models, steps, batch, 3), 0, vocab, dtype=jnp.int32)
    speeds = jnp.geomspace(0.01, 0.3, models * steps).reshape(models, steps)
    return params, Batch(symbols[..., :2], symbols[..., 2]), speeds


def run(params: Params, batch: Batch, speeds: jax.Array, **options):
    # Parameters are donated, so each run starts from a copy.
    return run_models(jax.tree.map(jnp.copy, params), batch, speeds, platform=INTERPRET, **options)


def by_scan(config: Config, params: Params, examples: Batch):
    transformation = optimizer(config)
    state = start(jax.tree.map(lambda p: jnp.copy(p[0]), params), transformation)
    state, losses = run_steps(
        state, KEY, examples,
        model=MODEL, sizes=config.sizes, gradients="fused", optimizer=transformation, dtype=config.dtype,
        batch_size=BATCH, n_steps=config.steps,
    )  # fmt: skip
    return state.params, losses


def relative(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def same(a, b) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_thousand_steps_in_one_launch_are_those_of_the_scan(examples):
    config = config_of(steps=1000, dtype="float64", batch_size=BATCH)
    with jax.enable_x64(True):
        params = one_model(jnp.float64)
        scanned, scan_losses = by_scan(config, params, examples)
        trained, losses = run(params, drawn(examples, 1000), rates(config))
    for name, p in trained._asdict().items():
        # A step's gradients differ by some 1e-15; SGD's steps multiply a difference by little more than 1 each, and
        # 1e-9 after a thousand of them is the promise that three-way parity makes for a whole run.
        assert relative(p[0], getattr(scanned, name)) <= 1e-9, name
    np.testing.assert_allclose(losses[0], scan_losses, rtol=1e-9)


def test_a_hundred_steps_in_float32_are_those_of_the_scan(examples):
    config = config_of(steps=100, batch_size=BATCH)
    with jax.default_matmul_precision("highest"):
        scanned, scan_losses = by_scan(config, one_model(), examples)
    trained, losses = run(one_model(), drawn(examples, 100), rates(config))
    # Each step rounds a parameter once more on either side, by half an eps, and its gradient, a tenth of which is
    # applied, by some tens of eps: at most 4 eps a step, without counting on errors to cancel.
    limit = 100 * 4 * 2.0**-23
    for name, p in trained._asdict().items():
        assert relative(p[0], getattr(scanned, name)) <= limit, name
    np.testing.assert_allclose(losses[0], scan_losses, rtol=limit)


def test_bfloat16_computes_narrowly_and_applies_to_wide_parameters(examples):
    config = config_of(steps=100, batch_size=BATCH)
    batch, speeds = drawn(examples, 100), rates(config)
    trained, narrow = run(one_model(), batch, speeds, dtype="bfloat16")
    _, wide = run(one_model(), batch, speeds)
    assert {p.dtype for p in trained} == {jnp.dtype(jnp.float32)}
    assert narrow.dtype == jnp.float32
    assert not np.array_equal(narrow, wide)
    # Losses of some 3 nats in bfloat16 are off by parts of 2^-8; training goes the same way all the same.
    assert abs(narrow[0, -50:].mean() - wide[0, -50:].mean()) < 3 * 2.0**-5


def test_each_of_several_models_is_what_it_is_alone_bit_for_bit():
    params, batch, speeds = random_models(3, 20)
    together = run(params, batch, speeds)
    for i in range(3):
        alone = run(*jax.tree.map(lambda a, i=i: a[i : i + 1], (params, batch, speeds)))
        assert same(alone, jax.tree.map(lambda a, i=i: a[i : i + 1], together))


# Of a loop of one step XLA makes no loop, and then fuses, and so rounds, its operations otherwise.
@pytest.mark.parametrize("chunks", [[10, 10, 10], [2, 11, 17]])
def test_steps_in_several_launches_are_those_of_one_bit_for_bit(chunks: list[int]):
    params, batch, speeds = random_models(2, 30)
    whole, whole_losses = run(params, batch, speeds)
    losses, first = [], 0
    for steps in chunks:
        of_chunk = jax.tree.map(lambda a, at=slice(first, first + steps): a[:, at], (batch, speeds))
        params, some = run(params, *of_chunk)
        losses.append(some)
        first += steps
    assert same(params, whole)
    assert np.array_equal(np.concatenate(losses, axis=1), whole_losses)


def uncut(monkeypatch, *args):
    """A run's padded parameters."""
    monkeypatch.setattr(launch, "cut_params", lambda params, size: params)
    step = functools.partial(run_models.__wrapped__, platform=INTERPRET)
    return jax.jit(step)(*args)[0]


def test_padded_parameters_stay_zero_to_the_bit(monkeypatch):
    params, batch, speeds = random_models(2, 50)
    room = uncut(monkeypatch, params, batch, speeds)
    mask = padding.pad_params(jax.tree.map(jnp.ones_like, params), padding.sizes(params, 7, 32))
    for trained, true in zip(room, mask, strict=True):
        assert (np.asarray(trained)[np.asarray(true) == 0].view(np.int32) == 0).all()
        assert (np.asarray(trained)[np.asarray(true) == 1] != 0).all()


@pytest.mark.parametrize(("block", "least"), [(16, 16), (128, 16), (32, 64)])
def test_more_room_and_other_blocks_change_nothing_but_rounding(monkeypatch, block: int, least: int):
    with jax.enable_x64(True):
        params, batch, speeds = random_models(1, 10)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        usual, usual_losses = run(params, batch, speeds)
        monkeypatch.setitem(launch.BLOCK, INTERPRET, block)
        monkeypatch.setattr(padding, "LEAST", least)
        other, losses = jax.jit(functools.partial(run_models.__wrapped__, platform=INTERPRET))(params, batch, speeds)
    # Ten steps, each with sums of some tens of terms in another order.
    limit = 10 * 64 * 2.0**-52
    assert all(relative(a, b) <= limit for a, b in zip(other, usual, strict=True))
    assert relative(losses, usual_losses) <= limit


def test_nothing_is_read_that_nobody_wrote(monkeypatch):
    # The interpreter of TPU kernels copies blocks as a TPU does, and can start all memory as NaN.
    params, batch, speeds = random_models(2, 6)
    usual = run(params, batch, speeds)
    call, interpreter = launch.pl.pallas_call, tpu.InterpretParams(uninitialized_memory="nan")
    monkeypatch.setattr(launch.pl, "pallas_call", lambda *args, **kw: call(*args, **{**kw, "interpret": interpreter}))
    careful = jax.jit(functools.partial(run_models.__wrapped__, platform=INTERPRET))(params, batch, speeds)
    assert same(careful, usual)


def test_gradients_and_a_step_are_of_one_mind():
    params, batch, speeds = random_models(1, 1)
    trained, losses = run(params, batch, speeds)
    found = gradients(jax.tree.map(lambda p: p[0], params), jax.tree.map(lambda a: a[0, 0], batch), platform=INTERPRET)
    assert losses[0, 0] == found.loss
    for before, after, gradient in zip(params, trained, found.params, strict=True):
        # One rounding of the product and one of the difference.
        np.testing.assert_allclose(after[0], before[0] - speeds[0, 0] * gradient, rtol=4 * 2.0**-23, atol=2.0**-23)


def test_a_symbol_outside_the_vocabulary_makes_nan_of_its_model_from_its_step_on():
    params, batch, speeds = random_models(2, 6)
    wrong = batch._replace(X=batch.X.at[1, 3, 0, 0].set(11))
    trained, losses = run(params, wrong, speeds)
    right, right_losses = run(params, batch, speeds)
    assert np.array_equal(losses[0], right_losses[0])
    assert np.array_equal(losses[1, :3], right_losses[1, :3])
    assert np.isnan(losses[1, 3:]).all()
    assert all(np.isnan(p[1]).all() and np.array_equal(p[0], q[0]) for p, q in zip(trained, right, strict=True))
    first = Batch(jnp.full((4, 2), -1), jnp.zeros(4, jnp.int32))
    found = gradients(jax.tree.map(lambda p: p[0], params), first, platform=INTERPRET)
    assert all(np.isnan(g).all() for g in (found.loss, *found.params))


def test_nodes_are_those_that_the_fused_backward_forms(seeded_case):
    case = seeded_case(batch_size=5, h_size=40)
    params, batch = jax.tree.map(jnp.asarray, (case.params, case.batch))
    by_kernel = gradients(params, batch, platform=INTERPRET).nodes
    by_closed_forms = jax.eval_shape(fused, params, batch).nodes
    assert jax.tree.map(jnp.shape, by_kernel) == jax.tree.map(jnp.shape, by_closed_forms)


@pytest.mark.parametrize("platform", ["cpu", "rocm", "metal"])
def test_a_platform_without_support_is_told_what_to_use(platform: str):
    with pytest.raises(JaxgradError, match=rf"compiles for gpu and tpu, and this is {platform}; use --gradients fused"):
        require_support(platform)
    params, batch, speeds = random_models(1, 1)
    with pytest.raises(JaxgradError, match="use --gradients fused"):
        run_models(params, batch, speeds, platform=platform)


@pytest.mark.parametrize("platform", ["gpu", "tpu", INTERPRET])
def test_a_platform_with_support_is_taken(platform: str):
    require_support(platform)


def test_sizes_that_no_kernel_can_have_are_refused():
    params, batch, speeds = random_models(1, 2, batch=1)
    with pytest.raises(JaxgradError, match="batch of 1: Bessel's correction"):
        run(params, batch, speeds)
    large = random_models(1, 2, batch=128, vocab=100)
    with pytest.raises(JaxgradError, match="a multiprocessor holds 227; use smaller batches, or --gradients fused"):
        run_models(*large, platform="gpu")
    with pytest.raises(JaxgradError, match="float64, which no kernel has on a TPU"), jax.enable_x64(True):
        run_models(*random_models(1, 2), platform="tpu", dtype="float64")
