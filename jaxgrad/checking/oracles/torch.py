"""The pullback of a PyTorch function, fed the same numbers and told the same names as JAX's."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.pullback import Pulled, is_float, pair
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs.taps import collecting_torch_taps


def under_torch(
    transform: str, fn: Callable[..., Any], args: tuple[Any, ...], dys: list[Any], directions: list[Any]
) -> tuple[Pulled, list[str]]:
    """What `pullback.under` gives of a JAX function, of a PyTorch one, as NumPy arrays; and the names of its nodes.

    PyTorch runs eagerly, so jit and remat are its plain backward, vmap and scan two of them.
    """
    match transform:
        case "grad_of_grad":
            return _pull(fn, args, dys, directions)
        case "vmap" | "scan":
            args, dys = pair(args, dys)
            each = [_pull(fn, *jax.tree.map(operator.itemgetter(i), (args, dys))) for i in range(2)]
            return jax.tree.map(lambda *leaves: np.stack(leaves), *(pulled for pulled, _ in each)), each[0][1]
        case _:
            return _pull(fn, args, dys)


def to_torch(leaf: Any) -> Any:
    """A JAX or NumPy array as a tensor on the CPU: float types as they are, int32 as int64, which torch indexes by."""
    import torch

    array = np.asarray(leaf)
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    if np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.int64)
    return torch.from_numpy(array.copy())


def to_numpy(tensor: Any) -> Any:
    """A tensor as a NumPy array, bfloat16 included, of which NumPy has no type of its own."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy().astype(jnp.bfloat16)
    return tensor.numpy()


def _pull(
    fn: Callable[..., Any], args: tuple[Any, ...], dys: list[Any], directions: list[Any] | None = None
) -> tuple[Pulled, list[str]]:
    import torch

    leaves, structure = jax.tree.flatten(args)
    tensors = [to_torch(leaf) for leaf in leaves]
    floats = [t.requires_grad_() for t, leaf in zip(tensors, leaves, strict=True) if is_float(leaf)]
    with collecting_torch_taps() as taps:
        out = fn(*jax.tree.unflatten(structure, tensors))
    outs = jax.tree.leaves(out)
    ys = [y for y in outs if y.dtype.is_floating_point]
    given, own = [tuple(dy.shape) for dy in dys], [tuple(y.shape) for y in ys]
    if own != given:
        raise JaxgradError(f"the torch reference has float outputs of shapes {own}, and the function {given}")
    wanted = [y for y in zip(ys, map(to_torch, dys), strict=True) if y[0].requires_grad]
    at = [*floats, *taps.values()]
    grads = torch.autograd.grad(
        [y for y, _ in wanted],
        at,
        [dy.to(y.dtype) for y, dy in wanted],
        create_graph=directions is not None,
        allow_unused=True,
    )
    grads = [torch.zeros_like(t) if g is None else g for t, g in zip(at, grads, strict=True)]
    first, of_taps = grads[: len(floats)], grads[len(floats) :]
    if directions is not None:
        inner = sum((g * to_torch(d)).sum() for g, d in zip(first, directions, strict=True))
        again = torch.autograd.grad(inner, floats, allow_unused=True) if inner.requires_grad else [None for _ in floats]
        zeros = (torch.zeros_like(t) if g is None else g for t, g in zip(floats, again, strict=True))
        return Pulled([], [], list(map(to_numpy, zeros))), []
    nodes = list(map(to_numpy, reversed(of_taps)))
    return Pulled(list(map(to_numpy, outs)), nodes, list(map(to_numpy, first))), list(reversed(taps))
