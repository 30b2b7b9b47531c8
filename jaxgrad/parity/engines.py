"""Every way of getting the gradients: `engine(case, target) -> Gradients` of NumPy arrays, with equal names.

torch is imported where an engine that needs it is called, so that all others do without.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.compare import Noise, scaled
from jaxgrad.checking.measure import Measured, excess, measure, shaken
from jaxgrad.checking.oracles.torch import to_numpy
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp import backward
from jaxgrad.models.mlp import fused as closed_forms
from jaxgrad.models.mlp.forward import Batch, Gradients, Nodes, Params, forward, zero_taps
from jaxgrad.parity.cases import Case

DTYPES = ("float64", "float32", "bfloat16")


class Target(NamedTuple):
    """The type and the devices that a comparison runs in; devices are named as their libraries name them."""

    dtype: str = "float64"
    jax_device: str = "cpu"
    torch_device: str = "cpu"


Engine: TypeAlias = Callable[[Case, Target], Gradients]


def by_node(case: Case, target: Target) -> Gradients:
    """The hand-written derivative of each node."""
    return _in_jax(_by_node, case, target)


def fused(case: Case, target: Target) -> Gradients:
    """The hand-written closed forms; nodes inside an operation are None."""
    return _in_jax(closed_forms.fused, case, target)


def kernel(case: Case, target: Target) -> Gradients:
    """The one-kernel step's gradients; its kernel is interpreted on the CPU, which compiles none."""
    from jaxgrad.models.mlp.kernel import launch

    return _in_jax(_kernel(launch.INTERPRET if target.jax_device == "cpu" else target.jax_device), case, target)


def jax_grad(case: Case, target: Target) -> Gradients:
    """`jax.grad` with respect to the parameters and to a zero added at each node."""
    return _in_jax(_jax_grad, case, target)


def torch(case: Case, target: Target) -> Gradients:
    """PyTorch's autograd through the notebook's own forward, with `retain_grad` on every node."""
    from torchref import notebook

    params, X, Y = _to_torch(case, target)
    loss, param_grads, node_grads = notebook.gradients(params, X, Y)
    return Gradients(
        to_numpy(loss),
        Params(**{name: to_numpy(grad) for name, grad in param_grads.items()}),
        Nodes(**{name: to_numpy(grad) for name, grad in node_grads.items()}),
    )


def torch_module(case: Case, target: Target) -> Gradients:
    """PyTorch's autograd through the model as an idiomatic `nn.Module`; its nodes are None."""
    from torchref import module

    params, X, Y = _to_torch(case, target)
    loss, param_grads = module.gradients(params, X, Y)
    grads = Params(**{name: to_numpy(grad) for name, grad in param_grads.items()})
    return Gradients(to_numpy(loss), grads, Nodes(*(None for _ in Nodes._fields)))


ENGINES: dict[str, Engine] = {
    "by-node": by_node,
    "fused": fused,
    "kernel": kernel,
    "jax.grad": jax_grad,
    "torch": torch,
    "torch.nn": torch_module,
}


def measured(case: Case, dtype: str) -> Measured:
    """The gradients in float64 on the CPU, and the noise that the arithmetic of `dtype` has there.

    Both are of `jax.grad`, so that a mistake in a hand-written backward cannot widen its own tolerance.
    """
    return measure(_SHAKEN, dtype, case.params, case.batch)


def truth(case: Case, target: Target) -> Measured:
    """`measured` of parameters as a type holds them, with at least the noise of JAX's own gradient in a narrow type.

    What engines differ by is then their arithmetic, and no engine is held to more than `jax.grad` achieves.
    """
    found = measured(_held_by(case, target.dtype), target.dtype)
    if target.dtype == "float64":
        return found
    own = jax_grad(case, target)

    def calibrated(native: np.ndarray, value: np.ndarray, noise: Noise) -> Noise:
        return scaled(noise, excess(native, value, noise))

    return found._replace(noise=jax.tree.map(calibrated, own, found.values, found.noise))


def own_noise(engine: str, case: Case, dtype: str) -> Gradients | None:
    """The noise of an engine's own formulas, where they are not those of `jax.grad`; nodes that it lacks are None."""
    run = _OWN.get(engine)
    if run is None:
        return None
    held = _held_by(case, dtype)
    return measure(run, dtype, held.params, held.batch).noise


def _held_by(case: Case, dtype: str) -> Case:
    """The case with its parameters rounded to a type."""
    return case._replace(params=jax.tree.map(lambda p: p.astype(jnp.dtype(dtype)).astype(np.float64), case.params))


def run(names: tuple[str, ...], case: Case, target: Target) -> dict[str, Gradients]:
    """The gradients of each named engine. Raises `JaxgradError` for a batch that no engine should be given,
    for an engine or type that does not exist, and where PyTorch or a device is missing.
    """
    _check(case, target)
    for name in names:
        if name not in ENGINES:
            raise JaxgradError(f"there is no engine {name!r}; choose from {', '.join(ENGINES)}")
    return {name: ENGINES[name](case, target) for name in names}


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
    vocab_size = case.params.C.shape[0]
    if len(case.batch.Y) < 2:
        raise JaxgradError(
            f"a batch of {len(case.batch.Y)}: Bessel's correction divides by n - 1; give at least 2 rows"
        )
    for name, symbols in case.batch._asdict().items():
        if symbols.min() < 0 or symbols.max() >= vocab_size:
            raise JaxgradError(
                f"batch.{name} has symbols from {symbols.min()} to {symbols.max()};"
                f" they must lie in 0..{vocab_size - 1}, the rows of C"
            )


@jax.jit
def _by_node(params: Params, batch: Batch) -> Gradients:
    return backward.by_node(params, batch, forward(params, batch))


def _loss(params: Params, taps: Nodes, batch: Batch) -> jax.Array:
    return forward(params, batch, taps).loss


def _jax_grad(params: Params, batch: Batch) -> Gradients:
    taps = zero_taps(params, batch)
    loss, (dparams, dnodes) = jax.value_and_grad(_loss, argnums=(0, 1))(params, taps, batch)
    return Gradients(loss, dparams, dnodes)


# Compiled once for the sizes of a case, so that further verdicts of the same sizes compile nothing.
_SHAKEN = shaken(_jax_grad)
# Neither a Pallas kernel nor PyTorch's operations can be followed inside, and both compute the closed forms.
_CLOSED = shaken(closed_forms.fused)
_OWN = {"by-node": shaken(_by_node), "fused": _CLOSED, "kernel": _CLOSED, "torch.nn": _CLOSED}


@functools.cache
def _kernel(platform: str) -> Callable[[Params, Batch], Gradients]:
    """The kernel's step on a platform: one object, so that `jax.jit` finds what it compiled for it."""
    from jaxgrad.models.mlp.kernel import launch

    return functools.partial(launch.gradients, platform=platform)


def _in_jax(backward: Callable[[Params, Batch], Gradients], case: Case, target: Target) -> Gradients:
    with _jax_settings(target):
        params = jax.tree.map(lambda p: jnp.asarray(p, target.dtype), case.params)
        batch = jax.tree.map(jnp.asarray, case.batch)
        return jax.tree.map(np.asarray, jax.jit(backward)(params, batch))


@contextlib.contextmanager
def _jax_settings(target: Target) -> Iterator[None]:
    with (
        jax.enable_x64(target.dtype == "float64"),
        jax.default_matmul_precision("highest"),
        jax.default_device(jax_device(target.jax_device)),
    ):
        yield


def _to_torch(case: Case, target: Target) -> tuple[dict[str, Any], Any, Any]:
    try:
        import torch
    except ModuleNotFoundError:
        raise JaxgradError(
            "PyTorch is not installed: pip install 'jaxgrad[parity]',"
            " or leave its engines out with --engines by-node,fused,jax.grad"
        ) from None
    device = torch_device(target.torch_device)
    dtype = getattr(torch, target.dtype)
    params = {name: torch.from_numpy(p).to(device, dtype) for name, p in case.params._asdict().items()}
    return params, torch.from_numpy(case.batch.X).to(device), torch.from_numpy(case.batch.Y).to(device)
