"""A step over a mesh is the step on one device: same gradients, same run, statistics of the whole batch."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import corpus
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch, Params, init
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.models.model import gradients_of
from jaxgrad.parity import engines
from jaxgrad.training import mesh as meshes
from jaxgrad.training import run as runs
from jaxgrad.training.config import config_of, optimizer
from jaxgrad.training.state import State
from jaxgrad.training.step import run_steps, start

KEY = jax.random.key(11)
HIDDEN = 40
MESHES = ("data=8", "data=4,model=2", "data=2,model=4", "model=8")


def built(text: str, batch_size: int = 32, hidden: int = HIDDEN) -> jax.sharding.Mesh:
    return meshes.build(meshes.parse(text), jax.devices(), batch_size, {"hidden layer": hidden})


@pytest.mark.parametrize("text", MESHES)
@pytest.mark.parametrize("gradients", [*MODEL.gradients, "jax-grad"])
def test_gradients_over_a_mesh_are_those_of_one_device_and_of_pytorch(seeded_case, text: str, gradients: str):
    case = seeded_case(h_size=HIDDEN)
    mesh = built(text)
    alone = engines.run(("by-node", "torch"), case, engines.Target("float64"))
    with jax.enable_x64(True):
        params = jax.device_put(jax.tree.map(jnp.asarray, case.params), meshes.of_params(mesh, MODEL, case.params))
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        batch = jax.device_put(jax.tree.map(jnp.asarray, case.batch), rows)
        assert len(batch.X.sharding.device_set) == 8
        loss, grads = jax.tree.map(
            np.asarray, jax.jit(lambda p, b: gradients_of(MODEL, gradients)(p, b, case.sizes))(params, batch)
        )
    for name, other in alone.items():
        np.testing.assert_allclose(loss, other.loss, rtol=1e-12, err_msg=name)
        for tensor, a, b in zip(Params._fields, grads, other.params, strict=True):
            # 1e-12 of the tensor's norm is the promise of all engines in float64 (tests/parity/test_engines.py).
            assert np.linalg.norm(a - b) <= 1e-12 * np.linalg.norm(b), (tensor, name)


@pytest.fixture(scope="module")
def examples() -> Batch:
    train = corpus.load().train
    return Batch(jnp.asarray(train.X), jnp.asarray(train.Y))


def run(examples: Batch, name: str, mesh: jax.sharding.Mesh | None) -> tuple[State, np.ndarray]:
    """Two hundred steps in float64."""
    transformation = optimizer(config_of(optimizer=name))
    state = start(init(KEY, 27, h_size=HIDDEN, dtype=jnp.float64), transformation)
    key = KEY
    if mesh is not None:
        state = jax.device_put(state, meshes.of_state(mesh, MODEL, transformation, state))
        key, examples = jax.device_put((key, examples), meshes.replicated(mesh))
    state, losses = run_steps(
        state, key, examples,
        model=MODEL, sizes=MODEL.sizes(),
        gradients="fused", optimizer=transformation, dtype="float64", batch_size=32, n_steps=200, mesh=mesh,
    )  # fmt: skip
    return state, np.asarray(losses)


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("text", MESHES)
def test_a_run_over_a_mesh_is_the_run_on_one_device(examples, text: str, name: str):
    with jax.enable_x64(True):
        alone, losses = run(examples, name, None)
        state, over_mesh = run(examples, name, built(text))
    np.testing.assert_allclose(over_mesh, losses, rtol=1e-12)
    for a, b in zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (state, alone)), strict=True):
        # Two hundred steps, each some 1e-16 apart.
        assert np.linalg.norm(a - b) <= 1e-12 * np.linalg.norm(b)
    # The state that comes out lies where the one that went in did, Adam's moments included.
    expected = meshes.of_state(built(text), MODEL, optimizer(config_of(optimizer=name)), state)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def all_reduces(gradients: str, text: str) -> int:
    """How many collectives the compiled step has, all of which are all-reduces."""
    mesh, transformation = built(text), optimizer(config_of())
    state = jax.eval_shape(lambda: start(init(KEY, 27, h_size=HIDDEN), transformation))
    batch = Batch(jax.ShapeDtypeStruct((999, 3), jnp.uint8), jax.ShapeDtypeStruct((999,), jnp.uint8))

    def lying(tree, shardings):
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)

    state = lying(state, meshes.of_state(mesh, MODEL, transformation, state))
    everywhere = meshes.replicated(mesh)
    lowered = run_steps.lower(
        state, jax.device_put(KEY, everywhere), lying(batch, Batch(everywhere, everywhere)),
        model=MODEL, sizes=MODEL.sizes(),
        gradients=gradients, optimizer=transformation, dtype="float32", batch_size=32, n_steps=3, mesh=mesh,
    )  # fmt: skip
    found = re.findall(r"= .*? ([a-z-]+)\(", lowered.compile().as_text())
    kinds = collections.Counter(op.removesuffix("-start") for op in found)
    collectives = {"all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute"}
    assert set(kinds) & collectives == {"all-reduce"}
    return kinds["all-reduce"]


def test_the_compiler_sums_over_the_batch_and_over_hidden_neurons_and_nothing_else():
    # Mean and variance of batch norm; sums of its backward, two at once; all gradients and the loss, at once.
    assert all_reduces("fused", "data=8") == 4
    # The second layer's logits and the first one's embcat cotangent.
    assert all_reduces("fused", "model=8") == 2
    assert all_reduces("fused", "data=4,model=2") == 4 + 2
    # By node, the sums of batch norm's backward are those of bn_var_inv and of bnmean, which wait for each other.
    assert all_reduces("by-node", "data=8") == 5


@pytest.mark.parametrize("text", ["", "data", "data=0", "data=-1", "rows=2", "data=2;model=2", "data=two"])
def test_other_text_is_no_mesh(text: str):
    with pytest.raises(JaxgradError, match="give data=N, model=N or both"):
        meshes.parse(text)


def test_what_does_not_divide_or_is_not_there_is_refused_with_the_figures():
    with pytest.raises(JaxgradError, match="16 devices and JAX 8"):
        built("data=16")
    with pytest.raises(JaxgradError, match="a batch of 30 does not divide by data=4"):
        built("data=4", batch_size=30)
    with pytest.raises(JaxgradError, match="a hidden layer of 9 does not divide by model=2"):
        built("model=2", hidden=9)


@pytest.mark.parametrize(("first", "then"), [("data=8", None), (None, "data=4,model=2"), ("model=8", "data=2")])
def test_a_run_saved_under_one_mesh_goes_on_under_another(tmp_path, first: str | None, then: str | None):
    data = corpus.load()
    config = config_of(
        steps=120, hidden=HIDDEN, optimizer="adam", learning_rate=0.01, dtype="float64", chunk=30, log_every=20,
        vocabulary=data.vocabulary, corpus_sha256="0",
    )  # fmt: skip
    whole = runs.train(config, data, tmp_path / "whole")
    over = [None if text is None else built(text) for text in (first, then)]
    with pytest.raises(runs.Stopped) as stopped:
        runs.train(config, data, tmp_path / "run", stop=lambda: True, mesh=over[0])
    assert stopped.value.step == 30
    losses = runs.resume(tmp_path / "run", data, mesh=over[1])
    # A hundred and twenty steps in float64, each some 1e-16 apart.
    np.testing.assert_allclose(losses, whole, rtol=1e-12)
    for a, b in zip(runs.load(tmp_path / "run")[1], runs.load(tmp_path / "whole")[1], strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.linalg.norm(a - b) <= 1e-12 * np.linalg.norm(b)
