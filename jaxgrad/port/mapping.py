"""Where each weight goes: a rule for every leaf, kept as a table, as JSON and as code."""

import json
from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad import files
from jaxgrad.checking.oracles import rules
from jaxgrad.checking.oracles.rules import Rule
from jaxgrad.errors import JaxgradError

SCHEMA = "jaxgrad.port.mapping/1"


class Entry(NamedTuple):
    """A leaf's path, its shape, its rule, and whether values proved the rule or names alone proposed it."""

    path: str
    shape: tuple[int, ...]
    rule: Rule
    proved: bool


class Mapping(NamedTuple):
    """The entries in the order of the tree's leaves, and the tensors' shapes by name.

    `unused` are tensors that the module's forward pass did not need.
    """

    entries: tuple[Entry, ...]
    tensors: dict[str, tuple[int, ...]]
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [(e.path, str(e.shape), str(e.rule), "" if e.proved else "by name, not proved") for e in self.entries]
        widths = [max((len(row[k]) for row in rows), default=0) for k in range(3)]
        lines = ["  ".join(text.ljust(w) for text, w in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows]
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write the mapping as JSON."""
        files.write_json(Path(path), self.as_json())

    def as_json(self) -> dict[str, Any]:
        """The mapping as data for JSON, with its schema."""
        return {
            "schema": SCHEMA,
            "tensors": {name: list(shape) for name, shape in self.tensors.items()},
            "unused": list(self.unused),
            "leaves": [{**e._asdict(), "rule": e.rule._asdict()} for e in self.entries],
        }

    def as_code(self) -> str:
        """The mapping as the source of a Python function `leaves(state)`, which gives arrays by leaf path."""
        body = "".join(f"        {e.path!r}: {rules.as_code(e.rule)},\n" for e in self.entries)
        return (
            "import numpy as np\n\n\ndef leaves(state):\n"
            '    """Arrays by leaf path, from a state dict of arrays."""\n'
            f"    return {{\n{body}    }}\n"
        )


def read(path: str | Path) -> Mapping:
    """A mapping that `Mapping.save` wrote. Raises `JaxgradError` for a file that is none."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise JaxgradError(f"{path} has the schema {data['schema']!r}; this version reads {SCHEMA!r}")
        entries = tuple(
            Entry(e["path"], tuple(e["shape"]), Rule(*map(_tuples, e["rule"].values())), e["proved"])
            for e in data["leaves"]
        )
        return Mapping(entries, {n: tuple(s) for n, s in data["tensors"].items()}, tuple(data["unused"]))
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise JaxgradError(f"{path} is not a mapping ({error}); write one with Mapping.save") from None


def _tuples(x: Any) -> Any:
    return tuple(map(_tuples, x)) if isinstance(x, list) else x


def is_parameter(leaf: Any) -> bool:
    """Whether a leaf is an array, or the shape of one, of floats: what tensors are mapped to."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and hasattr(leaf, "shape") and bool(jax.numpy.issubdtype(dtype, jax.numpy.inexact))


def paths(params: Any) -> list[tuple[str, Any]]:
    """The float leaves of a tree with their paths, as `jax.tree_util.keystr` writes them."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves if is_parameter(leaf)]


def load(params: Any, state: Any, mapping: Mapping | None = None) -> Any:
    """The tree `params` with its float leaves filled from a state dict.

    Args:
        params: the tree; its arrays, or their shapes, give structure, shapes and types.
        state: tensors or arrays by name, or the path of a `.safetensors` file or of one that `torch.save` wrote.
        mapping: what `match` gave.

    Raises `JaxgradError` for a leaf without a rule, a missing tensor and one of another shape.
    """
    if mapping is None:
        raise JaxgradError("load needs a mapping: make one with jaxgrad.port.match(params, module, *inputs)")
    tensors = _state(state)
    by_path = {entry.path: entry for entry in mapping.entries}
    filled = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if not is_parameter(leaf):
            filled.append(leaf)
            continue
        if name not in by_path:
            raise JaxgradError(f"the mapping has no rule for {name}; match this tree again")
        entry = by_path[name]
        for source in entry.rule.sources:
            if source not in tensors:
                raise JaxgradError(f"{name} is made from {source!r}, which the state dict lacks; it is another model's")
            if tuple(tensors[source].shape) != mapping.tensors[source]:
                raise JaxgradError(
                    f"{source!r} has the shape {tuple(tensors[source].shape)}, and the mapping was made for"
                    f" {mapping.tensors[source]}; match a module of these sizes"
                )
        made = rules.apply(entry.rule, tensors)
        if made.shape != tuple(leaf.shape):
            raise JaxgradError(f"{name} has the shape {tuple(leaf.shape)}, and its rule gives {made.shape}")
        filled.append(jax.numpy.asarray(made, leaf.dtype))
    return jax.tree.unflatten(jax.tree.structure(params), filled)


def _state(state: Any) -> MappingType[str, np.ndarray]:
    if isinstance(state, (str, Path)):
        path = Path(state)
        if not path.is_file():
            raise JaxgradError(f"there is no checkpoint {path}")
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="np") as file:
                return {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: _array(x) for name, x in state.items()}


def _array(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):
        from jaxgrad.checking.oracles.torch import to_numpy

        return to_numpy(x)
    return np.asarray(x)
