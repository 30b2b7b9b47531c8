"""A PyTorch block in Flax linen: its epsilon is another by default, which the comparison names with its line."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch

from jaxgrad import port


class Original(torch.nn.Module):
    """A feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.silu(self.up(self.norm(x))))


class Block(nn.Module):
    """The port. linen's `LayerNorm` has an epsilon of 1e-6, PyTorch's of 1e-5."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm(epsilon=self.epsilon)(x)
        return x + nn.Dense(8)(nn.silu(nn.Dense(16)(y)))


if __name__ == "__main__":
    module, x = Original(), jax.ShapeDtypeStruct((4, 8), jnp.float32)
    # What is compared is a function of the variables and the inputs, and `apply` is one.
    variables = Block().init(jax.random.key(0), jnp.ones((4, 8)))
    print(port.compare(Block().apply, variables, x, torch=module))
    right = Block(epsilon=1e-5)
    print(port.compare(right.apply, variables, x, torch=module))
    mapping = port.match(variables, module, x, fn=right.apply)
    print(mapping)
    loaded = port.load(variables, module.state_dict(), mapping)
    print("loaded", jax.tree.map(jnp.shape, loaded)["params"]["Dense_0"])
