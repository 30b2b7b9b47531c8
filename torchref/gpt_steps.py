"""One SGD step of the GPT in PyTorch, as `torchref.steps` has those of the notebook's model."""

import torch.nn.functional as F
from torch import Tensor

from torchref import gpt2
from torchref.steps import Training, of_module


def autograd(params: dict[str, Tensor], lr: float, heads: int, **sizes: object) -> Training:
    """The GPT with its head tied to the embedding, of `torchref.gpt2`, eager."""
    return of_module(gpt2.from_params(params, heads), loss, lr)


def compiled(params: dict[str, Tensor], lr: float, heads: int, **sizes: object) -> Training:
    """The same with forward and backward from `torch.compile`."""
    return of_module(gpt2.from_params(params, heads), loss, lr, compiled=True)


def loss(logits: Tensor, Y: Tensor) -> Tensor:
    """The mean cross-entropy of the targets that are not -1."""
    return F.cross_entropy(logits.flatten(0, 1), Y.flatten(), ignore_index=-1)
