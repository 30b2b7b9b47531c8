"""Every op is tested on the arguments that it has in the model, in several sizes, by one suite: `three_way`."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import mutation_score
from jaxgrad.checking.compare import compare
from jaxgrad.checking.measure import measure, shaken
from jaxgrad.models.mlp.forward import Batch, Nodes, Params, forward

ALL = {}
FLOAT64 = {"dtypes": ("float64",), "seeds": (0,)}
SMALLEST = {"batch_size": 2, "h_size": 1, "n": 1, "emb_size": 1, "vocab_size": 2}


class InModel(NamedTuple):
    """One seeded case and its forward pass, and which settings to check an op in."""

    params: Params
    batch: Batch
    nodes: Nodes
    settings: dict[str, Any]


@pytest.fixture(
    scope="session",
    params=[({}, ALL), (SMALLEST, FLOAT64), ({"batch_size": 12, "h_size": 30, "n": 2}, FLOAT64)],
    ids=["seed_case", "smallest", "small"],
)
def in_model(request: pytest.FixtureRequest, seeded_case) -> InModel:
    sizes, settings = request.param
    case = seeded_case(**sizes)
    with jax.enable_x64(True):
        nodes = jax.jit(forward)(*jax.tree.map(jnp.asarray, (case.params, case.batch)))
        return InModel(case.params, case.batch, jax.tree.map(np.asarray, nodes), settings)


@pytest.fixture
def passes(three_way, in_model):
    """`passes(op, *args, reference=..., torch_reference=...)`: against both oracles, and alone by its definition."""

    def check(op, *args, **oracles):
        three_way(op, *args, **in_model.settings, **oracles)
        three_way(op, *args, dtypes=("float64",), transforms=("jit", "grad_of_grad"), seeds=(0,))

    return functools.wraps(three_way)(check)


@pytest.fixture
def killed():
    """`killed(fn, plain, *shapes)`: the mutants of `fn`, judged as `three_way` does in float32 beside `plain`."""

    def score(fn, plain, *shapes):
        args = [jax.random.normal(jax.random.key(k), shape) for k, shape in enumerate(shapes)]
        dy = jax.tree.map(lambda y: jax.random.normal(jax.random.key(9), y.shape), jax.eval_shape(plain, *args))
        pulled = shaken(lambda dy, *args: jax.vjp(plain, *args)[1](dy))
        right, noises = measure(pulled, "float32", dy, *args)

        def parity(wrong):
            for got, expected, noise in zip(jax.vjp(wrong, *args)[1](dy), right, noises, strict=True):
                assert compare(expected, np.asarray(got), noise, "float32").agrees

        return mutation_score(fn, parity, *args)

    return score
