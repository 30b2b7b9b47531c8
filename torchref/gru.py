"""makemore's recurrent model in PyTorch: as `nn.GRU`, and step by step with the gradient of every node.

`params` are tensors by name: `tokens`, `start`, those of the layer (`gru.of_x` and so on), `head` and `head_bias`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -1
# Names of a step's nodes begin so; the gradients of all steps are stacked.
PREFIX = "step."


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


def module_gradients(params: dict[str, Tensor], X: Tensor, Y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and autograd's gradient through `nn.GRU` of every parameter."""
    model = from_params(params)
    loss = F.cross_entropy(model(X).flatten(0, 1), Y.flatten().long(), ignore_index=IGNORED)
    loss.backward()
    grads = {name: model.get_parameter(place).grad for name, (place, _) in _PLACES.items()}
    return loss.detach(), {name: grad.T if _PLACES[name][1] else grad for name, grad in grads.items()}


def gradients(params: dict[str, Tensor], X: Tensor, Y: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The loss, and autograd's gradient of it for every parameter and for every node, by name."""
    params = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    nodes: dict[str, Tensor] = {}
    of_steps: list[dict[str, Tensor]] = []

    def keep(name: str, x: Tensor, found: dict[str, Tensor]) -> Tensor:
        x.retain_grad()
        found[name] = x
        return x

    emb = keep("emb", params["tokens"][X.T.long()], nodes)
    u = keep("u", emb @ params["gru.of_x"] + params["gru.bias_x"], nodes)
    h = params["start"].expand(X.shape[0], -1)
    for u_t in u:
        found: dict[str, Tensor] = {}
        v = keep("v", h @ params["gru.of_h"] + params["gru.bias_h"], found)
        (u_r, u_z, u_c), (v_r, v_z, v_c) = u_t.chunk(3, -1), v.chunk(3, -1)
        r = keep("r", torch.sigmoid(keep("r_sum", u_r + v_r, found)), found)
        z = keep("z", torch.sigmoid(keep("z_sum", u_z + v_z, found)), found)
        c = keep("c", torch.tanh(keep("c_sum", u_c + r * v_c, found)), found)
        h = keep("h", (1 - z) * c + z * h, found)
        of_steps.append(found)
    states = keep("states", torch.stack([found["h"] for found in of_steps], 1), nodes)
    logits = keep("logits", states @ params["head"] + params["head_bias"], nodes)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    norm_logits = keep("norm_logits", wide - wide.amax(-1, keepdim=True).detach(), nodes)
    counts = keep("counts", norm_logits.exp(), nodes)
    counts_sum = keep("counts_sum", counts.sum(-1, keepdim=True), nodes)
    log_probs = keep("log_probs", norm_logits - counts_sum.log(), nodes)
    loss = keep("loss", F.nll_loss(log_probs.flatten(0, 1), Y.flatten().long(), ignore_index=IGNORED), nodes)
    loss.backward()
    inside = {PREFIX + name: torch.stack([found[name].grad for found in of_steps]) for name in of_steps[0]}
    return (
        loss.detach(),
        {name: p.grad for name, p in params.items()},
        {**{name: node.grad for name, node in nodes.items()}, **inside},
    )
