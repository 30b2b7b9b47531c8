"""Names are guessed by the conventions of Flax, Equinox and plain dicts, and nothing is ever left over in silence."""

import numpy as np
import pytest

from jaxgrad.checking.oracles.align import Match, align
from jaxgrad.errors import JaxgradError


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape)


def named(matches: list[Match]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {m.path: (m.torch_name, m.axes) for m in matches}


def test_flax_kernels_are_transposed_and_modules_matched_in_their_natural_order():
    params = {
        "params": {
            f"Dense_{i}": {"kernel": zeros(4, 5) if i == 0 else zeros(5, 5), "bias": zeros(5)} for i in range(11)
        }
    }
    torch_shapes = {}
    for i in range(11):
        torch_shapes |= {f"net.{2 * i}.weight": (5, 4) if i == 0 else (5, 5), f"net.{2 * i}.bias": (5,)}
    found = named(align(params, torch_shapes))
    assert found["['params']['Dense_0']['kernel']"] == ("net.0.weight", (1, 0))
    for i in range(11):
        assert found[f"['params']['Dense_{i}']['kernel']"] == (f"net.{2 * i}.weight", (1, 0))
        assert found[f"['params']['Dense_{i}']['bias']"] == (f"net.{2 * i}.bias", (0,))


def test_equinox_weights_keep_their_layout():
    params = {"layers": [{"weight": zeros(5, 5), "bias": zeros(5)}]}
    found = named(align(params, {"0.weight": (5, 5), "0.bias": (5,)}))
    assert found["['layers'][0]['weight']"] == ("0.weight", (0, 1))


def test_plain_dicts_with_numbered_letters_are_weights_and_biases():
    params = {"W1": zeros(3, 7), "W2": zeros(7, 2), "b1": zeros(7), "b2": zeros(2)}
    torch_shapes = {"hidden.weight": (7, 3), "hidden.bias": (7,), "out.weight": (2, 7), "out.bias": (2,)}
    found = named(align(params, torch_shapes))
    assert found["['W1']"] == ("hidden.weight", (1, 0)) and found["['b2']"] == ("out.bias", (0,))


def test_names_of_norms_and_embeddings_are_known():
    params = {"norm": {"scale": zeros(5), "bias": zeros(5)}, "embed": {"embedding": zeros(9, 5)}}
    torch_shapes = {"norm.weight": (5,), "norm.bias": (5,), "embed.weight": (9, 5)}
    found = named(align(params, torch_shapes))
    assert found["['norm']['scale']"][0] == "norm.weight" and found["['embed']['embedding']"][0] == "embed.weight"


def test_convolution_kernels_go_from_hwio_to_oihw():
    found = named(align({"kernel": zeros(3, 3, 2, 8)}, {"weight": (8, 2, 3, 3)}))
    assert found == {"['kernel']": ("weight", (3, 2, 0, 1))}


@pytest.mark.parametrize("length, direction", [("weight_g", "weight_v"), ("original0", "original1")])
def test_parts_of_a_reparametrised_weight_are_its_modules(length: str, direction: str):
    """`b` of a square weight has as many numbers as its length."""
    below = "" if length == "weight_g" else "parametrizations.weight."
    torch_shapes = {}
    for module in ("up", "down"):
        torch_shapes |= {f"{module}.{below}{length}": (5, 1), f"{module}.{below}{direction}": (5, 5)}
        torch_shapes[f"{module}.bias"] = (5,)
    layer = {"v": zeros(5, 5), "g": zeros(5), "b": zeros(5)}
    found = named(align({"down": layer, "up": layer}, torch_shapes))
    for module in ("up", "down"):
        assert found[f"['{module}']['g']"][0] == f"{module}.{below}{length}"
        assert found[f"['{module}']['v']"][0] == f"{module}.{below}{direction}"
        assert found[f"['{module}']['b']"][0] == f"{module}.bias"


def test_given_names_go_first():
    params = {"a": zeros(5), "b": zeros(5)}
    found = named(align(params, {"x.bias": (5,), "y.bias": (5,)}, {"['a']": "y.bias", "b": "x.bias"}))
    assert found == {"['a']": ("y.bias", (0,)), "['b']": ("x.bias", (0,))}


@pytest.mark.parametrize(
    ("params", "torch_shapes", "message"),
    [
        ({"w": zeros(2, 3)}, {}, r"JAX leaves \[\['w'\] \(2, 3\)\], torch tensors \[\]"),
        ({}, {"bias": (4,)}, r"JAX leaves \[\], torch tensors \[bias \(4,\)\]"),
        ({"w": zeros(2, 3)}, {"weight": (3, 3)}, r"\['w'\] \(2, 3\).*weight \(3, 3\).*give names="),
    ],
)
def test_what_is_left_over_is_listed(params, torch_shapes, message: str):
    with pytest.raises(JaxgradError, match=message):
        align(params, torch_shapes)


@pytest.mark.parametrize("wrong", ["nowhere", "weight"])
def test_a_given_name_that_does_not_fit_is_named(wrong: str):
    with pytest.raises(JaxgradError, match=rf"names sends \['b'\], of shape \(3,\), to '{wrong}'"):
        align({"b": zeros(3)}, {"weight": (4, 4)}, {"b": wrong})
