"""Numbers that go wrong stop a run within a chunk, and the message leads to the first node that was not finite."""

import dataclasses
import re
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import cli, corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.training import checkpoints, not_finite, replay, run
from jaxgrad.training.config import Config, config_of, optimizer
from jaxgrad.training.folder import read_metrics
from jaxgrad.training.state import State
from jaxgrad.training.step import run_steps


@pytest.fixture(scope="module")
def data() -> corpus.Corpus:
    return corpus.load()


@pytest.fixture(scope="module")
def config(data) -> Config:
    return config_of(
        steps=120, hidden=8, log_every=20, chunk=20, save_every=20, vocabulary=data.vocabulary,
        corpus_sha256=corpus.sha256(corpus.shipped("names.txt")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def examples(data) -> Batch:
    return Batch(jnp.asarray(data.train.X), jnp.asarray(data.train.Y))


@pytest.mark.parametrize(
    ("tree", "finite"),
    [
        ({"a": np.ones(3), "n": np.array(2**31 - 1)}, True),
        ({"a": np.array([1.0, np.nan])}, False),
        ({"a": np.ones(2), "b": {"c": np.array(-np.inf)}}, False),
        ({"a": np.float32(3e38), "b": np.float32(1e-45)}, True),
    ],
)
def test_only_floats_can_be_not_finite(tree, finite: bool):
    assert bool(not_finite.all_finite(jax.tree.map(jnp.asarray, tree))) is finite


@pytest.fixture(scope="module")
def burst(tmp_path_factory, data, config) -> tuple[Path, str]:
    """A run whose rate grows without bound, and what it said when it stopped."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    wild = dataclasses.replace(
        config, schedule="exponential_decay", schedule_args=(("decay_rate", 1e20), ("transition_steps", 30))
    )
    with pytest.raises(JaxgradError) as caught:
        run.train(wild, data, folder)
    return folder, str(caught.value)


def test_a_run_whose_numbers_go_wrong_says_where_and_what_to_do(burst):
    folder, message = burst
    last = checkpoints.saved(folder)[-1]
    assert re.match(r"step \d+ is not finite: ", message)
    assert "its batch is that of seed 0 and this step" in message
    assert f"the last good checkpoint is {last}; lower the learning rate, which is 0.1" in message
    assert message.count("\n") == 0


def test_what_was_good_is_kept_and_nothing_else(burst):
    folder, message = burst
    step = int(re.match(r"step (\d+)", message)[1])
    last = checkpoints.saved(folder)[-1]
    # Chunks are of 20 steps, each ends with a checkpoint and a metrics line; the bad one left neither.
    assert int(last.name) == step // 20 * 20 and checkpoints.is_valid(last)
    assert [line.step for line in read_metrics(folder)] == list(range(20, step // 20 * 20 + 1, 20))
    assert not (folder / "losses.json").exists()
    config, params, _ = run.load(folder)
    assert all(np.isfinite(p).all() for p in params) and config.steps == 120


def test_a_resumed_run_meets_the_same_wrong_number(burst, data):
    folder, message = burst
    with pytest.raises(JaxgradError) as caught:
        run.resume(folder, data)
    assert str(caught.value) == message


def test_the_command_that_it_gives_replays_the_step_in_the_parity_report(burst, monkeypatch, capsys):
    folder, message = burst
    monkeypatch.delenv("JAXGRAD_CORPUS", raising=False)
    given = message.partition("look at the step with: ")[2]
    monkeypatch.setattr(sys, "argv", shlex.split(given))
    with pytest.raises(SystemExit):
        cli.main()
    out = " ".join(capsys.readouterr().out.split())
    step = re.match(r"step (\d+)", message)[1]
    assert f"{folder}, step {step}, float32, JAX on cpu" in out and "by-node" in out and "torch" in out


def test_a_replayed_step_has_the_runs_own_parameters_and_batch(burst, data, examples):
    folder, _ = burst
    config, _, _ = run.load(folder)
    init_key, key = jax.random.split(jax.random.key(config.seed))
    state = run.start(run.initial_params(config, init_key), optimizer(config))
    state, _ = run_steps(
        state, key, examples,
        model=MODEL, sizes=config.sizes, gradients=config.gradients, optimizer=optimizer(config), dtype=config.dtype,
        batch_size=config.batch_size, n_steps=7,
    )  # fmt: skip
    params, batch = replay.step(folder, 7, data)
    assert all(map(np.array_equal, params, state.params))
    assert all(map(np.array_equal, batch, not_finite.batch_of(config, key, 7, examples)))


def test_a_step_that_the_run_does_not_have_is_named(burst, data):
    with pytest.raises(JaxgradError, match="has no step 120; its steps are 0 to 119"):
        replay.step(burst[0], 120, data)


def stepped_from(config: Config, params, examples: Batch, transformation=None) -> not_finite.Found | None:
    transformation = transformation or optimizer(config)
    params = jax.tree.map(jnp.copy, params)
    state = State(params, transformation.init(params), jnp.int32(3))
    return not_finite.find(config, transformation, state, jax.random.key(0), examples, 4)


@pytest.fixture
def params(config):
    return run.initial_params(config, jax.random.key(0))


@pytest.mark.parametrize("gradients", ["fused", "by-node", "jax-grad"])
@pytest.mark.parametrize(
    ("name", "value", "node"),
    [
        ("C", np.nan, "emb"),
        ("W1", np.inf, "h_prenorm"),
        ("bn_gain", np.nan, "h_norm"),
        ("W2", np.inf, "logits"),
        ("b2", -np.inf, "logits"),
    ],
)
def test_the_first_node_of_the_forward_pass_is_named(config, examples, params, gradients, name, value, node):
    spoiled = params._replace(**{name: jnp.full_like(getattr(params, name), value)})
    found = stepped_from(dataclasses.replace(config, gradients=gradients), spoiled, examples)
    assert found == (3, f"in its forward pass the node {node} was the first that was not finite")


@pytest.mark.parametrize("gradients", ["by-node", "jax-grad"])
@pytest.mark.parametrize("symbol", [0, 1], ids=["the target's", "another's"])
def test_a_probability_that_is_rounded_to_zero_is_found_at_its_logarithm(config, params, gradients, symbol):
    # Of a symbol that the loss does not need, it leaves the loss finite, and not the gradients.
    examples = Batch(jnp.zeros((9, 3), jnp.int32), jnp.zeros(9, jnp.int32))
    spoiled = params._replace(b2=params.b2.at[symbol].set(-1e4))
    found = stepped_from(dataclasses.replace(config, gradients=gradients), spoiled, examples)
    assert found == (3, "in its forward pass the node log_probs was the first that was not finite")
    assert stepped_from(config, spoiled, examples) is None, "the closed forms take no logarithm of a probability"


@pytest.mark.parametrize("gradients", ["fused", "by-node", "jax-grad"])
def test_the_first_gradient_of_the_backward_pass_is_named(config, params, gradients):
    # Logits are b2: symbol 0 is almost certain where 1 is right, so dlogits is 1/32 and -1/32 there, and dh is
    # 6e38/32 in each of 32 rows: each is finite in float32, and their sum, bn_bias's gradient, is not.
    examples = Batch(jnp.zeros((9, 3), jnp.int32), jnp.ones(9, jnp.int32))
    spoiled = params._replace(
        bn_gain=jnp.zeros_like(params.bn_gain),
        bn_bias=jnp.zeros_like(params.bn_bias),
        W2=jnp.zeros_like(params.W2).at[:, 0].set(3e38).at[:, 1].set(-3e38),
        b2=jnp.zeros_like(params.b2).at[0].set(50.0),
    )
    found = stepped_from(dataclasses.replace(config, gradients=gradients), spoiled, examples)
    sentence = "its loss was finite, and in its backward pass the gradient of bn_bias was the first that was not"
    assert found == (3, sentence)


@pytest.mark.parametrize(
    ("transformation", "what"),
    [
        (optax.sgd(jnp.inf), "the parameter C"),
        (optax.chain(optax.trace(1e38, accumulator_dtype=jnp.float32), optax.scale(0.0)), "C"),
    ],
)
def test_an_update_that_spoils_the_state_is_named(config, examples, params, transformation, what):
    found = stepped_from(config, params, examples, transformation)
    assert "its loss and gradients were finite, and after the optimizer's update" in found.what and what in found.what


def test_a_state_of_the_optimizer_that_overflows_is_named(config, examples, params):
    # Its parameters stay as they are: Adam divides by the root of an infinite second moment.
    state = optimizer(dataclasses.replace(config, optimizer="adam"))

    def init(params):
        started = state.init(params)
        return (started[0]._replace(nu=jax.tree.map(lambda p: jnp.full_like(p, jnp.inf), params)), *started[1:])

    found = stepped_from(config, params, examples, optax.GradientTransformation(init, state.update))
    assert found.what.endswith("after the optimizer's update the optimizer's state was not")


def test_a_chunk_in_which_all_is_well_has_nothing_to_find(config, examples, params):
    assert stepped_from(config, params, examples) is None


def test_the_last_steps_update_is_looked_at_too(tmp_path, data, config):
    # Its loss is that before the update, and no loss of the run ever shows what the update did.
    decaying = dataclasses.replace(
        config, steps=1, learning_rate=3e38, optimizer="adamw", optimizer_args=(("weight_decay", 10.0),)
    )
    with pytest.raises(JaxgradError, match=r"^step 0 is not finite: its loss and gradients were finite, and after"):
        run.train(decaying, data, tmp_path / "run")
