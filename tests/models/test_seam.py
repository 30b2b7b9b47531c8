"""A second model, written here, is one more row of the list: every room takes it, and no file of theirs changes."""

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad import models, tap
from jaxgrad.cli import app
from jaxgrad.jaxprs.taps import node_values
from jaxgrad.models import mlp
from jaxgrad.models.model import Model, graph_of, jax_grad_nodes, load_corpus, named, ways
from jaxgrad.parity import cases, own_score
from jaxgrad.parity.engines import Target
from jaxgrad.parity.verdict import judge
from jaxgrad.training import run
from jaxgrad.training.config import Config


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a stack of layers between two tables, which sees one character at a time."""

    width: int = dataclasses.field(default=5, metadata={"help": "Numbers of a place."})
    layers: int = dataclasses.field(default=2, metadata={"help": "How many."})
    block: int = dataclasses.field(default=6, metadata={"help": "Places of a row.", "examples": True})
    stay: float = dataclasses.field(default=0.9, metadata={"help": "The share that dropout leaves."})


class Stack(NamedTuple):
    """The layers, stacked."""

    A: Any  # (layers, width, width)


class Params(NamedTuple):
    """A tree, as models of several layers have it."""

    E: Any  # (vocab, width)
    stack: Stack
    W: Any  # (width, vocab)


class Batch(NamedTuple):
    """Targets of -1 are ignored."""

    X: Any  # (rows, block)
    Y: Any  # (rows, block)


def init(key, sizes, vocab_size, dtype=jnp.float32):
    E, A, W = jax.random.split(key, 3)
    d = sizes.width
    return Params(
        jax.random.normal(E, (vocab_size, d), dtype),
        Stack(jax.random.normal(A, (sizes.layers, d, d), dtype) / d**0.5),
        jax.random.normal(W, (d, vocab_size), dtype),
    )


def examples(words, vocabulary, sizes):
    X, Y = np.zeros((len(words), sizes.block), np.int32), np.full((len(words), sizes.block), -1, np.int32)
    for row, word in enumerate(words):
        symbols = [0, *map(vocabulary.index, word), 0][: sizes.block + 1]
        X[row, : len(symbols) - 1], Y[row, : len(symbols) - 1] = symbols[:-1], symbols[1:]
    return Batch(X, Y)


def dropped(x, sizes, key):
    return x if key is None else x * jax.random.bernoulli(key, sizes.stay, x.shape).astype(x.dtype) / sizes.stay


def logits_of(params, X, sizes, key=None):
    x = tap("emb", dropped(params.E.at[X].get(mode="fill"), sizes, key))

    def layer(x, A):
        pre = tap("layer.pre", x @ A)
        act = tap("layer.act", jnp.tanh(pre))
        return x + act, None

    return tap("logits", jax.lax.scan(layer, x, params.stack.A)[0] @ params.W)


def weights_of(Y, vocab, dtype):
    counted = (Y >= 0).astype(dtype)
    return jax.nn.one_hot(Y, vocab, dtype=dtype) * (counted / counted.sum())[..., None]


def loss(params, batch, sizes, key=None):
    logits = logits_of(params, batch.X, sizes, key)
    log_probs = tap("log_probs", logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
    return tap("loss", -jnp.sum(weights_of(batch.Y, logits.shape[-1], logits.dtype) * log_probs))


def nodes_by_node(params, batch, sizes, key=None):
    emb = dropped(params.E.at[batch.X].get(mode="fill"), sizes, key)

    def layer(x, A):
        act = jnp.tanh(x @ A)
        return x + act, (x, act)

    x, (inputs, acts) = jax.lax.scan(layer, emb, params.stack.A)
    logits = x @ params.W
    log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    weights = weights_of(batch.Y, logits.shape[-1], logits.dtype)
    value = -jnp.sum(weights * log_probs)
    return value, *_bwd(params, batch, sizes, key, (x, inputs, acts, log_probs, weights), jnp.ones_like(value))


def _bwd(params, batch, sizes, key, kept, dloss):
    x, inputs, acts, log_probs, weights = kept
    dlog_probs = -weights * dloss
    dlogits = dlog_probs - jnp.exp(log_probs) * dlog_probs.sum(-1, keepdims=True)
    dW = jnp.einsum("btd,btv->dv", x, dlogits)

    def layer_bwd(dx, given):
        A, x, act = given
        dpre = dx * (1 - act**2)
        return dx + dpre @ A.T, (jnp.einsum("btd,bte->de", x, dpre), dpre, dx)

    demb, (dA, dpre, dact) = jax.lax.scan(layer_bwd, dlogits @ params.W.T, (params.stack.A, inputs, acts), reverse=True)
    dE = jnp.zeros_like(params.E).at[batch.X].add(dropped(demb, sizes, key))
    nodes = {
        "emb": demb, "layer.pre": dpre, "layer.act": dact, "logits": dlogits, "log_probs": dlog_probs, "loss": dloss,
    }  # fmt: skip
    return Params(dE, Stack(dA), dW), nodes


def sample(params, extra, sizes, key, n_words, longest, temperature, top_k, prompt):
    words, last = [], jnp.zeros((n_words, 1), jnp.int32)
    for at in range(longest):
        logits = logits_of(params, last, sizes)[:, 0] / temperature
        drawn = jax.random.categorical(jax.random.fold_in(key, at), logits)[:, None]
        last = jnp.where((last == 0) & (at > 0), 0, drawn)
        words.append(last)
    return jnp.concatenate(words, 1)


MODEL = Model(
    name="stack",
    sizes=Sizes,
    batch=Batch,
    init=init,
    examples=examples,
    shapes=lambda sizes: ((sizes.block,), (sizes.block,)),
    loss=loss,
    gradients={"by-node": lambda params, batch, sizes, key=None: nodes_by_node(params, batch, sizes, key)[:2]},
    nodes={"by-node": nodes_by_node},
    predict=lambda params, extra, X, sizes: logits_of(params, X, sizes),
    sample=sample,
    numbers=lambda sizes, vocab_size, batch_size: 3 * (2 * vocab_size * sizes.width + sizes.layers * sizes.width**2),
    recipe={"steps": 60, "optimizer": "adam", "learning_rate": 0.01, "gradients": "by-node", "clip": 1.0},
    axes={"W": (None, "model")},
    split=lambda sizes: {"vocabulary": 27},
    twins={"torch": "stack"},
    ignored=-1,
    tiny=Sizes(width=3, layers=2, block=3, stay=1.0),
    swept="width",
    embedding="E",
    logits="logits",
)


def torch_gradients(params, X, Y, width, layers, block, stay):
    params = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    x = params["E"][X.long()]
    nodes: dict[str, Any] = {"emb": x}
    pres, acts = [], []
    for A in params["stack.A"]:
        pres.append(x @ A)
        acts.append(torch.tanh(pres[-1]))
        x = x + acts[-1]
    nodes["logits"] = x @ params["W"]
    nodes["log_probs"] = torch.log_softmax(nodes["logits"], -1)
    loss = torch.nn.functional.nll_loss(nodes["log_probs"].flatten(0, 1), Y.long().flatten(), ignore_index=-1)
    for node in (*nodes.values(), *pres, *acts):
        node.retain_grad()
    loss.backward()
    stacked = {"layer.pre": torch.stack([p.grad for p in pres]), "layer.act": torch.stack([a.grad for a in acts])}
    found = {**{name: node.grad for name, node in nodes.items()}, **stacked, "loss": torch.ones_like(loss)}
    return loss.detach(), {name: p.grad for name, p in params.items()}, found


@pytest.fixture(autouse=True)
def row(monkeypatch):
    """The one more row, and its twin's module."""
    monkeypatch.setitem(models.MODELS, "stack", __name__)
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__, types.SimpleNamespace(**globals())))
    monkeypatch.setitem(sys.modules, "torchref.stack", types.SimpleNamespace(gradients=torch_gradients))


@pytest.fixture(autouse=True)
def no_corpus_of_ones_own(monkeypatch):
    monkeypatch.delenv("JAXGRAD_CORPUS", raising=False)


def command(*args: object) -> None:
    app(["--no-compile-cache", *map(str, args)], standalone_mode=False)


def words_file(folder: Path) -> Path:
    path = folder / "words.txt"
    path.write_text("\n".join(a + b + c for a in "abc" for b in "xyz" for c in "abc"))
    return path


def test_all_engines_agree_on_every_node_those_in_a_scan_too():
    for dtype in ("float64", "float32", "bfloat16"):
        case = cases.random_case(3, batch_size=4, vocab_size=9, model="stack")
        verdict = judge(case, Target(dtype), ("by-node", "jax.grad", "torch"))
        assert verdict.agree, verdict.sentence
        names = [tensor.name for tensor in verdict.tensors]
        assert names[1:] == ["loss", "log_probs", "logits", "W", "layer.act", "layer.pre", "stack.A", "emb", "E"]
        assert all(len(tensor.pairs) == 3 for tensor in verdict.tensors if len(tensor.values) == 3)


def test_a_mistake_of_one_layer_is_found_at_its_node(monkeypatch):
    def wrong(params, batch, sizes):
        value, grads, nodes = nodes_by_node(params, batch, sizes)
        return value, grads, {**nodes, "layer.pre": nodes["layer.pre"].at[0].multiply(1 + 1e-9)}

    monkeypatch.setitem(models.MODELS, "stack", __name__)
    monkeypatch.setattr(sys.modules[__name__], "MODEL", dataclasses.replace(MODEL, nodes={"by-node": wrong}))
    verdict = judge(cases.random_case(3, 4, 9, "stack"), Target(), ("by-node", "jax.grad", "torch"))
    assert (verdict.first, verdict.alone) == ("layer.pre", "by-node")


def test_the_graph_is_read_from_the_program_and_so_are_the_values_of_nodes():
    sizes = Sizes(layers=3)
    params, batch = init(jax.random.key(0), sizes, 7), examples(["ab", "c"], ".abcdef", sizes)
    graph = graph_of(MODEL, params, batch, sizes)
    assert graph.users["layer.act"] == ("layer.pre", "logits") and graph.users["emb"] == ("layer.pre", "logits")
    assert graph.last == ("loss",)
    values = node_values(lambda p, b: loss(p, b, sizes), params, batch)
    assert values["layer.pre"].shape == (3, 2, 6, 5) and list(values) == ["emb", "layer.pre", "layer.act", "logits",
                                                                         "log_probs", "loss"]  # fmt: skip
    np.testing.assert_allclose(values["layer.act"], np.tanh(values["layer.pre"]), rtol=2**-22)
    assert jax_grad_nodes(MODEL)(params, batch, sizes)[2].keys() == values.keys()


def test_the_notebooks_order_and_edges_are_those_of_its_program():
    from jaxgrad.models.mlp.record import MODEL as NOTEBOOK

    sizes = mlp.Sizes(hidden=4)
    params, batch = NOTEBOOK.init(jax.random.key(0), sizes, 5), NOTEBOOK.random_batch(jax.random.key(1), sizes, 5, 3)
    graph = graph_of(NOTEBOOK, params, batch, sizes)
    assert " ".join(graph.order) == (
        "loss log_probs probs counts_sum_inv counts_sum counts norm_logits logit_maxes logits b2 W2 h h_norm bn_bias "
        "bn_gain bn_raw bn_var_inv bn_var bn_diff_sq bn_diff bnmean h_prenorm W1 embcat emb C"
    )
    assert graph.users["bn_diff"] == ("bn_diff_sq", "bn_raw") and graph.users["W2"] == ("logits",)
    assert list(named(params)) == ["C", "W1", "W2", "b2", "bn_gain", "bn_bias"]


def test_it_is_trained_by_its_own_recipe_resumed_evaluated_and_sampled(tmp_path: Path, capsys):
    words = words_file(tmp_path)
    given = ("--model", "stack", "--corpus", words, "--width", 4, "--batch-size", 8, "--chunk", 15, "--log-every", 5)
    command("train", *given, "--out", tmp_path / "whole")
    config, params, extra = run.load(tmp_path / "whole")
    assert (config.model, config.sizes, config.steps, config.optimizer, config.clip) == (
        "stack", Sizes(width=4), 60, "adam", 1.0,
    )  # fmt: skip
    assert extra == () and isinstance(params, Params)
    kept = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert (kept["model"], kept["width"], kept["stay"]) == ("stack", 4, 0.9) and "sizes" not in kept
    losses = json.loads((tmp_path / "whole" / "losses.json").read_text())
    assert losses["train"] < 2.0, "27 words of 3 letters: 1.1 nats a letter, and none for their ends"

    data = load_corpus(MODEL, config.sizes, words)
    with pytest.raises(run.Stopped):
        run.train(config, data, tmp_path / "again", stop=lambda: True)
    command("train", "--resume", tmp_path / "again")
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "again")]
    assert lines[0] == lines[1] and lines[0].count("\n") == 12

    capsys.readouterr()
    command("eval", tmp_path / "whole")
    assert f"dev {losses['dev']:.4f}" in capsys.readouterr().out
    command("sample", tmp_path / "whole", "-n", 5)
    drawn = capsys.readouterr().out
    assert drawn.count("\n") == 5 and set(drawn) <= set("abcxyz\n")
    command("plot", "embedding", tmp_path / "whole", "--out", tmp_path / "e.png")
    command("plot", "logits", tmp_path / "whole", "--out", tmp_path / "l.png")
    assert (tmp_path / "e.png").exists() and (tmp_path / "l.png").exists()


def test_it_is_compared_and_swept_by_commands(tmp_path: Path, capsys):
    words = words_file(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        command("parity", "--model", "stack", "--batches", 1, "--batch-size", 4, "--width", 3, "--corpus", words)
    assert "All 3 engines agree on the loss and on 9 cotangents" in " ".join(capsys.readouterr().out.split())
    out = tmp_path / "sweep"
    command("sweep", "--model", "stack", "--corpus", words, "--seeds", "0:2", "--width", "3,4", "--steps", 10,
            "--batch-size", 4, "--layers", 1, "--out", out)  # fmt: skip
    assert (out / "results.csv").read_text().splitlines()[0] == "rank,seed,learning_rate,width,train,dev,test"
    assert "jaxgrad train --model stack" in " ".join(capsys.readouterr().out.split())


def test_what_a_model_has_not_is_said_in_a_sentence(tmp_path: Path):
    words = words_file(tmp_path)
    command("train", "--model", "stack", "--corpus", words, "--steps", 2, "--out", tmp_path / "run")
    for args, message in (
        (("plot", "saturation", tmp_path / "run"), "has no hidden layer that saturates"),
        (("train", "--model", "nobody"), "there is no model 'nobody'; choose from mlp"),
        (
            ("train", "--model", "stack", "--gradients", "kernel"),
            "gradients is 'kernel'; choose from by-node",
        ),
        (("parity", "--model", "stack", "--seed-case"), "the notebook has no batch of stack"),
    ):
        with pytest.raises(models.JaxgradError, match=message):
            command(*args)


def test_every_mutant_of_its_backward_is_killed():
    case = own_score.own_cases(MODEL)["All sizes 6"]
    (row,) = own_score.rows([case], draws=4)
    assert row.name == "by_node" and row.score.killed and row.score.survived == ()
    # Those inside the scan are among them, of both of its turns.
    assert sum("dpre = dx * (1 - act**2)" in mutant.place.text for mutant in row.score.killed) > 3


def test_names_of_sizes_are_those_of_no_other_field():
    fields = {field.name for field in dataclasses.fields(Config)}
    for name in set(models.MODELS) - {"stack"}:
        assert not fields & {field.name for field in dataclasses.fields(models.sizes_of(name))}
        assert all(field.metadata["help"] for field in dataclasses.fields(models.sizes_of(name)))


def test_a_run_of_before_there_were_models_is_the_notebooks(tmp_path: Path):
    words = words_file(tmp_path)
    command("train", "--corpus", words, "--steps", 4, "--hidden", 3, "--out", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in ("model", "clip")}))
    config, _, _ = run.load(tmp_path / "run")
    assert (config.model, config.sizes) == ("mlp", mlp.Sizes(hidden=3))


def test_the_list_names_sizes_without_loading_jax():
    code = "import sys\nfrom jaxgrad import models\nmodels.sizes_of('mlp')\nprint('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_ways_are_those_by_hand_then_autodiff_then_kernels():
    assert ways(MODEL) == ("by-node", "jax-grad")
    assert ways(models.record("mlp")) == ("fused", "by-node", "jax-grad", "kernel", "kernel-interpreted")
