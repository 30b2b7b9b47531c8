"""What is counted of a step over several devices is what the compiled program has."""

import jax
import pytest

from jaxgrad.bench import scaling
from jaxgrad.training import mesh as meshes

SIZES = [(1024, 1024), (8192, 4096)]
MESHES = ["data=1", "data=8", "data=4,model=2", "model=8"]


def pair(batch: int, hidden: int, text: str) -> tuple[scaling.PerDevice, scaling.PerDevice]:
    sizes = meshes.parse(text)
    mesh = meshes.build(sizes, jax.devices(), batch, {"hidden layer": hidden})
    return scaling.predicted(batch, hidden, **sizes), scaling.compiled(batch, hidden, mesh)


@pytest.mark.parametrize("text", MESHES)
@pytest.mark.parametrize(("batch", "hidden"), SIZES)
def test_the_count_is_the_programs(batch: int, hidden: int, text: str):
    counted, compiled = pair(batch, hidden, text)
    # Every message is known, to the byte.
    assert (compiled.all_reduces, compiled.reduced_bytes) == (counted.all_reduces, counted.reduced_bytes)
    # Elementwise work is a twentieth of the products'; of that a fusion may do some twice.
    assert compiled.flops == pytest.approx(counted.flops, rel=0.02)
    # Beside four arrays of (b, k) there may be those of (b, vocab + n_emb) and gradients of (vocab + n_emb, k).
    sizes = meshes.parse(text)
    b, k = batch // sizes["data"], hidden // sizes["model"]
    beside = 57 * (b + k) / (4 * b * k)
    assert counted.temporary_bytes <= compiled.temporary_bytes <= counted.temporary_bytes * (1 + beside)


def test_devices_share_the_work_evenly():
    one = scaling.predicted(8192, 4096, 1, 1)
    eight = scaling.predicted(8192, 4096, 8, 1)
    # The update is every device's own; all else is an eighth.
    assert eight.flops == pytest.approx(one.flops / 8, rel=0.001)
    assert eight.temporary_bytes == one.temporary_bytes / 8


def test_messages_grow_with_the_layer_and_not_with_the_batch():
    small, large = (scaling.predicted(batch, 1024, 8, 1) for batch in (1024, 65536))
    assert small.reduced_bytes == large.reduced_bytes
    assert scaling.predicted(1024, 2048, 8, 1).reduced_bytes == pytest.approx(2 * small.reduced_bytes, rel=0.01)


def test_on_paper_memory_bounds_a_large_step_and_messages_a_small_one():
    large, small = (scaling.seconds(256 * batch, hidden, (16, 16)) for batch, hidden in ((8192, 4096), (32, 200)))
    assert max(large, key=lambda name: large[name]) == "memory"
    assert max(small, key=lambda name: small[name]) == "messages"
    # Four all-reduces, 15 neighbours along each of two axes and back.
    assert small["messages"] == pytest.approx(4 * 60 * 1e-6)
