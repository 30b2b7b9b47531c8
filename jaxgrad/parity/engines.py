"""Every way of getting a model's gradients: `engine(name, case, target) -> Gradients` of NumPy arrays, equally named.

torch is imported where an engine that needs it is called, so that all others do without.
"""

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.compare import Noise, scaled
from jaxgrad.checking.measure import Measured, Shaken, excess, measure, shaken
from jaxgrad.checking.oracles.torch import to_numpy
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs.taps import Graph
from jaxgrad.models.model import Model, check_rows, graph_of, jax_grad_nodes, named, renamed
from jaxgrad.parity.cases import Case
from jaxgrad.settings import compared_in

DTYPES = ("float64", "float32", "bfloat16")


class Target(NamedTuple):
    """The type and the devices that a comparison runs in; devices are named as their libraries name them."""

    dtype: str = "float64"
    jax_device: str = "cpu"
    torch_device: str = "cpu"


class Gradients(NamedTuple):
    """What every engine gives: the loss, the cotangents of the parameters in their tree, and those of nodes by name.

    A node of which an engine has no cotangent is left out.
    """

    loss: Any
    params: Any
    nodes: dict[str, Any]


JAX_GRAD = "jax.grad"


def names(model: Model) -> tuple[str, ...]:
    """The engines of a model: its hand-written ways, `jax.grad`, and its PyTorch twins."""
    return (*model.nodes, *model.by_platform, JAX_GRAD, *model.twins)


def usual(model: Model) -> tuple[str, ...]:
    """The engines that are compared unless others are named: those by hand, `jax.grad`, and the first twin."""
    return (*model.nodes, JAX_GRAD, *list(model.twins)[:1])


def engine(name: str, case: Case, target: Target) -> Gradients:
    """One engine's gradients. Raises `KeyError` for a name that is not of the model's `names`."""
    if name in case.model.twins:
        return _in_torch(case.model.twins[name], case, target)
    return _in_jax(_compiled(case.model, case.sizes, name, target.jax_device), case, target)


@functools.cache
def _compiled(model: Model, sizes: Any, name: str, platform: str = "cpu") -> Callable[[Any, Any], Gradients]:
    """An engine of JAX, jitted: one object for each, so that JAX finds what it compiled."""
    return jax.jit(_engine(model, sizes, name, platform))


def _engine(model: Model, sizes: Any, name: str, platform: str = "cpu") -> Callable[[Any, Any], Gradients]:
    def gradients(params: Any, batch: Any) -> Gradients:
        return Gradients(*way(params, batch, sizes))

    if name in model.by_platform:
        # A CPU compiles no kernel, and interprets one.
        way = model.by_platform[name]("interpret" if platform == "cpu" else platform)
    else:
        way = jax_grad_nodes(model) if name == JAX_GRAD else model.nodes[name]
    return gradients


def _in_torch(module: str, case: Case, target: Target) -> Gradients:
    """PyTorch's autograd through a twin; one that tells of no nodes returns two things."""
    torch_params, X, Y = _to_torch(case, target)
    twin = importlib.import_module(f"torchref.{module}")
    loss, param_grads, *of_nodes = twin.gradients(torch_params, X, Y, **dataclasses.asdict(case.sizes))
    return Gradients(
        to_numpy(loss),
        renamed(case.params, {name: to_numpy(grad) for name, grad in param_grads.items()}),
        {name: to_numpy(grad) for name, grad in (of_nodes[0] if of_nodes else {}).items()},
    )


@functools.cache
def graph(model: Model, sizes: Any, vocab_size: int) -> Graph:
    """How the model's nodes and parameters hang together; `order` is that in which backward passes form cotangents."""
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), sizes, vocab_size, jnp.float32))
    shapes = model.shapes(sizes)
    X, Y = (jax.ShapeDtypeStruct((max(model.least_rows, 1), *shape), jnp.int32) for shape in shapes)
    return graph_of(model, params, model.batch(X, Y), sizes)


def measured(case: Case, dtype: str) -> Measured:
    """The gradients in float64 on the CPU, and the noise that the arithmetic of `dtype` has there.

    Both are of `jax.grad`, so that a mistake in a hand-written backward cannot widen its own tolerance.
    """
    return measure(_shaken(case.model, case.sizes, JAX_GRAD), dtype, case.params, case.batch)


def truth(case: Case, target: Target) -> Measured:
    """`measured` of parameters as a type holds them, with at least the noise of JAX's own gradient in a narrow type.

    What engines differ by is then their arithmetic, and no engine is held to more than `jax.grad` achieves.
    """
    found = measured(_held_by(case, target.dtype), target.dtype)
    if target.dtype == "float64":
        return found
    own = engine(JAX_GRAD, case, target)

    def calibrated(native: np.ndarray, value: np.ndarray, noise: Noise) -> Noise:
        return scaled(noise, excess(native, value, noise))

    return found._replace(noise=jax.tree.map(calibrated, own, found.values, found.noise))


def own_noise(engine: str, case: Case, dtype: str) -> Gradients | None:
    """The noise of an engine's own formulas, where they are not those of `jax.grad`."""
    formulas = engine if engine in case.model.nodes else case.model.formulas.get(engine)
    if formulas is None:
        return None
    held = _held_by(case, dtype)
    return measure(_shaken(case.model, case.sizes, formulas), dtype, held.params, held.batch).noise


@functools.cache
def _shaken(model: Model, sizes: Any, name: str) -> Shaken:
    """A way prepared for `measure`: compiled once, so that further verdicts of the same sizes compile nothing."""
    return shaken(_engine(model, sizes, name))


def _held_by(case: Case, dtype: str) -> Case:
    """The case with its parameters rounded to a type."""
    return case._replace(params=jax.tree.map(lambda p: p.astype(jnp.dtype(dtype)).astype(np.float64), case.params))


def run(chosen: tuple[str, ...], case: Case, target: Target) -> dict[str, Gradients]:
    """The gradients of each named engine. Raises `JaxgradError` for a batch that no engine should be given,
    for an engine or type that does not exist, and where PyTorch or a device is missing.
    """
    _check(case, target)
    for name in chosen:
        if name not in names(case.model):
            raise JaxgradError(f"there is no engine {name!r}; choose from {', '.join(names(case.model))}")
    return {name: engine(name, case, target) for name in chosen}


def jax_device(platform: str) -> jax.Device:
    """JAX's first device of a platform; raises `JaxgradError` where it has none."""
    try:
        return jax.devices(platform)[0]
    except RuntimeError:
        raise JaxgradError(
            f"JAX has no device {platform!r} here (it has {jax.default_backend()});"
            " pip install 'jaxgrad[cuda]' or 'jaxgrad[tpu]' on a machine that has one"
        ) from None


def torch_device(name: str) -> Any:
    """PyTorch's device of that name; raises `JaxgradError` where it has none."""
    import torch

    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise JaxgradError(f"PyTorch has no device {name!r} here: {reason}") from None


def _check(case: Case, target: Target) -> None:
    if target.dtype not in DTYPES:
        raise JaxgradError(f"dtype is {target.dtype!r}; choose from {', '.join(DTYPES)}")
    check_rows(case.model, len(case.batch.Y))
    for name, symbols in case.batch._asdict().items():
        counted = symbols[symbols != case.model.ignored] if name == "Y" else symbols
        if counted.size and (counted.min() < 0 or counted.max() >= case.vocab_size):
            raise JaxgradError(
                f"batch.{name} has symbols from {counted.min()} to {counted.max()};"
                f" they must lie in 0..{case.vocab_size - 1}, the vocabulary"
            )


def _in_jax(backward: Callable[[Any, Any], Gradients], case: Case, target: Target) -> Gradients:
    with _jax_settings(target):
        params = jax.tree.map(lambda p: jnp.asarray(p, target.dtype), case.params)
        batch = jax.tree.map(jnp.asarray, case.batch)
        return jax.tree.map(np.asarray, backward(params, batch))


@contextlib.contextmanager
def _jax_settings(target: Target) -> Iterator[None]:
    with (
        compared_in(target.dtype),
        jax.default_device(jax_device(target.jax_device)),
    ):
        yield


def _to_torch(case: Case, target: Target) -> tuple[dict[str, Any], Any, Any]:
    try:
        import torch
    except ModuleNotFoundError:
        raise JaxgradError(
            "PyTorch is not installed: pip install 'jaxgrad[parity]',"
            f" or leave its engines out with --engines {','.join((*case.model.nodes, JAX_GRAD))}"
        ) from None
    device = torch_device(target.torch_device)
    dtype = getattr(torch, target.dtype)
    params = {name: torch.from_numpy(p).to(device, dtype) for name, p in named(case.params).items()}
    return params, torch.from_numpy(case.batch.X).to(device), torch.from_numpy(case.batch.Y).to(device)
