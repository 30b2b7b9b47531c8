"""Every value of a program is recorded, with the line that made it, inside of whatever holds it."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxgrad.port import jax_values, torch_values
from jaxgrad.port.fingerprint import EXACT, SCATTERED, SWAPPED, TRANSPOSED, close, fingerprint, layout, moved


def ops(recorded: jax_values.Recorded) -> list[tuple[str, str]]:
    return [(v.place.op, v.place.line.text) for v in recorded.trace.values if v.varies and v.place.lines]


def inside(x):
    def step(carry, row):
        return carry * row, jnp.sin(carry)  # in the scan

    last, rows = jax.lax.scan(step, x[0], x)
    y = jax.jit(lambda z: jnp.cos(z))(last)  # in jit
    y = jax.checkpoint(lambda z: jnp.exp(z))(y)  # in remat
    y = jax.lax.while_loop(lambda z: z < 30, lambda z: z * 3, y)  # in while
    return jax.lax.cond(y > 0, lambda z: jnp.log1p(z), jnp.tanh, y) + rows.sum()  # in cond


def test_values_inside_of_loops_branches_and_calls_have_their_lines():
    recorded = jax_values.record(inside, [jnp.array([1.5, 2.0, 0.5])], 0)
    found = ops(recorded)
    for op, mark in (("sin", "scan"), ("cos", "in jit"), ("exp", "remat"), ("mul", "in while"), ("log1p", "in cond")):
        assert any(o == op and mark in text for o, text in found), op
    assert sum(op == "sin" for op, _ in found) == 3, "each turn of a scan is recorded"
    assert not any(op == "tanh" for op, _ in found), "only the branch that is taken is"
    with jax.enable_x64(True):
        expected = inside(jnp.array([1.5, 2.0, 0.5], jnp.float64))
    assert np.isclose(recorded.trace.values[recorded.program.outputs[0]].array, expected, rtol=1e-14)


def test_a_function_that_is_called_twice_has_both_lines():
    def fn(x):
        a = jax.nn.gelu(x)  # first
        return jax.nn.gelu(a + 1)  # second

    lines = [text for op, text in ops(jax_values.record(fn, [jnp.ones(3)], 0)) if op == "tanh"]
    assert "# first" in lines[0] and "# second" in lines[1]


def test_what_is_computed_in_the_type_of_use_is_computed_in_float64():
    def fn(x):
        return (x.astype(jnp.float32) * np.float32(0.1)).astype(x.dtype) + jnp.arange(3, dtype=jnp.float32)

    x = np.array([1 / 3, 2 / 3, 1 / 7])
    recorded = jax_values.record(fn, [x], 0)
    assert np.allclose(recorded.trace.values[recorded.program.outputs[0]].array, x * 0.1 + np.arange(3), rtol=1e-15)
    narrow = jax_values.record(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), [x], 0)
    assert abs(narrow.trace.values[narrow.program.outputs[0]].array - x).max() > 1e-4


def test_a_run_can_be_repeated_with_a_value_changed():
    recorded = jax_values.record(lambda x: jnp.exp(x * 2.0) + 1, [np.ones(3)], 0)
    two = next(n for n, x in recorded.program.constants.items() if float(x) == 2)
    with jax_values.float64():
        changed = dict(jax_values.run_again(recorded.program, recorded.values, {two: np.float64(3)}))
    assert np.allclose(changed[recorded.program.outputs[0]], np.exp(3) + 1)


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = torch.nn.LayerNorm(4), torch.nn.Linear(4, 3)

    def forward(self, x):
        y = self.norm(x)  # the norm
        return torch.softmax(self.head(y) + self.head(-y), -1)  # the head


def test_torch_values_have_modules_calls_lines_and_steps():
    module = Two()
    run = torch_values.record(module, [np.random.default_rng(0).standard_normal((2, 4))])
    told = [(v.place.op, v.place.module, v.place.line.text if v.place.line else "") for v in run.trace.values]
    assert any(op == "native_layer_norm: variance" and m == "norm" and "the norm" in line for op, m, line in told)
    assert any(op == "addmm: product" and m == "head" for op, m, _ in told)
    assert any(op == "addmm" and m == "head#2" and "the head" in line for op, m, line in told)
    assert any(op == "_softmax: exp" for op, _, _ in told)
    assert module.norm.weight.dtype == torch.float32, "the user's module does not change"
    outputs = [run.trace.values[n].array for n in run.trace.outputs]
    assert outputs[0].shape == (2, 3) and np.allclose(outputs[0].sum(-1), 1, rtol=1e-14)


def test_layouts():
    x = np.random.default_rng(0).standard_normal((2, 3, 5))
    for y, kind in (
        (x.reshape(6, 5), EXACT),
        (x.transpose(1, 0, 2).reshape(3, 10), TRANSPOSED),
        (x.ravel()[::-1].reshape(2, 3, 5), SCATTERED),
    ):
        how = layout(x, y)
        if kind == SCATTERED:
            assert how is None
        else:
            assert how.kind == kind
            assert np.array_equal(moved(x, how, y.shape), y) and np.array_equal(moved(y, how, x.shape, back=True), x)
    square = x[:, :, :3]
    assert layout(square, square.transpose(0, 2, 1)).kind == SWAPPED


def test_fingerprints_do_not_see_order_or_padding_and_see_small_differences():
    x = np.random.default_rng(0).standard_normal((4, 5))
    padded = np.pad(x, ((0, 1), (0, 2)))
    assert np.allclose(fingerprint(x)[:5], fingerprint(padded)[:5], rtol=1e-13)
    assert not close(x, x * (1 + 1e-10)) and close(x, x * (1 + 1e-13))
    masked = np.where(x > 1, -1e9, x)
    assert not close(masked, np.where(x > 1, -1e9, x + 1e-9)), "what stands for infinity does not set the scale"
