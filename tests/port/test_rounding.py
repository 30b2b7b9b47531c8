"""What is within rounding agrees, however large that is; what is above it is found, however small."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad import port
from jaxgrad.port import jax_values, rounding

RNG = np.random.default_rng(0)
X, LONG = RNG.standard_normal((16, 40)), RNG.standard_normal((3, 100_000))
W = RNG.standard_normal((8, 8)) / 8**0.5


class Module(torch.nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


def compared(fn, other, x) -> port.Verdict:
    return port.compare(lambda p, x: fn(x), {}, x, torch=Module(other))


def repeated(step, times):
    def run(x):
        for _ in range(times):
            x = step(x)
        return x

    return run


def by_moments(y):
    return (y * y).mean(-1) - y.mean(-1) ** 2


# What it is, in JAX, in torch, and at which input.
STEEP = {
    "JAX's variance cancels": (lambda x: by_moments(x + 1e3), lambda x: (x + 1e3).var(-1, unbiased=False), X),
    "torch's variance cancels": (lambda x: jnp.var(x + 1e3, -1), lambda x: by_moments(x + 1e3), X),
    "large exponents": (lambda x: jnp.exp(jnp.exp(x) * 5), lambda x: torch.exp(torch.exp(x) * 5), X),
    "a long sum that cancels": (lambda x: (x * x - 1).sum(-1), lambda x: (x**2).sum(-1) - x.shape[-1], LONG),
    "a deep net": (
        repeated(lambda x: jnp.tanh(1.8 * x @ W), 60),
        repeated(lambda x: torch.tanh(1.8 * (x @ torch.tensor(W))), 60),
        X[:4, :8],
    ),
    "a chaotic map": (
        repeated(lambda x: 3.9 * x * (1 - x), 30),
        repeated(lambda x: 3.9 * (x - x * x), 30),
        RNG.uniform(0.1, 0.9, (4, 8)),
    ),
}


@pytest.mark.parametrize("name", STEEP)
def test_a_right_port_of_a_steep_function_agrees(name: str):
    verdict = compared(*STEEP[name])
    assert verdict.agrees and not verdict.mends, str(verdict)


def test_the_weights_of_a_steep_function_are_proved():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(16))

        def forward(self, x):
            return self.gain * (x + 1e3).var(-1, unbiased=False)

    params = {"gain": jnp.ones(16)}
    verdict = port.compare(lambda p, x: p["gain"] * by_moments(x + 1e3), params, X, torch=Scaled())
    assert verdict.agrees and all(entry.proved for entry in verdict.mapping.entries), str(verdict)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_an_epsilon_is_seen_however_large_the_values_are(scale: float):
    def normalised(x):
        y = scale * x
        return (y - y.mean(-1, keepdims=True)) / jnp.sqrt(jnp.var(y, -1, keepdims=True) + 1e-6)  # epsilon

    verdict = compared(normalised, lambda x: torch.nn.functional.layer_norm(scale * x, (40,), eps=1e-5), X)
    assert not verdict.agrees and "# epsilon" in verdict.jax.line.text
    assert "1e-06 should be 1e-05" in [mend.words for mend in verdict.mends], str(verdict)


def test_a_small_difference_behind_rounding_that_is_large_is_seen():
    fn, other, x = STEEP["JAX's variance cancels"]
    assert not compared(lambda x: fn(x) + 1e-6, other, x).agrees
    fn, other, x = STEEP["a long sum that cancels"]
    assert not compared(lambda x: fn(x) + 1e-6, other, x).agrees


def test_measured_rounding_is_that_of_what_cancels():
    recorded = jax_values.record(lambda x: (x + 1e6) - 1e6, [X], 0)
    noise = rounding.noise_of(recorded)
    (out,) = recorded.program.outputs
    actual = np.abs(recorded.trace.values[out].array - X).max() / np.abs(X).max()
    assert actual / 10 < noise[out] < 30 * actual and max(noise[n] for n in noise if n != out) < 1e-15
