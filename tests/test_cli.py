"""The command line: what it prints, how it exits, and that an error is a sentence."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxgrad import cli
from jaxgrad.parity import engines


def run(monkeypatch, capsys, *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, run here."""
    monkeypatch.setattr(sys, "argv", ["jaxgrad", *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out = capsys.readouterr()
    return int(caught.value.code or 0), " ".join(out.out.split()), out.err


@pytest.fixture
def jaxgrad(monkeypatch, capsys):
    # Set for the tests on the notebook's corpus, it would give every command here that corpus too.
    monkeypatch.delenv("JAXGRAD_CORPUS", raising=False)
    return lambda *args: run(monkeypatch, capsys, *args)


def test_parity_on_the_notebooks_batch_as_a_command():
    done = subprocess.run([sys.executable, "-m", "jaxgrad", "parity"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert "loss: by-node 3.5586 · fused 3.5586 · jax.grad 3.5586 · torch 3.5586" in done.stdout
    assert "All 4 engines agree on the loss and on 26 cotangents" in done.stdout
    assert done.stdout.count("log_probs") == 3, "fused has no such node, so three of the six pairs do"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parity_in_narrow_types(jaxgrad, dtype: str):
    code, out, _ = jaxgrad("parity", "--dtype", dtype)
    assert code == 0 and f"{dtype}, JAX on cpu, PyTorch on cpu" in out
    assert "All 4 engines agree with float64 on the loss and on 26 cotangents" in out


def test_what_parity_could_not_judge_is_counted(jaxgrad, tmp_path: Path):
    file = tmp_path / "page.html"
    code, out, _ = jaxgrad("parity", "--batches", 1, "--batch-size", 2, "--dtype", "bfloat16", "--html", file)
    assert code == 0 and re.search(r"[1-9]\d* are not judged, because rounding in bfloat16 is as large as", out)
    assert '"judged": false' in file.read_text(encoding="utf-8")


def test_parity_on_random_batches_writes_json(jaxgrad, tmp_path: Path):
    file = tmp_path / "out.json"
    code, out, _ = jaxgrad("parity", "--batches", 2, "--batch-size", 5, "--hidden", 7, "--json", file)
    assert code == 0 and "seed 0, batch 1" in out and "notebook" not in out
    data = json.loads(file.read_text())
    assert (data["schema"], data["agree"], len(data["cases"])) == ("jaxgrad.parity/2", True, 2)
    assert data["cases"][0]["shapes"]["W1"] == [30, 7]


@pytest.fixture
def wrong_by_node(monkeypatch):
    honest = engines.engine

    def wrong(name, case, target):
        g = honest(name, case, target)
        return g if name != "by-node" else g._replace(nodes={**g.nodes, "bn_diff": 2 * g.nodes["bn_diff"]})

    monkeypatch.setattr(engines, "engine", wrong)


def test_a_wrong_derivative_exits_1_and_names_node_and_engine(jaxgrad, wrong_by_node):
    code, out, _ = jaxgrad("parity")
    assert code == 1 and "Engines part at bn_diff, the first in backward order. by-node stands alone" in out


def test_in_float32_a_disagreement_goes_to_float64(jaxgrad, wrong_by_node):
    code, out, _ = jaxgrad("parity", "--dtype", "float32", "--engines", "by-node,jax.grad,torch")
    assert code == 1 and "In float64 they part too, so this is no matter of rounding" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["parity", "--engines", "by-node"], "--engines is 'by-node'; name at least two"),
        (["parity", "--engines", "by-node,nobody"], "there is no engine 'nobody'"),
        (["parity", "--device", "tpu"], "JAX has no device 'tpu' here"),
        (["parity", "--torch-device", "cuda:99"], "PyTorch has no device 'cuda:99' here"),
        (["parity", "--batches", "1", "--corpus", "nowhere.txt"], "nowhere.txt: no such file"),
        (["train", "--lr", "-1"], "learning rate is -1.0"),
        (["train", "--gradients", "magic"], "gradients is 'magic'"),
        (["eval", "nowhere"], "nowhere/config.json: cannot be read"),
        (["sample", "nowhere"], "nowhere/config.json: cannot be read"),
        (["corpus", "show", "--corpus", "."], ".: cannot be read"),
        (["mutate", "nothing"], "'nothing' is not MODULE:FUNCTION"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_2(jaxgrad, args, message: str):
    code, _, err = jaxgrad(*args)
    assert code == 2 and err.startswith("jaxgrad: ") and message in err
    assert err.count("\n") == 1


def test_a_flag_out_of_range_shows_the_range(jaxgrad):
    code, _, err = jaxgrad("parity", "--batch-size", 1)
    assert code == 2 and "should be greater than or equal to 2" in " ".join(err.split())


def test_train_eval_and_sample_on_a_corpus_of_ones_own(jaxgrad, tmp_path: Path):
    words = tmp_path / "words.txt"
    words.write_text("\n".join(a + b + c for a in "äöü" for b in "xyz" for c in "äöü"), encoding="utf-8")
    folder = tmp_path / "run"
    code, trained, _ = jaxgrad("train", "--corpus", words, "--steps", 300, "--hidden", 8, "--out", folder)
    assert code == 0 and f"run: {folder}" in trained
    code, evaluated, _ = jaxgrad("eval", folder)
    assert code == 0 and evaluated == trained.removesuffix(f" run: {folder}")
    code, sampled, _ = jaxgrad("sample", folder, "-n", 5, "--seed", 3, "--temperature", 0.5)
    assert code == 0 and len(sampled.split()) == 5 and set(sampled) <= set("äöüxyz ")
    assert jaxgrad("sample", folder, "-n", 5, "--seed", 3, "--temperature", 0.5)[1] == sampled
    copy = tmp_path / "copy.txt"
    copy.write_bytes(words.read_bytes())
    words.write_text(words.read_text(encoding="utf-8") + "\nxxx", encoding="utf-8")
    code, _, err = jaxgrad("eval", folder)
    assert code == 2 and "is not the corpus of this run" in err
    assert jaxgrad("eval", folder, "--corpus", copy)[1] == evaluated


SUBJECT = """
import jax, jax.numpy as jnp

@jax.custom_vjp
def f(x):
    return x * x
f.defvjp(lambda x: (x * x, x), lambda x, dy: (2 * dy * x,))

def looks(fn):
    assert jnp.allclose(jax.grad(lambda x: fn(x).sum())(jnp.array([1.5, -0.5])), jnp.array([3.0, -1.0]))

def seen():
    return f, looks, (jnp.ones(2),)

def unseen():
    return f, lambda fn: fn(jnp.ones(2)), (jnp.ones(2),)
"""


def test_mutants_that_survive_exit_1_with_their_lines(jaxgrad, tmp_path: Path):
    file = tmp_path / "my_square.py"
    file.write_text(SUBJECT)
    code, out, _ = jaxgrad("mutate", f"{file}:seen")
    assert code == 0 and " 0 survived" in out
    code, out, _ = jaxgrad("mutate", f"{file}:unseen")
    assert code == 1 and "SURVIVED: a factor dropped" in out and "lambda x, dy: (2 * dy * x,)" in out


def test_a_corpus_can_be_looked_at(jaxgrad):
    code, out, _ = jaxgrad("corpus", "show")
    assert code == 0 and "32,178 words, 27 symbols .abcdefghijklmnopqrstuvwxyz" in out


def test_the_two_ways_of_the_embedding_can_be_timed(jaxgrad, monkeypatch):
    from jaxgrad.bench import embedding

    monkeypatch.setattr(embedding, "SIZES", embedding.SIZES[:1])
    code, out, _ = jaxgrad("bench", "embedding", "--rounds", 3)
    assert code == 0 and "scatter-add" in out and "96" in out


def test_the_commands_leave_jax_as_it_was(jaxgrad):
    jaxgrad("parity", "--batches", 1, "--hidden", 2)
    assert jax.numpy.ones(()).dtype == jax.numpy.float32
