"""A state dict with the names of transformers' GPT2LMHeadModel loads, and its gradients are PyTorch's."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jaxgrad import port
from jaxgrad.errors import JaxgradError
from jaxgrad.models.gpt.fused import fused
from jaxgrad.models.gpt.params import nowhere_zero
from jaxgrad.models.gpt.sizes import Sizes
from jaxgrad.models.model import named
from jaxgrad.models.sequences import Batch
from jaxgrad.port import gpt2
from torchref import gpt2 as twin

SIZES = Sizes(layers=2, heads=2, width=8, block=6, dropout=0.0)
VOCAB = 7


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    made = twin.GPT2LMHeadModel(VOCAB, SIZES.layers, SIZES.heads, SIZES.width, SIZES.block).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gpt2") / "model.safetensors"
    # As transformers writes it: a tied head is not written twice.
    save_file({name: x for name, x in model.state_dict().items() if name != "lm_head.weight"}, path)
    return path


def test_loss_and_every_gradient_are_those_of_the_module(model, checkpoint):
    rng = np.random.default_rng(0)
    X, Y = rng.integers(0, VOCAB, (2, 3, 5))
    Y[0, 3:] = -1
    expected = twin.loss(model, torch.from_numpy(X), torch.from_numpy(Y))
    expected.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    with jax.enable_x64(True):
        params, sizes = gpt2.load(checkpoint, jnp.float64, heads=SIZES.heads, dropout=0.0)
        actual, dparams = jax.jit(lambda p, b: fused(p, b, sizes))(params, Batch(jnp.asarray(X), jnp.asarray(Y)))
        # Gradients go where their parameters came from.
        right = port.load(params, grads, gpt2.mapping(sizes, VOCAB))
        assert sizes == SIZES
        np.testing.assert_allclose(actual, expected.item(), rtol=1e-13)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-13), dparams, right)


def test_the_base_models_own_file_loads_too(model, checkpoint, tmp_path):
    save_file(model.transformer.state_dict(), tmp_path / "base.safetensors")
    of_base, of_lm = gpt2.load(tmp_path / "base.safetensors", heads=2), gpt2.load(checkpoint, heads=2)
    assert of_base[1] == of_lm[1]
    jax.tree.map(np.testing.assert_array_equal, of_base[0], of_lm[0])


def test_every_array_has_a_place_among_gpt2s_names(model):
    mapping = gpt2.mapping(SIZES, VOCAB)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == mapping.tensors
    params = jax.eval_shape(lambda: nowhere_zero(jax.random.key(0), SIZES, VOCAB))
    assert [entry.shape for entry in mapping.entries] == [p.shape for p in named(params).values()]


def test_gpt2s_own_sizes_are_read_from_shapes():
    shapes = {"wpe.weight": (1024, 768), "wte.weight": (50257, 768)} | {
        f"h.{layer}.ln_1.weight": (768,) for layer in range(12)
    }
    assert gpt2.sizes_of(shapes) == Sizes(layers=12, heads=12, width=768, block=1024)


def test_what_is_no_gpt2_is_refused(tmp_path):
    with pytest.raises(JaxgradError, match=r"no wpe.weight.*another model's"):
        gpt2.sizes_of({"model.embed_tokens.weight": (5, 4)})
    with pytest.raises(JaxgradError, match=r"no matrix transformer\.wte\.weight"):
        gpt2.sizes_of({"transformer.wpe.weight": (5, 4)})
    with pytest.raises(JaxgradError, match="leave rope off and tied on"):
        gpt2.mapping(Sizes(rope=True), VOCAB)
    (tmp_path / "x.safetensors").write_text("no")
    for name in ("x.safetensors", "missing.safetensors"):
        with pytest.raises(JaxgradError, match=f"{name} is no safetensors file"):
            gpt2.load(tmp_path / name)
