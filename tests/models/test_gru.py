"""The recurrent model's two backward passes, jax.grad and PyTorch agree on every parameter and node, step by step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking.compare import compare, exact
from jaxgrad.errors import JaxgradError
from jaxgrad.models.gru import by_node, fused
from jaxgrad.models.gru.forward import forward, loss, step_forward
from jaxgrad.models.gru.params import Params, init, nowhere_zero
from jaxgrad.models.gru.record import MODEL
from jaxgrad.models.gru.sample import extend, predict, sample, start_state
from jaxgrad.models.gru.sizes import Sizes
from jaxgrad.models.model import named
from jaxgrad.models.sequence_nodes import recorder, zero_taps
from jaxgrad.models.sequences import Batch
from jaxgrad.mutation.program import Program, trace, values
from jaxgrad.mutation.score import mutants_of, survivors
from jaxgrad.parity import cases
from jaxgrad.parity.engines import Target
from jaxgrad.parity.verdict import judge
from torchref import gru_module as module

# All sizes are the same, so that transposes can be left out and sums taken over another axis.
SIZES = Sizes(embedding=4, hidden=4, block=4, dropout=0.0)
VOCAB = 4
DRAWN = jax.jit(nowhere_zero, static_argnums=(1, 2, 3))


def case(seed: int = 0, dtype: Any = jnp.float64) -> tuple[Params, Batch]:
    """Four sequences, of which one ends early, and parameters that a type holds."""
    params = DRAWN(jax.random.key(seed), SIZES, VOCAB, jnp.float64)
    X, Y = np.random.default_rng(seed).integers(0, VOCAB, (2, 4, 4), dtype=np.int32)
    Y[0, 3] = -1
    return jax.tree.map(lambda p: np.asarray(p.astype(dtype).astype(np.float64)), params), Batch(X, Y)


def by_jax(params: Params, batch: Batch) -> dict[str, Any]:
    taps = zero_taps(forward, params, batch, SIZES)
    gradient = jax.value_and_grad(lambda params, taps: loss(params, batch, SIZES, taps=taps), argnums=(0, 1))
    value, (dparams, dnodes) = gradient(params, taps)
    return {"forward loss": value, **named(dparams), **dnodes}


def by_hand(backward: Any) -> Any:
    def run(params: Params, batch: Batch) -> dict[str, Any]:
        value, dparams, dnodes = backward(params, batch, SIZES)
        return {"forward loss": value, **named(dparams), **dnodes}

    return run


ENGINES = {"by node": by_hand(by_node.nodes_by_node), "fused": by_hand(fused.nodes_fused), "jax.grad": by_jax}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_all_engines_agree_on_every_parameter_and_on_the_nodes_of_every_step(dtype: str):
    case = cases.random_case(0, 3, 7, "gru", embedding=3, hidden=5, block=6)
    verdict = judge(case, Target(dtype), ("by-node", "fused", "jax.grad", "torch", "torch.nn"))
    assert verdict.agree, verdict.sentence
    if dtype == "float64":
        for tensor in verdict.tensors:
            for pair, difference in tensor.pairs.items():
                assert difference.judged and difference.relative <= 1e-12, (tensor.name, pair)


def program_of(name: str, starts: Any) -> Program:
    return trace(ENGINES[name], *jax.tree.map(jnp.asarray, case()), starts=starts).program


def agrees(right: dict[str, Any], results: dict[str, Any]) -> bool:
    """Rounding is some 1e-15 of a tensor here, and a mistake far more; names of results are paths of a dict."""
    by_name = ((path[2:-2], np.asarray(x)) for path, x in results.items())
    return all(compare(np.asarray(right[n]), x, exact(x), "float64", 1e-11).agrees for n, x in by_name)


def test_no_mistake_in_a_step_back_through_time_survives():
    with jax.enable_x64(True):
        weights = jax.tree.map(jnp.asarray, case()[0].gru)
        u, v = jax.random.normal(jax.random.key(1), (2, 4, 12), jnp.float64)
        h, dnew = v[:, :4], u[:, :4]
        nodes, mark = recorder({})
        step_forward(weights, u, h, mark)
        taps = jax.tree.map(jnp.zeros_like, nodes)

        def by_jax_alone(weights: Any, u: Any, h: Any, taps: Any) -> Any:
            return (step_forward(weights, u, h, recorder(taps)[1]) * dnew).sum()

        def results(weights: Any, nodes: Any, h: Any, dnew: Any) -> dict[str, Any]:
            dh, du, (dof_h, dbias_h), dnodes = by_node.step_backward(weights, nodes, h, dnew)
            return {"before": dh, "u": du, "of_h": dof_h, "bias_h": dbias_h, **dnodes}

        dweights, du, dh, dnodes = jax.jit(jax.grad(by_jax_alone, argnums=(0, 1, 2, 3)))(weights, u, h, taps)
        right = {"before": dh, "u": du, "of_h": dweights.of_h, "bias_h": dweights.bias_h, **dnodes}
        leaves = jax.tree.leaves((weights, nodes, h, dnew))
        program = trace(results, weights, nodes, h, dnew).program
        found = tuple(mutants_of(program))
        assert len(found) > 50
        assert survivors(program, found, [leaves], lambda _, made: agrees(right, made)) == ()


@pytest.mark.parametrize("name", ["by node", "fused"])
def test_no_mistake_around_the_steps_survives(name: str):
    """Walks through blocks of logits, and the walk through time of the operation, are left as they are."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        leaves = jax.tree.leaves(case())
        right = jax.jit(by_jax)(*case())
        program = program_of(name, _by_hand if name == "by node" else _in_rule)
        steps = (step._replace(backward=step.backward and _mutated(name, step)) for step in program.steps)
        program = program._replace(steps=tuple(steps))
        found = tuple(m for m in mutants_of(program) if m.place.functions[0] != "step_backward")
        # Most of what the operation does is its walk.
        assert len(found) > {"by node": 50, "fused": 20}[name]
        known = values(program, leaves)
        for mutant in survivors(program, found, [leaves], lambda _, made: agrees(right, made)):
            # The backward computes again what the forward did, and one may be taken for the other.
            assert mutant.operator == "a stale operand" and name == "fused", mutant
            for a, b in zip(mutant.step.operands, program.steps[mutant.at].operands, strict=True):
                np.testing.assert_array_equal(known[a], known[b], mutant.words)


def _by_hand(place: Any) -> bool:
    return place.file == by_node.__file__


def _in_rule(place: Any) -> bool:
    return any(name.endswith("_bwd") for name in place.functions)


def _mutated(name: str, step: Any) -> bool:
    return "linear_cross_entropy" not in step.place.file and (name == "by node" or step.name != "scan")


def test_with_dropout_both_backward_passes_are_those_of_the_forward_with_the_same_key():
    sizes = Sizes(embedding=4, hidden=4, block=4, dropout=0.4)
    with jax.enable_x64(True):
        params, batch = jax.tree.map(jnp.asarray, case())
        key = jax.random.key(5)
        expected = jax.jit(jax.value_and_grad(lambda p: loss(p, batch, sizes, key)))(params)
        for backward in MODEL.gradients.values():
            actual = jax.jit(lambda p, backward=backward: backward(p, batch, sizes, key))(params)
            jax.tree.map(lambda e, a: np.testing.assert_allclose(a, e, rtol=1e-11, atol=1e-14), expected, actual)
        assert not np.isclose(expected[0], jax.jit(lambda p: loss(p, batch, SIZES))(params), rtol=1e-3)


def test_a_state_that_is_carried_gives_the_logits_of_the_whole_sequence():
    with jax.enable_x64(True):
        params, batch = jax.tree.map(jnp.asarray, case())
        expected = jax.jit(lambda p, X: predict(p, X))(params, batch.X)
        logits, state = extend(params, start_state(params, 4), batch.X[:, :3])
        last, _ = extend(params, state, batch.X[:, 3:])
        np.testing.assert_allclose(jnp.concatenate((logits, last), 1), expected, rtol=0, atol=1e-14)
        drawn = sample(params, jax.random.key(0), batch.X[:, :1], 9, temperature=0.0)
        whole = jnp.concatenate((batch.X[:, :1], drawn), 1)
        assert predict(params, whole[:, :-1]).argmax(-1).tolist() == drawn.tolist()
        with pytest.raises(JaxgradError, match="at least one of each"):
            sample(params, jax.random.key(0), batch.X, 0)


def test_sizes_that_do_not_fit_are_refused_and_the_initialisation_is_pytorchs():
    for wrong, words in (({"hidden": 0}, "hidden is 0"), ({"dropout": 1.0}, "dropout is 1.0")):
        with pytest.raises(JaxgradError, match=words):
            Sizes(**wrong)
    with pytest.raises(JaxgradError, match="vocab_size is 0"):
        init(jax.random.key(0), SIZES, 0)
    arrays = named(jax.jit(init, static_argnums=(1, 2))(jax.random.key(0), Sizes(hidden=100), 50))
    model = module.GRU(50, 64, 100)
    assert sum(p.numel() for p in model.parameters()) == sum(array.size for array in arrays.values())
    for name, array in arrays.items():
        bound = float(jnp.abs(array).max())
        assert bound == 0 if name == "start" else bound > 1 if name == "tokens" else 0.09 < bound <= 0.1, name
