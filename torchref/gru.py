"""makemore's recurrent model step by step in PyTorch, and the gradient of every node.

`params` are tensors by name: `tokens`, `start`, those of the layer (`gru.of_x` and so on), `head` and `head_bias`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -1
# Names of a step's nodes begin so; the gradients of all steps are stacked.
PREFIX = "step."


def gradients(
    params: dict[str, Tensor], X: Tensor, Y: Tensor, **sizes: object
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
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
