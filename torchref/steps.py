"""One SGD step in PyTorch, in three ways, on copies of the notebook's parameters.

Contexts and targets are int64 tensors on the device of the parameters.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchref import by_hand as hand
from torchref import module

Loss = Callable[[Tensor, Tensor], Tensor]


class Training(NamedTuple):
    """`step(Xb, Yb)` updates the parameters in place, and returns the loss before that. SGD keeps nothing else."""

    step: Loss
    parameters: list[Tensor]


def autograd(params: dict[str, Tensor], lr: float, **sizes: object) -> Training:
    """The module of `torchref.module`, eager, under autograd and `torch.optim.SGD`."""
    return of_module(module.from_notebook(params), F.cross_entropy, lr)


def compiled(params: dict[str, Tensor], lr: float, **sizes: object) -> Training:
    """The same with forward and backward from `torch.compile`, which compiles at the first step."""
    return of_module(module.from_notebook(params), F.cross_entropy, lr, compiled=True)


def by_hand(params: dict[str, Tensor], lr: float, **sizes: object) -> Training:
    """The gradients of `torchref.by_hand`, subtracted in place."""
    params = {name: p.detach().clone() for name, p in params.items()}

    def step(Xb: Tensor, Yb: Tensor) -> Tensor:
        loss, grads = hand.gradients(params, Xb, Yb)
        for name, p in params.items():
            p.sub_(grads[name], alpha=lr)
        return loss

    return Training(step, list(params.values()))


def of_module(model: nn.Module, loss: Loss, lr: float, compiled: bool = False) -> Training:
    """Steps of `torch.optim.SGD` on a module whose output and the targets are given to `loss`."""
    optimizer = torch.optim.SGD(model.parameters(), lr)

    def of_batch(Xb: Tensor, Yb: Tensor) -> Tensor:
        return loss(model(Xb), Yb)

    loss_of = torch.compile(of_batch, fullgraph=True, dynamic=False) if compiled else of_batch

    def step(Xb: Tensor, Yb: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(Xb, Yb)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Training(step, list(model.parameters()))
