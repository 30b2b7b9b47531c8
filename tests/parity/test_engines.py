"""All engines agree: on the notebook's batch in every type, and on any sizes and any batch in float64."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch, Nodes, Params
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.parity import engines
from jaxgrad.parity.engines import DTYPES, Target, graph, run
from jaxgrad.parity.verdict import judge

GRAPH = graph(MODEL, MODEL.sizes(), 27)
BACKWARD_ORDER = list(GRAPH.order)

ALL = engines.names(MODEL)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_engines_agree_on_the_notebooks_batch(seeded_case, dtype: str):
    verdict = judge(seeded_case(), Target(dtype), ALL)
    assert verdict.agree, verdict.sentence


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_loss_is_the_notebooks_on_every_engine(seeded_case, dtype: str):
    for loss in judge(seeded_case(), Target(dtype), ALL).losses.values():
        assert f"{loss:.4f}" == "3.5586"


def test_float64_shows_what_the_project_promises_of_every_tensor_and_pair(seeded_case):
    verdict = judge(seeded_case(), Target("float64"), ALL)
    for tensor in verdict.tensors:
        for pair, difference in tensor.pairs.items():
            assert difference.judged and difference.unjudged == 0
            if tensor.name == "logit_maxes":
                # Zero but for rounding, so that all of it is noise.
                assert difference.noise > 1
                continue
            # 1e-12 is the promise, not the limit, which follows from measured noise and is smaller.
            assert difference.relative <= 1e-12, (tensor.name, pair)
            assert difference.tolerance < 1e-12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_a_narrow_type_every_engine_is_compared_with_float64_and_every_tensor_of_the_notebook_judged(
    seeded_case, dtype: str
):
    verdict = judge(seeded_case(), Target(dtype), ALL)
    assert {pair for tensor in verdict.tensors for pair in tensor.pairs} == {(engine, "float64") for engine in ALL}
    assert all(d.judged for tensor in verdict.tensors for d in tensor.pairs.values())
    # 8 of float32's 24 bits at the most are lost on the way, and of bfloat16's 8 about half.
    most = 2.0**-16 if dtype == "float32" else 2.0**-4
    rest = [tensor for tensor in verdict.tensors if tensor.name != "logit_maxes"]
    assert all(d.noise < most for tensor in rest for d in tensor.pairs.values())


def test_a_second_verdict_on_a_case_of_the_same_sizes_compiles_nothing(seeded_case, compilations):
    engines = ("by-node", "fused", "kernel", "jax.grad")
    sizes = {"batch_size": 4, "h_size": 3}
    for dtype in ("float64", "float32"):
        judge(seeded_case(seed=1, **sizes), Target(dtype), engines)
        before = len(compilations)
        judge(seeded_case(seed=2, **sizes), Target(dtype), engines)
        assert len(compilations) == before


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """The programs that XLA compiles while a test runs."""
    found: list[str] = []

    def keep(event: str, duration: float, **_: object) -> None:
        if event.endswith("backend_compile_duration"):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(keep)
    yield found
    jax.monitoring.unregister_event_duration_listener(keep)


def test_engines_that_have_all_nodes_are_compared_on_all_26_tensors(seeded_case):
    tensors = judge(seeded_case(batch_size=3, h_size=4), Target(), ALL).tensors
    assert [tensor.name for tensor in tensors][1:] == BACKWARD_ORDER
    assert set(BACKWARD_ORDER) == {*Params._fields, *Nodes._fields}
    whole = {("by-node", "jax.grad"), ("by-node", "torch"), ("jax.grad", "torch")}
    assert all(whole <= set(tensor.pairs) for tensor in tensors)


# Batch, hidden units, context, embedding and vocabulary: the least and the largest of each, and odd ones between.
SIZES = (
    (2, 1, 1, 1, 2),
    (65, 130, 8, 12, 60),
    (2, 130, 1, 12, 2),
    (65, 1, 8, 1, 60),
    (17, 33, 3, 5, 27),
    (33, 64, 2, 7, 11),
)


@st.composite
def cases(draw, seeded_case):
    sizes = dict(
        zip(("batch_size", "h_size", "n", "emb_size", "vocab_size"), draw(st.sampled_from(SIZES)), strict=True)
    )
    case = seeded_case(seed=draw(st.integers(0, 2**31 - 1)), **sizes)
    rows = draw(st.sampled_from(["as drawn", "repeated", "all equal"]))
    picked = np.arange(sizes["batch_size"])
    if rows == "repeated":
        picked = picked % draw(st.integers(1, sizes["batch_size"]))
    X = case.batch.X[np.zeros_like(picked) if rows == "all equal" else picked]
    return case._replace(batch=Batch(X, case.batch.Y))


# Every size compiles each engine anew, which takes seconds, so examples share a few; the interpreted kernel takes most,
# and tests/models/mlp/kernel has more of its padding.
ANY = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


@settings(max_examples=25, **ANY)
@given(data=st.data())
def test_all_engines_agree_in_float64_on_any_sizes_and_rows(seeded_case, data):
    engines = tuple(name for name in ALL if name != "kernel")
    verdict = judge(data.draw(cases(seeded_case)), Target("float64"), engines)
    assert verdict.agree, verdict.sentence


@settings(max_examples=8, **ANY)
@given(data=st.data())
def test_so_does_the_kernel(seeded_case, data):
    verdict = judge(data.draw(cases(seeded_case)), Target("float64"), ("by-node", "kernel", "torch"))
    assert verdict.agree, verdict.sentence


@pytest.mark.parametrize("batch_size", [2, 65])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_all_equal_have_no_variance_and_the_engines_agree_still(seeded_case, batch_size, dtype):
    case = seeded_case(batch_size=batch_size, h_size=130, vocab_size=2)
    equal = case._replace(batch=case.batch._replace(X=np.repeat(case.batch.X[:1], batch_size, axis=0)))
    verdict = judge(equal, Target(dtype), ALL)
    assert verdict.agree, verdict.sentence


def test_engines_leave_jaxs_settings_as_they_were(seeded_case):
    run(("by-node",), seeded_case(batch_size=2, h_size=2), Target("float64"))
    assert jax.numpy.ones(()).dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.full((4, 3), 27)}, r"batch\.X has symbols from 27 to 27; they must lie in 0\.\.26"),
        ({"Y": np.array([0, 1, 2, -1])}, r"batch\.Y has symbols from -1 to 2"),
        ({"X": np.zeros((1, 3), int), "Y": np.zeros(1, int)}, "batch of 1: Bessel's correction"),
    ],
)
def test_a_batch_that_no_engine_should_be_given_is_refused_before_anything_runs(seeded_case, change, message):
    case = seeded_case(batch_size=4, h_size=2)
    with pytest.raises(JaxgradError, match=message):
        run(("by-node",), case._replace(batch=case.batch._replace(**change)), Target())


@pytest.mark.parametrize(
    ("names", "target", "message"),
    [
        (("nobody",), Target(), "no engine 'nobody'; choose from by-node, fused, kernel, jax.grad, torch, torch.nn"),
        (("kernel",), Target(jax_device="nowhere"), "JAX has no device 'nowhere' here"),
        (("fused",), Target("float16"), "dtype is 'float16'; choose from float64, float32, bfloat16"),
        (("fused",), Target(jax_device="nowhere"), "JAX has no device 'nowhere' here"),
        (("torch",), Target(torch_device="nowhere"), "PyTorch has no device 'nowhere' here"),
    ],
)
def test_what_is_missing_is_named(seeded_case, names, target, message):
    with pytest.raises(JaxgradError, match=message):
        run(names, seeded_case(batch_size=2, h_size=2), target)
