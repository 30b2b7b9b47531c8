"""A config is checked as a whole, and any of optax's optimizers and schedules can be named."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad.errors import JaxgradError
from jaxgrad.training.config import checked, config_of, optimizer, parse_arguments, schedule


def test_the_defaults_are_the_notebooks_recipe():
    config = checked(config_of())
    assert (config.steps, config.batch_size, config.optimizer, config.gradients) == (200_000, 32, "sgd", "fused")
    rate = schedule(config)
    # optax computes rates in float32: 0.01 is a tenth of 0.1 to one of its roundings.
    np.testing.assert_allclose(
        [rate(0), rate(99_999), rate(100_000), rate(199_999)], [0.1, 0.1, 0.01, 0.01], rtol=2**-23
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number of at least 1"),
        ({"batch_size": 1}, "batch_size is 1; it must be a whole number of at least 2"),
        ({"hidden": 2.5}, "hidden is 2.5"),
        ({"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
        ({"learning_rate": 0.0}, "learning rate is 0.0; it must be a finite number above 0"),
        ({"learning_rate": float("inf")}, "learning rate is inf"),
        ({"learning_rate": -0.1}, "learning rate is -0.1; it must be a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning rate is nan"),
        ({"learning_rate": "0.1"}, "learning rate is 0.1"),
        ({"keep": 0}, "keep is 0; it must be a whole number of at least 1"),
        ({"save_every": 0}, "save_every is 0"),
        ({"steps": 2**31}, r"steps is 2147483648; .* below 2\^31"),
        ({"vocabulary": ("a", ".")}, "vocabulary is .*; it must be single characters, each once, '.' the first"),
        ({"vocabulary": (".", "a", "a")}, "each once"),
        ({"vocabulary": (".", "ab")}, "single characters"),
        ({"vocabulary": (".", 1)}, "single characters"),
        ({"gradients": "magic"}, "gradients is 'magic'; choose from fused, by-node, jax-grad"),
        ({"dtype": "int8"}, "dtype is 'int8'; choose from float32, float64, bfloat16"),
        ({"optimizer": "nobody"}, "optax has no optimizer 'nobody'"),
        ({"optimizer": "clip"}, "optax.clip takes no learning rate"),
        ({"schedule": "nobody"}, "optax has no schedule 'nobody'"),
        ({"schedule_args": (("decay_steps", 5),)}, "the schedule 'seed' takes no arguments"),
        (
            {"optimizer_args": (("learning_rate", 3),)},
            "learning_rate is not an optimizer argument here; give it as --lr",
        ),
        ({"optimizer_args": (("b9", 1),)}, "optax.sgd: .*b9.*; its arguments are learning_rate, momentum"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(change, message: str):
    with pytest.raises(JaxgradError, match=message):
        checked(config_of(**change))


def test_arguments_are_python_literals():
    assert parse_arguments(["b1=0.8", "nesterov=True", "name='x'"]) == (("b1", 0.8), ("nesterov", True), ("name", "x"))
    for wrong in ("b1", "=1", "b1=open('x')", "1x=2"):
        with pytest.raises(JaxgradError, match="write NAME=VALUE"):
            parse_arguments([wrong])


def test_a_named_optimizer_and_schedule_are_optaxs():
    config = config_of(
        steps=10, optimizer="adam", optimizer_args=(("b1", 0.5),), schedule="cosine_decay", learning_rate=0.2
    )
    params, grads = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
    ours, theirs = optimizer(config), optax.adam(optax.cosine_decay_schedule(0.2, 10), b1=0.5)
    for built in (ours, theirs):
        state = built.init(params)
        built.update(grads, state, params)
    assert np.array_equal(
        ours.update(grads, ours.init(params), params)[0], theirs.update(grads, theirs.init(params), params)[0]
    )


def test_schedule_arguments_go_before_the_usual_ones():
    config = config_of(
        steps=10, schedule="exponential_decay", schedule_args=(("decay_rate", 0.5), ("transition_steps", 2))
    )
    np.testing.assert_allclose(schedule(config)(2), 0.05, rtol=2**-22)


@pytest.mark.parametrize(
    "change", [{"optimizer": "lbfgs"}, {"optimizer": "adam", "optimizer_args": (("b1", "x"),)}, {"seed": 2**32}]
)
def test_what_would_fail_at_the_first_step_is_refused_before_it(change):
    with pytest.raises(JaxgradError, match=r"cannot step with gradients alone|below 2\^32"):
        checked(config_of(**change))
