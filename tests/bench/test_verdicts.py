"""Right programs that are written otherwise are not accused, and a factor on a cotangent is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.bench import verdicts
from jaxgrad.bench.rewrites import ROWS
from jaxgrad.errors import JaxgradError


@pytest.mark.parametrize("row", ROWS)
def test_forms_of_a_row_are_equal_and_keep_the_shape(row: str):
    rng = np.random.default_rng(0)
    of = ROWS[row]
    x, *parameters = (jnp.asarray(rng.standard_normal(shape), "float32") for shape in [(4, 8), *of.parameters(4, 8)])
    expected = of.plain(x, *parameters)
    assert expected.shape == x.shape
    for form in of.others.values():
        # Some tens of roundings of numbers around 1.
        np.testing.assert_allclose(form(x, *parameters), expected, rtol=1e-4, atol=1e-5)


def test_no_right_program_is_accused():
    found = verdicts.run(2 * verdicts.DRAWS * len(verdicts.DTYPES), seed=0)
    assert [v for v in found if v.outcome == "differs"] == []
    for row in verdicts.summary(found):
        assert row["agrees"] > 0 and row["largest share"] < 1
        assert 4 <= row["largest seen"] <= row["wanted"]


def test_a_wrong_program_is_accused(monkeypatch):
    wrong = jax.custom_vjp(lambda x: jnp.exp(x / 2))
    wrong.defvjp(lambda x: (jnp.exp(x / 2), x), lambda x, dy: (dy * jnp.exp(x / 2),))
    monkeypatch.setitem(ROWS["exp"].others, "wrong", wrong)
    program = verdicts.parsed("4x8 gather:one-hot > exp:wrong")
    (verdict,) = verdicts.judged(program, ("float32",), (3,))
    assert verdict.outcome == "differs" and not verdict.planted
    assert str(verdicts.smaller(program, "float32", (3,))) == "4x8 exp:wrong"


def test_names_say_all_of_a_program():
    for _, program in zip(range(50), verdicts.drawn(7), strict=False):
        assert verdicts.parsed(str(program)) == program
    for text in ("4x8", "4x8 softmax:none", "4x9 softmax:logs", "softmax:logs"):
        with pytest.raises(JaxgradError, match="there is no program"):
            verdicts.parsed(text)
