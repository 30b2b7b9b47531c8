"""Tables that a port computes in NumPy while it is traced are values with a line, and are left as they are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad import port
from jaxgrad.port import jax_values, numpy_values

from .mistakes import shape

T, C, WINDOW = 5, 8, 3


class Rotary(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        frequencies = 1 / 10000 ** (torch.arange(0, C, 2).double() / C)
        angles = torch.outer(torch.arange(T).double(), frequencies)
        self.register_buffer("angles", torch.cat([angles, angles], -1), persistent=False)

    def forward(self, x: Any) -> Any:
        a, b = x.chunk(2, -1)
        return torch.tanh(x * self.angles.cos() + torch.cat([-b, a], -1) * self.angles.sin())


def rotary(p: Any, x: Any, bug: str) -> Any:
    exponent = np.arange(0, C, 2) / (C + 1 if bug == "width" else C)  # width
    frequencies = 1 / (500 if bug == "base" else 10000) ** exponent  # base
    places = np.arange(1, T + 1) if bug == "begins at one" else np.arange(T)  # begins at one
    angles = np.outer(places, frequencies)
    both = np.repeat(angles, 2, -1) if bug == "one by one" else np.concatenate([angles, angles], -1)  # one by one
    a, b = jnp.split(x, 2, -1)
    return jnp.tanh(x * jnp.asarray(np.cos(both)) + jnp.concatenate([-b, a], -1) * np.sin(both))


class Windows(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        keep = torch.ones(T, T).tril().triu(1 - WINDOW)
        return (x @ x.mT).masked_fill(keep == 0, -1e9).softmax(-1) @ x


def windows(p: Any, x: Any, bug: str) -> Any:
    keep = np.zeros((T, T), bool)
    for row in range(T):
        keep[row, max(0, row - WINDOW + (0 if bug == "a window too wide" else 1)) : row + 1] = True  # a window too wide
    return jax.nn.softmax(jnp.where(keep, x @ x.swapaxes(-1, -2), -1e9), -1) @ x


class Biased(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(2 * T - 1))
        index = torch.arange(T)[:, None] - torch.arange(T)[None] + T - 1
        self.register_buffer("index", index)

    def forward(self, x: Any) -> Any:
        return torch.tanh(x + self.table[self.index])


def biased(p: Any, x: Any, bug: str) -> Any:
    rows, columns = np.meshgrid(np.arange(T), np.arange(T), indexing="ij")
    relative = columns - rows if bug == "the other way" else rows - columns  # the other way
    relative += T - 1
    return jnp.tanh(x + p["table"][relative])


PORTS = {
    "rotary": (rotary, {}, Rotary, (shape(2, T, C),)),
    "windows": (windows, {}, Windows, (shape(2, T, C),)),
    "biased": (biased, {"table": shape(2 * T - 1)}, Biased, (shape(2, T, T),)),
}
MISTAKES = [
    ("rotary", "base", "500 should be 10000"),
    ("rotary", "width", "9 should be 8"),
    ("rotary", "begins at one", "each number of arange should be 1 less"),
    ("rotary", "one by one", "repeated all in turn"),
    ("windows", "a window too wide", ""),
    ("biased", "the other way", "swapped"),
]


@pytest.mark.parametrize("name", PORTS)
def test_a_right_table_is_left(name):
    fn, params, module, inputs = PORTS[name]
    verdict = port.compare(lambda *args: fn(*args, ""), params, *inputs, torch=module())
    assert verdict.agrees and not verdict.mends, str(verdict)


@pytest.mark.parametrize(("name", "bug", "words"), MISTAKES, ids=[each[1] for each in MISTAKES])
def test_a_wrong_table_is_told_where_it_begins_to_be_wrong(name, bug, words):
    fn, params, module, inputs = PORTS[name]
    verdict = port.compare(lambda *args: fn(*args, bug), params, *inputs, torch=module())
    assert bug in verdict.jax.line.text, str(verdict)
    assert words in " | ".join(mend.words for mend in verdict.mends), str(verdict)


def test_what_is_recorded_is_what_numpy_computes():
    def table() -> np.ndarray:
        x = np.arange(6.0).reshape(2, 3)
        x[0] = np.linspace(0, 1, 3)
        x[:, 1:] *= 2
        view = x[1]
        view += 1
        parts = np.split(np.sort(x, -1).T.astype(np.float32), 3)
        joined = np.concatenate([*parts, np.stack(parts)[:, 0]]) + np.maximum(x.sum(), [1, 2])
        return (joined.round(3).real + np.exp(joined).dot(np.eye(2))) * 2

    expected = table()
    with numpy_values.recording() as calls:
        actual = table()
    assert type(np.arange(2)) is np.ndarray, "NumPy is NumPy again"
    assert np.array_equal(actual, expected)
    call = calls.made(np.asarray(actual))
    assert call is not None and calls[call].name == "mul"
    assert {"sort", "slice", "set", "linspace"} <= {each.name for each in calls}


def test_a_function_that_does_not_take_such_arrays_is_traced_as_it_is():
    def fn(x):
        table = np.arange(3.0)
        if type(table) is not np.ndarray:
            raise TypeError("only NumPy's own")
        return x * table

    recorded = jax_values.record(fn, [jnp.ones(3)], 0)
    assert np.array_equal(recorded.trace.values[recorded.trace.outputs[0]].array, [0, 1, 2])


def test_a_table_that_is_kept_goes_on_as_an_array():
    kept: list[np.ndarray] = []

    def fn(x):
        kept.append(np.arange(3.0))
        return x * kept[0]

    jax_values.record(fn, [jnp.ones(3)], 0)
    again = kept[0] * 2 + np.ones(3)
    assert type(again) is np.ndarray and again.tolist() == [1, 3, 5]
