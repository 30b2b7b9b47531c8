"""What is counted of a step over several devices is what the compiled program has."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxgrad import models
from jaxgrad.bench import scaling
from jaxgrad.models.model import PerDevice
from jaxgrad.training import mesh as meshes

MLP = models.record("mlp")
SIZES = [(1024, 1024), (8192, 4096)]
MESHES = ["data=1", "data=8", "data=4,model=2", "model=8"]


def counted(batch: int, hidden: int, data: int, model: int) -> PerDevice:
    found = scaling.counted(MLP, scaling.size_of(MLP, None, batch, hidden), data, model)
    assert found is not None
    return found


def pair(batch: int, hidden: int, text: str) -> tuple[PerDevice, PerDevice]:
    size, axes = scaling.size_of(MLP, None, batch, hidden), meshes.parse(text)
    mesh = meshes.build(axes, jax.devices(), batch, MLP.split(size.sizes))
    return counted(batch, hidden, **axes), scaling.compiled(MLP, size, mesh)


@pytest.mark.parametrize("text", MESHES)
@pytest.mark.parametrize(("batch", "hidden"), SIZES)
def test_the_count_is_the_programs(batch: int, hidden: int, text: str):
    by_hand, compiled = pair(batch, hidden, text)
    # Every message is known, to the byte.
    assert (compiled.all_reduces, compiled.reduced_bytes) == (by_hand.all_reduces, by_hand.reduced_bytes)
    # Elementwise work is a twentieth of the products'; of that a fusion may do some twice.
    assert compiled.flops == pytest.approx(by_hand.flops, rel=0.02)
    # Beside four arrays of (b, k) there may be those of (b, vocab + n_emb) and gradients of (vocab + n_emb, k).
    sizes = meshes.parse(text)
    b, k = batch // sizes["data"], hidden // sizes["model"]
    beside = 57 * (b + k) / (4 * b * k)
    assert by_hand.temporary_bytes <= compiled.temporary_bytes <= by_hand.temporary_bytes * (1 + beside)


def test_devices_share_the_work_evenly():
    one = counted(8192, 4096, 1, 1)
    eight = counted(8192, 4096, 8, 1)
    # The update is every device's own; all else is an eighth.
    assert eight.flops == pytest.approx(one.flops / 8, rel=0.001)
    assert eight.temporary_bytes == one.temporary_bytes / 8


def test_messages_grow_with_the_layer_and_not_with_the_batch():
    small, large = (counted(batch, 1024, 8, 1) for batch in (1024, 65536))
    assert small.reduced_bytes == large.reduced_bytes
    assert counted(1024, 2048, 8, 1).reduced_bytes == pytest.approx(2 * small.reduced_bytes, rel=0.01)


def test_on_paper_memory_bounds_a_large_step_and_messages_a_small_one():
    large, small = (
        scaling.seconds(counted(256 * batch, hidden, 256, 1), (16, 16)) for batch, hidden in ((8192, 4096), (32, 200))
    )
    assert max(large, key=lambda name: large[name]) == "memory"
    assert max(small, key=lambda name: small[name]) == "messages"
    # Four all-reduces, 15 neighbours along each of two axes and back.
    assert small["messages"] == pytest.approx(4 * 60 * 1e-6)


def test_a_message_in_a_loop_is_sent_at_each_turn():
    mesh = meshes.build({"data": 1, "model": 2}, jax.devices(), 2, {"columns": 4})
    columns, rows = (NamedSharding(mesh, PartitionSpec(None, *axes)) for axes in ((None, "model"), ("model",)))
    x, a, b = (jnp.zeros(shape, jnp.float32) for shape in ((2, 4), (3, 4, 4), (3, 4, 4)))

    def layers(x: Any, weights: Any) -> Any:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w[0]) @ w[1], None), x, weights)[0]

    program = jax.jit(layers).lower(x, (jax.device_put(a, columns), jax.device_put(b, rows))).compile()
    assert list(scaling.messages(str(program.as_text()))) == [(2 * 4 * 4, 3)]


def test_a_model_is_counted_where_its_record_says_how():
    gpt = models.record("gpt")
    assert scaling.counted(gpt, scaling.size_of(gpt), 1, 2) is None


def test_a_size_is_shown_on_the_meshes_that_it_divides_by():
    gpt = models.record("gpt")
    size = scaling.size_of(gpt, "small")
    assert scaling.dividing(size, gpt.split(size.sizes)) == ["data=1", "data=2", "data=4", "data=8", "data=4,model=2"]
    assert scaling.dividing(scaling.size_of(MLP), {"hidden layer": 4096}) == list(scaling.MESHES)
