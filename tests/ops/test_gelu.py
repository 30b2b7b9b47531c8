"""GELU, exact and approximate."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad import mutation_score
from jaxgrad.checking.compare import compare
from jaxgrad.checking.measure import measure, shaken
from jaxgrad.ops.gelu import gelu

FORMS = pytest.mark.parametrize("approximate", [False, True], ids=["exact", "tanh"])


def plain(x, approximate):
    return jax.nn.gelu(x, approximate=approximate)


def twin(x, approximate):
    return torch.nn.functional.gelu(x, approximate="tanh" if approximate else "none")


@FORMS
def test_gelu(passes, in_model, approximate: bool):
    passes(
        functools.partial(gelu, approximate=approximate),
        in_model.nodes.h_norm,
        reference=functools.partial(plain, approximate=approximate),
        torch_reference=functools.partial(twin, approximate=approximate),
    )


def test_far_below_zero_the_exact_form_keeps_its_digits():
    # 1 + erf would be 0 in float32. The argument of erfc is rounded, and its slope there makes x^2 units of that;
    # 8 more are for erfc itself.
    expected = -10 * 0.5 * math.erfc(10 / math.sqrt(2))
    assert np.isclose(gelu(jnp.float32(-10)), expected, rtol=(100 + 8) * 2.0**-24, atol=0)


@FORMS
def test_far_from_zero_it_is_the_identity_above_and_nothing_below(approximate: bool):
    y, pullback = jax.vjp(lambda x: gelu(x, approximate), jnp.array([-1e4, 1e4]))
    assert y.tolist() == [0.0, 1e4]
    assert pullback(jnp.ones(2))[0].tolist() == [0.0, 1.0]


@FORMS
def test_every_mistake_in_the_backward_pass_is_more_than_parity_forgives(approximate: bool):
    x, dy = (jax.random.normal(jax.random.key(k), (5, 5)) for k in (0, 1))

    def pulled(fn, x, dy):
        return jax.vjp(functools.partial(fn, approximate=approximate), x)[1](dy)

    (right,), (noise,) = measure(shaken(functools.partial(pulled, plain)), "float32", x, dy)

    def parity(fn):
        (dx,) = pulled(fn, x, dy)
        assert compare(right, np.asarray(dx), noise, "float32").agrees

    score = mutation_score(gelu, parity, x, approximate)
    assert len(score.killed) > 10
    assert score.survived == ()
    # To take Phi or tanh from the forward pass, which has made it too, is no mistake.
    assert {mutant.operator for mutant in score.equivalent} <= {"a stale operand"}
