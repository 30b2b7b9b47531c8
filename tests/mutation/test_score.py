"""Mistakes are made where they should be and told in words; good checks kill them, blind ones let them live."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import ops
from jaxgrad.errors import JaxgradError
from jaxgrad.mutation import program as programs
from jaxgrad.mutation import score as mutate
from jaxgrad.mutation.operators import OPERATORS
from jaxgrad.progress import found_by

SQUARE = jnp.arange(9.0).reshape(3, 3) + 1


def of_sum(x, dy):
    return x + dy


def of_difference(x, dy):
    return x - dy


def negative(x, dy):
    return -dy


def scaled(x, dy):
    return -0.5 * dy


def product(x, dy):
    return x * dy


def quotient(x, dy):
    return dy / x


def summed(x, dy):
    return (x * dy).sum(0)


def averaged(x, dy):
    return dy.sum(0) / 3


def unbiased(x, dy):
    return dy.sum(0) * (1 / 2)


def transposed(x, dy):
    return dy @ x.T


def contracted(x, dy):
    return jax.lax.dot_general(x, dy, (((0,), (0,)), ((), ())))


def by_tanh(x, dy):
    h = jnp.tanh(x)
    return dy * (1 - h)


def before_exp(x, dy):
    e = jnp.exp(x)
    return dy * e + x


def twice(x, dy):
    d = dy * x
    e = d * x
    return d * e


def cubed(x, dy):
    return dy * x**3


def rooted(x, dy):
    return dy * jax.lax.rsqrt(x)


def scattered(x, dy):
    return jnp.zeros(3).at[jnp.array([0, 0, 2])].add(dy[0])


# Operator, function, the words of a mistake, and what its results are then.
MISTAKES = [
    ("an addend dropped", of_sum, "the first addend, x, is dropped", lambda x, dy: dy),
    ("an addend dropped", of_sum, "the second addend, dy, is dropped", lambda x, dy: x),
    ("an addend dropped", of_difference, "the first addend, x, is dropped", lambda x, dy: -dy),
    ("an addend dropped", of_difference, "the second addend, dy, is dropped", lambda x, dy: x),
    (
        "an addend dropped",
        scattered,
        "terms that go to the same place overwrite instead of adding up",
        lambda x, dy: jnp.array([dy[0, 1], 0, dy[0, 2]]),
    ),
    ("a sign flipped", of_sum, "minus where plus should be", lambda x, dy: x - dy),
    ("a sign flipped", of_difference, "plus where minus should be", lambda x, dy: x + dy),
    ("a sign flipped", negative, "the minus before dy is gone", lambda x, dy: dy),
    ("a sign flipped", scaled, "the minus of the factor -0.5 is gone", lambda x, dy: 0.5 * dy),
    ("a factor dropped", product, "the first factor, x, is dropped", lambda x, dy: dy),
    ("a factor dropped", product, "the second factor, dy, is dropped", lambda x, dy: x),
    ("a factor dropped", quotient, "the divisor, x, is dropped", lambda x, dy: dy),
    ("a factor dropped", averaged, "the divisor, 3, is dropped", lambda x, dy: dy.sum(0)),
    ("a sum over the wrong axis", summed, "the sum is over axis 1 instead of axis 0", lambda x, dy: (x * dy).sum(1)),
    ("a mean for a sum", summed, "a mean over 3 terms instead of their sum", lambda x, dy: (x * dy).mean(0)),
    ("a mean for a sum", transposed, "a mean over 3 terms instead of their sum", lambda x, dy: dy @ x.T / 3),
    (
        "a broadcast's sum missing",
        summed,
        "the sum over axis 0 is missing: only the first of 3 terms is left",
        lambda x, dy: (x * dy)[0],
    ),
    ("n and n - 1 mistaken", averaged, "n - 1 for n, that is 2 for 3 (n is 3)", lambda x, dy: dy.sum(0) / 2),
    (
        "n and n - 1 mistaken",
        unbiased,
        "1/n for 1/(n - 1), that is 0.333333 for 0.5 (n is 3)",
        lambda x, dy: dy.sum(0) / 3,
    ),
    ("a transpose left out", transposed, "the transpose of x is left out", lambda x, dy: dy @ x),
    ("a transpose left out", contracted, "the transpose of x is left out", lambda x, dy: x @ dy),
    (
        "the other side of a non-linearity",
        by_tanh,
        "the second operand is x, from before the tanh, and not `h` (test_score.py:{line})",
        lambda x, dy: dy * (1 - x),
    ),
    (
        "the other side of a non-linearity",
        before_exp,
        "the second operand is `e` (test_score.py:{line}), from after the exp, and not x",
        lambda x, dy: dy * jnp.exp(x) + jnp.exp(x),
    ),
    (
        "a stale operand",
        twice,
        "the second operand is dy and not `e` (test_score.py:{line})",
        lambda x, dy: dy * x * dy,
    ),
    ("a path stopped", twice, "stop_gradient on this use of `d` (test_score.py:{line})", lambda x, dy: 0 * x),
    ("a power off by one", cubed, "the power 2 instead of 3", lambda x, dy: dy * x**2),
    ("a power off by one", cubed, "the power 4 instead of 3", lambda x, dy: dy * x**4),
    ("a power off by one", rooted, "the power -1.5 instead of -0.5", lambda x, dy: dy * x**-1.5),
]


def one(found, operator: str, words: str) -> mutate.Mutant:
    """The mutant that these words tell of, whatever line they name."""
    before, _, after = words.partition("{line}")
    named = [m for m in found if m.operator == operator and m.words.startswith(before) and m.words.endswith(after)]
    assert named, [(m.operator, m.words) for m in found]
    return named[-1]


@pytest.mark.parametrize(
    ("operator", "fn", "words", "wrong"), MISTAKES, ids=[f"{m[0]}-{m[1].__name__}-{i}" for i, m in enumerate(MISTAKES)]
)
def test_a_mistake_is_made_told_and_shown_at_its_line(operator, fn, words, wrong):
    x, dy = SQUARE, jnp.cos(SQUARE)
    mutant = one(mutate.mutants(fn, x, dy), operator, words)
    np.testing.assert_allclose(mutate.as_backward(fn, mutant)(x, dy), wrong(x, dy), rtol=1e-6)
    np.testing.assert_allclose(mutate.as_backward(fn, None)(x, dy), fn(x, dy), rtol=1e-6)
    lines, first = inspect.getsourcelines(fn)
    assert mutant.place.file == __file__
    assert mutant.place.text == lines[mutant.place.line - first].strip()
    if "{line}" in words:
        told = int(mutant.words.partition("test_score.py:")[2].partition(")")[0])
        assert first < told < mutant.place.line


def test_every_operator_has_an_example_here():
    assert {operator for operator, *_ in MISTAKES} == set(OPERATORS)


def test_no_two_mutants_make_the_same_change_and_none_is_without_effect():
    for fn in {m[1] for m in MISTAKES}:
        found = mutate.mutants(fn, SQUARE, jnp.cos(SQUARE))
        assert len({m.key for m in found}) == len(found)
        assert len({(m.place, m.operator, m.words) for m in found}) == len(found)
    assert mutate.mutants(lambda dy: 1.0 * dy, SQUARE) == ()


def test_integers_and_dead_code_are_left_alone():
    def backward(ids, dy):
        _ = dy * 7 + 3
        return jnp.zeros((4, 3)).at[ids + 1].set(dy)

    assert {m.operator for m in mutate.mutants(backward, jnp.arange(3), SQUARE)} <= {"a stale operand"}


def test_only_the_steps_that_are_said_to_start_it_and_those_that_depend_on_them_are_the_backward_pass():
    def forward(x):
        return x * 5

    def tail_bwd(h):
        return h * 3

    def both(x):
        return tail_bwd(forward(x)) * 2

    everywhere = {m.place.functions[0] for m in mutate.mutants(both, SQUARE)}
    started = {m.place.functions[0] for m in mutate.mutants(both, SQUARE, starts=lambda p: "tail_bwd" in p.functions)}
    assert (everywhere, started) == ({"forward", "tail_bwd", "both"}, {"tail_bwd", "both"})


@jax.jit
def helper(x):
    return x * 5


def test_a_jitted_helper_tells_its_own_line_and_one_of_jaxs_the_line_that_calls_it():
    def backward(ids, dy):
        first = jax.nn.one_hot(ids, 3) * 2
        return helper(first * jax.nn.one_hot(ids, 3) + dy)

    jax.nn.one_hot(jnp.arange(3), 3)
    found = mutate.mutants(backward, jnp.arange(3), SQUARE)
    line = inspect.getsourcelines(backward)[1] + 2
    assert {m.place.callers[0] for m in found if m.place.text == "return x * 5"} == {f"{__file__}:{line}"}
    program = programs.trace(backward, jnp.arange(3), SQUARE).program
    of_one_hot = [step.place.text for step in program.steps if step.name == "eq"]
    assert [text.partition(" ")[0] for text in of_one_hot] == ["first", "return"]


# A user's function: the square of a norm along rows, with its rule, and checks of it.


@jax.custom_vjp
def energy(x, weight):
    return (weight * x * x).sum(-1)


def energy_fwd(x, weight):
    return energy(x, weight), (x, weight)


def energy_bwd(residuals, dy):
    x, weight = residuals
    dx = 2 * weight * x * dy[..., None]
    dweight = (x * x * dy[..., None]).sum(0)
    return dx, dweight


energy.defvjp(energy_fwd, energy_bwd)

X, WEIGHT = jnp.cos(jnp.arange(12.0)).reshape(4, 3), jnp.array([0.5, -1.5, 2.0])
DX, DY = jnp.sin(5 * X) + 0.3, jnp.array([1.0, -0.5, 2.0, 0.25])


def plain_energy(x, weight):
    return (weight * x * x).sum(-1)


def good_check(fn):
    for got, right in zip(jax.vjp(fn, X, WEIGHT)[1](DY), jax.vjp(plain_energy, X, WEIGHT)[1](DY), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-5)


def blind_check(fn):
    dx, dweight = jax.vjp(fn, X, WEIGHT)[1](DY)
    assert (dx.shape, dweight.shape) == (X.shape, WEIGHT.shape)


def test_a_good_check_kills_every_mutant():
    score = mutate.mutation_score(energy, good_check, X, WEIGHT)
    assert len(score.killed) > 10
    assert (score.survived, score.equivalent) == ((), ())


def test_a_blind_check_lets_all_live_and_the_report_shows_their_lines_and_mistakes():
    score = mutate.mutation_score(energy, blind_check, X, WEIGHT)
    assert (score.killed, score.equivalent) == ((), ())
    told = mutate.describe(score)
    assert (
        told.splitlines()[0] == f"{len(score.survived)} mutants: 0 killed, {len(score.survived)} survived, 0 equivalent"
    )
    line = inspect.getsourcelines(energy_bwd)[1] + 2
    assert (
        f"SURVIVED: a factor dropped · {__file__}:{line}\n"
        "    dx = 2 * weight * x * dy[..., None]\n    the first factor, 2, is dropped"
    ) in told


def test_a_score_that_is_stopped_keeps_what_was_tried():
    calls = []

    def check(fn):
        calls.append(fn)
        # Twice it is asked about what is right.
        if len(calls) == 2 + 4:
            raise KeyboardInterrupt
        good_check(fn)

    with pytest.raises(KeyboardInterrupt) as caught:
        mutate.mutation_score(energy, check, X, WEIGHT)
    score = found_by(caught.value)
    assert (len(score.killed), len(score.survived), len(score.equivalent)) == (3, 0, 0) and len(score.untried) > 7
    told = f"{sum(map(len, score))} mutants: 3 killed, 0 survived, 0 equivalent, {len(score.untried)} not tried"
    assert caught.value.__notes__ == [f"mutation_score was stopped: {told}"]
    data = mutate.to_json({"energy": score}, complete=False)
    assert not data["complete"] and data["scores"]["energy"]["untried"] == len(score.untried)


def test_a_check_with_ones_for_cotangents_misses_what_they_hide():
    def check(fn):
        np.testing.assert_allclose(
            jax.grad(lambda x: fn(x, WEIGHT).sum())(X), jax.grad(lambda x: plain_energy(x, WEIGHT).sum())(X), rtol=1e-5
        )

    survived = mutate.mutation_score(energy, check, X, WEIGHT).survived
    assert any("dx =" in m.place.text and m.operator == "a factor dropped" for m in survived)
    assert any("dweight =" in m.place.text for m in survived)


def test_mutants_that_change_nothing_but_rounding_are_equivalent():
    @jax.custom_vjp
    def identity(x):
        return x

    def bwd(x, dy):
        one = jnp.sin(x) ** 2 + jnp.cos(x) ** 2
        return (dy * one,)

    identity.defvjp(lambda x: (x, x), bwd)

    def check(fn):
        np.testing.assert_allclose(jax.vjp(fn, X)[1](DX)[0], DX, rtol=1e-5)

    score = mutate.mutation_score(identity, check, X)
    assert score.survived == ()
    assert [m.words.partition(",")[0] for m in score.equivalent] == ["the second factor"]


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((), {}, "the check passes, but with the arguments given after it: TypeError: missing a required argument"),
        ((X, WEIGHT), {"static_argnums": (2,)}, "static_argnums has 2, and there are 2 arguments"),
        ((X, WEIGHT), {"draw": lambda k: X[0, 0]}, r"draw\(0\) gave ArrayImpl; it gives a tuple of all arguments"),
    ],
)
def test_arguments_that_make_no_sense_are_named(args, options, message: str):
    with pytest.raises(JaxgradError, match=message):
        mutate.mutation_score(energy, blind_check, *args, **options)


def test_equivalence_is_tried_on_the_users_own_draws_where_there_are_any():
    with pytest.raises(JaxgradError, match="no draw has finite cotangents"):
        mutate.mutation_score(energy, blind_check, X, WEIGHT, draw=lambda k: (X * jnp.nan, WEIGHT), draws=2)
    score = mutate.mutation_score(energy, blind_check, X, WEIGHT, draw=lambda k: (X * 0, WEIGHT), draws=2)
    assert any("dweight" in m.place.text and m.operator == "a mean for a sum" for m in score.equivalent)


def test_shapes_may_stand_for_arguments():
    like = jax.ShapeDtypeStruct(X.shape, X.dtype), jax.ShapeDtypeStruct(WEIGHT.shape, WEIGHT.dtype)
    assert not mutate.mutation_score(energy, good_check, *like).survived


def test_a_check_that_fails_without_a_mistake_is_refused():
    def check(fn):
        raise ValueError("never satisfied")

    with pytest.raises(JaxgradError, match="fails on the function, without a mistake in it: never satisfied"):
        mutate.mutation_score(energy, check, X, WEIGHT)


@pytest.mark.parametrize("transform", [jax.jit, jax.checkpoint, lambda f: f], ids=["jit", "remat", "eager"])
def test_a_function_with_its_pullback_traced_is_the_function_under_transformations(transform):
    traced = transform(mutate.as_custom_vjp(energy, None))
    good_check(traced)
    stacked = jnp.stack([X, 2 * X])
    got = jax.vmap(jax.grad(lambda x: traced(x, WEIGHT) @ DY))(stacked)
    np.testing.assert_allclose(got, jax.vmap(jax.grad(lambda x: plain_energy(x, WEIGHT) @ DY))(stacked), rtol=1e-5)
    scanned = jax.lax.scan(lambda c, x: (c, jax.grad(lambda x: traced(x, WEIGHT) @ DY)(x)), 0, stacked)[1]
    np.testing.assert_allclose(scanned, got, rtol=1e-5)
    second = jax.grad(lambda x: (jax.grad(lambda x: traced(x, WEIGHT) @ DY)(x) ** 2).sum())(X)
    right = jax.grad(lambda x: (jax.grad(lambda x: plain_energy(x, WEIGHT) @ DY)(x) ** 2).sum())(X)
    np.testing.assert_allclose(second, right, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3)])
def test_the_same_mistakes_are_found_again_for_other_types_and_shapes(dtype, shape):
    def traced(shape, dtype):
        args = (jnp.ones(shape, dtype), jnp.ones(3, dtype), jnp.ones(3, dtype))
        return programs.trace_pullback(ops.batch_norm, *args).program

    keys = {m.key for m in mutate.mutants_of(traced((4, 3), "float32"))}
    with jax.enable_x64(dtype == "float64"):
        again = {m.key for m in mutate.mutants_of(traced(shape, dtype))}
    # Only what a mistake needs may be missing, such as another variable of the same shape and type.
    assert {key for key in keys - again if key[1] != "a stale operand"} == set()
    assert len(keys & again) > 0.7 * len(keys)


def test_where_the_shapes_leave_no_room_for_a_mistake_it_is_not_made():
    mutant = one(mutate.mutants(transposed, SQUARE, SQUARE), "a transpose left out", "the transpose of x is left out")
    x, dy = jnp.ones((2, 3)), jnp.ones((4, 3))
    assert np.array_equal(mutate.as_backward(transposed, mutant)(x, dy), transposed(x, dy))


def test_static_integer_none_and_nested_arguments_are_passed_on():
    def loss(tree, ids, scale, mode):
        assert mode == "sum" and scale is None
        return ops.tanh(ops.linear(ops.embedding(tree["table"], ids), tree["w"], scale)).sum(-1)

    tree = {"table": X, "w": X[:3].T @ X[:3]}
    ids = jnp.array([0, 2, 2])

    def check(fn):
        got = jax.grad(lambda t: fn(t, ids, None, "sum").sum())(tree)
        right = jax.grad(lambda t: jnp.tanh(t["table"][ids] @ t["w"]).sum())(tree)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), got, right)

    score = mutate.mutation_score(loss, check, tree, ids, None, "sum", static_argnums=(3,))
    assert score.killed
    assert all("return ops.tanh" in m.place.text for m in (*score.killed, *score.survived))


def test_a_custom_rules_static_arguments_and_defaults_reach_it():
    gain, bias = jnp.array([1.5, 0.5, -1.0]), jnp.array([0.0, 1.0, 2.0])
    traced = mutate.as_custom_vjp(ops.batch_norm, None)
    for extra in ((), (0.1,)):
        got, right = (
            jax.vjp(lambda x, f=f, e=extra: f(x, gain, bias, *e), X)[1](X)[0] for f in (traced, ops.batch_norm)
        )
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-6)
    named = jax.grad(lambda x: (traced(x, gain, eps=0.1, bias=bias) ** 2).sum())(X)
    np.testing.assert_allclose(
        named, jax.grad(lambda x: (ops.batch_norm(x, gain, bias, 0.1) ** 2).sum())(X), rtol=1e-4, atol=1e-5
    )


def test_mistakes_in_the_body_of_a_loop_are_made_and_shown_there():
    @jax.custom_vjp
    def running(x):
        return jax.lax.scan(lambda c, t: (0.5 * c + t * t,) * 2, jnp.zeros(3), x)[1]

    def bwd(x, dy):
        def step(d, both):
            x, dy = both
            total = d + dy
            return total * 0.5, total * 2 * x

        return (jax.lax.scan(step, jnp.zeros(3), (x, dy), reverse=True)[1],)

    running.defvjp(lambda x: (running(x), x), bwd)
    plain = running.fun

    def check(fn):
        np.testing.assert_allclose(jax.vjp(fn, X)[1](DX)[0], jax.vjp(plain, X)[1](DX)[0], rtol=1e-5)

    found = list(mutate.mutants_of(programs.trace_pullback(running, X).program))
    assert {"total = d + dy", "return total * 0.5, total * 2 * x"} <= {m.place.text for m in found}
    assert not mutate.mutation_score(running, check, X).survived

    def pull(mutant, x, dy):
        return jax.vjp(mutate.as_custom_vjp(running, mutant), x)[1](dy)

    for mutant in found:
        # Values go through the loop turn by turn, and what is traced goes through a loop.
        by_turns, compiled = pull(mutant, X, DX), jax.jit(functools.partial(pull, mutant))(X, DX)
        np.testing.assert_allclose(by_turns, compiled, rtol=1e-5)


def test_a_stopped_path_into_a_loop_leaves_all_its_results():
    def bwd(x):
        def chunk(d, x):
            return jax.lax.scan(lambda d, x: (d + x, d * x), d, x)

        return jax.lax.scan(chunk, x[0, 0], x)

    x = jnp.arange(12.0).reshape(2, 2, 3)
    program = programs.trace(bwd, x).program
    stopped = [m for m in mutate.mutants_of(program) if m.operator == "a path stopped"]
    assert any(m.step.name == "scan" for m in stopped)
    for mutant in stopped:
        shapes = jax.eval_shape(mutate.as_backward(bwd, mutant), x)
        assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, jax.eval_shape(bwd, x))


SUBJECT = """
import jax.numpy as jnp

from beside import fn

def subject():
    return fn, lambda fn: None, (jnp.ones(2),)

def nothing():
    return None
"""


def test_a_subject_is_loaded_by_path_or_by_module(tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("fn = abs\n")
    (tmp_path / "norms_to_score.py").write_text(SUBJECT)
    fn, check, args = mutate.load(f"{tmp_path}/norms_to_score.py:subject")
    assert fn is abs and check(fn) is None and args[0].shape == (2,)
    monkeypatch.chdir(tmp_path)
    assert mutate.load("norms_to_score:subject").fn is abs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("norms", "'norms' is not MODULE:FUNCTION; write for example"),
        ("no_such_module:f", "no_such_module: No module named 'no_such_module'"),
        ("no/such.py:f", "no/such.py: .*No such file"),
        ("math:subject", "math must have a function subject without arguments that returns"),
        ("{folder}/norms.py:nothing", "norms.py must have a function nothing"),
    ],
)
def test_what_is_missing_of_a_subject_is_told(tmp_path, name, message):
    (tmp_path / "norms.py").write_text("def nothing():\n    return None\n")
    with pytest.raises(JaxgradError, match=message):
        mutate.load(name.format(folder=tmp_path))
