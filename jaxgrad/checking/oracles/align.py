"""Which tensor of a PyTorch module is which leaf of a JAX tree of parameters, and in which layout."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad.errors import JaxgradError

# What Flax, Haiku, Equinox and hand-made trees call the tensors that PyTorch calls weight and bias.
_KINDS = {
    "kernel": "weight", "w": "weight", "scale": "weight", "gain": "weight", "gamma": "weight", "embedding": "weight",
    "table": "weight", "embeddings": "weight", "weights": "weight", "b": "bias", "beta": "bias", "offset": "bias",
    "biases": "bias",
}  # fmt: skip
# Tokens that say how a tree holds its leaves, not what the leaf is.
_HOLDERS = frozenset(("params", "value", "raw_value", "layers"))


class Match(NamedTuple):
    """A leaf's path, the torch tensor's name, and the axes that turn the leaf's layout into the tensor's."""

    path: str
    torch_name: str
    axes: tuple[int, ...]


def align(
    params: Any, torch_shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str] | None = None
) -> list[Match]:
    """A match for every leaf of `params`, in order of the leaves.

    `names` gives torch names by leaf paths (as `jax.tree_util.keystr` writes them, or with dots) and goes first.
    The rest is guessed: the same name after the conventions of Flax, Equinox and plain dicts are undone; else the
    only tensor left of that kind and shape; else the same place in the order of modules. A 2-D leaf called
    `kernel` or `w…` is transposed, a 4-D `kernel` is taken from HWIO to OIHW, wherever the shapes allow.
    Raises `JaxgradError` listing every leaf and tensor that is left over, or whose shapes do not fit.
    """
    leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    given = {_dotted(path): torch_name for path, torch_name in (names or {}).items()}
    free = dict(torch_shapes)
    found: dict[str, Match] = {}

    def take(path: str, shape: tuple[int, ...], torch_name: str) -> bool:
        axes = _axes(path, shape, free[torch_name]) if torch_name in free else None
        if axes is None:
            return False
        found[path] = Match(path, torch_name, axes)
        del free[torch_name]
        return True

    for path, leaf in leaves:
        torch_name = given.get(_dotted(path))
        if torch_name is not None and not take(path, np.shape(leaf), torch_name):
            raise JaxgradError(
                f"names sends {path}, of shape {np.shape(leaf)}, to {torch_name!r}, which"
                f" {'has shape ' + str(torch_shapes[torch_name]) if torch_name in torch_shapes else 'does not exist'}"
                " or is taken"
            )
    for guess in (_same_name, _only_one, _same_place):
        for path, leaf in sorted(leaves, key=lambda item: _natural(item[0])):
            if path not in found:
                rest = [(p, np.shape(other)) for p, other in leaves if p not in found]
                for torch_name in guess(path, np.shape(leaf), rest, free):
                    if take(path, np.shape(leaf), torch_name):
                        break
    left = [f"{path} {np.shape(leaf)}" for path, leaf in leaves if path not in found]
    if left or free:
        tensors = [f"{name} {shape}" for name, shape in free.items()]
        raise JaxgradError(
            f"parameters left over: JAX leaves [{', '.join(left)}], torch tensors [{', '.join(tensors)}];"
            " give names={leaf path: torch name} for them"
        )
    return [found[path] for path, _ in leaves]


def as_function(reference: Any, args: tuple[Any, ...], names: Mapping[str, str] | None = None) -> Callable[..., Any]:
    """A torch reference as a function of tensors: itself, or of a module `f(params, *inputs)` in JAX's layout.

    Of an `nn.Module`, `args[0]` is the tree of parameters that `align` matches with `named_parameters`.
    """
    if not hasattr(reference, "named_parameters"):
        return reference
    shapes = {name: tuple(p.shape) for name, p in reference.named_parameters()}
    matches = align(args[0], shapes, names)

    def of_params(params: Any, *inputs: Any) -> Any:
        from torch.func import functional_call

        tensors = jax.tree.leaves(params)
        named = {m.torch_name: t.permute(*m.axes) for m, t in zip(matches, tensors, strict=True)}
        # A copy, because the module's buffers must have the type of this run and the user's module must not change.
        module = copy.deepcopy(reference).to(tensors[0].dtype)
        return functional_call(module, named, inputs)

    return of_params


def _axes(path: str, shape: tuple[int, ...], torch_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    same = tuple(range(len(shape)))
    last = _tokens(path)[-1]
    choices = [same]
    if len(shape) == 2:
        transposed = last == "kernel" or (last.startswith("w") and last != "weight")
        choices = [(1, 0), same] if transposed else [same, (1, 0)]
    if len(shape) == 4 and last == "kernel":
        choices = [(3, 2, 0, 1), same]
    return next((axes for axes in choices if tuple(shape[axis] for axis in axes) == tuple(torch_shape)), None)


def _tokens(path: str) -> list[str]:
    return [token.lower() for token in re.findall(r"[A-Za-z0-9_]+", path)]


def _dotted(path: str) -> str:
    return ".".join(_tokens(path))


def _normal(path: str) -> tuple[str, ...]:
    """The tokens of a name without holders, numbers apart from words, and its last in PyTorch's words."""
    tokens = [token for token in _tokens(path) if token not in _HOLDERS] or _tokens(path)
    *modules, last = tokens
    return (*(re.sub(r"(?<=[a-z])_?(?=\d)", "_", token) for token in modules), _kind(last))


def _kind(token: str) -> str:
    # W1 and b2 are a weight and a bias with a number: the number names the module.
    return _KINDS.get(token, _KINDS.get(token.rstrip("0123456789_"), token))


def _same_name(path: str, shape: Any, rest: Any, free: Mapping[str, Any]) -> Iterator[str]:
    return (name for name in list(free) if _normal(name) == _normal(path))


def _only_one(path: str, shape: Any, rest: list[tuple[str, Any]], free: Mapping[str, Any]) -> Iterator[str]:
    """The torch tensor of this kind and fitting shape, where one leaf and one tensor are left of them."""
    kind = _normal(path)[-1]
    tensors = [name for name in free if _normal(name)[-1] == kind and _axes(path, shape, free[name]) is not None]
    rivals = [p for p, s in rest if _normal(p)[-1] == kind and any(_axes(p, s, free[t]) is not None for t in tensors)]
    return iter(tensors if len(tensors) == len(rivals) == 1 else [])


def _same_place(path: str, shape: Any, rest: list[tuple[str, Any]], free: Mapping[str, Any]) -> Iterator[str]:
    """The first tensor left of this kind and shape, where leaves of the kind come in a natural order of modules."""
    kind = _normal(path)[-1]
    rivals = [p for p, s in rest if _normal(p)[-1] == kind and sorted(s) == sorted(shape)]
    if path != min(rivals, key=_natural):
        return iter([])
    return (name for name in list(free) if _normal(name)[-1] == kind and _axes(path, shape, free[name]) is not None)


def _natural(path: str) -> list[Any]:
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.findall(r"\d+|\D+", path.lower())]
