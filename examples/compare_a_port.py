"""Find the line where a JAX port and its PyTorch module part, and what would mend it."""

import jax
import jax.numpy as jnp
import torch

from jaxgrad import port


class Classifier(torch.nn.Module):
    """The original."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.up = torch.nn.Linear(8, 16)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head(torch.nn.functional.gelu(self.up(self.norm(x)))), -1)


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def classify(p, x, approximate=True):
    """The port: PyTorch's GELU is exact, and `jax.nn.gelu` is not unless it is told to be."""
    y = jax.nn.standardize(x, epsilon=1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
    return jax.nn.softmax(dense(p["head"], jax.nn.gelu(dense(p["up"], y), approximate=approximate)), -1)


def mended(p, x):
    return classify(p, x, approximate=False)


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


PARAMS = {
    "norm": {"scale": shape(8), "bias": shape(8)},
    "up": {"kernel": shape(8, 16), "bias": shape(16)},
    "head": {"kernel": shape(16, 3), "bias": shape(3)},
}

if __name__ == "__main__":
    module = Classifier()
    # Neither program is changed or marked; which weight goes where is found out.
    print(port.compare(classify, PARAMS, shape(4, 8), torch=module))
    print(port.compare(mended, PARAMS, shape(4, 8), torch=module))

    # The same mapping loads a trained state dict.
    mapping = port.match(PARAMS, module, shape(4, 8), fn=mended)
    params = port.load(PARAMS, module.state_dict(), mapping)
    x = torch.randn(4, 8)
    apart = abs(mended(params, x.numpy()) - module(x).detach().numpy()).max()
    print(f"probabilities in float32 differ by {'no more than rounding' if apart < 1e-6 else apart}")
