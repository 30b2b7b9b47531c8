"""A checkpoint with the names of transformers' GPT-2 starts a run, and is sampled, by the commands."""

import json

import jax
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from jaxgrad.cli import app
from jaxgrad.errors import JaxgradError
from jaxgrad.port import gpt2
from jaxgrad.training import run
from jaxgrad.training.folder import load_config
from torchref import gpt2 as twin

WORDS = [a + b + c for a in "ab" for b in "cd" for c in "ab"]
VOCAB, LAYERS, HEADS, WIDTH, BLOCK = 5, 1, 2, 8, 6
FEW = "--steps 4 --batch-size 2 --chunk 2 --log-every 1".split()


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    torch.manual_seed(1)
    return twin.GPT2LMHeadModel(VOCAB, LAYERS, HEADS, WIDTH, BLOCK)


@pytest.fixture(scope="module")
def folder(module, tmp_path_factory):
    folder = tmp_path_factory.mktemp("init")
    (folder / "words.txt").write_text("\n".join(WORDS))
    (folder / "more.txt").write_text("\n".join([*WORDS, "e"]))
    state = {name: x.contiguous() for name, x in module.state_dict().items() if name != "lm_head.weight"}
    save_file(state, folder / "model.safetensors")
    save_file({**state, "lm_head.weight": torch.ones(VOCAB, WIDTH)}, folder / "untied.safetensors")
    save_file({"model.norm.weight": torch.ones(3)}, folder / "foreign.safetensors")
    save_file({name: x.bfloat16() for name, x in state.items()}, folder / "narrow.safetensors")
    save_file({name: x for name, x in state.items() if "c_fc" not in name}, folder / "less.safetensors")
    return folder


def jaxgrad(*args: object) -> str:
    done = CliRunner().invoke(app, [*map(str, args)])
    if isinstance(done.exception, JaxgradError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def train(folder, out, *args: object, words: str = "words.txt", init: str = "model.safetensors") -> str:
    return jaxgrad(
        "train", "--model", "gpt", "--init", folder / init, "--corpus", folder / words, "--out", out, *FEW, *args
    )


def test_a_run_starts_from_the_files_parameters_and_sizes_and_goes_on(folder, tmp_path):
    train(folder, tmp_path / "run", "--heads", HEADS)
    config = load_config(tmp_path / "run")
    expected, sizes = gpt2.load(folder / "model.safetensors", heads=HEADS)
    assert (config.sizes, config.sizes.dropout) == (sizes, 0.1)
    narrow, _ = gpt2.load(folder / "narrow.safetensors", heads=HEADS)
    assert narrow.tokens.dtype == "float32" and abs(narrow.tokens - expected.tokens).max() < 0.01
    actual = run.fresh(config).state.params
    assert jax.tree.all(jax.tree.map(lambda a, e: (a == e).all(), actual, expected))
    assert "dev" in jaxgrad("train", "--resume", tmp_path / "run", "--steps", 6)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 6


def test_what_is_drawn_from_a_checkpoint_is_what_its_module_says(folder, module):
    said = jaxgrad(
        "sample", "--init", folder / "model.safetensors", "--size", f"heads={HEADS}", "--ids", "3,1", "--top-k", 1,
        "-n", 2, "--longest", BLOCK,
    )  # fmt: skip
    X = torch.tensor([[3, 1]])
    with torch.no_grad():
        while X.shape[1] < BLOCK:
            X = torch.cat((X, module(X)[:, -1:].argmax(-1)), 1)
    assert said.splitlines() == [" ".join(map(str, X[0].tolist()))] * 2


@pytest.mark.parametrize(
    ("options", "files", "said"),
    [
        (("--layers", 2), {}, "layers is 2, and in the checkpoint 1"),
        (("--rope",), {}, "rope is True, and in the checkpoint False"),
        (("--heads", 3), {}, "cannot be split among 3 heads"),
        ((), {"words": "more.txt"}, "embeddings of 5 symbols, and the corpus has 6"),
        ((), {"init": "untied.safetensors"}, "lm_head.weight is not transformer.wte.weight"),
        ((), {"init": "foreign.safetensors"}, "foreign.safetensors: the state dict has no wpe.weight"),
        ((), {"init": "less.safetensors"}, "which the state dict lacks"),
        ((), {"init": "words.txt"}, "no safetensors file that can be read"),
        ((), {"init": "missing"}, "no safetensors file that can be read"),
        (("--model", "mlp"), {}, "nobody else has checkpoints of the model mlp; choose from gpt"),
        (("--model", "gru"), {}, "nobody else has checkpoints of the model gru; choose from gpt"),
    ],
)
def test_what_a_run_cannot_start_from_is_said_before_it_begins(folder, tmp_path, options, files, said):
    with pytest.raises(JaxgradError, match=said):
        train(folder, tmp_path / "run", *options, **files)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_was_changed_since_is_refused(folder, tmp_path):
    train(folder, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_sha256": "0"}))
    with pytest.raises(JaxgradError, match="is not what the run started from"):
        run.fresh(load_config(tmp_path / "run"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give the folder of a run, or with --init a checkpoint"),
        (("--init", "model.safetensors"), "give those to begin with as whole numbers"),
        (("--init", "model.safetensors", "--ids", "5"), "the prompt has the symbol 5; the checkpoint has 0 to 4"),
        (("--init", "model.safetensors", "--ids", "1", "--size", "hidden=3"), "the model gpt has no size 'hidden'"),
        (("--init", "model.safetensors", "--ids", "1", "--prompt", "a"), "--init is instead of a run"),
        (("run", "--ids", "1"), "a run knows its own"),
    ],
)
def test_what_cannot_be_sampled_is_refused(folder, monkeypatch, options, said):
    monkeypatch.chdir(folder)
    with pytest.raises(JaxgradError, match=said):
        jaxgrad("sample", *options)
