"""A PyTorch block in Equinox: `jax.nn.gelu` is not PyTorch's by default, which the comparison names with its line."""

import equinox as eqx
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
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


class Block(eqx.Module):
    """The port, of one row. PyTorch's GELU is exact, and `jax.nn.gelu` is not unless it is told to be."""

    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    approximate: bool = eqx.field(static=True)

    def __init__(self, key: jax.Array, approximate: bool = True) -> None:
        first, second = jax.random.split(key)
        self.norm = eqx.nn.LayerNorm(8)
        self.up, self.down = eqx.nn.Linear(8, 16, key=first), eqx.nn.Linear(16, 8, key=second)
        self.approximate = approximate

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(jax.nn.gelu(self.up(self.norm(x)), approximate=self.approximate))


def rows(model: Block, x: jax.Array) -> jax.Array:
    return jax.vmap(model)(x)


if __name__ == "__main__":
    module, x = Original(), jax.ShapeDtypeStruct((4, 8), jnp.float32)
    # A module of Equinox is a tree itself: what is compared is a function of it.
    print(port.compare(rows, Block(jax.random.key(0)), x, torch=module))
    right = Block(jax.random.key(0), approximate=False)
    print(port.compare(rows, right, x, torch=module))
    mapping = port.match(right, module, x, fn=rows)
    print(mapping)
    model = port.load(right, module.state_dict(), mapping)
    print("loaded", model.up.weight.shape)
