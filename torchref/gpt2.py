"""GPT-2 as an `nn.Module` whose state dict has the names that the library transformers gives it (`GPT2LMHeadModel`)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv1D(nn.Module):
    """An affine map whose weight is `(inputs, outputs)`, as in GPT-2's own checkpoints."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`x @ weight + bias`."""
        return x @ self.weight + self.bias


class Attention(nn.Module):
    """Causal attention by PyTorch's own kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = Conv1D(3 * width, width)
        self.c_proj = Conv1D(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(C, 2))
        mix = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mix.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Four times the width, with GPT-2's GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = Conv1D(4 * width, width)
        self.c_proj = Conv1D(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-norm attention and MLP on a residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2LMHeadModel(nn.Module):
    """GPT-2 with its head tied to the embedding; `forward` returns logits (B, T, vocab) of symbols (B, T)."""

    def __init__(self, vocab_size: int, layers: int, heads: int, width: int, block: int) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, width),
                "wpe": nn.Embedding(block, width),
                "h": nn.ModuleList(Block(width, heads) for _ in range(layers)),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, X: Tensor) -> Tensor:
        """Logits of the next symbol at every place."""
        x = self.transformer["wte"](X.long()) + self.transformer["wpe"].weight[: X.shape[1]]
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def loss(model: nn.Module, X: Tensor, Y: Tensor) -> Tensor:
    """The mean cross-entropy of the targets that are not -1."""
    return F.cross_entropy(model(X).flatten(0, 1), Y.flatten().long(), ignore_index=-1)


# What a block's tensors are called in the parameters of `torchref.gpt`, where those of all layers are stacked.
_OF_BLOCK = {
    "ln1_gain": "ln_1.weight", "ln1_bias": "ln_1.bias", "qkv_w": "attn.c_attn.weight", "qkv_b": "attn.c_attn.bias",
    "proj_w": "attn.c_proj.weight", "proj_b": "attn.c_proj.bias", "ln2_gain": "ln_2.weight", "ln2_bias": "ln_2.bias",
    "fc_w": "mlp.c_fc.weight", "fc_b": "mlp.c_fc.bias", "out_w": "mlp.c_proj.weight", "out_b": "mlp.c_proj.bias",
}  # fmt: skip
_OF_MODEL = {"tokens": "wte.weight", "positions": "wpe.weight", "ln_gain": "ln_f.weight", "ln_bias": "ln_f.bias"}


def from_params(params: dict[str, Tensor], heads: int) -> GPT2LMHeadModel:
    """A module that holds the parameters of `torchref.gpt`, with learned positions and a tied head, on their device."""
    (vocab_size, width), block = params["tokens"].shape, len(params["positions"])
    layers = len(params["blocks.qkv_w"])
    model = GPT2LMHeadModel(vocab_size, layers, heads, width, block)
    model.to(params["tokens"])
    with torch.no_grad():
        for name, place in _OF_MODEL.items():
            model.get_parameter(f"transformer.{place}").copy_(params[name])
        for name, place in _OF_BLOCK.items():
            for layer in range(layers):
                model.get_parameter(f"transformer.h.{layer}.{place}").copy_(params[f"blocks.{name}"][layer])
    return model
