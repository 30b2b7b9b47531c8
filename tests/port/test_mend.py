"""What would mend a port, kind by kind: each a small function, its module, and the mistake's line and its words."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxgrad import port
from jaxgrad.cli.port import module_named
from jaxgrad.errors import JaxgradError
from jaxgrad.port import mend

from .mistakes import shape


class Gates(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 12)

    def forward(self, x: Any) -> Any:
        a, b, c = self.fc(x).chunk(3, -1)
        return torch.tanh(a) * torch.sigmoid(b) + c


def gates(p: Any, x: Any, bug: str) -> Any:
    h = x @ p["kernel"] + p["bias"]
    b, a, c = jnp.split(h, 3, -1) if bug == "gates in another order" else [h[:, n : n + 4] for n in (4, 0, 8)]
    return jnp.tanh(a) * jax.nn.sigmoid(b) + c


class Heads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(6, 24)

    def forward(self, x: Any) -> Any:
        q, k, v = self.qkv(x).view(2, 5, 2, 12).transpose(1, 2).chunk(3, -1)
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def heads(p: Any, x: Any, bug: str) -> Any:
    h = x @ p["kernel"] + p["bias"]
    if bug == "parts before heads":
        parts = jnp.split(h, 3, -1)  # parts before heads
        q, k, v = (part.reshape(2, 5, 2, 4).swapaxes(1, 2) for part in parts)
    else:
        q, k, v = jnp.split(h.reshape(2, 5, 2, 12).swapaxes(1, 2), 3, -1)
    return jax.nn.softmax(q @ k.swapaxes(-1, -2), -1) @ v


class Grouped(torch.nn.Module):
    def forward(self, q: Any, k: Any) -> Any:
        return torch.tanh((q @ k.repeat_interleave(2, 1).transpose(-1, -2)).softmax(-1))


def grouped(p: Any, q: Any, k: Any, bug: str) -> Any:
    k = jnp.tile(k, (1, 2, 1, 1)) if bug == "heads tiled" else jnp.repeat(k, 2, 1)
    return jnp.tanh(jax.nn.softmax(q @ k.swapaxes(-1, -2), -1))


class Joined(torch.nn.Module):
    def forward(self, x: Any, y: Any) -> Any:
        return torch.tanh(torch.cat([x, y], -1).cumsum(-1)) ** 2


def joined(p: Any, x: Any, y: Any, bug: str) -> Any:
    both = jnp.concatenate([y, x] if bug == "joined the other way" else [x, y], -1)
    return jnp.tanh(jnp.cumsum(both, -1)) ** (3 if bug == "power" else 2)


class Up(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.ConvTranspose1d(4, 3, 4, 2, 1)

    def forward(self, x: Any) -> Any:
        return torch.tanh(F.leaky_relu(self.up(x), 0.2))


def up(p: Any, x: Any, bug: str) -> Any:
    pad = (1, 1) if bug == "transposed padding" else (2, 2)
    numbers = ("NCH", "HIO", "NCH")
    y = jax.lax.conv_general_dilated(x, p["k"], (1,), [pad], (2,), dimension_numbers=numbers)  # transposed padding
    return jnp.tanh(jax.nn.leaky_relu(y + p["b"][:, None], 0.2))


class Ignoring(torch.nn.Module):
    def forward(self, x: Any, y: Any) -> Any:
        return F.cross_entropy(x, y, ignore_index=-1)


def ignoring(p: Any, x: Any, y: Any, bug: str) -> Any:
    kept = y != -1
    picked = jnp.take_along_axis(jax.nn.log_softmax(x), jnp.where(kept, y, 0)[:, None], 1)[:, 0] * kept
    return -picked.sum() / (len(y) if bug == "mean over all" else kept.sum())


class Cell(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        h = torch.zeros(2, 3)
        for row in x:
            h = torch.sigmoid(row) * h + torch.tanh(row)
        return h


def cell(p: Any, x: Any, bug: str) -> Any:
    def step(h: Any, row: Any) -> Any:
        gate = jax.nn.sigmoid(row + (1.0 if bug == "bias of the gate" else 0.0))
        return gate * h + jnp.tanh(row), None

    return jax.lax.scan(step, jnp.zeros((2, 3)), x)[0]


def linear() -> Any:
    return Standard(4, 3)


class Standard(torch.nn.Linear):
    def forward(self, x: Any) -> Any:
        w = self.weight / self.weight.std(1, keepdim=True)
        return torch.tanh(F.linear(x, w, self.bias))


def standard(p: Any, x: Any, bug: str) -> Any:
    w = p["kernel"] / p["kernel"].std(0, ddof=0 if bug == "biased deviation" else 1)
    return jnp.tanh(x @ w + p["bias"])


DENSE = {"kernel": shape(4, 12), "bias": shape(12)}
WEIGHTS = {"kernel": shape(4, 3), "bias": shape(3)}
KINDS = [
    (gates, DENSE, Gates, (shape(5, 4),), "gates in another order", "the parts of split in the order 2, 1, 3"),
    (heads, {"kernel": shape(6, 24), "bias": shape(24)}, Heads, (shape(2, 5, 6),), "parts before heads", "2 heads"),
    (grouped, {}, Grouped, (shape(2, 4, 5, 3), shape(2, 2, 5, 3)), "heads tiled", "repeated one by one"),
    (joined, {}, Joined, (shape(2, 3), shape(2, 3)), "joined the other way", "concatenate in the order 2, 1"),
    (joined, {}, Joined, (shape(2, 3), shape(2, 3)), "power", "square"),
    (up, {"k": shape(4, 4, 3), "b": shape(3)}, Up, (shape(2, 4, 5),), "transposed padding", "padding [(2, 2)]"),
    (ignoring, {}, Ignoring, (shape(4, 3), np.array([0, -1, 2, 1])), "mean over all", "4 should be 3"),
    (cell, {}, Cell, (shape(4, 2, 3),), "bias of the gate", "1 should be 0"),
    (standard, WEIGHTS, linear, (shape(5, 4),), "biased deviation", "0 should be 1"),
]  # fmt: skip


@pytest.mark.parametrize(("fn", "params", "module", "inputs", "bug", "words"), KINDS, ids=[each[4] for each in KINDS])
def test_a_mistake_is_mended_at_its_line_and_a_right_port_is_left(fn, params, module, inputs, bug, words):
    right = port.compare(lambda *args: fn(*args, ""), params, *inputs, torch=module())
    assert right.agrees and not right.mends, str(right)
    wrong = port.compare(lambda *args: fn(*args, bug), params, *inputs, torch=module())
    assert bug in wrong.jax.line.text, str(wrong)
    assert words in " | ".join(mend.words for mend in wrong.mends), str(wrong)


def test_a_kind_that_raises_or_is_one_more_row_leaves_the_others_as_they_are(monkeypatch):
    def raising(r):
        yield mend.Change(r.parted.own.trace.values[-1].place, "nothing", {}, {})
        raise ValueError("of shapes that it does not know")

    monkeypatch.setattr(mend, "KINDS", [raising, *mend.KINDS])
    verdict = port.compare(lambda p, x: jnp.tanh(2 * x), {}, shape(3, 4), torch=lambda x: torch.tanh(3 * x))
    assert [each.words for each in verdict.mends] == ["2 should be 3"], str(verdict)


def test_that_a_value_should_be_the_others_is_no_explanation():
    fn = lambda p, x: jnp.tanh(jnp.cos(x) * jnp.exp(0.3 * jnp.sin(x))) + x  # noqa: E731
    verdict = port.compare(fn, {}, shape(3, 4), torch=lambda x: torch.tanh(torch.atan(x) * x**2 * 0.7) + x)
    assert not verdict.agrees and not verdict.mends and "no known change explains it" in str(verdict)


class Detached(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        y = torch.tanh(x)
        return (y * torch.sin(y.detach())).exp()


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda y: y, "should be stopped"),
        (lambda y: jax.lax.stop_gradient(y), None),
        (lambda y: jax.lax.stop_gradient(jax.lax.stop_gradient(y) * 1.0), None),
    ],
)
def test_where_a_gradient_should_be_stopped_is_told(use, words):
    def fn(p, x):
        y = jnp.tanh(x)
        z = jnp.sin(use(y))  # the use
        return jnp.exp(y * z)

    verdict = port.compare(fn, {}, shape(3), torch=Detached())
    assert verdict.agrees == (words is None), str(verdict)
    if words:
        assert words in verdict.mends[0].words and "# the use" in verdict.jax.line.text, str(verdict)
        assert "the gradients then agree to" in str(verdict)


def test_a_stop_that_should_not_be_and_a_rule_that_is_no_derivative_are_told():
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, dy: (3 * dy,))
    theirs = lambda x: (2 * torch.tanh(x)).exp()  # noqa: E731
    module = type("Double", (torch.nn.Module,), {"forward": lambda self, x: theirs(x)})()
    verdict = port.compare(lambda p, x: jnp.exp(double(jnp.tanh(x))), {}, shape(3), torch=module)
    assert verdict.mends[0].words == "the rule should be the derivative of what is computed"
    halved = lambda p, x: jnp.exp(jnp.tanh(x) + jax.lax.stop_gradient(jnp.tanh(x)))  # noqa: E731
    verdict = port.compare(halved, {}, shape(3), torch=module)
    assert verdict.mends[0].words == "the gradient should not be stopped" and verdict.jax.op == "stop_gradient"


def test_the_line_that_called_a_helper_is_told():
    def norm(x, epsilon):
        return (x - x.mean()) / jnp.sqrt(x.var() + epsilon)

    def fn(p, x):
        return jnp.tanh(norm(x, 1e-3))  # the call

    class Norm(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.tanh((x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5))

    verdict = port.compare(fn, {}, shape(5), torch=Norm())
    assert "jnp.sqrt" in verdict.jax.line.text and "# the call" in verdict.jax.caller.text
    assert "called at" in str(verdict) and "# the call" in verdict.as_json()["jax"]["called_at"]["text"]


def test_numbers_drawn_in_the_function_have_no_gradient_to_compare():
    def fn(p, x):
        return x @ p["w"] + 0.0 * jax.random.truncated_normal(jax.random.key(0), -2, 2, (3,), x.dtype)

    assert port.compare(fn, {"w": shape(4, 3)}, shape(2, 4), torch=torch.nn.Linear(4, 3, bias=False)).agrees


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_module_with_weights_that_a_hook_computes_is_copied():
    params = {"g": shape(3, 1), "v": shape(3, 4), "b": shape(3)}

    def fn(p, x):
        return x @ (p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=1, keepdims=True)).T + p["b"]

    assert port.compare(fn, params, shape(2, 4), torch=torch.nn.utils.weight_norm(torch.nn.Linear(4, 3))).agrees


def test_what_the_only_device_of_a_mesh_does_is_looked_into():
    spec = jax.sharding.PartitionSpec
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))

    def fn(p, x, factor):
        def shard(x):
            h = jax.lax.psum(jnp.tanh(x * factor), "d")  # the factor
            return jnp.exp(jax.lax.all_gather(h, "d", tiled=True) + jax.lax.axis_index("d"))

        return jax.shard_map(shard, mesh=mesh, in_specs=spec("d"), out_specs=spec("d"), check_vma=False)(x)

    theirs = lambda x: torch.tanh(x * 2).exp()  # noqa: E731
    assert port.compare(lambda p, x: fn(p, x, 2.0), {}, shape(2, 3), torch=theirs).agrees
    verdict = port.compare(lambda p, x: fn(p, x, 3.0), {}, shape(2, 3), torch=theirs)
    assert "# the factor" in verdict.jax.line.text and verdict.mends[0].words == "3 should be 2", str(verdict)


def test_a_constant_is_blamed_where_it_begins_to_be_another():
    def fn(p, x):
        angles = jnp.outer(jnp.arange(3), 100.0 ** -jnp.array([0.0, 0.5]))
        both = jnp.repeat(angles, 2, 1)  # one by one
        turn = jnp.cos(both)
        return jnp.tanh(x * turn)

    class Module(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            angles = torch.outer(torch.arange(3.0), 100.0 ** -torch.tensor([0.0, 0.5]))
            return torch.tanh(x * torch.cat([angles, angles], 1).cos())

    verdict = port.compare(fn, {}, shape(2, 3, 4), torch=Module())
    assert "# one by one" in verdict.jax.line.text, str(verdict)


def test_a_function_that_raises_is_an_error_with_its_line():
    def fn(p, x):
        return x @ p["w"]  # of another shape

    with pytest.raises(JaxgradError, match=r"the JAX function raised TypeError: .*# of another shape"):
        port.compare(fn, {"w": shape(5, 3)}, shape(2, 4), torch=torch.nn.Linear(4, 3))


def test_what_makes_a_module_for_the_command_line_may_raise(tmp_path):
    file = tmp_path / "reference.py"
    file.write_text("def make():\n    raise RuntimeError('no weights')\n")
    with pytest.raises(JaxgradError, match="called without arguments, raised RuntimeError: no weights"):
        module_named(f"{file}:make")
