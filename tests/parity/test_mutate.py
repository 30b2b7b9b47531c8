"""Each operator makes its mistake, a check that looks kills it, and one that does not look lets it live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.errors import JaxgradError
from jaxgrad.parity import check, mutation_score
from jaxgrad.parity.mutants import OPERATORS
from jaxgrad.parity.mutate import as_backward, as_custom_vjp, describe, load, mutants, score_on, trace

X = jnp.arange(1.0, 10.0).reshape(3, 3)

# A function for each operator, in which it finds its mistake, and the words in which it tells it.
MISTAKES = {
    "an addend dropped": (lambda x: x + x.T, "addend"),
    "a sign flipped": (lambda x: x - x.T, "plus where minus should be"),
    "a factor dropped": (lambda x: x * x.T, "factor"),
    "a sum over the wrong axis": (lambda x: x.sum(0), "the sum is over axis 1 instead of axis 0"),
    "a mean for a sum": (lambda x: x.sum(0), "a mean over 3 terms instead of their sum"),
    "a broadcast's sum missing": (lambda x: x.sum(0), "the sum over axis 0 is missing"),
    "n and n - 1 mistaken": (lambda x: x.sum(0) / 2, "n for n - 1"),
    "a transpose left out": (lambda x: x.T, "transpose"),
    "the other side of a non-linearity": (lambda x: x * jnp.tanh(x), "before the tanh"),
    "a power off by one": (lambda x: x**3, "the power 2 instead of 3"),
}


def made_by(operator: str, fn, *args):
    return [m for m in mutants(trace(fn, *args).program) if m.operator == operator]


@pytest.mark.parametrize("operator", MISTAKES)
def test_an_operator_makes_its_mistake_and_tells_line_and_words(operator: str):
    fn, words = MISTAKES[operator]
    found = made_by(operator, fn, X)
    assert any(words in m.words for m in found), [m.words for m in found]
    for mutant in found:
        assert mutant.place.file == __file__ and mutant.place.text.startswith(f'"{operator}": (')
        assert not np.array_equal(as_backward(fn, mutant)(X), fn(X))


def test_a_stale_operand_and_a_stopped_path_need_more_than_one_line():
    def fn(x, dy):
        a = dy * x
        b = a + 1.0
        c = a * b
        return c, a * 2.0

    assert any("operand is" in m.words for m in made_by("a stale operand", fn, X, X))
    assert any("stop_gradient on this use" in m.words for m in made_by("a path stopped", fn, X, X))
    assert {*MISTAKES, "a stale operand", "a path stopped"} == set(OPERATORS)


def test_a_mutant_is_the_same_mistake_for_arguments_of_other_shapes():
    (mutant, *_) = made_by("a mean for a sum", lambda x: x.sum(0), X)
    wrong = as_backward(lambda x: x.sum(0), mutant)
    assert wrong(jnp.ones((3, 3))).tolist() == [1.0, 1.0, 1.0]


def right_norm(x, gain):
    return gain * x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True))


@jax.custom_vjp
def my_norm(x, gain):
    return right_norm(x, gain)


def forward(x, gain):
    r = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True))
    return right_norm(x, gain), (x * r, r, gain)


def backward(residuals, dy):
    x_hat, r, gain = residuals
    dx_hat = gain * dy
    along = (dx_hat * x_hat).mean(-1, keepdims=True)
    return r * (dx_hat - x_hat * along), (dy * x_hat).sum(0)


my_norm.defvjp(forward, backward)
ARGS = (jax.ShapeDtypeStruct((4, 5), jnp.float32), jax.ShapeDtypeStruct((5,), jnp.float32))


def looks(fn) -> None:
    check(fn, *ARGS, reference=right_norm, dtypes=("float64",), transforms=("jit",), seeds=(0,))


def looks_away(fn) -> None:
    x, gain = jnp.ones((4, 5)), jnp.ones(5)
    dx, dgain = jax.vjp(fn, x, gain)[1](x)
    assert (dx.shape, dgain.shape) == (x.shape, gain.shape)


def test_a_check_that_looks_kills_every_mutant_and_one_that_looks_away_none():
    seen, unseen = mutation_score(my_norm, looks, *ARGS), mutation_score(my_norm, looks_away, *ARGS)
    assert len(seen.killed) > 20 and not seen.survived, describe(seen)
    assert len(unseen.survived) == len(seen.killed) and not unseen.killed
    told = describe(unseen)
    assert "SURVIVED: a sign flipped" in told and "return r * (dx_hat - x_hat * along), (dy * x_hat).sum(0)" in told


def test_a_mutated_function_has_the_same_outputs_and_another_pullback():
    (mutant, *_) = (m for m in mutation_score(my_norm, looks_away, *ARGS).survived if m.operator == "a sign flipped")
    wrong = as_custom_vjp(my_norm, mutant)
    x, gain = jax.random.normal(jax.random.key(0), (4, 5)), jnp.ones(5)
    assert np.array_equal(wrong(x, gain), my_norm(x, gain))
    assert not np.allclose(jax.vjp(wrong, x, gain)[1](x)[0], jax.vjp(my_norm, x, gain)[1](x)[0])


def test_what_changes_nothing_is_equivalent():
    program = trace(lambda dy: dy * 2.0 + (dy.sum() - dy.sum()), jnp.ones(3)).program
    drawn = ([jax.random.normal(jax.random.key(k), (3,))] for k in range(5))
    score = score_on(program, [[jnp.ones(3)]], lambda case, results: True, drawn)
    assert any(m.operator == "an addend dropped" and "the second addend" in m.words for m in score.equivalent)
    assert any(m.operator == "a factor dropped" for m in score.survived)


def test_a_check_that_fails_without_a_mistake_is_an_error():
    def fails(fn) -> None:
        raise AssertionError("always")

    with pytest.raises(JaxgradError, match="the check fails on the function, without a mistake in it: always"):
        mutation_score(my_norm, fails, *ARGS)


def subject():
    return my_norm, looks, ARGS


def test_a_subject_is_named_by_file_or_module_and_function():
    assert load(f"{__file__}:subject").args == ARGS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "is not MODULE:FUNCTION"),
        ("no_such_module:subject", "cannot be imported"),
        (f"{__file__}:nobody", "has no function 'nobody'"),
        (f"{__file__}:right", "has no function 'right'"),
    ],
)
def test_a_subject_that_cannot_be_had_is_named(name: str, message: str):
    with pytest.raises(JaxgradError, match=message):
        load(name)
