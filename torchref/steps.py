"""One SGD step in PyTorch, in three ways, on copies of the notebook's parameters.

Contexts and targets are int64 tensors on the device of the parameters.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchref import by_hand as hand
from torchref import module

Loss = Callable[[Tensor, Tensor], Tensor]


class Training(NamedTuple):
    """`step(Xb, Yb)` updates the parameters in place, and returns the loss before that. SGD keeps nothing else."""

    step: Loss
    parameters: list[Tensor]


def autograd(params: dict[str, Tensor], lr: float) -> Training:
    """The module of `torchref.module`, eager, under autograd and `torch.optim.SGD`."""
    return _of_module(params, lr, lambda loss: loss)


def compiled(params: dict[str, Tensor], lr: float) -> Training:
    """The same with forward and backward from `torch.compile`, which compiles at the first step."""
    return _of_module(params, lr, lambda loss: torch.compile(loss, fullgraph=True, dynamic=False))


def by_hand(params: dict[str, Tensor], lr: float) -> Training:
    """The gradients of `torchref.by_hand`, subtracted in place."""
    params = {name: p.detach().clone() for name, p in params.items()}

    def step(Xb: Tensor, Yb: Tensor) -> Tensor:
        loss, grads = hand.gradients(params, Xb, Yb)
        for name, p in params.items():
            p.sub_(grads[name], alpha=lr)
        return loss

    return Training(step, list(params.values()))


def _of_module(params: dict[str, Tensor], lr: float, wrap: Callable[[Loss], Loss]) -> Training:
    model = module.from_notebook(params)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    loss_of = wrap(lambda Xb, Yb: F.cross_entropy(model(Xb), Yb))

    def step(Xb: Tensor, Yb: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(Xb, Yb)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Training(step, list(model.parameters()))
