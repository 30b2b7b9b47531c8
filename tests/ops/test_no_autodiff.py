"""The derivatives are written by hand: no autodiff in the files that hold them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BY_HAND = [
    *sorted((ROOT / "jaxgrad/ops").glob("*.py")),
    *sorted((ROOT / "jaxgrad/models/mlp/kernel").glob("*.py")),
    ROOT / "jaxgrad/models/mlp/backward.py",
    ROOT / "jaxgrad/models/mlp/fused.py",
]

AUTODIFF = {
    "grad", "value_and_grad", "vjp", "jvp", "vjp3", "linearize", "linear_transpose", "linear_call", "jacobian",
    "jacrev", "jacfwd", "hessian", "hvp", "custom_jvp", "custom_gradient", "closure_convert", "checkpoint", "remat",
    "ad", "autograd", "backward", "defjvp", "defjvps", "test_util", "transpose_ad", "fwd_and_bwd",
}  # fmt: skip


def autodiff_in(source: str) -> set[str]:
    """Every name, attribute, import or string that could reach autodiff."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                found |= {name} & AUTODIFF
            case ast.Import(names=names):
                found |= {part for alias in names for part in alias.name.split(".")} & AUTODIFF
            case ast.ImportFrom(module=module, names=names):
                parts = {*(module or "").split("."), *(alias.name for alias in names)}
                found |= (parts & AUTODIFF) | (parts & {"torch", "optax"})
            case ast.Call(func=ast.Name(id="getattr" | "eval" | "exec" | "__import__" as name)):
                found.add(name)
    return found


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: path.name)
def test_no_autodiff_in(path: Path):
    assert autodiff_in(path.read_text()) == set()


@pytest.mark.parametrize(
    "source",
    [
        "jax.grad(f)(x)",
        "from jax import vjp",
        "import jax.interpreters.ad",
        "getattr(jax, 'gr' + 'ad')(f)",
        "loss.backward()",
    ],
)
def test_this_test_would_notice(source: str):
    assert autodiff_in(source)
