"""Models that others ported: transformers' Flax classes beside their PyTorch twins, and haiku's layers beside torch's.

Both come with the extra `port-test`. Nothing is downloaded: the models are tiny, and their weights random.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch

from jaxgrad import port

IDS = np.array([[1, 5, 7, 2], [3, 3, 0, 9]])
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
TEXT = {"vocab_size": 11}
WIDTH = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
MODELS = {
    "GPT2LMHead": ({**TEXT, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}, "logits", IDS),
    "Bert": ({**TEXT, **WIDTH, "max_position_embeddings": 8}, "last_hidden_state", IDS),
    "ViT": ({**WIDTH, "image_size": 16, "patch_size": 4}, "last_hidden_state", IMAGES),
    "ResNet": (
        {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"},
        "pooler_output",
        IMAGES,
    ),
}


class Output(torch.nn.Module):
    """One entry of what a module returns."""

    def __init__(self, module: torch.nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)[self.name]


def compared(name: str, **changed: Any) -> port.Verdict:
    transformers = pytest.importorskip("transformers", reason="the extra port-test is not installed")
    if not hasattr(transformers, f"Flax{name}Model"):
        pytest.skip("this version of transformers has no Flax models; the extra port-test has one below 5")
    options, output, x = MODELS[name]
    config = getattr(transformers, f"{name.removesuffix('LMHead')}Config")
    shape = (1, 16, 16, 3) if x is IMAGES else (1, 4)
    theirs = getattr(transformers, f"Flax{name}Model")(config(**options, **changed), input_shape=shape)
    module = Output(getattr(transformers, f"{name}Model")(config(**options)), output).eval()
    return port.compare(lambda p, x: theirs(x, params=p)[output], theirs.params, x, torch=module)


@pytest.mark.parametrize("name", ["GPT2LMHead", "ViT", "ResNet"])
def test_a_flax_model_is_its_twin(name: str):
    verdict = compared(name)
    assert verdict.agrees, str(verdict)


def test_bert_trains_the_padding_that_torch_does_not():
    assert "row 0 has none in torch" in compared("Bert").sentence


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("GPT2LMHead", {"layer_norm_epsilon": 1e-6}, "1e-06 should be 1e-05"),
        ("ViT", {"hidden_act": "gelu_new"}, "exact, by erf"),
    ],
)
def test_a_setting_that_differs_is_named(name: str, changed: dict[str, Any], words: str):
    verdict = compared(name, **changed)
    assert words in " ".join(mend.words for mend in verdict.mends), str(verdict)


def layers(hk: Any) -> dict[str, tuple[Callable[..., Any], torch.nn.Module, np.ndarray]]:
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    mlp = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4))
    return {
        "linear": (lambda x: hk.Linear(4)(x), torch.nn.Linear(8, 4), x),
        "mlp": (lambda x: hk.nets.MLP([6, 4])(x), mlp, x),
        "layer norm": (lambda x: hk.LayerNorm(-1, True, True)(x), torch.nn.LayerNorm(8), x),
        "embedding": (lambda x: hk.Embed(10, 4)(x), torch.nn.Embedding(10, 4), IDS),
    }


@pytest.mark.parametrize("name", ["linear", "mlp", "layer norm", "embedding"])
def test_a_layer_of_haiku_is_that_of_torch(name: str):
    hk = pytest.importorskip("haiku", reason="the extra port-test is not installed")
    fn, module, x = layers(hk)[name]
    transformed = hk.without_apply_rng(hk.transform(fn))
    verdict = port.compare(transformed.apply, transformed.init(jax.random.key(0), x), x, torch=module)
    assert verdict.agrees, str(verdict)
