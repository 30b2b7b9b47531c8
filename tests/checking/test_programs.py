"""Small programs are compiled without optimisation, all others and the plain call as their users compile them."""

from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import jax_seam
from jaxgrad.checking import programs
from jaxgrad.checking.programs import Program


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
        out = programs.run(Program(fn, (), args))
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


def convolved_in_a_loop(x):
    once = lambda x, _: (jax.lax.conv(x, jnp.ones((8, 8, 3, 3), x.dtype), (1, 1), "SAME"), None)  # noqa: E731
    return jax.lax.scan(once, x, length=8)[0]


def convolved_once(x):
    return jax.lax.conv(x, jnp.ones((8, 8, 3, 3), x.dtype), (1, 1), "SAME")


def test_a_convolution_is_not_optimised_where_no_loop_holds_it():
    assert taken(convolved_once, np.zeros((1, 8, 200, 200), np.float32))[0] == jax_seam.quick_options()


@pytest.mark.parametrize(
    ("fn", "x"),
    [
        (convolved_in_a_loop, np.zeros((1, 8, 64, 64), np.float32)),
        (until_small, np.full(2**15, 9, np.float32)),
        (many_turns, np.zeros(8, np.float32)),
        (lambda x: x + x, np.zeros(2**25)),
    ],
    ids=["convolutions in a loop", "a loop of large arrays", "many turns", "a large array"],
)
def test_what_runs_long_is_compiled_as_usual(fn, x):
    assert taken(fn, x)[0] == ()


def test_both_ways_of_compiling_trace_a_function_once():
    traced = []

    def fn(x):
        traced.append(x)
        return x + 1

    for quickly in (False, True):
        programs.run(Program(fn, (), (np.float32(1.0),), quickly))
    assert len(traced) == 1


def test_a_compiler_that_knows_no_such_options_is_given_none(monkeypatch):
    def refuse(*args, compiler_options=None, **kwargs):
        raise RuntimeError(f"No such compile option: {compiler_options}")

    jax_seam.quick_options.cache_clear()
    monkeypatch.setattr(jax, "jit", refuse)
    assert jax_seam.quick_options() == ()
    jax_seam.quick_options.cache_clear()


class Noting(ThreadPoolExecutor):
    """A thread that counts what it is given to do."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self.given = []

    def submit(self, job):
        self.given.append(super().submit(job))
        return self.given[-1]


def test_a_program_that_was_begun_is_compiled_by_the_other_thread_and_not_again():
    traced = []

    def fn(x):
        traced.append(x)
        return x * 3

    program = Program(fn, (), (np.float32(2.0),))
    with Noting() as pool:
        for _ in range(2):
            programs.begin(program, pool)
        assert programs.run(program) == 6.0
        assert programs.run(program._replace(args=(np.float32(3.0),))) == 9.0
    assert len(traced) == len(pool.given) == 1


def test_what_cannot_be_begun_raises_what_it_raises_when_it_is_run():
    def fn(x):
        raise ValueError("not today")

    program = Program(fn, (), (np.float32(2.0),))
    with Noting() as pool:
        for attempt in (lambda: programs.begin(program, pool), lambda: programs.run(program)):
            with pytest.raises(ValueError, match="not today"):
                attempt()
    assert not pool.given


def test_what_the_other_thread_could_not_compile_is_said_where_it_is_run():
    class Refusing(Noting):
        def submit(self, job):
            failed = Future()
            failed.set_exception(RuntimeError("the compiler is out of order"))
            return failed

    program = Program(lambda x: x - 1, (), (np.float32(2.0),))
    with Refusing() as pool:
        programs.begin(program, pool)
    with pytest.raises(RuntimeError, match="out of order"):
        programs.run(program)


def test_arguments_on_other_devices_are_another_program():
    program = Program(lambda x: x + 1, (), (np.ones(8, np.float32),))
    with ThreadPoolExecutor(1) as pool:
        programs.begin(program, pool)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    split = jax.device_put(program.args[0], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    assert programs.run(program._replace(args=(split,))).sharding == split.sharding
