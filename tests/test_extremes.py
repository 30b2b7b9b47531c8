"""Inputs at the edge of what is allowed, through every engine; those beyond it are refused before anything runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import corpus, ops
from jaxgrad.errors import JaxgradError
from jaxgrad.models.mlp.forward import Batch, forward
from jaxgrad.models.mlp.fused import fused
from jaxgrad.models.mlp.record import MODEL
from jaxgrad.models.model import gradients_of
from jaxgrad.parity import engines
from jaxgrad.parity.cases import Case
from jaxgrad.parity.engines import Target, run
from jaxgrad.parity.verdict import judge
from jaxgrad.training import run as runs
from jaxgrad.training.config import checked, config_of
from jaxgrad.training.step import run_steps, start

ALL = engines.names(MODEL)
DTYPES = ("float64", "float32", "bfloat16")
# The notebook's own forward takes the logarithm of a probability, which may have been rounded to 0; the others do not.
CLOSED = tuple(name for name in ALL if name not in ("by-node", "jax.grad", "torch"))


def with_logits(case: Case, of_targets: float, of_others: float) -> Case:
    """Every row has the target 0, and the logits `of_targets` there and `of_others` elsewhere, h apart."""
    b2 = np.full_like(case.params.b2, of_others)
    b2[0] = of_targets
    # Of h, which is within 1 of 0, each logit has 1/8 of a unit at most: so the others stay far below or above.
    W2 = case.params.W2 / (8 * np.abs(case.params.W2).sum(0))
    return case._replace(
        params=case.params._replace(b2=b2, W2=np.float64(np.float32(W2))),
        batch=case.batch._replace(Y=np.zeros_like(case.batch.Y)),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("of_targets", "of_others"), [(1e4, 1e4), (-1e4, -1e4), (1e4, 1e4 - 16)])
def test_logits_of_ten_thousand_are_as_good_as_small_ones(seeded_case, dtype, of_targets, of_others):
    verdict = judge(with_logits(seeded_case(batch_size=5, h_size=8), of_targets, of_others), Target(dtype), ALL)
    assert verdict.agree, verdict.sentence


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_target_twenty_thousand_below_is_an_infinite_loss_or_the_right_one(seeded_case, engine, dtype):
    case = with_logits(seeded_case(batch_size=5, h_size=8), -1e4, 1e4)
    gradients = run((engine,), case, Target(dtype))[engine]
    if engine in CLOSED:
        # log(26 e^2e4) and h's part, which is below 1/4; of bfloat16, the roundings of two logits of 1e4, 2^5 at most.
        rounding = 2.0**5 * (dtype == "bfloat16")
        assert abs(float(gradients.loss) - 2e4 - np.log(26)) < 0.25 + 2 * rounding
        assert all(np.isfinite(np.asarray(p, np.float64)).all() for p in gradients.params)
    else:
        # The notebook's own arithmetic: the probability is rounded to 0, and its logarithm is said to be infinite.
        assert float(gradients.loss) == np.inf


def test_closed_forms_agree_there_in_float64(seeded_case):
    # Side by side and not by a verdict, whose tolerances come from jax.grad of the notebook's forward.
    case = with_logits(seeded_case(batch_size=5, h_size=8), -1e4, 1e4)
    reference, *others = run(("torch.nn", "fused", "kernel"), case, Target("float64")).values()
    for gradients in others:
        # A few roundings of 53 bits, of the sum of five losses.
        np.testing.assert_allclose(gradients.loss, reference.loss, rtol=2.0**-50)
        for ours, theirs in zip(gradients.params, reference.params, strict=True):
            # Logits near 1e4 have 40 bits behind the point, and probabilities their errors.
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2.0**-38 * np.abs(theirs).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.0, 1e-15], ids=["variance 0", "variance 1e-30"])
def test_a_variance_far_below_epsilon_is_no_matter(seeded_case, dtype, size):
    case = seeded_case(batch_size=6, h_size=8)
    # Embeddings of that size make h_prenorm of that size, and its variance of its square.
    C = np.float64(np.float32(size * case.params.C))
    verdict = judge(case._replace(params=case.params._replace(C=C)), Target(dtype), ALL)
    assert verdict.agree, verdict.sentence


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_of_two(seeded_case, dtype):
    verdict = judge(seeded_case(batch_size=2), Target(dtype), ALL)
    assert verdict.agree, verdict.sentence


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vocabulary_of_one_has_no_loss_and_no_gradients(seeded_case, dtype):
    case = seeded_case(batch_size=4, h_size=8, vocab_size=1)
    verdict = judge(case, Target(dtype), ALL)
    assert verdict.agree and set(verdict.losses.values()) == {0.0}, verdict.sentence
    for gradients in run(ALL, case, Target(dtype)).values():
        assert not any(np.asarray(p, np.float64).any() for p in gradients.params)


@pytest.mark.parametrize("gradients", [*MODEL.gradients, "jax-grad"])
def test_a_step_on_a_vocabulary_of_one_changes_nothing(gradients):
    config = checked(config_of(steps=3, batch_size=2, hidden=2, vocabulary=(".",), gradients=gradients))
    params = runs.initial_params(config, jax.random.key(0))
    optimizer = runs.optimizer(config)
    examples = Batch(jnp.zeros((4, 3), jnp.int32), jnp.zeros(4, jnp.int32))
    before = jax.tree.map(np.asarray, params)
    state, losses = run_steps(
        start(jax.tree.map(jnp.copy, params), optimizer), jax.random.key(0), examples,
        model=MODEL, sizes=MODEL.sizes(), gradients=gradients,
        optimizer=optimizer, dtype="float32", batch_size=2, n_steps=3,
    )  # fmt: skip
    assert losses.tolist() == [0.0] * 3 and all(map(np.array_equal, state.params, before))


@pytest.mark.parametrize("engine", ALL)
def test_a_batch_of_one_is_refused_by_every_engine_before_it_runs(seeded_case, engine, monkeypatch):
    monkeypatch.setattr(engines, "engine", lambda *_: pytest.fail("it ran"))
    case = seeded_case(batch_size=2, h_size=2)
    one = case._replace(batch=jax.tree.map(lambda array: array[:1], case.batch))
    with pytest.raises(JaxgradError, match="a batch of 1: Bessel's correction divides by n - 1; give at least 2 rows"):
        run((engine,), one, Target())


@pytest.mark.parametrize("gradients", [*MODEL.gradients, "jax-grad"])
def test_a_batch_of_one_is_refused_while_a_step_is_traced_and_by_the_config(seeded_case, gradients):
    case = seeded_case(batch_size=2, h_size=2)
    one = jax.tree.map(lambda array: jnp.asarray(array[:1]), case.batch)
    with pytest.raises(ValueError, match="Bessel's correction divides by n - 1; give at least 2 rows"):
        jax.eval_shape(lambda p, b: gradients_of(MODEL, gradients)(p, b, case.sizes), case.params, one)
    with pytest.raises(JaxgradError, match="batch_size is 1; it must be a whole number of at least 2"):
        checked(config_of(batch_size=1, gradients=gradients))


@pytest.mark.parametrize("function", [forward, fused])
def test_symbols_out_of_range_are_never_clamped(seeded_case, function):
    case = seeded_case(batch_size=3, h_size=2, vocab_size=5)
    for name in Batch._fields:
        for symbol in (-6, 5, 2**31 - 1):
            array = np.array(getattr(case.batch, name))
            array.flat[0] = symbol
            batch = jax.tree.map(jnp.asarray, case.batch._replace(**{name: array}))
            # The host refuses them (below, and in tests of runs); a caller of the model itself gets no number at all.
            assert np.isnan(jax.jit(function)(case.params, batch).loss), (name, symbol)


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("symbol", [-1, 27])
def test_symbols_out_of_range_are_refused_on_the_host(seeded_case, engine, symbol):
    case = seeded_case(batch_size=3, h_size=2)
    batch = case.batch._replace(Y=np.full_like(case.batch.Y, symbol))
    with pytest.raises(
        JaxgradError, match=rf"batch\.Y has symbols from {symbol} to {symbol}; they must lie in 0\.\.26"
    ):
        run((engine,), case._replace(batch=batch), Target())


@pytest.mark.parametrize("rate", [0.0, -0.1, float("inf"), float("-inf"), float("nan")])
def test_a_learning_rate_must_be_a_finite_number_above_zero(tmp_path, rate):
    data = corpus.load()
    with pytest.raises(JaxgradError, match=r"learning rate is .*; it must be a finite number above 0"):
        runs.train(config_of(learning_rate=rate, vocabulary=data.vocabulary), data, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_counts_stay_within_int32_or_are_refused():
    with pytest.raises(JaxgradError, match=r"steps is 2147483648; .* below 2\^31"):
        checked(config_of(steps=2**31))
    many = corpus.Split(np.broadcast_to(np.uint8(0), (2**31, 3)), np.broadcast_to(np.uint8(0), 2**31))
    data = corpus.load()
    config = config_of(vocabulary=data.vocabulary)
    with pytest.raises(JaxgradError, match=r"the train split has 2147483648 examples; .* fewer than 2\^31"):
        runs.check_corpus(config, data._replace(train=many))


@pytest.mark.parametrize("name", ["train", "dev", "test"])
def test_an_empty_split_is_refused(name):
    data = corpus.load()
    empty = corpus.Split(np.zeros((0, 3), np.uint8), np.zeros(0, np.uint8))
    with pytest.raises(JaxgradError, match=f"the {name} split has 0 examples; it must have at least"):
        runs.check_corpus(config_of(vocabulary=data.vocabulary), data._replace(**{name: empty}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_largest_numbers_of_a_type_pass_through_the_cross_entropy(dtype):
    largest = float(jnp.finfo(dtype).max)
    logits = jnp.array([[largest, 0.0, -largest]] * 3, dtype)
    loss, dlogits = jax.value_and_grad(ops.cross_entropy)(logits, jnp.array([0, 0, 0]))
    assert float(loss) == 0.0 and not dlogits.any()


@pytest.mark.parametrize(
    "name", ["steps", "context", "embedding", "hidden", "log_every", "chunk", "save_every", "keep"]
)
def test_sizes_may_be_one_and_not_zero(name):
    assert checked(config_of(**{name: 1}))
    with pytest.raises(JaxgradError, match=f"{name} is 0; it must be a whole number of at least 1"):
        checked(config_of(**{name: 0}))
