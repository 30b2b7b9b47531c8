"""Who is timed: those that are there and compute the same as the others."""

import contextlib
import signal
import sys
import time

import jax
import numpy as np
import pytest

from jaxgrad import corpus
from jaxgrad.bench import jax_peers, measure, torch_peers
from jaxgrad.bench.peers import PEERS, Peer, Place, Ready, chosen
from jaxgrad.bench.task import Size, task
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.models.mlp.sizes import Sizes


@pytest.fixture(scope="module")
def small():
    return task(MODEL, Size("own", 8, Sizes(hidden=16)), lambda sizes: corpus.load(corpus.shipped("names.txt")))


def run(small, peers: tuple[Peer, ...]) -> dict[str, measure.Row]:
    result = measure.measure(small, peers, Place(), rounds=3, seconds=0.001)
    assert result.steps_checked == 100
    return {row.peer.name: row for row in result.rows}


def no_bessel_in_backward(params, batch, sizes, key=None):
    """The mistake of n for n - 1 in the variance's part of the backward pass, the forward pass being right."""

    def with_biased_variance(p):
        emb = p.C[batch.X].reshape(len(batch.Y), -1)
        x = emb @ p.W1
        right = x.var(0, ddof=1)
        # The value of the unbiased variance, and a derivative that is that of the biased one.
        var = jax.lax.stop_gradient(right) + x.var(0) - jax.lax.stop_gradient(x.var(0))
        h = jax.numpy.tanh(p.bn_gain * (x - x.mean(0)) * (var + 1e-5) ** -0.5 + p.bn_bias)
        log_probs = jax.nn.log_softmax(h @ p.W2 + p.b2)
        return -jax.numpy.take_along_axis(log_probs, batch.Y[:, None].astype(int), 1).mean()

    return jax.value_and_grad(with_biased_variance)(params)


def of_gradients(name: str) -> Peer:
    return Peer(name, "jax", lambda *given: jax_peers.training(name, True, *given))


def test_a_competitor_with_a_wrong_gradient_is_not_timed(small, monkeypatch):
    monkeypatch.setitem(MODEL.gradients, "no-bessel", no_bessel_in_backward)
    rows = run(small, (*chosen("fused/scan,by-node/scan,jax.grad/scan"), of_gradients("no-bessel")))
    wrong = rows.pop("no-bessel")
    assert wrong.seconds is None and wrong.reason.startswith("wrong: before step ")
    # A mistake of one part in eight in one path is no near miss.
    assert wrong.judged.worst > 10
    assert all(len(row.seconds) == 3 and row.reason is None and row.judged.worst < 1 for row in rows.values())


def test_of_two_that_differ_neither_is_timed(small, monkeypatch):
    monkeypatch.setitem(MODEL.gradients, "no-bessel", no_bessel_in_backward)
    rows = run(small, (*chosen("fused/scan"), of_gradients("no-bessel")))
    assert all(row.seconds is None and "one is wrong" in row.reason for row in rows.values())


def test_who_is_wrong_on_a_small_batch_is_not_timed_on_a_large_one(monkeypatch):
    monkeypatch.setitem(MODEL.gradients, "no-bessel", no_bessel_in_backward)
    peers = (*chosen("fused/scan,by-node/scan"), of_gradients("no-bessel"))
    data = corpus.load(corpus.shipped("names.txt"))
    large, small = Size("large", 64, Sizes(hidden=4)), Size("small", 8, Sizes(hidden=16))
    for sizes in ([large], [large, small]):
        results = measure.run(MODEL, sizes, lambda sizes: data, peers, Place(), rounds=3, seconds=0.001)
        assert [result.task.size.batch for result in results] == sorted(size.batch for size in sizes)
        last = {row.peer.name: row for row in results[-1].rows}
        assert last["fused/scan"].seconds and last["no-bessel"].seconds is None
        assert "wrong: before step" in last["no-bessel"].reason


def test_a_missing_package_is_a_row_that_says_what_to_install(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    monkeypatch.delitem(sys.modules, "jaxgrad.bench.flax_peer", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    rows = run(small, chosen("flax,torch,fused/scan"))
    assert rows["flax"].reason == "flax is not installed: pip install 'jaxgrad[bench]'"
    assert rows["torch"].reason == "torch is not installed: pip install 'jaxgrad[parity]'"
    assert rows["fused/scan"].seconds


def test_a_compiler_that_fails_or_takes_too_long_is_a_reason():
    def fails() -> None:
        raise RuntimeError("no g++\nand much more")

    def never_ends() -> None:
        while True:
            # As compilers do, it goes on another way after an error.
            with contextlib.suppress(Exception):
                time.sleep(60)

    with pytest.raises(JaxgradError, match=r"^torch.compile failed: RuntimeError: no g\+\+$"):
        torch_peers.compile_within(60.0, fails)
    with pytest.raises(JaxgradError, match=r"^torch.compile failed: TooLong: not compiled after 0.01 seconds$"):
        torch_peers.compile_within(0.01, never_ends)
    torch_peers.compile_within(60.0, lambda: None)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_device_that_is_not_there_is_a_reason(small):
    with pytest.raises(JaxgradError, match="PyTorch has no device 'cuda:99' here"):
        PEERS["torch"].prepare(small, Place(torch_device="cuda:99"), 1)
    with pytest.raises(JaxgradError, match="JAX has no device 'tpu' here"):
        measure.peaks(Place(jax_device="tpu"))


def test_a_cpu_does_not_time_the_kernel(small):
    with pytest.raises(JaxgradError, match="interpret mode only"):
        PEERS["kernel"].prepare(small, Place(), 1)


def losses(ready: Ready, rounds: int) -> np.ndarray:
    state, found = ready.start(), []
    for _ in range(rounds):
        state, of_round = ready.advance(state)
        found += [np.ravel(leaf) for leaf in jax.tree.leaves(of_round)]
    return np.concatenate(found)


def test_the_kernel_that_a_gpu_would_time_trains_like_the_others(small):
    kernel = losses(jax_peers.training("kernel-interpreted", True, small, Place(), 3), rounds=2)
    plain = losses(PEERS["fused/scan"].prepare(small, Place(), 3), rounds=2)
    # Six steps' losses near 3.4, of a few roundings each in another order.
    np.testing.assert_allclose(kernel, plain, rtol=0, atol=8 * 3.4 * 2.0**-23)


def test_an_unknown_competitor_is_refused():
    with pytest.raises(JaxgradError, match="there is no competitor 'nobody'; choose from by-node/scan"):
        chosen("torch,nobody")
