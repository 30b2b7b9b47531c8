"""makemore's recurrent model as PyTorch users write it, with `nn.GRU`.

`params` are tensors by name: `tokens`, `start`, those of the layer (`gru.of_x` and so on), `head` and `head_bias`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -1


class GRU(nn.Module):
    """Embedding, one GRU layer from a learned state, head; `forward` returns logits (B, T, vocab) of (B, T)."""

    def __init__(self, vocab_size: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(hidden))
        self.embedding = nn.Embedding(vocab_size, embedding)
        self.layer = nn.GRU(embedding, hidden, batch_first=True)
        self.head = nn.Linear(hidden, vocab_size)

    def forward(self, X: Tensor) -> Tensor:
        """Logits of the next symbol at every place."""
        h = self.start.expand(1, X.shape[0], -1).contiguous()
        states, _ = self.layer(self.embedding(X.long()), h)
        return self.head(states)


# Where each parameter lies in the module, and whether it lies there transposed.
_PLACES = {
    "tokens": ("embedding.weight", False),
    "start": ("start", False),
    "gru.of_x": ("layer.weight_ih_l0", True),
    "gru.of_h": ("layer.weight_hh_l0", True),
    "gru.bias_x": ("layer.bias_ih_l0", False),
    "gru.bias_h": ("layer.bias_hh_l0", False),
    "head": ("head.weight", True),
    "head_bias": ("head.bias", False),
}


def from_params(params: dict[str, Tensor]) -> GRU:
    """A module that holds the parameters, in their type and on their device."""
    vocab_size, embedding = params["tokens"].shape
    model = GRU(vocab_size, embedding, params["start"].shape[0])
    model.to(params["tokens"])
    with torch.no_grad():
        for name, (place, transposed) in _PLACES.items():
            model.get_parameter(place).copy_(params[name].T if transposed else params[name])
    return model


def gradients(params: dict[str, Tensor], X: Tensor, Y: Tensor, **sizes: object) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and autograd's gradient through `nn.GRU` of every parameter."""
    model = from_params(params)
    loss = F.cross_entropy(model(X).flatten(0, 1), Y.flatten().long(), ignore_index=IGNORED)
    loss.backward()
    grads = {name: model.get_parameter(place).grad for name, (place, _) in _PLACES.items()}
    return loss.detach(), {name: grad.T if _PLACES[name][1] else grad for name, grad in grads.items()}
