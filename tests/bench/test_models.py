"""Any model of the list is timed, against those who have it, after all have the same losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import corpus, models
from jaxgrad.bench import agreement, measure
from jaxgrad.bench.peers import PEERS, Place
from jaxgrad.bench.task import Task, benchmark, flops, sizes_of, task
from jaxgrad.errors import JaxgradError
from jaxgrad.models.model import jax_grad, load_corpus

STEPS = 3
# Who has the model, beside our own ways.
OTHERS = {"gpt": {"flax", "equinox", "torch"}, "gru": {"torch"}}


@pytest.fixture(scope="module", params=list(OTHERS))
def trial(request) -> Task:
    model = models.record(request.param)
    names = corpus.shipped("names.txt")
    return task(model, measure.trial_of(model), lambda sizes: load_corpus(model, sizes, names, text=True))


def test_all_who_have_it_train_alike(trial):
    losses, missing = {}, {}
    for name in ("fused/scan", "jax.grad/scan", "flax", "equinox", "torch", "torch-by-hand", "kernel"):
        try:
            ready = PEERS[name].prepare(trial, Place(), STEPS)
        except JaxgradError as error:
            missing[name] = str(error)
            continue
        _, found = ready.advance(ready.start())
        losses[name] = np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(found)])
    assert losses.keys() == {"fused/scan", "jax.grad/scan"} | OTHERS[trial.model.name]
    judged = agreement.judge(losses, agreement.tolerances(trial, STEPS - 1))
    assert max(one.worst for one in judged.values()) < 1, judged
    assert all(trial.model.name in reason for reason in missing.values())


def products(jaxpr, times: int = 1) -> int:
    """2mnk of every product of matrices in a jaxpr, those in a scan as often as it turns."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            terms = np.prod([eqn.invars[0].aval.shape[axis] for axis in contracted])
            total += times * 2 * int(terms) * eqn.outvars[0].aval.size
        turns = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        total += sum(products(inner.jaxpr, times * turns) for inner in eqn.params.values() if hasattr(inner, "jaxpr"))
    return total


def test_operations_are_those_of_the_products_in_the_program_of_jax_grad(trial):
    model, sizes, rows = trial.model, trial.size.sizes, trial.size.batch
    batch = model.batch(*(jnp.asarray(x[:rows]) for x in (trial.examples.X, trial.examples.Y)))
    params = jax.tree.map(jnp.asarray, trial.params)
    program = jax.make_jaxpr(lambda p, b: jax_grad(model)(p, b, sizes))(params, batch)
    additions = rows * sizes.block * trial.params.tokens.shape[1]
    assert flops(trial) == products(program.jaxpr) + additions


def test_a_size_too_large_to_measure_has_the_trials_tolerances(trial, monkeypatch):
    monkeypatch.setattr(measure, "MEASURED_NUMBERS", 1)
    of_trial = measure._tolerances(trial, trial, 2)
    assert np.array_equal(of_trial, measure.MARGIN * agreement.tolerances(trial, 2))


def test_every_usual_size_is_one_of_the_models(trial):
    assert set(benchmark(trial.model).usual) <= sizes_of(trial.model).keys()
