"""A difference is measured again with the function's own noise, unless it is known for a mistake by definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad import GradientMismatch, check
from jaxgrad.checking import appeal

X = jax.ShapeDtypeStruct((5, 3), jnp.float32)


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """The settings in which the function's own noise is measured."""
    settings = []
    kept = appeal._own_noise
    monkeypatch.setattr(
        appeal, "_own_noise", lambda subject, one, dtype: settings.append(str(one.setting)) or kept(subject, one, dtype)
    )
    return settings


def with_rule(fn, rule):
    """`fn` with the cotangents `rule(x, dy)`."""
    made = jax.custom_vjp(fn)
    made.defvjp(lambda *x: (fn(*x), x), rule)
    return made


def test_what_is_wrong_by_definition_is_wrong_in_every_setting_without_another_measurement(measured):
    square = with_rule(jnp.square, lambda x, dy: (1.5 * x[0] * dy,))
    with pytest.raises(GradientMismatch) as caught:
        check(square, X, reference=jnp.square)
    # Its second derivative is that of its own first; so it is the oracle's that is wrong by definition there.
    assert not measured
    findings = caught.value.report.findings
    assert {f.setting.transform for f in findings if not f.passed} >= {"jit", "vmap", "scan", "remat"}
    assert {f.setting.dtype for f in findings if not f.passed} == {"float64", "float32", "bfloat16"}


def test_an_oracle_that_is_wrong_by_definition_is_not_measured_again_either(measured):
    cut_off = lambda x: torch.square(x.detach())  # noqa: E731
    with pytest.raises(GradientMismatch, match="torch is wrong by the definition of the derivative") as caught:
        check(with_rule(jnp.square, lambda x, dy: (2 * x[0] * dy,)), X, torch_reference=cut_off)
    assert not measured and not any(f.passed for f in caught.value.report.findings)


@pytest.mark.parametrize("wide, narrow", [(2, 1.5), (1, 1.7)], ids=["only in narrow types", "smaller there"])
def test_a_mistake_that_is_not_the_proven_one_is_measured_where_it_is(measured, wide: float, narrow: float):
    def rule(x, dy):
        return ((wide if dy.dtype == np.float64 else narrow) * x[0] * dy,)

    with pytest.raises(GradientMismatch):
        check(with_rule(jnp.square, rule), X, reference=jnp.square, transforms=("jit",), seeds=(0,))
    assert measured == ["float32/jit/0", "bfloat16/jit/0"]


def test_a_right_formula_that_rounds_more_is_measured_and_agrees(measured):
    def far(x, y):
        return jnp.sum((x + y) - y)

    check(
        far,
        X,
        1e9 * np.ones(3),
        reference=lambda x, y: jnp.sum(x) + 0 * jnp.sum(y),
        dtypes=("float64",),
        transforms=("jit",),
        seeds=(0,),
    )
    assert measured == ["float64/jit/0"]
