"""The derivatives of readers of the lecture, in PyTorch and by the lecture's names, right and wrong."""

import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxgrad.learn import check, or_answer
from jaxgrad.models.mlp.lesson import LECTURE
from jaxgrad.parity.cases import seed_case

TYPES = [(torch.float64, False), (torch.float32, True), (torch.float64, True), (torch.float32, False)]


@pytest.fixture(scope="module")
def written():
    """What a reader has in scope, by the type of the numbers and by whether the parameters require gradients."""
    return {given: derived(*given) for given in TYPES}


def derived(dtype: torch.dtype, requires_grad: bool) -> types.SimpleNamespace:
    """The lecture's forward pass and every derivative."""
    case = seed_case()
    C, W1, W2, b2, bngain, bnbias = (torch.tensor(p, dtype=dtype, requires_grad=requires_grad) for p in case.params)
    Xb, Yb = torch.tensor(case.batch.X).long(), torch.tensor(case.batch.Y).long()
    n = len(Yb)

    emb = C[Xb]
    embcat = emb.view(n, -1)
    hprebn = embcat @ W1
    bnmeani = 1 / n * hprebn.sum(0, keepdim=True)
    bndiff = hprebn - bnmeani
    bndiff2 = bndiff**2
    bnvar = 1 / (n - 1) * bndiff2.sum(0, keepdim=True)
    bnvar_inv = (bnvar + 1e-5) ** -0.5
    bnraw = bndiff * bnvar_inv
    hpreact = bngain * bnraw + bnbias
    h = torch.tanh(hpreact)
    logits = h @ W2 + b2
    logit_maxes = logits.max(1, keepdim=True).values
    norm_logits = logits - logit_maxes
    counts = norm_logits.exp()
    counts_sum = counts.sum(1, keepdim=True)
    counts_sum_inv = counts_sum**-1
    probs = counts * counts_sum_inv
    logprobs = probs.log()

    dlogprobs = torch.zeros_like(logprobs)
    dlogprobs[range(n), Yb] = -1.0 / n
    dprobs = (1.0 / probs) * dlogprobs
    dcounts_sum_inv = (counts * dprobs).sum(1, keepdim=True)
    dcounts_sum = (-(counts_sum**-2)) * dcounts_sum_inv
    dcounts = counts_sum_inv * dprobs + torch.ones_like(counts) * dcounts_sum
    dnorm_logits = counts * dcounts
    dlogit_maxes = (-dnorm_logits).sum(1, keepdim=True)
    dlogits = dnorm_logits + F.one_hot(logits.max(1).indices, num_classes=logits.shape[1]) * dlogit_maxes
    dh = dlogits @ W2.T
    dW2 = h.T @ dlogits
    db2 = dlogits.sum(0)
    dhpreact = (1.0 - h**2) * dh
    dbngain = (bnraw * dhpreact).sum(0, keepdim=True)
    dbnbias = dhpreact.sum(0, keepdim=True)
    dbnraw = bngain * dhpreact
    dbnvar_inv = (bndiff * dbnraw).sum(0, keepdim=True)
    dbnvar = (-0.5 * (bnvar + 1e-5) ** -1.5) * dbnvar_inv
    dbndiff2 = (1.0 / (n - 1)) * torch.ones_like(bndiff2) * dbnvar
    dbndiff = bnvar_inv * dbnraw + (2 * bndiff) * dbndiff2
    dbnmeani = -dbndiff.sum(0, keepdim=True)
    dhprebn = dbndiff + 1.0 / n * (torch.ones_like(hprebn) * dbnmeani)
    dembcat = dhprebn @ W1.T
    dW1 = embcat.T @ dhprebn
    demb = dembcat.view(emb.shape)
    dC = torch.zeros_like(C).index_put((Xb,), demb, accumulate=True)
    return types.SimpleNamespace(**locals())


def softmaxed(v):
    """The closed form of n dlogits."""
    return F.softmax(v.logits, 1) - F.one_hot(v.Yb, num_classes=v.logits.shape[1])


def normalised(v, bessel: float):
    """The lecture's closed form of dhprebn."""
    rest = v.n * v.dhpreact - v.dhpreact.sum(0) - bessel * v.bnraw * (v.dhpreact * v.bnraw).sum(0)
    return v.bngain * v.bnvar_inv / v.n * rest


def overwritten(v):
    dC = torch.zeros_like(v.C)
    dC[v.Xb] = v.demb.detach()
    return dC


NODES = """logprobs probs counts_sum_inv counts_sum counts norm_logits logit_maxes logits h W2 b2 hpreact bngain
bnbias bnraw bnvar_inv bnvar bndiff2 bndiff bnmeani hprebn embcat W1 emb C""".split()

RIGHT = [(f"d{name}", lambda v, name=name: getattr(v, f"d{name}")) for name in NODES] + [
    ("dlogits", lambda v: softmaxed(v) / v.n),
    ("dhprebn", lambda v: normalised(v, v.n / (v.n - 1))),
    ("dlogits", lambda v: v.dnorm_logits),  # what is left out is zero but for rounding
    ("dlogit_maxes", lambda v: v.dnorm_logits.sum(1, keepdim=True)),
    ("dloss", lambda v: torch.ones(())),
]

WRONG = [
    ("logprobs", lambda v: v.dlogprobs * v.n, "sum for mean"),
    ("logprobs", lambda v: -torch.ones_like(v.logprobs) / v.n, "extra entries"),
    ("probs", lambda v: v.probs * v.dlogprobs, "inverse"),
    ("counts_sum_inv", lambda v: v.counts * v.dprobs, "missing sum"),
    ("counts_sum_inv", lambda v: (v.counts * v.dprobs).sum(1), "shape"),
    ("counts_sum", lambda v: -(v.counts_sum**-1) * v.dcounts_sum_inv, "power"),
    ("counts", lambda v: v.counts_sum_inv * v.dprobs, "second use"),
    ("norm_logits", lambda v: v.dcounts / v.counts, "inverse"),
    ("norm_logits", lambda v: v.norm_logits.exp(), "another variable"),
    ("logit_maxes", lambda v: -v.dlogit_maxes + 1e-3, "not zero"),
    ("logits", lambda v: softmaxed(v), "sum for mean"),
    ("logits", lambda v: v.probs / v.n, "missing term"),
    ("logits", lambda v: v.probs, "another variable"),
    ("logits", lambda v: -softmaxed(v) / v.n, "sign"),
    ("h", lambda v: v.dh * v.h, "extra factor"),
    ("W2", lambda v: v.dW2.T, "transposed"),
    ("b2", lambda v: v.dlogits.sum(0, keepdim=True), "shape"),
    ("b2", lambda v: v.dlogits.mean(0), "mean for sum"),
    ("b2", lambda v: v.dlogits, "missing sum"),
    ("hpreact", lambda v: (1 - v.hpreact**2) * v.dh, "before or after"),
    ("hpreact", lambda v: (1 - v.h) ** 2 * v.dh, "formula"),
    ("hpreact", lambda v: 1 - v.h**2, "missing factor"),
    ("bngain", lambda v: v.bnraw * v.dhpreact, "missing sum"),
    ("bngain", lambda v: (v.bnraw * v.dhpreact).sum(0), "shape"),
    ("bngain", lambda v: (v.hprebn * v.dhpreact).sum(0, keepdim=True), "another variable"),
    ("bnbias", lambda v: v.dhpreact.sum(1, keepdim=True), "wrong axis"),
    ("bnvar_inv", lambda v: v.bndiff * v.dbnraw, "missing sum"),
    ("bnvar", lambda v: -0.5 * v.bnvar**-1.5 * v.dbnvar_inv, "epsilon"),
    ("bnvar", lambda v: -0.5 * v.bnvar_inv**1.5 * v.dbnvar_inv, "power"),
    ("bnvar", lambda v: 0.5 * v.bnvar_inv**3 * v.dbnvar_inv, "sign"),
    ("bnvar", lambda v: -0.5 * (v.bnvar + 1e-5) ** -0.5 * v.dbnvar_inv, "power"),
    ("bndiff2", lambda v: torch.ones_like(v.bndiff2) / v.n * v.dbnvar, "n and n - 1"),
    ("bndiff2", lambda v: v.dbnvar / (v.n - 1), "not spread"),
    ("bndiff", lambda v: v.bnvar_inv * v.dbnraw, "second use"),
    ("bndiff", lambda v: 2 * v.bndiff * v.dbndiff2, "second use"),
    ("bndiff", lambda v: v.bnvar_inv * v.dbnraw + v.bndiff * v.dbndiff2, "missing factor"),
    ("bnmeani", lambda v: v.dbndiff.sum(0, keepdim=True), "sign"),
    ("bnmeani", lambda v: -v.dbndiff.mean(0, keepdim=True), "mean for sum"),
    ("hprebn", lambda v: v.dbndiff, "second use"),
    ("hprebn", lambda v: v.dbndiff + v.dbnmeani, "missing factor"),
    ("hprebn", lambda v: v.dbndiff + v.dbnmeani / (v.n - 1), "n and n - 1"),
    ("hprebn", lambda v: normalised(v, 1.0), "n and n - 1"),
    ("hprebn", lambda v: v.bngain * v.bnvar_inv * v.dhpreact, "missing path"),
    ("W1", lambda v: v.dW1.T, "transposed"),
    ("C", overwritten, "missing term"),
    ("C", lambda v: v.demb.sum((0, 1)), "summed too much"),
    ("emb", lambda v: v.dembcat, "shape"),
]


@pytest.mark.parametrize("given", TYPES, ids=str)
@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{i}" for i, (name, _) in enumerate(RIGHT)])
def test_a_right_answer_is_right(known, written, given, name: str, answer):
    verdict = check(name, answer(written[given]), known)
    assert verdict.right and verdict.sentence.startswith(f"{name}: right"), verdict


@pytest.mark.parametrize("given", TYPES[:2], ids=str)
@pytest.mark.parametrize(("name", "answer", "kind"), WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_a_wrong_answer_is_wrong_and_its_kind_is_told(known, written, given, name: str, answer, kind: str):
    verdict = check(name, answer(written[given]), known)
    assert (verdict.right, verdict.kind) == (False, kind), verdict


def test_a_verdict_has_the_readers_names(known, written):
    v = written[TYPES[0]]
    told = {name: check(name, v.dbndiff, known).sentence for name in ("dhprebn", "h_prenorm", "d_hprebn")}
    assert told["dhprebn"] == told["d_hprebn"] and told["dhprebn"].startswith(
        "dhprebn has one of its uses only: hprebn"
    )
    assert told["h_prenorm"].startswith("dh_prenorm has one of its uses only: h_prenorm is")
    assert "`hprebn` and not `bnraw`" in check("bngain", (v.hprebn * v.dhpreact).sum(0, keepdim=True), known).sentence


@pytest.mark.parametrize(("lecture", "ours"), LECTURE.items())
def test_the_lectures_names_are_ours(known, lecture: str, ours: str):
    for name in (lecture, f"d{lecture}", f"d_{lecture}", ours, f"d{ours}"):
        assert check(name, known.right[ours], known), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_tensor_that_requires_gradients_and_is_not_contiguous_is_an_array(known, dtype: torch.dtype):
    tensor = torch.tensor(known.ours["W2"].T.copy(), dtype=dtype, requires_grad=True).T
    assert not tensor.is_contiguous() and check("W2", tensor, known)
    assert np.array_equal(or_answer("dW2", tensor, known).astype(float), tensor.detach().double().numpy())
