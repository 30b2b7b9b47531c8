"""What a device can do at best: the rate of a large float32 product, in JAX and in PyTorch, and how exact it is."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.bench.peers import Place

# Rows of the square matrices: some 20 GFLOP for a CPU, a TFLOP for an accelerator, so that neither waits to start.
ROWS = {"cpu": 2048}
ROWS_ELSEWHERE = 8192


class Peak(NamedTuple):
    """The best rate that a library had on a device. `precision` is the library's setting, and `error` what it means:
    the root mean square error of a product of 16 terms, relative to that of its elements (float32 some 1e-7).
    """

    library: str
    device: str
    rows: int
    flops_per_second: float
    precision: str
    error: float


def jax_peak(place: Place, repeats: int = 5) -> Peak:
    """By `jnp.matmul` at the default precision, on JAX's default device."""
    n = ROWS.get(place.jax_device, ROWS_ELSEWHERE)
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.float32)
    product = jax.jit(jnp.matmul)
    seconds = _best(lambda: jax.block_until_ready(product(a, a)), repeats)
    error = _error(lambda x, y: np.asarray(product(jnp.asarray(x), jnp.asarray(y))))
    return Peak("jax", place.jax_device, n, 2 * n**3 / seconds, jax_precision(), error)


def jax_precision() -> str:
    """JAX's precision of matrix products: "default", which is the platform's, unless a setting says otherwise."""
    return str(jax.config.jax_default_matmul_precision or "default")  # type: ignore[attr-defined]


def torch_peak(place: Place, repeats: int = 5) -> Peak:
    """By `torch.matmul` at the default precision."""
    import torch

    device = torch.device(place.torch_device)
    n = ROWS.get(device.type, ROWS_ELSEWHERE)
    a = torch.randn(n, n, device=device)

    def once() -> None:
        product = a @ a
        # One number to the host, so that a device's work is waited for.
        product[0, 0].item()

    seconds = _best(once, repeats)
    error = _error(lambda x, y: (torch.tensor(x, device=device) @ torch.tensor(y, device=device)).cpu().numpy())
    return Peak("torch", place.torch_device, n, 2 * n**3 / seconds, torch.get_float32_matmul_precision(), error)


def _best(call: Callable[[], Any], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _error(product: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in ((256, 16), (16, 256)))
    exact = x.astype(np.float64) @ y.astype(np.float64)
    return float(np.linalg.norm(product(x, y) - exact) / np.linalg.norm(exact))
