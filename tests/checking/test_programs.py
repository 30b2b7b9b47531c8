"""Small programs are compiled without optimisation, all others and the plain call as their users compile them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import jax_seam
from jaxgrad.checking import programs


def taken(fn, *args):
    """With which options a function is compiled."""
    programs.compiled.cache_clear()
    found = []
    usual = programs.compiled

    def noted(fn, *static, options=()):
        found.append(options)
        return usual(fn, *static, options=options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "compiled", noted)
        out = programs.run_quickly(fn, (), *args)
    return found[-1], out


def until_small(x):
    return jax.lax.while_loop(lambda x: jnp.max(x) > 1, lambda x: x / 2, x)


def many_turns(x):
    return jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=2**22)[0]


def test_a_small_program_is_compiled_quickly_and_gives_the_same():
    options, out = taken(lambda x: jnp.sin(x) * 2, np.float32(1.0))
    assert options == jax_seam.quick_options() != ()
    np.testing.assert_allclose(out, 2 * np.sin(1.0), rtol=1e-6)


def test_a_loop_of_few_numbers_that_a_condition_ends_is_not_optimised():
    assert taken(until_small, np.float32(9.0))[0] == jax_seam.quick_options()


@pytest.mark.parametrize(
    ("fn", "x"),
    [
        (until_small, np.full(2**15, 9, np.float32)),
        (many_turns, np.zeros(8, np.float32)),
        (lambda x: x + x, np.zeros(2**25)),
    ],
    ids=["a loop of large arrays", "many turns", "a large array"],
)
def test_what_runs_long_is_compiled_as_usual(fn, x):
    assert taken(fn, x)[0] == ()


def test_both_ways_of_compiling_trace_a_function_once():
    traced = []

    def fn(x):
        traced.append(x)
        return x + 1

    programs.run(fn, (), np.float32(1.0))
    programs.run_quickly(fn, (), np.float32(1.0))
    assert len(traced) == 1


def test_a_compiler_that_knows_no_such_options_is_given_none(monkeypatch):
    def refuse(*args, compiler_options=None, **kwargs):
        raise RuntimeError(f"No such compile option: {compiler_options}")

    jax_seam.quick_options.cache_clear()
    monkeypatch.setattr(jax, "jit", refuse)
    assert jax_seam.quick_options() == ()
    jax_seam.quick_options.cache_clear()
