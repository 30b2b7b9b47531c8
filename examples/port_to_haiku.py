"""A PyTorch block in haiku: `jax.nn.gelu` is not PyTorch's by default, which the comparison names with its line."""

import haiku as hk
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


def block(x: jax.Array, approximate: bool) -> jax.Array:
    """The port. PyTorch's GELU is exact, and `jax.nn.gelu` is not unless it is told to be."""
    y = hk.LayerNorm(-1, True, True, name="norm")(x)
    h = jax.nn.gelu(hk.Linear(16, name="up")(y), approximate=approximate)
    return x + hk.Linear(8, name="down")(h)


def ported(approximate: bool) -> hk.Transformed:
    return hk.without_apply_rng(hk.transform(lambda x: block(x, approximate)))


if __name__ == "__main__":
    module, x = Original(), jax.ShapeDtypeStruct((4, 8), jnp.float32)
    # What is compared is a function of the parameters and the inputs, and `apply` is one.
    wrong, right = ported(approximate=True), ported(approximate=False)
    params = right.init(jax.random.key(0), jnp.ones((4, 8)))
    print(port.compare(wrong.apply, params, x, torch=module))
    print(port.compare(right.apply, params, x, torch=module))
    mapping = port.match(params, module, x, fn=right.apply)
    print(mapping)
    loaded = port.load(params, module.state_dict(), mapping)
    print("loaded", loaded["up"]["w"].shape)
