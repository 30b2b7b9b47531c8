"""Two trainings beside each other: conventions that differ between optax and torch are named."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.optim import SGD, Adam, AdamW, RMSprop

from jaxgrad import port
from jaxgrad.errors import JaxgradError

from .mistakes import shape

PARAMS = {"a": {"kernel": shape(3, 4), "bias": shape(4)}, "b": {"kernel": shape(4, 1), "bias": shape(1)}}
RNG = np.random.default_rng(0)
BATCHES = [(RNG.standard_normal((5, 3)), RNG.standard_normal((5, 1))) for _ in range(4)]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)

    def forward(self, x, y):
        return (self.b(torch.tanh(self.a(x))) - y).square().mean()


def loss(p, x, y):
    h = jnp.tanh(x @ p["a"]["kernel"] + p["a"]["bias"])
    return jnp.square(h @ p["b"]["kernel"] + p["b"]["bias"] - y).mean()


def trained(optimizer, make, **options) -> port.Training:
    return port.train(loss, PARAMS, optimizer, BATCHES, torch=Net(), torch_optimizer=make, **options)


RIGHT = {
    "adam": (optax.adam(1e-2), partial(Adam, lr=1e-2)),
    "adamw": (optax.adamw(1e-2, weight_decay=0.01), partial(AdamW, lr=1e-2)),
    "sgd": (optax.sgd(0.1, 0.9), partial(SGD, lr=0.1, momentum=0.9)),
    "nesterov": (optax.sgd(0.1, 0.9, nesterov=True), partial(SGD, lr=0.1, momentum=0.9, nesterov=True)),
    "rmsprop": (optax.rmsprop(1e-2, 0.99, eps_in_sqrt=False), partial(RMSprop, lr=1e-2)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_same_optimizer_in_both_libraries_agrees(name: str):
    training = trained(*RIGHT[name])
    assert training.agrees and training.first is None and not training.why, str(training)


def decayed(params):
    return AdamW(params, lr=1e-2)


def uncorrected() -> optax.GradientTransformation:
    """Adam as some write it by hand, without the correction of the moments' bias."""

    def update(grads, moments, params=None):
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, moments[1], grads)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 1e-8), m, v), (m, v)

    zeros = partial(jax.tree.map, jnp.zeros_like)
    return optax.GradientTransformation(lambda params: (zeros(params), zeros(params)), update)


WRONG = {
    "optax's default of adamw": (
        optax.adamw(1e-2),
        decayed,
        "0.0001, optax's default in JAX and 0.01, torch's default",
    ),
    "coupled": (
        optax.chain(optax.add_decayed_weights(0.01), optax.adam(1e-2)),
        decayed,
        "added to the gradient in JAX",
    ),
    "decay not times the rate": (
        optax.chain(optax.scale_by_adam(), optax.scale(-1e-2), optax.add_decayed_weights(-0.01)),
        decayed,
        "not multiplied by the rate",
    ),
    "epsilon": (optax.adam(1e-2, eps=1e-5), partial(Adam, lr=1e-2), "epsilon is 1e-05 in JAX and 1e-08 in torch"),
    "epsilon in the root": (
        optax.adam(1e-2, eps=0.0, eps_root=1e-8),
        partial(Adam, lr=1e-2),
        "inside the root (eps_root=1e-08)",
    ),
    "betas": (optax.adam(1e-2, b2=0.99), partial(Adam, lr=1e-2), "the betas are (0.9, 0.99) in JAX"),
    "dampening": (
        optax.sgd(0.1, 0.9),
        partial(SGD, lr=0.1, momentum=0.9, dampening=0.5),
        "the momentum is not dampened",
    ),
    "nesterov": (optax.sgd(0.1, 0.9, nesterov=True), partial(SGD, lr=0.1, momentum=0.9), "Nesterov's form is on"),
    "ema": (
        optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.1)),
        partial(SGD, lr=0.1, momentum=0.9),
        "is an average (ema)",
    ),
    "rmsprop's decay": (
        optax.rmsprop(1e-2, eps_in_sqrt=False),
        partial(RMSprop, lr=1e-2),
        "the decay of squares is 0.9 in JAX and 0.99",
    ),
    "rmsprop's epsilon": (optax.rmsprop(1e-2, 0.99), partial(RMSprop, lr=1e-2), "epsilon is inside the root"),
    "decoupled": (
        optax.adamw(1e-2, weight_decay=0.01),
        partial(Adam, lr=1e-2, weight_decay=0.01),
        "decoupled in JAX and added to the gradient in torch",
    ),
    "epsilon in the root too": (optax.adam(1e-2, eps_root=1e-6), partial(Adam, lr=1e-2), "inside the root too"),
    "bias correction": (
        optax.chain(uncorrected(), optax.scale(-1e-2)),
        partial(Adam, lr=1e-2),
        "not corrected for their bias in JAX",
    ),
    "nadam": (optax.nadam(1e-2), partial(Adam, lr=1e-2), "Nesterov's momentum"),
    "sgd's decay": (
        optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.01), optax.scale(-0.1)),
        partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
        "the weight decay is not part of the momentum in JAX",
    ),
    "rmsprop's beginning": (
        optax.rmsprop(1e-2, 0.99, eps_in_sqrt=False, initial_scale=1.0),
        partial(RMSprop, lr=1e-2),
        "the mean of squares begins with 1 in JAX",
    ),
    "rate": (optax.sgd(0.2), partial(SGD, lr=0.1), "is 0.2, 0.2, 0.2, 0.2 in JAX and 0.1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_difference_of_convention_is_named(name: str):
    optimizer, make, words = WRONG[name]
    training = trained(optimizer, make)
    assert not training.agrees and not training.gradient
    assert words in " ".join(training.why), str(training)


def test_a_schedule_that_is_counted_from_one():
    def halves(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    make = partial(SGD, lr=0.1)
    right = optax.sgd(optax.exponential_decay(0.1, 1, 0.5))
    assert trained(right, make, torch_scheduler=halves).agrees
    ahead = optax.sgd(lambda count: 0.1 * 0.5 ** (count + 1))
    training = trained(ahead, make, torch_scheduler=halves)
    assert (training.first == 0 and "0.05, 0.025" in training.why[0]) or "counted from 1" in training.why[0]


def test_clipping_by_the_global_norm_has_an_epsilon_in_torch():
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1))
    training = trained(optimizer, partial(SGD, lr=0.1), clip=0.1)
    assert "without torch's epsilon" in training.why[0]


def halved(module, x, y):
    return module(x, y) / 2


def test_gradients_of_several_batches_are_averaged_by_optax_and_added_up_by_torch():
    averaged = optax.MultiSteps(optax.adamw(1e-2, weight_decay=0.01), 2)
    with jax.enable_x64(True):
        sgd = optax.MultiSteps(optax.sgd(0.1), 2, accumulator_dtype="float64")
    mapping = port.match(PARAMS, Net(), *BATCHES[0], fn=loss)
    training = trained(averaged, decayed, torch_loss=halved, mapping=mapping, accumulate=2)
    assert training.agrees and "accumulated in float32" in training.why[0]
    training = trained(sgd, partial(SGD, lr=0.1), torch_loss=halved, mapping=mapping, accumulate=2)
    assert training.agrees and not training.why
    training = trained(sgd, partial(SGD, lr=0.1), accumulate=2)
    assert training.why == ("the gradients of 2 batches are averaged in JAX and added up in torch",), str(training)
    added = optax.MultiSteps(optax.sgd(0.1), 2, use_grad_mean=False)
    assert trained(added, partial(SGD, lr=0.1), accumulate=2).agrees
    training = trained(added, partial(SGD, lr=0.1), torch_loss=halved, mapping=mapping, accumulate=2)
    assert "added up in JAX and averaged in torch" in " ".join(training.why), str(training)
    with pytest.raises(JaxgradError, match="accumulate is 3"):
        trained(sgd, partial(SGD, lr=0.1), accumulate=3)


def test_a_gradient_that_differs_is_not_the_optimizers_fault():
    training = port.train(
        lambda p, x, y: 2 * loss(p, x, y),
        PARAMS,
        optax.sgd(0.1),
        BATCHES,
        torch=Net(),
        torch_optimizer=partial(SGD, lr=0.1),
        mapping=port.match(PARAMS, Net(), *BATCHES[0], fn=loss),
    )
    assert training.gradient and "compare the two programs first" in str(training)


def test_no_batches_and_no_mapping_are_errors():
    with pytest.raises(JaxgradError, match="at least one batch"):
        port.train(loss, PARAMS, optax.sgd(0.1), [], torch=Net(), torch_optimizer=partial(SGD, lr=0.1))
    with pytest.raises(JaxgradError, match="needs a mapping"):
        trained(optax.sgd(0.1), partial(SGD, lr=0.1), torch_loss=lambda m, x, y: m(x, y))
