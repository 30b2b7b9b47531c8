"""Forty right and forty faulty functions are what they say, and the page shows what checkers made of them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from jaxgrad.bench import checkers
from jaxgrad.bench.checker_cases import CASES
from jaxgrad.cli import app
from jaxgrad.errors import JaxgradError

ROOT = Path(__file__).parents[2]
RUN = ROOT / "data/benchmarks/checkers-cpu.json"
BY_NAME = {case.name: case for case in CASES}
# Their mistakes are not in a first derivative of usual numbers.
ELSEWHERE = {"softplus", "second order", "batching rule"}


def test_there_are_forty_with_names_of_their_own():
    assert len(CASES) == len(BY_NAME) == 40 and all(case.where in case.shapes for case in CASES)


@pytest.mark.parametrize("name", BY_NAME)
def test_one_form_is_right_and_the_other_is_wrong_where_it_says(name: str):
    case = BY_NAME[name]
    right, faulty = (checkers.given(case, faulty) for faulty in (False, True))
    with jax.enable_x64(True):
        args = [jnp.asarray(value, jnp.float64) for value in right.floats.values()]
        dy = jnp.ones(jax.eval_shape(right.plain_of_floats, *args).shape)
        weights = dy + 0.1 * jnp.arange(dy.size).reshape(dy.shape)
        expected, good, bad = (
            dict(zip(right.floats, jax.vjp(fn, *args)[1](weights), strict=True))
            for fn in (right.plain_of_floats, right.of_floats, faulty.of_floats)
        )
    # Some dozen roundings, of numbers around 1.
    close = {"rtol": 1e-12, "atol": 1e-12}
    for argument, dx in expected.items():
        np.testing.assert_allclose(good[argument], dx, **close, err_msg=argument)
    assert np.allclose(bad[case.where], expected[case.where], **close) == (name in ELSEWHERE)


@pytest.mark.parametrize("checker", checkers.CHECKERS)
def test_a_checker_finds_a_plain_mistake_and_leaves_a_right_function_alone(checker: str):
    if checker not in checkers.installed():
        pytest.skip(f"{checkers.CHECKERS[checker][0]} is not installed")
    right, faulty = (checkers.tried(BY_NAME["bias"], faulty, checker) for faulty in (False, True))
    assert right.alarm is None and faulty.alarm is not None and faulty.seconds > 0
    names_none = checkers.CHECKERS[checker][0] in ("jax", "chex")
    assert faulty.alarm.place == ("" if names_none else "b")


def test_torch_sees_second_derivatives_through_the_bridge():
    row = checkers.tried(BY_NAME["second order"], True, "gradcheck and gradgradcheck, float64")
    assert row.alarm is not None and "Jacobian mismatch" in row.alarm.said


def test_what_does_not_exist_is_an_error():
    with pytest.raises(JaxgradError, match="there is no checker 'guess'"):
        checkers.tried(CASES[0], False, "guess")
    told = CliRunner().invoke(app, ["--no-compile-cache", "bench", "checkers", "--case", "nothing"]).exception
    assert isinstance(told, JaxgradError) and "there is no function 'nothing'" in str(told)


def test_the_page_shows_the_kept_run():
    run = checkers.load(RUN)
    asked = {(row["checker"], row["case"], row["faulty"]) for row in run["rows"]}
    assert asked == {(checker, name, faulty) for checker in checkers.CHECKERS for name in BY_NAME for faulty in (0, 1)}
    assert checkers.markdown(run) in (ROOT / "docs/against-other-checkers.md").read_text(encoding="utf-8")
