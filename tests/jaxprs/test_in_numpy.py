"""NumPy's operations give what JAX's do, for every form of their parameters; what it cannot evaluate it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.jaxprs import in_numpy
from jaxgrad.jaxprs.noise import EXACT, noisy, noisy_now, rounding

RNG = np.random.default_rng(0)
X, Y, W = (RNG.standard_normal(shape) for shape in ((4, 5, 3), (4, 5, 3), (3, 5)))
ROWS, FAR = np.array([[2, 0], [3, 3]]), np.array([[-9, 1], [7, 4]])
ONES = np.linspace(0.1, 0.9, 6)


def both(fn, *args):
    """What a function gives by JAX, and in NumPy, one equation after another."""
    with jax.enable_x64(True):
        program, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        assert in_numpy.work(program) is not None and not in_numpy.work(program).others
        expected = jax.tree.leaves(jax.jit(fn)(*args))
        assert len(expected) == len(jax.tree.leaves(shapes))
        found = in_numpy.evaluate(program, jax.tree.leaves(args))
    return expected, found


OF_NUMBERS = {
    "arithmetic": lambda x, y: (x + y) * x - y / (1 + x * x) + x % 0.7 - jnp.fmod(x, y),
    "exponents": lambda x, y: jnp.exp(x) + jnp.exp2(y) + jnp.expm1(x) + jnp.abs(x) ** y + x**3 + (1 + x * x) ** -2,
    "logarithms": lambda x, y: jnp.log(jnp.abs(x)) + jnp.log1p(x * x) + jax.lax.rsqrt(x * x) + jnp.cbrt(y),
    "angles": lambda x, y: jnp.sin(x) + jnp.cos(y) + jnp.tan(x) + jnp.arctan2(x, y) + jnp.sinh(x) + jnp.cosh(y),
    "inverse angles": lambda x, y: jnp.arcsin(jnp.tanh(x)) + jnp.arccos(jnp.tanh(y)) + jnp.arctan(x),
    "special": lambda x, y: jax.nn.sigmoid(x) + jax.lax.erf(y) + jax.lax.erfc(x),
    "choices": lambda x, y: jnp.maximum(x, y) + jnp.where(x > 0, x, -y) + jnp.clip(x, -0.5, 0.5) + jnp.sign(y),
    "steps": lambda x, y: jnp.floor(x) + jnp.ceil(y) + (x > y) * 1.0 + ((x < 0) & ~(y < 0)) + jnp.isfinite(x / 0),
    "sums": lambda x, y: x.sum(1) + y.sum(1) * x.mean() + x.max((1,)) - y.min(1) + x.prod(1),
    "any and all": lambda x, y: ((x > 0).any(0), (y > -9).all((0, 2)), jnp.argmax(x, 1), jnp.argmin(y, -1)),
    "cumulative": lambda x, y: (jnp.cumsum(x, 1), jnp.cumprod(y, 0), jax.lax.cummax(x, 1), jax.lax.cummin(y, 2)),
    "cumulative, from the last": lambda x, y: (jax.lax.cumsum(x, 1, True), jax.lax.cumlogsumexp(y, 0, True)),
    "cumulative logarithm": lambda x, y: jax.lax.cumlogsumexp(x + y, 2),
    "layout": lambda x, y: x.transpose(2, 0, 1).reshape(5, 12)[None, :, ::2] + y.reshape(1, 5, -1)[..., :6],
    "joined": lambda x, y: (jnp.concatenate([x, y], 1), jnp.stack([x, y], -1), jnp.tile(x, (2, 1, 3)), y[:, ::-1]),
    "parted": lambda x, y: (*jnp.split(x, [1, 3], 1), *jnp.unstack(y, axis=2)),
    "products": lambda x, y: (jnp.einsum("abc,abd->bcd", x, y), jnp.einsum("abc,abc->a", x, y), x @ y.swapaxes(1, 2)),
    "reshaped in another order": lambda x, y: x.reshape(20, 3, order="F") + jax.lax.reshape(y, (20, 3), (2, 0, 1)),
    "padded": lambda x, y: (jax.lax.pad(x, 0.5, [(1, 2, 0), (0, 0, 1), (-1, 1, 0)]), jnp.pad(y, 2), jnp.roll(x, 2, 1)),
    "padded, between and cut off": lambda x, y: jax.lax.pad(x, 0.5, [(-1, -1, 1), (2, -1, 2), (0, 0, 0)]),
    "sorted": lambda x, y: (jnp.sort(x, 1), jnp.argsort(y, 0), *jax.lax.sort((x, y), 1, num_keys=1)),
    "types": lambda x, y: (x.astype(np.float32) * 3, (x * 9).astype(int) // 2, (y > 0).astype(int) ^ 1, ~(x > 0)),
    "calls": lambda x, y: jax.jit(jnp.tanh)(x) + jax.checkpoint(jnp.sin)(y) + jax.nn.relu(x) + jax.nn.silu(y),
    "a branch": lambda x, y: jax.lax.cond(x[0, 0, 0] > 0, jnp.sin, jnp.cos, y),
    "branches": lambda x, y: jax.lax.switch((x[0, 0, 0] > 9) + 2, [jnp.sin, jnp.cos, jnp.tan], y),
    "a scan": lambda x, y: jax.lax.scan(lambda h, r: (jnp.tanh(h + r), h * r), y[0], x),
    "a scan from the last": lambda x, y: jax.lax.scan(lambda h, r: (h + r, h.sum()), y[0], x, reverse=True),
    "a loop of numbers": lambda x, y: jax.lax.fori_loop(0, 3, lambda k, h: jnp.sin(h) * k, x + y),
    "a scan of scalars": lambda x, y: jax.lax.scan(lambda h, r: (h + r, h * 2), 1.0, x[0, :, 0]),
}  # fmt: skip


@pytest.mark.parametrize("fn", OF_NUMBERS.values(), ids=OF_NUMBERS)
def test_an_operation_gives_what_jaxs_does(fn):
    for expected, found in zip(*both(fn, X, Y), strict=True):
        assert expected.dtype == found.dtype and expected.shape == found.shape
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


AT = {
    "rows": lambda x, w: x[ROWS],
    "columns": lambda x, w: x[:, ROWS],
    "a window": lambda x, w: jax.lax.dynamic_slice(x, (1, 7, -2), (2, 3, 2)),
    "a window written": lambda x, w: jax.lax.dynamic_update_slice(x, x[:2, :2, :2] + 1, (1, 9, 1)),
    "pairs": lambda x, w: x[ROWS, ROWS.T],
    "apart": lambda x, w: x[ROWS, :, np.array([0, 2])],
    "along an axis": lambda x, w: jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
    "from the end": lambda x, w: x[np.array([-1, -4])],
    "far, filled": lambda x, w: x.at[FAR].get(mode="fill", fill_value=7.0),
    "far, by itself": lambda x, w: jnp.take(x, FAR, 0, mode="fill"),
    "far, integers": lambda x, w: jnp.take((x * 9).astype(int), FAR, 0, mode="fill"),
    "far, clipped": lambda x, w: jnp.take(x, FAR, 0, mode="clip"),
    "added": lambda x, w: x.at[ROWS].add(x[:2, :2].sum((0, 1))),
    "added at pairs": lambda x, w: x.at[ROWS, ROWS.T].add(2.0),
    "added in float32": lambda x, w: x.astype(np.float32).at[:, ROWS].add(1.5),
    "added far": lambda x, w: x.at[FAR].add(3.0),
    "added far, clipped": lambda x, w: x.at[FAR].add(3.0, mode="clip"),
    "set": lambda x, w: x.at[1, np.array([2, 0])].set(9.0),
    "set far": lambda x, w: x.at[:, FAR].set(3.0, mode="drop"),
    "of each of a batch": lambda x, w: jax.vmap(lambda a, k: a[k])(x, ROWS.ravel()),
    "added to each of a batch": lambda x, w: jax.vmap(lambda a, k: a.at[k].add(1.0))(x, ROWS.ravel()),
    "differentiated": lambda x, w: jax.grad(lambda x: jnp.sin(x[ROWS, :, 1] * x[ROWS].sum(-1)).sum())(x),
    "differentiated along an axis": lambda x, w: jax.grad(lambda x: (jnp.sort(x, 1) ** 2)[:, 1:3].sum())(x),
    "of one number": lambda x, w: (x[0, 0, 0], x[0, :, 0][jnp.array(3)]),
    "of none": lambda x, w: x[np.zeros((0,), int)].sum(0) + x[:0].sum(0),
    "largest of none": lambda x, w: jnp.max(x[:0], 0, initial=0.5),
}


@pytest.mark.parametrize("fn", AT.values(), ids=AT)
def test_what_is_taken_and_put_at_indices_is_where_jax_has_it(fn):
    for expected, found in zip(*both(fn, X, W), strict=True):
        assert expected.dtype == found.dtype and expected.shape == found.shape
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_what_is_no_number_is_silent_and_as_in_jax():
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e300, -1.0])
    fn = lambda x: (1 / x, jnp.log(x), x * 1e300, jnp.maximum(x, 0.0), jnp.max(x), jnp.sign(x), jnp.sort(x))  # noqa: E731
    for expected, found in zip(*both(fn, special), strict=True):
        np.testing.assert_array_equal(found, expected)


BEYOND = np.array([1e30, -1e30, np.nan, np.inf, -np.inf, 2.0**31, -2.5, 2.9])
WHOLE = np.array([7, -7, 5, -(2**62) - 1, 0, 9, -(2**63)])


@pytest.mark.parametrize("wanted", [np.int32, np.int64, np.uint8, np.uint32, bool])
def test_floats_beyond_an_integers_range_are_its_ends(wanted):
    (expected,), (found,) = both(lambda x: jax.lax.convert_element_type(x, wanted), BEYOND)
    np.testing.assert_array_equal(found, expected)


def test_integers_are_divided_as_in_jax_by_0_too():
    by = np.array([2, 2, -3, 3, 0, 0, 2])
    of = lambda x, y: (jax.lax.div(x, y), jax.lax.rem(x, y), x & y, jax.lax.reduce_and_p.bind(x, axes=(0,)))  # noqa: E731
    for expected, found in zip(*both(of, WHOLE, by), strict=True):
        np.testing.assert_array_equal(found, expected)
    unsigned = WHOLE.astype(np.uint32)
    for expected, found in zip(
        *both(lambda x, y: (jax.lax.div(x, y), jax.lax.rem(x, y)), unsigned, unsigned[::-1]), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_numbers_too_small_to_be_normal_are_noticed():
    with jax.enable_x64(True):
        program = jax.make_jaxpr(lambda x: x / jnp.sqrt(jnp.sum(x * x)))(X)
        assert in_numpy.if_normal(program, [1e-160 * X]) is None
        for x in (1e-170 * X, X):
            np.testing.assert_array_equal(in_numpy.if_normal(program, [x])[0], in_numpy.evaluate(program, [x])[0])


@pytest.mark.parametrize(
    ("fn", "x"),
    [
        (lambda x: jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x / 2, x), X),
        (lambda x: x.astype(jnp.bfloat16) * 2, X),
        (lambda x: x.astype(jnp.float16) * 2, X),
        (lambda x: jax.random.normal(jax.random.key(0), (3,)) + x[0, 0], X),
        (lambda x: jnp.fft.fft(x), X),
        (lambda x: jax.lax.reduce(x, np.float32(1), lambda a, b: a * jnp.sin(b), (0,)), X.astype(np.float32)),
    ],
    ids=["a while loop", "bfloat16", "float16", "keys", "complex numbers", "a program of its own"],
)
def test_what_it_cannot_evaluate_it_says(fn, x):
    assert in_numpy.work(jax.make_jaxpr(fn)(x)) is None


def test_what_numpy_has_not_is_counted_once_for_a_shape_and_evaluated_by_jax():
    def fn(x):
        return jnp.linalg.cholesky(x @ x.T + jnp.eye(3)) + jnp.linalg.cholesky(x @ x.T + 2 * jnp.eye(3))

    with jax.enable_x64(True):
        program = jax.make_jaxpr(fn)(W)
        found = in_numpy.evaluate(program, [W])
        np.testing.assert_allclose(found[0], jax.jit(fn)(W), rtol=1e-12)
    assert [name for name, _ in in_numpy.work(program).others] == ["cholesky"]


def test_an_operation_whose_parameters_have_other_names_is_jaxs(monkeypatch):
    with jax.enable_x64(True):
        program = jax.make_jaxpr(lambda x: x.sum(1))(W)
        sums = program.jaxpr.eqns[0]
        monkeypatch.setattr(in_numpy, "_axes", lambda params: params["dimensions_of_a_later_jax"])
        np.testing.assert_allclose(in_numpy.bind(sums, [W])[0], W.sum(1), rtol=1e-14)


def test_a_loop_is_work_in_every_turn_and_written_once():
    once = in_numpy.work(jax.make_jaxpr(lambda x: jnp.sin(x) * 2)(X))
    loop = in_numpy.work(jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 50, lambda _, x: jnp.sin(x) * 2, x))(X))
    assert once.equations == once.written == 2
    assert loop.equations > 100 and loop.written < 10 and loop.numbers >= 50 * once.numbers


NOISY = {
    **{k: OF_NUMBERS[k] for k in ("arithmetic", "exponents", "sums", "products", "cumulative", "a scan", "sorted")},
    "added": AT["added"],
    "whole numbers": lambda x, y: jnp.ones_like(x).sum() + jnp.floor(x),
    "in float32": lambda x, y: jnp.sin(x.astype(np.float32)) * y,
    "a product contracted": lambda x, y: x * y - (x * y).max(),
    "a factorisation": lambda x, y: jnp.linalg.cholesky(x[0].T @ x[0]),
}


@pytest.mark.parametrize("fn", NOISY.values(), ids=NOISY)
@pytest.mark.parametrize(
    "amount", [EXACT, rounding("float32"), rounding("bfloat16", narrow=True), rounding("float64", 128)]
)
def test_each_rounding_is_drawn_as_the_compiled_program_draws_it(fn, amount):
    with jax.enable_x64(True):
        program = jax.make_jaxpr(fn)(X, Y)
        compiled = jax.jit(noisy(program))(np.uint32(5), amount, X, Y)
        for expected, found in zip(compiled, noisy_now(program)(5, amount, X, Y), strict=True):
            assert isinstance(found, np.ndarray) or found.shape == ()
            # A library's sine in float32 is not XLA's to the last digit.
            tolerance = 1e-6 if "sin" in str(program) and "f32" in str(program) else 1e-13
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
