"""Any torch reference is called as JAX's function is, and gives JAX's cotangents, errors in a sentence, and noise."""

import ast
import copy
import dataclasses
import enum
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad import tap
from jaxgrad.checking.oracles.torch import LAYOUTS, layouts, noise, prepare, pull, to_numpy, to_torch
from jaxgrad.errors import JaxgradError

RNG = np.random.default_rng(0)


def normal(*shape: int, dtype: str = "float64") -> np.ndarray:
    if dtype.startswith("complex"):
        return (RNG.normal(size=shape) + 1j * RNG.normal(size=shape)).astype(dtype)
    return RNG.normal(size=shape).astype(dtype)


def like(tree):
    """Normal numbers of the shapes and kinds of a tree of outputs, as a list."""
    return [normal(*leaf.shape, dtype=str(leaf.dtype)) for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]


def is_inexact(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def agrees(fn, reference, *args, names=None, kwargs=None, rtol: float = 1e-12, second: bool = True) -> None:
    """Outputs, cotangents and second cotangents of a torch reference are those of a JAX function, in float64."""
    kwargs = kwargs or {}
    with jax.enable_x64(True):
        program = prepare(reference, args, kwargs, names)
        leaves, structure = jax.tree.flatten((args, kwargs))

        def of_inputs(inputs):
            filled = dict(zip(program.inputs, inputs, strict=True))
            args, kwargs = jax.tree.unflatten(structure, [filled.get(n, leaf) for n, leaf in enumerate(leaves)])
            return jax.tree.leaves(fn(*args, **kwargs))

        inputs = [jnp.asarray(leaves[n]) for n in program.inputs]
        outs, vjp = jax.vjp(of_inputs, inputs)
        dys = like(outs)
        pulled, _ = pull(program, args, kwargs, dys)
        assert close(pulled.outputs, outs, rtol) and close(pulled.inputs, vjp(list(map(jnp.asarray, dys)))[0], rtol)
        if second:
            directions = like(inputs)

            def inner(inputs):
                dxs = jax.vjp(of_inputs, inputs)[1](list(map(jnp.asarray, dys)))[0]
                return sum(jnp.sum(v * dx).real for v, dx in zip(directions, dxs, strict=True))

            again, _ = pull(program, args, kwargs, dys, directions)
            assert close(again.inputs, jax.grad(inner)(inputs), rtol) and again.outputs == []


def close(actual, expected, rtol: float) -> bool:
    return len(actual) == len(expected) and all(
        a.shape == b.shape and np.max(np.abs(a - b), initial=0) <= rtol * (1 + np.max(np.abs(b), initial=0))
        for a, b in zip(actual, map(np.asarray, expected), strict=True)
    )


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


PARAMS = {"kernel": normal(4, 3), "bias": normal(3)}
X = normal(5, 4)


# References of every kind.


def test_a_linear_module():
    agrees(linear, torch.nn.Linear(4, 3), PARAMS, X)


def test_a_convolution_whose_kernel_is_in_another_layout():
    def conv(params, x):
        dims = ("NCHW", "HWIO", "NCHW")
        y = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "VALID", dimension_numbers=dims)
        return y + params["bias"][:, None, None]

    params = {"kernel": normal(3, 3, 2, 4), "bias": normal(4)}
    agrees(conv, torch.nn.Conv2d(2, 4, 3), params, normal(2, 2, 6, 6))


def test_an_embedding_of_int32_tokens():
    tokens = np.array([[0, 2, 2], [1, 0, 6]], np.int32)
    agrees(lambda p, t: p["embedding"][t], torch.nn.Embedding(7, 3), {"embedding": normal(7, 3)}, tokens)


def test_an_lstm_which_keeps_its_weights_in_a_list_of_its_own():
    module = torch.nn.LSTM(3, 4)
    params = {name: normal(*p.shape) for name, p in module.named_parameters()}

    def lstm(p, xs):
        def step(carry, x):
            h, c = carry
            gates = x @ p["weight_ih_l0"].T + p["bias_ih_l0"] + h @ p["weight_hh_l0"].T + p["bias_hh_l0"]
            i, f, g, o = jnp.split(gates, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((xs.shape[1], 4))
        (h, c), hs = jax.lax.scan(step, (zeros, zeros), xs)
        return hs, (h[None], c[None])

    # Second order is slow to compile, and asked of smaller modules.
    agrees(lstm, module, params, normal(5, 2, 3), second=False)


def test_multi_head_attention_with_its_input_thrice():
    module = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    params = {name: normal(*p.shape) for name, p in module.named_parameters()}

    def attention(p, x):
        q, k, v = jnp.split(x @ p["in_proj_weight"].T + p["in_proj_bias"], 3, -1)
        q, k, v = (a.reshape(*a.shape[:2], 2, 4).swapaxes(1, 2) for a in (q, k, v))
        weights = jax.nn.softmax(q @ k.swapaxes(2, 3) / 2, -1)
        joined = (weights @ v).swapaxes(1, 2).reshape(x.shape)
        return joined @ p["out_proj"]["weight"].T + p["out_proj"]["bias"]

    class SelfAttention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = module

        def forward(self, x):
            return self.own(x, x, x, need_weights=False)[0]

    tree = {k: v for k, v in params.items() if "out_proj" not in k}
    tree["out_proj"] = {"weight": params["out_proj.weight"], "bias": params["out_proj.bias"]}
    names = {"in_proj_weight": "own.in_proj_weight", "in_proj_bias": "own.in_proj_bias"}
    agrees(attention, SelfAttention(), tree, normal(3, 5, 8), names=names)


def test_a_loss_module_without_parameters_takes_all_arguments_as_inputs():
    def loss(x, t):
        return -jnp.take_along_axis(jax.nn.log_softmax(x), t[:, None], 1).mean()

    x, t = normal(4, 3), np.array([0, 2, 1, 1])
    agrees(loss, torch.nn.CrossEntropyLoss(), x, t)
    agrees(lambda params, x, t: loss(x, t), torch.nn.CrossEntropyLoss(), {}, x, t)


def batch_norm(params, x, *, train: bool, mean=0.25, var=0.5):
    if train:
        mean, var = x.mean(0), x.var(0)
    return params["scale"] * (x - mean) / jnp.sqrt(var + 1e-5) + params["bias"]


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_updates_no_buffer_of_the_user(train: bool):
    module = torch.nn.BatchNorm1d(4).train(train)
    module.running_mean.fill_(0.25)
    module.running_var.fill_(0.5)
    before = copy.deepcopy(module.state_dict())
    params = {"scale": normal(4), "bias": normal(4)}
    agrees(lambda p, x: batch_norm(p, x, train=train), module, params, X)
    program = prepare(module, (params, X))
    noise(program, (params, X), {}, [normal(5, 4)], unit=2.0**-24, sums=2.0**-24, seeds=(0,))
    assert all(
        torch.equal(before[k], v) and before[k].dtype == v.dtype and v.grad is None
        for k, v in module.state_dict().items()
    )


def test_a_buffer_can_be_a_leaf_by_name_and_has_no_cotangent():
    params = {"scale": normal(4), "bias": normal(4), "mean": normal(4), "var": np.full(4, 0.5)}
    names = {"mean": "running_mean", "var": "running_var"}
    module = torch.nn.BatchNorm1d(4).eval()
    # Leaves in order are bias, mean, scale, var.
    assert prepare(module, (params, X), names=names).frozen == (1, 3)
    agrees(lambda p, x: batch_norm(p, x, train=False, mean=p["mean"], var=p["var"]), module, params, X, names=names)


def test_a_frozen_parameter_is_reported_and_left_out():
    module = torch.nn.Linear(4, 3)
    module.bias.requires_grad_(False)
    program = prepare(module, (PARAMS, X))
    assert (program.inputs, program.frozen) == ((1, 2), (0,))
    agrees(linear, module, PARAMS, X)
    assert not module.bias.requires_grad


def test_a_hook_on_a_parameter_changes_its_gradient_and_no_other():
    module = torch.nn.Linear(3, 2).double()
    params, x, dy = {"weight": normal(2, 3), "bias": normal(2)}, normal(4, 3), normal(4, 2)

    def gradients() -> dict[str, np.ndarray]:
        pulled, _ = pull(prepare(module, (params, x), {}, arg_names=("params", "x")), (params, x), {}, [dy])
        return dict(zip(("bias", "weight", "x"), pulled.inputs, strict=True))

    usual = gradients()
    handle = module.weight.register_hook(lambda g: 3 * g)
    hooked = gradients()
    handle.remove()
    assert np.allclose(hooked["weight"], 3 * usual["weight"])
    assert all(np.array_equal(hooked[name], usual[name]) for name in ("bias", "x"))
    assert np.array_equal(gradients()["weight"], usual["weight"])


def test_leaves_without_a_wanted_gradient_are_left_out():
    assert prepare(torch.nn.Linear(4, 3), (PARAMS, X), no_gradient={2}).inputs == (0, 1)


def test_options_in_the_tree_of_parameters_are_no_parameters():
    params = {**PARAMS, "rate": 0.1, "activation": jnp.tanh, "name": "dense", "bias_too": True}
    program = prepare(torch.nn.Linear(4, 3), (params, X))
    assert len(program.inputs) == 3 and len(program.frozen) == 1


def test_static_arguments_and_python_numbers_pass_as_they_are():
    class Mode(enum.Enum):
        FAST = 1

    def reference(x, scale, axis, mode, join, flag, nothing, *, act):
        assert isinstance(scale, torch.Tensor) and type(axis) is int and mode is Mode.FAST
        assert join is jnp.add and flag is True and nothing is None and act == "tanh"
        return torch.tanh(x).sum(axis) * scale

    def fn(x, scale, axis, mode, join, flag, nothing, *, act):
        return jnp.tanh(x).sum(axis) * scale

    agrees(fn, reference, X, 1.5, 1, Mode.FAST, jnp.add, True, None, kwargs={"act": "tanh"})


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    cache: torch.Tensor | None
    again: torch.Tensor


class ModelOutput(OrderedDict):
    """As Hugging Face's: its fields in the order they were given, and `to_tuple`."""

    def to_tuple(self):
        return tuple(self.values())


Pair = namedtuple("Pair", "logits again")


@pytest.mark.parametrize(
    "container",
    [
        lambda y, z: (y, [z, None]),
        lambda y, z: {"z": z, "a": y},  # JAX sorts the keys
        lambda y, z: Output(y, None, z),
        lambda y, z: ModelOutput(logits=y, again=z),
        lambda y, z: SimpleNamespace(to_tuple=lambda: (y, z)),
        lambda y, z: Pair(y, z),
    ],
    ids=["tuple and list", "dict", "dataclass", "ModelOutput", "to_tuple", "namedtuple"],
)
def test_results_are_flattened_in_the_order_of_their_fields(container):
    class Model(torch.nn.Linear):
        def forward(self, x):
            return container(super().forward(x), x.exp())

    agrees(lambda p, x: (linear(p, x), jnp.exp(x)), Model(4, 3), PARAMS, X)


def test_an_argument_that_forward_takes_by_name_alone_goes_by_its_name():
    class Masked(torch.nn.Linear):
        def forward(self, x, scale=1.0, *, mask):
            return super().forward(x) * mask * scale

    mask = normal(5, 3)
    args = (PARAMS, X, mask)
    program = prepare(Masked(4, 3), args, arg_names=("params", "x", "mask"))
    assert program.keywords == (None, "mask")
    (y,), _ = pull(program, args, {}, [np.ones((5, 3))])[0][:2]
    np.testing.assert_allclose(y, (X @ PARAMS["kernel"] + PARAMS["bias"]) * mask)
    agrees(lambda p, x, *, mask: linear(p, x) * mask, Masked(4, 3), PARAMS, X, kwargs={"mask": mask})


def test_taps_are_given_in_backward_order_with_their_names():
    def reference(x):
        return tap("b", tap("a", 2 * x) * 3)

    pulled, names = pull(prepare(reference, (X,)), (X,), {}, [np.ones_like(X)])
    assert names == ["b", "a"] and [node[0, 0] for node in pulled.nodes] == [1, 3]


def test_inputs_that_nothing_depends_on_have_zero_cotangents():
    agrees(lambda x, y: (jnp.sin(x), jnp.zeros(3)), lambda x, y: (x.sin(), torch.zeros(3)), X, X)


def test_dropout_draws_the_same_mask_each_time_and_leaves_the_random_state_alone():
    program = prepare(torch.nn.Dropout(0.5), (X,))
    state = torch.get_rng_state()
    one, other = (pull(program, (X,), {}, [np.ones_like(X)])[0] for _ in range(2))
    noisy = noise(program, (X,), {}, [np.ones_like(X)], unit=2.0**-24, sums=2.0**-24, seeds=(5,))[0]
    np.testing.assert_array_equal(one.outputs[0], other.outputs[0])
    np.testing.assert_allclose(noisy.outputs[0], one.outputs[0], rtol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


# Types.


@pytest.mark.parametrize(
    "dtype", "float16 bfloat16 float32 float64 complex64 complex128 bool int64 float8_e4m3fn float8_e5m2".split()
)
def test_arrays_go_to_torch_and_back_as_they_are(dtype: str):
    array = np.array([[0, 1, 2], [3, 1, 0]]).astype(jnp.dtype(dtype))
    back = to_numpy(to_torch(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back.astype(np.complex128), array.astype(np.complex128))


@pytest.mark.parametrize("dtype", "int4 int8 int32 uint8 uint16 uint32".split())
def test_integers_become_indices(dtype: str):
    assert to_torch(np.arange(4).astype(jnp.dtype(dtype))).tolist() == [0, 1, 2, 3]
    assert to_torch(np.zeros(2, jnp.dtype(dtype))).dtype == torch.int64


def test_a_type_that_torch_lacks_is_named():
    with pytest.raises(JaxgradError, match="no type like float8_e3m4"):
        to_torch(np.zeros(2, jnp.dtype("float8_e3m4")))


def test_float8_is_carried_and_not_differentiated():
    scale = np.array([0.5, 2.0]).astype(jnp.float8_e4m3fn)
    program = prepare(lambda x, s: x * s.double(), (normal(2), scale))
    assert (program.inputs, program.frozen) == ((0,), (1,))
    assert pull(program, (normal(2), scale), {}, [np.ones(2)])[0].inputs[0].tolist() == [0.5, 2]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_run_is_in_the_type_of_its_arguments(dtype: str):
    args = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), ({"scale": normal(4), "bias": normal(4)}, X))
    module = torch.nn.BatchNorm1d(4).eval()
    pulled, _ = pull(prepare(module, args), args, {}, [np.ones((5, 4), jnp.dtype(dtype))])
    assert {x.dtype for part in pulled for x in part} == {jnp.dtype(dtype)}


def test_tensors_that_a_reference_makes_are_float64_in_a_run_of_float64():
    agrees(lambda x: x @ jnp.full((4, 2), 0.1), lambda x: x @ torch.full((4, 2), 0.1), X)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("fn", "reference", "kinds"),
    [
        (jnp.fft.fft, torch.fft.fft, "r"),
        (jnp.fft.rfft, torch.fft.rfft, "r"),
        (lambda z: jnp.abs(z) ** 2, lambda z: z.abs() ** 2, "c"),
        (lambda z: z**2, lambda z: z**2, "c"),
        (lambda z, w: z * jnp.conj(w), lambda z, w: z * w.conj(), "cc"),
        (lambda z, w: z @ w.T, lambda z, w: z @ w.T, "cc"),
        (lambda x, z: (x * z.imag, jnp.sin(z) * x), lambda x, z: (x * z.imag, z.sin() * x), "rc"),
    ],
)
def test_complex_cotangents_are_in_the_convention_of_jax(fn, reference, kinds: str):
    agrees(fn, reference, *(normal(4, 4, dtype={"r": "float64", "c": "complex128"}[kind]) for kind in kinds))


def test_complex_taps_are_in_the_convention_of_jax():
    z = normal(3, dtype="complex128")
    dy = normal(3, dtype="complex128")
    pulled, _ = pull(prepare(lambda z: tap("node", z * 2) ** 2, (z,)), (z,), {}, [dy])
    with jax.enable_x64(True):
        expected = jax.vjp(lambda node: node**2, jnp.asarray(z * 2))[1](jnp.asarray(dy))[0]
    np.testing.assert_allclose(pulled.nodes[0], expected)


# Layouts of cotangents.


class Doubled(torch.autograd.Function):
    """y = 2x; the backward reads the memory of its cotangent as a kernel with fixed strides does."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, dy):
        return 2 * torch.as_strided(dy, dy.shape, torch.empty(dy.shape).stride(), dy.storage_offset())


class DoubledRight(Doubled):
    @staticmethod
    def backward(ctx, dy):
        return Doubled.backward(ctx, dy.contiguous())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_backward_that_takes_its_cotangent_for_contiguous_is_exposed_by_every_other_layout(layout: str):
    dys = [np.ones_like(X) if layout == "expanded" else normal(*X.shape)]

    def is_right(function) -> bool:
        try:
            (dx,) = pull(prepare(function.apply, (X,)), (X,), {}, dys, layout=layout)[0].inputs
        except JaxgradError as error:
            assert "out of bounds for storage" in str(error)
            return False
        return np.array_equal(dx, 2 * dys[0])

    assert is_right(DoubledRight)
    assert is_right(Doubled) == (layout == "contiguous")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1), (2, 3, 4), (0, 2)])
def test_layouts_change_no_value(layout: str, shape: tuple[int, ...]):
    x, dy = normal(*shape), np.ones(shape) if layout == "expanded" else normal(*shape)
    (dx,) = pull(prepare(lambda x: 3 * x, (x,)), (x,), {}, [dy], layout=layout)[0].inputs
    np.testing.assert_array_equal(dx, 3 * dy)


def test_only_layouts_that_differ_are_offered():
    assert layouts([(), (1, 1)]) == ("contiguous",)
    assert layouts([(), (1, 5)]) == ("contiguous", "expanded", "strided")
    assert layouts([(2, 5)]) == LAYOUTS


# Errors.


def fails(match: str, reference, *args, dys=(), names=None, arg_names=()) -> None:
    with pytest.raises(JaxgradError, match=match):
        pull(prepare(reference, args, names=names, arg_names=arg_names), args, {}, list(dys))


class Uncopied(torch.nn.Linear):
    def __deepcopy__(self, memo):
        raise TypeError("no copies")


class Scripted(torch.nn.Linear):
    """A stand-in for what `torch.jit.trace` makes, which warns that it is deprecated."""


Scripted.__module__ = "torch.jit._trace"


class WrongBackward(Doubled):
    @staticmethod
    def backward(ctx, dy):
        raise IndexError("no such row\nmore")


def test_errors_say_in_a_sentence_what_went_wrong_and_where():
    fails("raised RuntimeError in its forward pass: mat1 and mat2 shapes", torch.matmul, X, X, dys=[X])
    fails("raised IndexError in its backward pass: no such row$", WrongBackward.apply, X, dys=[X])
    fails("raised TypeError in its copy: no copies", Uncopied(4, 3), PARAMS, X, dys=[X])
    fails(r"float outputs of shapes \[\(4, 5\)\], and the function \[\(5, 4\)\]", lambda x: x.T, X, dys=[X])
    fails("output 0 of the torch reference is complex, and of the function real", lambda x: x * 1j, X, dys=[X])
    fails("returned a Generator, which is no tensor", lambda x: torch.Generator(), X, dys=[X])
    fails(
        "takes 1 arguments by position and none by name.*no place for 'mask'",
        lambda x: x,
        X,
        X,
        arg_names="x mask".split(),
    )
    fails(
        r"keys\['a'\] is a PRNG key.*close over the key",
        lambda x, k: x,
        X,
        {"a": jax.random.key(0)},
        arg_names=("x", "keys"),
    )
    fails("give the tree of parameters as first argument", torch.nn.Linear(4, 3))
    fails("TorchScript module cannot be run in other types", Scripted(4, 3), PARAMS, X)
    fails("parameters left over", torch.nn.Linear(4, 3), {"kernel": PARAMS["kernel"]}, X)
    with pytest.raises(JaxgradError, match="no layout 'diagonal'; choose from contiguous"):
        pull(prepare(torch.sin, (X,)), (X,), {}, [X], layout="diagonal")


# Noise.

U = 2.0**-24


def attention(q, k, v):
    return torch.softmax(q @ k.mT / 8, -1) @ v


@pytest.mark.parametrize(
    ("reference", "args", "least", "most"),
    [
        (torch.matmul, (normal(64, 256), normal(256, 32)), 0.3, 12),
        (torch.nn.LayerNorm(64), ({"scale": normal(64), "bias": normal(64)}, normal(32, 64)), 0.2, 30),
        (attention, (normal(2, 32, 64), normal(2, 32, 64), normal(2, 32, 64)), 0.2, 30),
        (torch.nn.functional.conv2d, (normal(4, 8, 12, 12), normal(16, 8, 3, 3), normal(16)), 0.2, 30),
        (lambda x: torch.log_softmax(x, -1), (3 * normal(32, 64),), 0.2, 30),
        (torch.nn.CrossEntropyLoss(), (3 * normal(32, 64), np.arange(32)), 0.2, 30),
        (torch.nn.functional.gelu, (2 * normal(300),), 0.2, 30),
        (torch.nn.Embedding(11, 8), ({"embedding": normal(11, 8)}, RNG.integers(0, 11, 512)), 0, 30),
        (torch.linalg.inv, (normal(8, 8),), 0.2, 30),
    ],
    ids=["matmul", "layer norm", "attention", "conv2d", "log_softmax", "cross entropy", "gelu", "embedding", "inverse"],
)
def test_noise_is_as_large_as_the_errors_that_float32_makes(reference, args, least: float, most: float):
    # Both runs are given the same numbers, so that they differ by nothing but their own roundings.
    narrow = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, args)
    wide = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, narrow)
    program = prepare(reference, wide)
    dys = [normal(*s, dtype="float32") for s in output_shapes(program, wide)]
    exact = pull(program, wide, {}, dys)[0]
    made = pull(program, narrow, {}, dys)[0]
    samples = noise(program, wide, {}, dys, unit=U, sums=U, seeds=range(8))
    for part in ("outputs", "inputs"):
        for number, value in enumerate(getattr(exact, part)):
            error = rms(getattr(made, part)[number] - value)
            spread = rms(np.std([getattr(sample, part)[number] for sample in samples], axis=0))
            assert least * error <= spread <= most * error, (part, number, spread / error)


def output_shapes(program, args) -> list[tuple[int, ...]]:
    """The shapes that the error about them names."""
    with pytest.raises(JaxgradError, match="float outputs of shapes") as caught:
        pull(program, args, {}, [normal(97)])
    return ast.literal_eval(str(caught.value).split("shapes ")[1].split(", and the function")[0])


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def one_noise(reference, *args, unit=U, sums=U, seed=0, directions=None, dys=None):
    dys = [np.ones(s) for s in output_shapes(prepare(reference, args), args)] if dys is None else dys
    return noise(prepare(reference, args), args, {}, dys, directions, unit=unit, sums=sums, seeds=(seed,))[0]


def test_a_seed_gives_the_same_noise_and_another_seed_another():
    program = prepare(attention, (X, X, X))
    a, b, c = noise(program, (X, X, X), {}, [np.ones_like(X)], unit=U, sums=U, seeds=(3, 3, 4))
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    assert not any(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(c), strict=True))


def moves(x):
    y = torch.cat([x.T.reshape(4, 5), x.t()])[:, 1:3].clone()
    y = torch.where(y > 0, torch.relu(y), y.abs())
    y = torch.nn.functional.pad(torch.stack([y, y.flip(0)]), (1, 1))
    y[0, 0] = x[0, 0]
    return (
        y.masked_fill(y > 1, 0.5).sort(-1).values.gather(-1, torch.tensor([[[0, 2]], [[1, 1]]])).double().max(-1).values
    )


def test_moves_and_choices_are_exact_forwards():
    exact = pull(prepare(moves, (X,)), (X,), {}, [np.ones((2, 1))])[0]
    np.testing.assert_array_equal(one_noise(moves, X, unit=0.1, sums=0.1).outputs[0], exact.outputs[0])


def test_integers_and_booleans_are_left_as_they_are():
    out = one_noise(lambda x: (x > 0, x.argmax(-1), torch.arange(3) + 1, x * 2), X, unit=0.1, sums=0.1).outputs
    assert [a.dtype.kind for a in out] == ["b", "i", "i", "f"]
    np.testing.assert_array_equal(out[2], [1, 2, 3])
    np.testing.assert_array_equal(out[1], X.argmax(-1))


def test_an_operation_in_place_is_perturbed_in_place_and_once():
    def reference(x):
        y = x.clone()
        view = y[1:]
        returned = view.mul_(2)
        return y, view, returned

    y, view, returned = one_noise(reference, X, unit=0.25).outputs
    np.testing.assert_array_equal(y[1:], view)
    np.testing.assert_array_equal(view, returned)
    np.testing.assert_array_equal(y[0], X[0])
    assert set(np.round(np.unique(view / (2 * X[1:])), 9)) == {0.75, 1.25}


def test_whole_numbers_of_a_division_stay_whole():
    def reference(x):
        return x.detach() // 0.5, torch.div(x, 0.5, rounding_mode="trunc"), torch.round(x)

    assert all(np.array_equal(y, np.round(y)) for y in one_noise(reference, X, unit=0.1, sums=0.1).outputs)


def test_noise_keeps_strides_which_views_depend_on():
    def reference(x):
        y = torch.sin(x.to(memory_format=torch.channels_last))
        return y.permute(0, 2, 3, 1).view(-1)

    assert one_noise(reference, normal(2, 3, 4, 5)).outputs[0].shape == (120,)


def test_a_sum_written_in_place_keeps_what_it_is_added_to():
    index = torch.tensor([0, 0, 2])
    (y,) = one_noise(lambda x: torch.zeros(4, 3).index_add_(0, index, x), normal(3, 3)).outputs
    assert np.all(y[0] != 0) and np.all(y[1] == 0)


def test_infinities_and_the_lowest_float_of_a_mask_stay_what_they_are():
    def reference(x):
        low = torch.full_like(x, torch.finfo(x.dtype).min)
        return torch.softmax(low + 0 * x, -1), torch.softmax(torch.where(x > 0, x, -torch.inf) * 2, -1)

    x = np.abs(X) * [1, -1, 1, -1]
    uniform, masked = one_noise(reference, x).outputs
    np.testing.assert_allclose(uniform, 0.25, rtol=1e-5)
    np.testing.assert_array_equal(masked[:, 1::2], 0)
    np.testing.assert_allclose(masked.sum(-1), 1, rtol=1e-5)


def test_the_backward_pass_and_the_second_are_perturbed_too():
    def pulled(directions):
        return one_noise(lambda x: x**3, X, dys=[np.ones_like(X)], directions=directions).inputs[0]

    for directions, exact in ((None, 3 * X**2), ([np.ones_like(X)], 6 * X)):
        difference = np.abs(pulled(directions) / exact - 1)
        assert np.all(difference < 8 * U) and np.mean(difference > 0.4 * U) > 0.5


def test_sums_can_be_kept_wider_than_results():
    a, b = normal(32, 256), normal(256, 32)
    exact = a @ b

    def error(unit, sums):
        return rms(one_noise(torch.matmul, a, b, unit=unit, sums=sums).outputs[0] - exact) / rms(exact)

    assert 0.9 * 2**-9 < error(2.0**-9, 2.0**-24) < 1.2 * 2**-9 < error(2.0**-9, 2.0**-9) / 3


def test_complex_results_are_perturbed_in_both_parts():
    z = np.array([1 + 0j, 1j])
    (y,) = one_noise(lambda z: z * 1, z, unit=0.25, dys=[z]).outputs
    assert np.all(np.abs(np.abs((y / z - 1).real) - 0.25) < 1e-9) and np.all(np.abs((y / z - 1).imag) > 0.2)


def test_lazy_conjugates_and_minus_signs_are_perturbed_as_what_they_stand_for():
    z, w = normal(3, 3, dtype="complex128"), normal(3, 3, dtype="complex128")
    for fn in (lambda z: z @ z.mH, lambda z: z.conj().imag @ z.imag, torch.linalg.inv):
        (exact,) = (y := pull(prepare(fn, (z,)), (z,), {}, [fn(torch.from_numpy(w)).numpy()])[0]).outputs
        noisy = one_noise(fn, z, unit=1e-9, dys=[fn(torch.from_numpy(w)).numpy()])
        assert close(noisy.outputs, [exact], 1e-6) and close(noisy.inputs, y.inputs, 1e-6)


def relative(reference, *args) -> float:
    """The noise of the output in a run of float64, relative to its size."""
    (y,) = one_noise(reference, *args, unit=2.0**-53, sums=2.0**-53).outputs
    (z,) = pull(prepare(reference, args), args, {}, [np.ones_like(y)])[0].outputs
    return float(np.max(np.abs(y / z - 1)))


class Scaled(torch.nn.Module):
    def __init__(self, constant, register: bool) -> None:
        super().__init__()
        if register:
            self.register_buffer("constant", constant)
        else:
            self.constant = constant

    def forward(self, x):
        return x * self.constant


def test_a_constant_of_float32_in_a_run_of_float64_is_known_to_float32():
    tenth, half = torch.tensor(0.1, dtype=torch.float32), torch.tensor(0.5, dtype=torch.float32)
    table = torch.full((4,), 0.1, dtype=torch.float32)
    for reference in (
        Scaled(tenth, True),
        Scaled(tenth, False),
        lambda x: x * table,
        lambda x: x @ table.to(x.dtype),
        lambda x: x.float() * 1.7,
    ):
        assert 2.0**-25 < relative(reference, X) < 2.0**-20
    for reference in (Scaled(half, True), lambda x: x * half.expand(4), lambda x: x @ torch.full((4,), 0.1)):
        assert relative(reference, X) < 2.0**-48
    # In float32 the constant is the number that the other engine has.
    buffer = one_noise(Scaled(tenth, True), np.ones(9), unit=U).outputs[0] / float(tenth)
    np.testing.assert_allclose(np.abs(buffer - 1), U, rtol=1e-6)
