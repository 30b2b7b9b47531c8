"""The notebook's parameters, drawn again from its generator."""

import torch
from torch import Tensor


def parameters(generator_seed: int, vocab_size: int, n: int, emb_size: int, h_size: int) -> dict[str, Tensor]:
    """C, W1, W2, b2, bn_gain, bn_bias as float32 on the CPU, drawn in the notebook's order with its scales."""
    g = torch.Generator().manual_seed(generator_seed)
    C = torch.randn(vocab_size, emb_size, generator=g)
    W1 = torch.randn(n * emb_size, h_size, generator=g) * (5 / 3) / ((n * emb_size) ** 0.5)
    W2 = torch.randn(h_size, vocab_size, generator=g) * 0.1
    b2 = torch.randn(vocab_size, generator=g) * 0.1
    bn_gain = torch.randn((1, h_size), generator=g) * 0.1 + 1.0
    bn_bias = torch.randn((1, h_size), generator=g) * 0.1
    return {"C": C, "W1": W1, "W2": W2, "b2": b2, "bn_gain": bn_gain, "bn_bias": bn_bias}
