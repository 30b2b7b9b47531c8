"""The notebook's forward pass, cell by cell, and PyTorch's gradient of every node.

`params` are the tensors C, W1, W2, b2, bn_gain, bn_bias, by name; sizes follow from them.
"""

import torch
from torch import Tensor

EPS = 1e-5


def forward(params: dict[str, Tensor], Xb: Tensor, Yb: Tensor) -> dict[str, Tensor]:
    """The notebook's 20 nodes, in its order and arithmetic, from contexts (batch, n) and targets (batch,)."""
    C, W1, W2, b2, bn_gain, bn_bias = (params[name] for name in ("C", "W1", "W2", "b2", "bn_gain", "bn_bias"))
    batch_size = Xb.shape[0]

    emb = C[Xb.long()]
    embcat = emb.view(batch_size, -1)

    # linear layer 1
    h_prenorm = embcat @ W1

    # batchnorm
    bnmean = 1 / batch_size * h_prenorm.sum(0, keepdim=True)
    bn_diff = h_prenorm - bnmean
    bn_diff_sq = bn_diff**2
    bn_var = 1 / (batch_size - 1) * bn_diff_sq.sum(0, keepdim=True)
    bn_var_inv = (bn_var + EPS) ** -0.5
    bn_raw = bn_diff * bn_var_inv
    h_norm = bn_gain * bn_raw + bn_bias

    # activation
    h = torch.tanh(h_norm)

    # linear layer 2
    logits = h @ W2 + b2

    # cross-entropy loss
    logit_maxes = logits.max(1, keepdim=True).values
    norm_logits = logits - logit_maxes
    counts = norm_logits.exp()
    counts_sum = counts.sum(1, keepdim=True)
    counts_sum_inv = counts_sum**-1
    probs = counts * counts_sum_inv
    log_probs = probs.log()
    loss = -log_probs[range(batch_size), Yb.long()].mean()

    return {
        "emb": emb, "embcat": embcat, "h_prenorm": h_prenorm, "bnmean": bnmean, "bn_diff": bn_diff,
        "bn_diff_sq": bn_diff_sq, "bn_var": bn_var, "bn_var_inv": bn_var_inv, "bn_raw": bn_raw, "h_norm": h_norm,
        "h": h, "logits": logits, "logit_maxes": logit_maxes, "norm_logits": norm_logits, "counts": counts,
        "counts_sum": counts_sum, "counts_sum_inv": counts_sum_inv, "probs": probs, "log_probs": log_probs,
        "loss": loss,
    }  # fmt: skip


def gradients(
    params: dict[str, Tensor], Xb: Tensor, Yb: Tensor, **sizes: int
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The loss, and autograd's gradient of it for every parameter and for every node, by name."""
    params = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    nodes = forward(params, Xb, Yb)
    for t in nodes.values():
        t.retain_grad()
    nodes["loss"].backward()
    return (
        nodes["loss"].detach(),
        {name: p.grad for name, p in params.items()},
        {name: t.grad for name, t in nodes.items()},
    )
