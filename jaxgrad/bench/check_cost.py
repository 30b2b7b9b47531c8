"""What a check costs: its time and memory beside those of the script that a careful user would write instead.

Each measurement is a child process of its own (`python -m jaxgrad.bench.check_cost CASE WHO`), so every one compiles
from nothing and its peak of memory is its own. The script computes in float64 the value and the gradient of both
sides, and compares them with a tolerance of its author's choice. A comparison of a port with its original stands beside
the port's value and gradient alone.
"""

import functools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgrad.errors import JaxgradError
from jaxgrad.progress import kept

ONE_SETTING: Mapping[str, Any] = {"dtypes": ("float64",), "transforms": ("jit",), "seeds": (0,)}
SCRIPT, ONE, DEFAULTS, ALONE = "script", "one setting", "defaults", "defaults, no reference"
PLAIN, PORT = "value_and_grad", "port.compare"


class Case(NamedTuple):
    """A function, its shapes, and what it is checked against: `reference` in JAX or `torch_reference`, made on demand.

    `whos` are what is measured, the first what the others are beside; `limit` is how many seconds each may take.
    """

    title: str
    fn: Callable[..., Array]
    args: Callable[[], tuple[Any, ...]]
    reference: Callable[..., Array] | None
    torch_reference: Callable[[], Any] | None
    whos: tuple[str, ...]
    limit: float


class Cost(NamedTuple):
    """What one child took. `seconds` are those of the work itself and `whole` those of the process, with imports.

    `why` says what went wrong where they are not finite.
    """

    case: str
    who: str
    seconds: float
    whole: float
    peak_mb: float
    why: str = ""


# An op of the README's size.


def _plain_norm(x: Float[Array, "m n"], gain: Float[Array, " n"], shift: Float[Array, " n"]) -> Float[Array, "m n"]:
    centred = x - x.mean(1, keepdims=True)
    return gain * centred / jnp.sqrt(jnp.mean(centred * centred, 1, keepdims=True) + 1e-5) + shift


@jax.custom_vjp
def layer_norm(x: Float[Array, "m n"], gain: Float[Array, " n"], shift: Float[Array, " n"]) -> Float[Array, "m n"]:
    """`gain * (x - mean) / deviation + shift`, with a backward pass of its own."""
    return _plain_norm(x, gain, shift)


def _norm_fwd(x: Array, gain: Array, shift: Array) -> tuple[Array, tuple[Array, ...]]:
    centred = x - x.mean(1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, 1, keepdims=True) + 1e-5)
    return gain * (centred * inverse) + shift, (centred * inverse, inverse, gain)


def _norm_bwd(kept: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    x_hat, inverse, gain = kept
    d = dy * gain
    dx = inverse * (d - d.mean(1, keepdims=True) - x_hat * jnp.mean(d * x_hat, 1, keepdims=True))
    return dx, jnp.sum(dy * x_hat, 0), jnp.sum(dy, 0)


layer_norm.defvjp(_norm_fwd, _norm_bwd)


def _shapes(*shapes: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)


# A GPT, and its twin in torch. Names are torch's, in a flat dict, so that nothing need be guessed.

VOCABULARY, HEAD = 64, 32


class Width(NamedTuple):
    """Layers, width and context of a GPT, and the sequences of a batch."""

    layers: int
    width: int
    context: int
    batch: int


SMALL, DEEP, LARGE = Width(2, 128, 32, 2), Width(12, 192, 128, 4), Width(12, 768, 64, 1)


def gpt_shapes(size: Width) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by its name in the torch module."""
    d = size.width
    block = {
        "norm1.weight": (d,), "norm1.bias": (d,), "qkv.weight": (3 * d, d), "out.weight": (d, d),
        "norm2.weight": (d,), "norm2.bias": (d,), "up.weight": (4 * d, d), "up.bias": (4 * d,),
        "down.weight": (d, 4 * d), "down.bias": (d,),
    }  # fmt: skip
    blocks = {f"blocks.{i}.{name}": shape for i in range(size.layers) for name, shape in block.items()}
    return {"tokens.weight": (VOCABULARY, d), "places.weight": (size.context, d), **blocks, "norm.weight": (d,),
            "norm.bias": (d,), "head.weight": (VOCABULARY, d)}  # fmt: skip


def _gpt_args(size: Width) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)

    def initial(name: str, shape: tuple[int, ...]) -> np.ndarray:
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        return (centre + 0.1 * rng.standard_normal(shape) / (shape[-1] / 128) ** 0.5).astype(np.float32)

    ids = rng.integers(0, VOCABULARY, (size.batch, size.context)).astype(np.int32)
    return {name: initial(name, shape) for name, shape in gpt_shapes(size).items()}, ids


def gpt(params: dict[str, Array], ids: Int[Array, "batch t"], norm: Callable[..., Array] = layer_norm) -> Array:
    """The logits of a decoder with norms first; `norm` has a backward pass of its own in the function under test."""
    t = ids.shape[1]
    x = params["tokens.weight"][ids] + params["places.weight"][:t]
    batch, _, d = x.shape

    def normed(name: str, x: Array) -> Array:
        return norm(x.reshape(-1, d), params[f"{name}.weight"], params[f"{name}.bias"]).reshape(x.shape)

    def heads(y: Array) -> Array:
        return y.reshape(batch, t, d // HEAD, HEAD).swapaxes(1, 2)

    for i in range(sum(name.endswith("qkv.weight") for name in params)):
        p = functools.partial("blocks.{}.{}".format, i)
        q, k, v = map(heads, jnp.split(normed(p("norm1"), x) @ params[p("qkv.weight")].T, 3, -1))
        y = _attend(q, k, v).swapaxes(1, 2).reshape(x.shape)
        x = x + y @ params[p("out.weight")].T
        h = jax.nn.silu(normed(p("norm2"), x) @ params[p("up.weight")].T + params[p("up.bias")])
        x = x + h @ params[p("down.weight")].T + params[p("down.bias")]
    return normed("norm", x) @ params["head.weight"].T


def _attend(q: Array, k: Array, v: Array) -> Array:
    """Causal attention: (..., t, d) three times."""
    t, d = q.shape[-2:]
    scores = q @ jnp.swapaxes(k, -1, -2) / d**0.5
    return jax.nn.softmax(jnp.where(jnp.tri(t, dtype=bool), scores, -jnp.inf), -1) @ v


def torch_gpt(size: Width) -> Any:
    """The same decoder as a torch module."""
    import torch
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            d = size.width
            self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
            self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

        def forward(self, x: Any) -> Any:
            b, t, d = x.shape
            q, k, v = (
                y.reshape(b, t, d // HEAD, HEAD).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, dim=-1)
            )
            scores = (q @ k.transpose(-1, -2)) / HEAD**0.5
            hidden = torch.ones(t, t, dtype=torch.bool).tril().logical_not()
            y = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
            x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
            return x + self.down(nn.functional.silu(self.up(self.norm2(x))))

    class Gpt(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(VOCABULARY, size.width)
            self.places = nn.Embedding(size.context, size.width)
            self.blocks = nn.ModuleList(Block() for _ in range(size.layers))
            self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, VOCABULARY, bias=False)

        def forward(self, ids: Any) -> Any:
            x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return Gpt()


# Attention with a backward pass of its own.


@jax.custom_vjp
def attention(
    q: Float[Array, "b h t d"], k: Float[Array, "b h t d"], v: Float[Array, "b h t d"]
) -> Float[Array, "b h t d"]:
    """Causal attention, with a backward pass of its own."""
    return _attend(q, k, v)


def _attention_fwd(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    t, d = q.shape[-2:]
    scores = jnp.where(jnp.tri(t, dtype=bool), q @ jnp.swapaxes(k, -1, -2) / d**0.5, -jnp.inf)
    p = jax.nn.softmax(scores, -1)
    return p @ v, (p, q, k, v)


def _attention_bwd(kept: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    p, q, k, v = kept
    dp = dy @ jnp.swapaxes(v, -1, -2)
    ds = p * (dp - jnp.sum(dp * p, -1, keepdims=True)) / q.shape[-1] ** 0.5
    return ds @ k, jnp.swapaxes(ds, -1, -2) @ q, jnp.swapaxes(p, -1, -2) @ dy


attention.defvjp(_attention_fwd, _attention_bwd)

# Ridge regression, differentiated implicitly: the gradient of its objective is zero, and stays so.


def _objective(w: Float[Array, " d"], l2: Float[Array, ""], x: Float[Array, "n d"], y: Float[Array, " n"]) -> Array:
    return (jnp.mean(jnp.square(x @ w - y)) + l2 * jnp.sum(jnp.square(w))) / 2


def solved(l2: Float[Array, ""], x: Float[Array, "n d"], y: Float[Array, " n"]) -> Float[Array, " d"]:
    """The weights that minimise the objective."""
    rows, width = x.shape
    return jnp.linalg.solve(x.T @ x / rows + l2 * jnp.eye(width, dtype=x.dtype), x.T @ y / rows)


@jax.custom_vjp
def ridge(l2: Float[Array, ""], x: Float[Array, "n d"], y: Float[Array, " n"]) -> Float[Array, " d"]:
    """The same, with the backward pass of the implicit function theorem, by conjugate gradients."""
    return solved(l2, x, y)


def _ridge_fwd(l2: Array, x: Array, y: Array) -> tuple[Array, tuple[Array, ...]]:
    w = solved(l2, x, y)
    return w, (w, l2, x, y)


def _ridge_bwd(kept: tuple[Array, ...], dw: Array) -> tuple[Array, ...]:
    w, *rest = kept
    zero = jax.grad(_objective)

    def by_hessian(v: Array) -> Array:
        tangent: Array = jax.jvp(lambda w: zero(w, *rest), (w,), (v,))[1]
        return tangent

    cg: Any = jax.scipy.sparse.linalg.cg
    u, _ = cg(by_hessian, dw, tol=1e-12 if dw.dtype == jnp.float64 else 1e-6)
    pullback: Any = jax.vjp(lambda *rest: zero(w, *rest), *rest)[1]
    return tuple(pullback(-u))


ridge.defvjp(_ridge_fwd, _ridge_bwd)


def _data() -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in ((50, 10), (50,)))
    return np.float32(0.1), x, y


CASES = {
    "op": Case(
        "layer norm 8 x 16", layer_norm, lambda: _shapes((8, 16), (16,), (16,)), _plain_norm, None,
        (SCRIPT, ONE, DEFAULTS), 120,
    ),
    "gpt": Case(
        "GPT 2 x 128, torch", gpt, lambda: _gpt_args(SMALL), None, lambda: torch_gpt(SMALL),
        (SCRIPT, ONE, DEFAULTS), 1800,
    ),
    "attention": Case(
        "attention 2 x 4 x 512 x 64", attention, lambda: _shapes(*3 * ((2, 4, 512, 64),)), _attend, None,
        (SCRIPT, ONE, DEFAULTS), 1800,
    ),
    "solver": Case("ridge 50 x 10, implicit", ridge, _data, solved, None, (SCRIPT, ONE, DEFAULTS, ALONE), 600),
    "large": Case(
        "GPT 12 x 768, torch", gpt, lambda: _gpt_args(LARGE), None, lambda: torch_gpt(LARGE), (SCRIPT, ONE), 3600
    ),
    "port": Case(
        "GPT 12 x 192, a port", functools.partial(gpt, norm=_plain_norm), lambda: _gpt_args(DEEP), None,
        lambda: torch_gpt(DEEP), (PLAIN, PORT), 1800,
    ),
    "large-port": Case(
        "GPT 12 x 768, a port", functools.partial(gpt, norm=_plain_norm), lambda: _gpt_args(LARGE), None,
        lambda: torch_gpt(LARGE), (PLAIN, PORT), 3600,
    ),
}  # fmt: skip


# The child.


def script(case: Case) -> None:
    """Value and gradient of both sides in float64, compared: what a check replaces."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        args = [
            rng.standard_normal(a.shape) if isinstance(a, jax.ShapeDtypeStruct) else jax.tree.map(_in_float64, a)
            for a in case.args()
        ]
        inputs = tuple(n for n, a in enumerate(args) if jax.tree.leaves(a)[0].dtype == np.float64)
        y = jax.eval_shape(case.fn, *args)
        weights = rng.standard_normal(y.shape)

        def slope(fn: Callable[..., Array]) -> tuple[Any, Any]:
            total = lambda *args: jnp.sum(weights * fn(*args))  # noqa: E731
            return jax.jit(jax.value_and_grad(total, inputs))(*args)

        value, gradients = slope(case.fn)
        if case.reference is not None:
            expected, of_reference = slope(case.reference)
        else:
            assert case.torch_reference is not None
            expected, of_reference = _torch_slope(case.torch_reference(), args, weights)
        np.testing.assert_allclose(value, expected, rtol=1e-9)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(of_reference), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def _in_float64(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.float64) if leaf.dtype.kind == "f" else leaf


def _torch_slope(module: Any, args: list[Any], weights: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    import torch

    params, ids = args
    module.double().load_state_dict({name: torch.from_numpy(value) for name, value in params.items()})
    total = (torch.from_numpy(weights) * module(torch.from_numpy(ids))).sum()
    total.backward()
    return total.item(), {name: p.grad.numpy() for name, p in module.named_parameters()}


def _checked(case: Case, options: Mapping[str, Any]) -> None:
    from jaxgrad import check

    torch_reference = case.torch_reference() if case.torch_reference else None
    check(case.fn, *case.args(), reference=case.reference, torch_reference=torch_reference, **options)


def plain(case: Case) -> None:
    """The value and gradient in float64, compiled and run once."""
    with jax.enable_x64(True):
        args = [jax.tree.map(_in_float64, a) for a in case.args()]
        total = lambda *args: jnp.sum(jnp.square(case.fn(*args)))  # noqa: E731
        jax.block_until_ready(jax.jit(jax.value_and_grad(total))(*args))


def ported(case: Case) -> None:
    """The comparison of a port with its original, which agree."""
    from jaxgrad import port

    assert case.torch_reference is not None
    verdict = port.compare(case.fn, *case.args(), torch=case.torch_reference())
    if not verdict.agrees:
        raise JaxgradError(f"the port that is measured should agree: {verdict}")


_WORK: dict[str, Callable[[Case], None]] = {
    SCRIPT: script,
    ONE: lambda case: _checked(case, ONE_SETTING),
    DEFAULTS: lambda case: _checked(case, {}),
    ALONE: lambda case: _checked(case._replace(reference=None), {}),
    PLAIN: plain,
    PORT: ported,
}


def _child(case: str, who: str) -> None:
    began = time.perf_counter()
    _WORK[who](CASES[case])
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_mb": _peak_bytes() / 1e6}))


def _peak_bytes() -> int:
    """The largest resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's `ru_maxrss` keeps the parent's peak across exec, and so would count the memory of another process.
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# The parent.


def measured(case: str, who: str) -> Cost:
    """Run one measurement in a process of its own, on the CPU and without a cache of compiled programs."""
    if case not in CASES or who not in CASES[case].whos:
        raise JaxgradError(f"there is no case {case!r} by {who!r}; choose from {', '.join(CASES)}")
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"}
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "jaxgrad.bench.check_cost", case, who],
            capture_output=True, text=True, env=environment, timeout=CASES[case].limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Cost(case, who, np.nan, np.nan, np.nan, f"took more than {CASES[case].limit:.0f} s")
    whole = time.perf_counter() - began
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        said = next((line for line in lines if "Error" in line or "Mismatch" in line), lines[-1])
        return Cost(case, who, np.nan, whole, np.nan, said.strip()[:200])
    return Cost(case, who, whole=whole, **json.loads(done.stdout.splitlines()[-1]))


def run(cases: tuple[str, ...], update: Callable[[int, str], None] = lambda done, note: None) -> list[Cost]:
    """Every measurement of some cases, one after another. A `KeyboardInterrupt` has those so far as its `found`."""
    pairs = [(case, who) for case in cases for who in CASES[case].whos]
    costs: list[Cost] = []
    with kept(lambda: costs, lambda: f"{len(costs)} of {len(pairs)} measurements were made"):
        for number, (case, who) in enumerate(pairs):
            update(number, f"{CASES[case].title}, {who}")
            costs.append(measured(case, who))
    return costs


def rows(costs: list[Cost]) -> list[dict[str, Any]]:
    """The costs as data, each with its ratio to the first of its case."""
    firsts = {cost.case: cost for cost in costs if cost.who == CASES[cost.case].whos[0]}
    return [
        {**cost._asdict(), "title": CASES[cost.case].title,
         "ratio": cost.seconds / firsts[cost.case].seconds, "whole_ratio": cost.whole / firsts[cost.case].whole}
        for cost in costs
    ]  # fmt: skip


if __name__ == "__main__":
    _child(*sys.argv[1:])
