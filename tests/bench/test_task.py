"""Every competitor gets the same parameters and batches, and what a step costs is counted right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import batches, corpus
from jaxgrad.bench.task import Size, examples, flops, rows, sizes_of, task
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.models.mlp.sizes import Sizes
from jaxgrad.models.model import jax_grad


@pytest.fixture(scope="module")
def data():
    return corpus.load(corpus.shipped("names.txt"))


def test_rows_are_those_that_a_training_run_draws(data):
    own = task(MODEL, Size("own", 8, Sizes(hidden=16)), lambda sizes: data)
    assert np.array_equal(rows(own, 3)[2], batches.indices(own.key, 2, 8, len(own.examples.Y)))


def test_a_task_is_the_same_every_time(data):
    a, b = (task(MODEL, Size("own", 8, Sizes(hidden=16)), lambda sizes: data) for _ in range(2))
    assert jax.tree.all(jax.tree.map(np.array_equal, (a.params, a.key_data), (b.params, b.key_data)))


def test_the_sizes_are_the_ones_promised():
    promised = [(32, 200), (1024, 1024), (8192, 4096)]
    assert [(size.batch, size.sizes.hidden) for size in sizes_of(MODEL).values()] == promised


def test_a_batch_without_batch_norm_is_refused(data):
    with pytest.raises(JaxgradError, match="a batch of 1: Bessel's correction"):
        task(MODEL, Size("own", 1, Sizes(hidden=16)), lambda sizes: data)


def products(jaxpr) -> int:
    """2mnk of every product of matrices in a jaxpr."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            terms = np.prod([eqn.invars[0].aval.shape[axis] for axis in contracted])
            total += 2 * int(terms) * eqn.outvars[0].aval.size
        total += sum(products(inner.jaxpr) for inner in eqn.params.values() if hasattr(inner, "jaxpr"))
    return total


def test_operations_are_those_of_the_products_in_the_program_of_jax_grad(data):
    own = task(MODEL, Size("own", 8, Sizes(hidden=16)), lambda sizes: data)
    batch = jax.tree.map(lambda symbols: symbols[:8], examples(own))
    program = jax.make_jaxpr(lambda p, b: jax_grad(MODEL)(p, b, MODEL.sizes()))(
        jax.tree.map(jnp.asarray, own.params), Batch(*batch)
    )
    additions = 8 * 3 * 10
    assert flops(own) == products(program.jaxpr) + additions
