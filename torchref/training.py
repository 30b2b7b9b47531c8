"""The notebook's training loop: SGD on PyTorch's gradients."""

from collections.abc import Iterable

import torch
from torch import Tensor

from torchref.notebook import forward


def train(
    params: dict[str, Tensor], X: Tensor, Y: Tensor, batches: Iterable[Tensor], learning_rates: Iterable[float]
) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters after one SGD step for each batch of row indices, and the loss of every step."""
    params = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    losses = []
    for ix, lr in zip(batches, learning_rates, strict=True):
        loss = forward(params, X[ix], Y[ix])["loss"]
        for p in params.values():
            p.grad = None
        loss.backward()
        with torch.no_grad():
            for p in params.values():
                p -= lr * p.grad
        losses.append(loss.detach())
    return {name: p.detach() for name, p in params.items()}, torch.stack(losses)
