"""The GPT as PyTorch users write it, after nanoGPT, and PyTorch's gradient of every node.

`params` are the model's tensors by name; those of a block, `blocks.qkv_w` and so on, hold all layers along their first
axis. Layer norm, softmax and cross-entropy are spelled out, so that what lies inside of them has a gradient too.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
IGNORED = -1
# Names of a block's nodes begin so; the gradients of all layers are stacked.
PREFIX = "block."


class Nodes(dict[str, Tensor]):
    """Tensors by name; `nodes(name, x)` keeps `x`, whose gradient will be kept too, and returns it."""

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Keep a tensor under its name."""
        if x.requires_grad:
            x.retain_grad()
        self[name] = x
        return x


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, name: str, nodes: Nodes) -> Tensor:
    """Normalise the last axis, with the biased variance, as `F.layer_norm` does."""
    mean = nodes(f"{name}_mean", x.mean(-1, keepdim=True))
    diff = nodes(f"{name}_diff", x - mean)
    diff_sq = nodes(f"{name}_diff_sq", diff**2)
    var = nodes(f"{name}_var", diff_sq.mean(-1, keepdim=True))
    var_inv = nodes(f"{name}_var_inv", (var + EPS) ** -0.5)
    hat = nodes(f"{name}_hat", diff * var_inv)
    return nodes(name, gain * hat + bias)


def rotate(x: Tensor) -> Tensor:
    """Rotary positions for (B, nh, T, hs): pairs (i, i + hs / 2) turned by `place * 10000 ** (-2 i / hs)`."""
    T, hs = x.shape[-2:]
    frequencies = 10_000.0 ** (-torch.arange(0, hs, 2, dtype=torch.float64, device=x.device) / hs)
    angles = torch.arange(T, dtype=torch.float64, device=x.device)[:, None] * frequencies
    # Angles are taken in float64; 16-bit numbers are turned in float32.
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angles.cos().to(wide), angles.sin().to(wide)
    a, b = x.to(wide).chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def attention(p: dict[str, Tensor], x: Tensor, n_head: int, rope: bool, nodes: Nodes) -> Tensor:
    """Causal self-attention of (B, T, C) and its projection."""
    B, T, C = x.shape
    qkv = nodes("qkv", x @ p["qkv_w"] + p["qkv_b"])
    # Nodes have the heads behind the places, as the projections give them.
    q, k, v = (
        nodes(n, part.reshape(B, T, n_head, C // n_head)) for n, part in zip("qkv", qkv.split(C, 2), strict=True)
    )
    if rope:
        q = nodes("q_turned", rotate(q.transpose(1, 2)).transpose(1, 2))
        k = nodes("k_turned", rotate(k.transpose(1, 2)).transpose(1, 2))
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    scores = nodes("scores", (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1))))
    masked = scores.masked_fill(torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1), float("-inf"))
    # The largest score is subtracted for range alone.
    exps = nodes("exps", (masked - masked.amax(-1, keepdim=True).detach()).exp())
    exps_sum = nodes("exps_sum", exps.sum(-1, keepdim=True))
    att = nodes("att", exps / exps_sum)
    mix = nodes("mix", (att @ v).transpose(1, 2).contiguous())
    return nodes("proj", mix.view(B, T, C) @ p["proj_w"] + p["proj_b"])


def block(p: dict[str, Tensor], x: Tensor, n_head: int, rope: bool, dropout: float, nodes: Nodes) -> Tensor:
    """A pre-norm block of (B, T, C)."""
    # An alias, so that the node is the block's own and not the last one's output.
    x = nodes("x", x.view_as(x))
    proj = attention(p, layer_norm(x, p["ln1_gain"], p["ln1_bias"], "ln1", nodes), n_head, rope, nodes)
    mid = nodes("mid", x + F.dropout(proj, dropout))
    fc = nodes("fc", layer_norm(mid, p["ln2_gain"], p["ln2_bias"], "ln2", nodes) @ p["fc_w"] + p["fc_b"])
    act = nodes("act", F.gelu(fc, approximate="tanh"))
    out = nodes("out", act @ p["out_w"] + p["out_b"])
    return mid + F.dropout(out, dropout)


def forward(
    params: dict[str, Tensor], X: Tensor, Y: Tensor, heads: int, rope: bool = False, dropout: float = 0.0
) -> tuple[Nodes, list[Nodes]]:
    """The nodes of the model and those of each block; the loss is the node `loss`."""
    nodes, of_blocks = Nodes(), []
    x = nodes("token_emb", params["tokens"][X.long()])
    if not rope:
        x = nodes("emb", x + params["positions"][: X.shape[1]])
    x = F.dropout(x, dropout)
    stacked = {name.removeprefix("blocks."): p for name, p in params.items() if name.startswith("blocks.")}
    for layer in range(len(stacked["qkv_w"])):
        of_blocks.append(Nodes())
        x = block({name: p[layer] for name, p in stacked.items()}, x, heads, rope, dropout, of_blocks[-1])
    x = layer_norm(nodes("stream", x), params["ln_gain"], params["ln_bias"], "ln", nodes)
    logits = nodes("logits", x @ (params["head"] if "head" in params else params["tokens"].T))

    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    norm_logits = nodes("norm_logits", wide - wide.amax(-1, keepdim=True).detach())
    counts = nodes("counts", norm_logits.exp())
    counts_sum = nodes("counts_sum", counts.sum(-1, keepdim=True))
    log_probs = nodes("log_probs", norm_logits - counts_sum.log())
    nodes("loss", F.nll_loss(log_probs.flatten(0, 1), Y.flatten().long(), ignore_index=IGNORED))
    return nodes, of_blocks


def gradients(
    params: dict[str, Tensor], X: Tensor, Y: Tensor, heads: int, rope: bool = False, **others: object
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The loss, and autograd's gradient of it for every parameter and for every node, by name.

    Other sizes show in the parameters' shapes. Nothing is dropped.
    """
    params = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    nodes, of_blocks = forward(params, X, Y, heads, rope)
    nodes["loss"].backward()
    inside = {PREFIX + name: torch.stack([found[name].grad for found in of_blocks]) for name in of_blocks[0]}
    return (
        nodes["loss"].detach(),
        {name: p.grad for name, p in params.items()},
        {**{name: node.grad for name, node in nodes.items()}, **inside},
    )


def train(
    params: dict[str, Tensor],
    X: Tensor,
    Y: Tensor,
    batches: Iterable[Tensor],
    learning_rates: Iterable[float],
    clip: float | None,
    sizes: dict[str, Any],
    **adamw: Any,
) -> dict[str, Tensor]:
    """The parameters after a step of AdamW for each batch of row indices; dropout is drawn from torch's generator.

    `sizes` are the model's by name, and `adamw` options of `torch.optim.AdamW` beside its rates.
    """
    params = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    optimizer = torch.optim.AdamW(params.values(), **adamw)
    for ix, rate in zip(batches, learning_rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        nodes, _ = forward(params, X[ix], Y[ix], sizes["heads"], sizes["rope"], sizes["dropout"])
        nodes["loss"].backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        optimizer.step()
    return {name: p.detach() for name, p in params.items()}
