"""The same model as PyTorch users write it: a second witness, whose arithmetic is not the notebook's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BesselBatchNorm1d(nn.BatchNorm1d):
    r"""`nn.BatchNorm1d` that normalises with the unbiased variance of the batch, as the notebook does.

    BatchNorm1d divides by n where the notebook divides by n - 1. With $b = \frac{n-1}n$ and the biased variance
    $v = b\,var$, $(var + \varepsilon)^{-1/2} = \sqrt b\,(v + b\,\varepsilon)^{-1/2}$: scaling the weight by the
    root of b and eps by b makes PyTorch's own kernel compute the notebook's function.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (batch, features) with the statistics of this batch."""
        b = (x.shape[0] - 1) / x.shape[0]
        return F.batch_norm(x, None, None, self.weight * b**0.5, self.bias, training=True, eps=self.eps * b)


class MLP(nn.Module):
    """Embedding, Linear, BatchNorm1d, tanh, Linear; `forward` returns logits (batch, vocab) of contexts (batch, n)."""

    def __init__(self, vocab_size: int, n: int, emb_size: int, h_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, emb_size)
        self.hidden = nn.Linear(n * emb_size, h_size, bias=False)
        self.norm = BesselBatchNorm1d(h_size, eps=1e-5)
        self.output = nn.Linear(h_size, vocab_size)

    def forward(self, Xb: Tensor) -> Tensor:
        """Logits of the next symbol."""
        emb = self.embedding(Xb.long())
        h = torch.tanh(self.norm(self.hidden(emb.flatten(1))))
        return self.output(h)


def from_notebook(params: dict[str, Tensor]) -> MLP:
    """A module that holds the notebook's parameters, in their type and on their device."""
    C, W1, W2 = params["C"], params["W1"], params["W2"]
    module = MLP(C.shape[0], W1.shape[0] // C.shape[1], C.shape[1], W1.shape[1])
    module.to(C.device, C.dtype)
    with torch.no_grad():
        module.embedding.weight.copy_(C)
        module.hidden.weight.copy_(W1.T)
        module.norm.weight.copy_(params["bn_gain"].squeeze(0))
        module.norm.bias.copy_(params["bn_bias"].squeeze(0))
        module.output.weight.copy_(W2.T)
        module.output.bias.copy_(params["b2"])
    return module


def gradients(params: dict[str, Tensor], Xb: Tensor, Yb: Tensor, **sizes: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and autograd's gradient of every parameter, under the notebook's names and in its shapes."""
    module = from_notebook(params)
    loss = F.cross_entropy(module(Xb), Yb.long())
    loss.backward()
    return loss.detach(), {
        "C": module.embedding.weight.grad,
        "W1": module.hidden.weight.grad.T,
        "W2": module.output.weight.grad.T,
        "b2": module.output.bias.grad,
        "bn_gain": module.norm.weight.grad.unsqueeze(0),
        "bn_bias": module.norm.bias.grad.unsqueeze(0),
    }
