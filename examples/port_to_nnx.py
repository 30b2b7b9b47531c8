"""A PyTorch block in Flax NNX: its epsilon is another by default, which the comparison names with its line."""

import jax
import jax.numpy as jnp
import torch
from flax import nnx

from jaxgrad import port


class Original(torch.nn.Module):
    """A feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.silu(self.up(self.norm(x))))


class Block(nnx.Module):
    """The port. NNX's `LayerNorm` has an epsilon of 1e-6, PyTorch's of 1e-5."""

    def __init__(self, rngs: nnx.Rngs, epsilon: float = 1e-6) -> None:
        self.norm = nnx.LayerNorm(8, epsilon=epsilon, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(nnx.silu(self.up(self.norm(x))))


if __name__ == "__main__":
    module, x = Original(), jax.ShapeDtypeStruct((4, 8), jnp.float32)
    # What is compared is a function of a tree: the state, put together with the graph again.
    graph, state = nnx.split(Block(nnx.Rngs(0)))
    print(port.compare(lambda state, x: nnx.merge(graph, state)(x), state, x, torch=module))
    right, state = nnx.split(Block(nnx.Rngs(0), epsilon=1e-5))

    def fn(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(right, state)(x)

    print(port.compare(fn, state, x, torch=module))
    mapping = port.match(state, module, x, fn=fn)
    print(mapping)
    model = nnx.merge(right, port.load(state, module.state_dict(), mapping))
    print("loaded", model.up.kernel.shape)
