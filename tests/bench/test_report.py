"""`jaxgrad bench` from end to end: every competitor, the table, the JSON and the picture."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jaxgrad import cli
from jaxgrad.bench import plot
from jaxgrad.bench.peers import PEERS

TIMED = {
    "name", "library", "device", "reason", "loss", "worst", "compile_seconds", "temp_bytes", "seconds_per_step",
    "examples_per_second", "flops_per_second", "peak_fraction", "to_jax_grad", "to_torch",
}  # fmt: skip
SIZE = {
    "name", "model", "shown", "batch", "hidden", "vocab", "context", "embedding", "learning_rate", "seed",
    "flops_per_step", "rounds", "steps_per_round", "steps_checked", "tolerance", "peers",
}  # fmt: skip
ENVIRONMENT = {
    "jaxgrad", "jax", "jaxlib", "optax", "flax", "equinox", "torch", "numpy", "python", "machine", "cpu", "cores",
    "jax_device", "jax_device_kind", "torch_device", "torch_device_kind", "torch_threads", "matmul_precision", "date",
}  # fmt: skip


@pytest.fixture
def one_torch_thread():
    """Where other tests have the other cores, two threads spend their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def command(monkeypatch, capsys, *args: object) -> tuple[int, str, str]:
    monkeypatch.delenv("JAXGRAD_CORPUS", raising=False)
    monkeypatch.setattr(sys, "argv", ["jaxgrad", "bench", *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out = capsys.readouterr()
    return int(caught.value.code or 0), " ".join(out.out.split()), out.err


def test_every_competitor_takes_part_and_all_agree(monkeypatch, capsys, tmp_path: Path, one_torch_thread):
    file, picture = tmp_path / "run.json", tmp_path / "run.png"
    args = ("--batch", 8, "--hidden", 16, "--rounds", 3, "--seconds", 0.001, "--json", file, "--png", picture)
    code, out, err = command(monkeypatch, capsys, *args)
    assert (code, err) == (0, "")
    assert "own: batch 8, hidden 16, vocabulary 27" in out and "after 100 steps" in out
    assert "not timed: kernel: a CPU has the kernel in interpret mode only" in out
    assert "precision default" in out and "precision highest" in out
    assert picture.read_bytes().startswith(b"\x89PNG")

    run = json.loads(file.read_text())
    assert run["schema"] == "jaxgrad.bench/1" and set(run["environment"]) == ENVIRONMENT
    assert [set(peak) for peak in run["peaks"]] == [
        {"library", "device", "rows", "flops_per_second", "precision", "error"}
    ] * 2
    # The roundoff of float32 is 6e-8; TF32's is 5e-4.
    assert all(0 < peak["error"] < 1e-6 for peak in run["peaks"])
    (size,) = run["sizes"]
    assert set(size) == SIZE and (size["steps_checked"], size["vocab"]) == (100, 27)
    peers = {peer["name"]: peer for peer in size["peers"]}
    assert list(peers) == list(PEERS)
    untimed = {name: peer["reason"] for name, peer in peers.items() if peer["reason"]}
    # Without a C++ compiler torch.compile says so; all others but the kernel run on any CPU.
    assert set(untimed) <= {"kernel", "torch.compile"} and "kernel" in untimed
    assert all(reason.startswith("torch.compile failed") for name, reason in untimed.items() if name != "kernel")
    for name in set(peers) - set(untimed):
        assert set(peers[name]) == TIMED and 0 <= peers[name]["worst"] < 1
        seconds = peers[name]["seconds_per_step"]
        assert len(seconds["rounds"]) == 3 and seconds["median"] == np.median(seconds["rounds"])
        assert peers[name]["examples_per_second"] == pytest.approx(8 / seconds["median"])
        assert peers[name]["flops_per_second"] == pytest.approx(size["flops_per_step"] / seconds["median"])
    assert peers["jax.grad/scan"]["to_jax_grad"] == peers["torch"]["to_torch"] == {"ratio": 1, "low": 1, "high": 1}
    assert peers["fused/scan"]["temp_bytes"] > 0 and peers["fused/scan"]["compile_seconds"] > 0
    assert peers["torch"]["compile_seconds"] is None and peers["torch"]["temp_bytes"] is None


def drawn_run(*sizes: str) -> dict:
    def peer(name: str, us: float) -> dict:
        seconds = {"low": 0.9e-6 * us, "median": 1e-6 * us, "high": 1.2e-6 * us}
        return {"name": name, "library": "jax", "reason": None, "seconds_per_step": seconds}

    peers = [peer("fast", 9.65), peer("slow", 1500.0), {"name": "absent", "library": "torch", "reason": "no"}]
    return {
        "environment": {"jax_device_kind": "cpu", "cpu": "some CPU", "cores": 2},
        "sizes": [{"name": name, "batch": 8, "hidden": 16, "peers": peers} for name in sizes],
    }


@pytest.mark.parametrize("sizes", [("one",), ("seed", "middle", "large")])
def test_the_picture_has_a_log_axis_and_a_label_for_each_timed_competitor(sizes: tuple[str, ...]):
    figure = plot.figure(drawn_run(*sizes))
    assert len(figure.axes) == len(sizes)
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        assert [label.get_text() for label in axes.get_yticklabels()] == ["slow", "fast"]
        assert [text.get_text() for text in axes.texts] == ["1,500", "9.65"]


def test_no_label_of_the_axis_runs_into_the_next():
    figure = plot.figure(drawn_run("seed", "middle", "large"))
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        inside = [box for box in boxes if box.x1 > axes.bbox.x0 and box.x0 < axes.bbox.x1]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(inside)) and len(inside) >= 2


def test_a_picture_of_nobody_can_be_drawn():
    run = drawn_run("one")
    run["sizes"][0]["peers"] = run["sizes"][0]["peers"][2:]
    plot.figure(run).draw_without_rendering()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--size", "huge"), "there is no size 'huge'; choose from seed, middle, large"),
        (("--batch", 8), "--batch is 8 and --hidden None; a size of your own needs both"),
        (("--size", "seed", "--peers", "nobody"), "there is no competitor 'nobody'"),
        (("--size", "seed", "--device", "tpu"), "JAX has no device 'tpu' here"),
    ],
)
def test_an_error_is_a_sentence(monkeypatch, capsys, args: tuple, message: str):
    code, _, err = command(monkeypatch, capsys, *args)
    assert code == 2 and err.startswith("jaxgrad: ") and message in err


def test_the_page_of_the_gpt_shows_the_kept_runs():
    root = Path(__file__).parents[2]
    page = (root / "docs/gpt.md").read_text(encoding="utf-8")
    files = (root / "data/benchmarks" / f"{name}.json" for name in ("gpt-cpu", "gpt-large-cpu"))
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    sizes = {size["name"]: {p["name"]: p for p in size["peers"]} for run in runs for size in run["sizes"]}
    shown = {"fused/scan": "fused", "by-node/scan": "by-node", "jax.grad/scan": "jax.grad", "torch": "PyTorch"}
    for name, words in shown.items():
        peers = [sizes[size][name] for size in ("small", "middle", "large")]
        cells = [(1e3 * p["seconds_per_step"]["median"], p["to_jax_grad"]["ratio"]) for p in peers]
        assert f"| {words} | " + " | ".join(f"{ms:,.1f} | {ratio:.2f}" for ms, ratio in cells) + " |" in page
