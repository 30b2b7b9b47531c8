"""Every value of a program is recorded, with the line that made it, inside of whatever holds it."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxgrad.port import fingerprint, jax_values, locate, torch_values
from jaxgrad.port.fingerprint import EXACT, SCATTERED, SWAPPED, TRANSPOSED, close, layout, moved, sketch
from jaxgrad.port.values import Values


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


def chain(x):
    for _ in range(40):
        x = jnp.tanh(x * 1.5) + 0.1 * x.T
    return x


def in_memory(recorded: jax_values.Recorded) -> int:
    """The bytes of all arrays that a run holds."""
    values = [*recorded.values.kept.values(), *recorded.values.recent.values()]
    held = [v.held for v in recorded.trace.values]
    arrays = [np.asarray(x) for x in (*values, *held) if not isinstance(x, fingerprint.Sketch)]
    owners = {id(x if x.base is None else x.base): x.nbytes for x in arrays}
    return sum(owners.values())


def test_a_run_that_is_too_large_is_let_go_and_computed_again(monkeypatch):
    x = np.random.default_rng(0).standard_normal((64, 64))
    whole = jax_values.record(chain, [x], 0)
    monkeypatch.setattr(Values, "most", 8 * x.nbytes)
    parts = jax_values.record(chain, [x], 0)
    assert in_memory(whole) > 150 * x.nbytes and in_memory(parts) < 30 * x.nbytes
    assert len(parts.cuts) > 5 and parts.program.outputs == whole.program.outputs
    for n in (150, 20, 160, 21):
        assert isinstance(parts.trace.values[n].held, fingerprint.Sketch | np.ndarray)
        assert np.array_equal(parts.trace.values[n].array, whole.trace.values[n].array)
    assert in_memory(parts) < 40 * x.nbytes, "what was computed again is let go again"


def test_a_reshape_in_another_order_is_one(monkeypatch):
    """So JAX reshapes with order "F", and so it derives a convolution of groups."""

    def fn(x):
        return jnp.reshape(jnp.sin(x), (6, 20), order="F")

    x = np.random.default_rng(0).standard_normal((2, 3, 20))
    expected = np.reshape(np.sin(x), (6, 20), order="F")
    closed = jax.make_jaxpr(fn)(x)
    assert np.allclose(jax_values.evaluate(closed, [x])[0], expected, rtol=1e-6)
    for most in (Values.most, 0):
        monkeypatch.setattr(Values, "most", most)
        monkeypatch.setattr(Values, "few", 0)
        recorded = jax_values.record(fn, [x], 0)
        found = recorded.trace.values[recorded.program.outputs[0]].held
        assert fingerprint.same(found, expected, 1e-12) and not fingerprint.same(found, np.sin(x).ravel(), 1e-12)


def test_a_torch_run_that_is_too_large_is_let_go_and_computed_again(monkeypatch):
    module, x = Two(), np.random.default_rng(0).standard_normal((2, 4))
    whole = torch_values.record(module, [x])
    monkeypatch.setattr(Values, "most", 100)
    monkeypatch.setattr(Values, "few", 0)
    parts = torch_values.record(module, [x])
    assert whole.whole and not parts.whole
    for n, (a, b) in enumerate(zip(whole.trace.values, parts.trace.values, strict=True)):
        kept = a.place.op in ("input", "parameter") or a.moved or n in parts.trace.outputs
        assert kept or isinstance(b.held, fingerprint.Sketch)
        assert np.array_equal(a.array, b.array)
    dys = [np.ones((2, 3))]
    of_whole, of_parts = torch_values.cotangents(whole, dys), torch_values.cotangents(parts, dys)
    assert of_whole.keys() == of_parts.keys()
    assert all(fingerprint.same(of_whole[n], of_parts[n], 1e-14) for n in of_whole)


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
    assert np.allclose(fingerprint.fingerprint(x)[:5], fingerprint.fingerprint(padded)[:5], rtol=1e-13)
    assert not close(x, x * (1 + 1e-10)) and close(x, x * (1 + 1e-13))
    masked = np.where(x > 1, -1e9, x)
    assert not close(masked, np.where(x > 1, -1e9, x + 1e-9)), "what stands for infinity does not set the scale"


def test_a_sketch_tells_the_layout_and_small_differences():
    x = np.random.default_rng(0).standard_normal((20, 6, 30))
    for y in (x.reshape(120, 30), x.transpose(1, 0, 2).reshape(6, 600), np.swapaxes(x[:6], 0, 1).copy()):
        a = x if y.size == x.size else x[:6]
        exact = layout(a, y)
        assert layout(sketch(a), y) == layout(a, sketch(y)) == exact
    assert layout(x, sketch(x + 1e-9)) is None and layout(sketch(x), sketch(x * (1 + 1e-13))).kind == EXACT
    off = x + 1e-3 * np.random.default_rng(1).standard_normal(x.shape)
    assert np.isclose(locate.relative(sketch(off), x), 1e-3, rtol=0.3)
