"""Measured noise is the size of errors that are really made, in every kind of program; moves have none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking.question import applied, asked, call, drawn, widened
from jaxgrad.jaxprs.noise import EXACT, noisy, rounding

S = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731


def samples(fn, *args, dtype="float32", count=16, enlarged=1.0):
    """The exact results of `fn` at its arguments rounded to a type, and samples of their errors."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x).astype(jnp.dtype(dtype)).astype(np.float64)) for x in args]
        run = jax.jit(noisy(jax.make_jaxpr(fn)(*wide)))
        exact = np.asarray(run(0, EXACT, *wide)[0])
        errors = [np.asarray(run(seed, rounding(dtype, enlarged), *wide)[0]) - exact for seed in range(1, count + 1)]
    return exact, np.array(errors)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv(x, w):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)


def attention(q, k, v):
    scores = jnp.where(jnp.tril(jnp.ones((16, 16), bool)), q @ k.T / 4, -jnp.inf)
    return jax.nn.softmax(scores) @ v


PROGRAMS = {
    "product": (lambda x, w: x @ w, normal(16, 256), normal(256, 16, seed=1)),
    "sum": (lambda x: x.sum(0), normal(4096, 8)),
    "mean of squares": (lambda x: (x * x).mean(0), normal(1000, 8)),
    "cumsum": (lambda x: jnp.cumsum(x, 0), normal(300, 4)),
    "convolution": (conv, normal(2, 8, 8, 16), normal(3, 3, 16, 8, seed=1)),
    "batch norm": (lambda x: (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5), normal(64, 16)),
    "masked attention": (attention, normal(16, 8), normal(16, 8, seed=1), normal(16, 8, seed=2)),
    "steep": (lambda x, w: jnp.sin(10 * x @ w), normal(16, 64), normal(64, 8, seed=1)),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, 0), normal(2000, 8)),
    "scan": (
        lambda x: jax.lax.scan(lambda c, a: (jnp.tanh(c + a), c), jnp.zeros(8, x.dtype), x)[1],
        normal(50, 8),
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_noise_has_the_size_of_the_errors_that_are_made(name: str, dtype: str):
    fn, *args = PROGRAMS[name]
    exact, errors = samples(fn, *args, dtype=dtype)
    with jax.default_matmul_precision("highest"):
        made = np.asarray(jax.jit(fn)(*(jnp.asarray(x, dtype) for x in args)), np.float64) - exact
    z = rms(made) / rms(errors)
    # Too small a noise is a false alarm, too large a one hides mistakes: a factor of 2, and of 50 for long sums.
    assert 0.02 < z < 2, z


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.T.reshape(-1)[::2],
        lambda x: jnp.concatenate([x[1:], x[:1]]).max(0),
        lambda x: jnp.where(x > 0, x, -x),
        lambda x: jnp.sort(x, 0),
        lambda x: x[jnp.array([2, 0, 0])],
        lambda x: jnp.floor(x) + jnp.arange(3.0),
    ],
    ids=["reshape", "concatenate", "where", "sort", "gather", "whole numbers"],
)
def test_moves_and_choices_and_whole_numbers_are_exact(fn):
    assert not samples(fn, normal(4, 3))[1].any()


FAR = np.array([-40.0, -25.5, 31.0])


@pytest.mark.parametrize(
    ("fn", "rounded"),
    [
        (jnp.tanh, True),
        (jax.nn.sigmoid, True),
        (jax.scipy.special.erfc, [True, True, False]),
        (lambda x: 1 + 1e-30 / x, True),
        (lambda x: jnp.sum(jnp.exp(-jnp.abs(x)[:, None] * jnp.array([0.0, 1.0])), 1), True),
        (lambda x: (jnp.ones_like(x) / 10) * 10, True),
        (lambda x: jnp.floor(x) ** 2, False),
        (lambda x: jnp.exp(0 * x) + jnp.cos(0 * x), False),
        (lambda x: jnp.sum(jnp.ones((3, 8)) * jnp.floor(x)[:, None], 1) / 8, False),
        (lambda x: 0.5 * jnp.full_like(x, 4), False),
    ],
    ids=[
        "tanh",
        "sigmoid",
        "erfc",
        "1 and a little",
        "sum",
        "ten tenths",
        "a square",
        "at 0",
        "a mean",
        "a half",
    ],
)
def test_what_is_whole_by_rounding_is_rounded(fn, rounded):
    """Where tanh is -1 it is a number beside -1, and 1 + tanh all rounding. Numbers that are counted are exact."""
    shaken = np.any(samples(fn, FAR)[1], 0)
    np.testing.assert_array_equal(shaken, np.broadcast_to(rounded, shaken.shape))


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    with jax.enable_x64(True):
        x = jnp.asarray(normal(40).astype(np.float64))
        run = jax.jit(noisy(jax.make_jaxpr(jnp.sin)(x)))
        once, again, other = (np.asarray(run(seed, rounding("float32"), x)[0]) for seed in (1, 1, 2))
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def test_noise_is_in_proportion_to_the_roundings():
    fn = lambda x: jnp.tanh(x @ x.T)  # noqa: E731
    small, large = (samples(fn, normal(8, 8), enlarged=by)[1] for by in (1.0, 16.0))
    # What is of second order is some 16 u of the usual noise, also where that happens to cancel.
    np.testing.assert_allclose(large, 16 * small, rtol=1e-3, atol=1e-5 * np.std(16 * small))


def test_every_kind_of_program_is_entered():
    """The results without noise are the program's own, through loops, choices, custom rules and a mesh."""

    @jax.custom_vjp
    def custom(x):
        return jnp.sin(x)

    custom.defvjp(lambda x: (custom(x), x), lambda x, dy: (dy * jnp.cos(x),))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
    spec = jax.sharding.PartitionSpec("d")

    def mapped(x):
        body = lambda x: x * jax.lax.psum(x.sum(), "d")  # noqa: E731
        return jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec)(x)

    def halved(x):
        return jax.lax.while_loop(lambda c: c.sum() > 1, lambda c: c / 2, jnp.abs(x))

    def chosen(x):
        return jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)

    def printed(x):
        jax.debug.callback(lambda x: None, x)
        return x / 3

    for fn in (custom, mapped, halved, chosen, printed, jax.checkpoint(jnp.tanh), jax.nn.relu, jax.vmap(halved)):
        x = normal(4, 2)
        exact, errors = samples(fn, x)
        with jax.enable_x64(True):
            np.testing.assert_allclose(exact, fn(jnp.asarray(x, jnp.float64)), rtol=1e-14)
        assert fn is jax.nn.relu or errors.any(), fn


def test_a_loop_that_converges_takes_its_own_number_of_turns_under_noise():
    def root(x):
        def goes_on(state):
            return jnp.abs(state[0] - state[1]).max() > 1e-14

        return jax.lax.while_loop(goes_on, lambda s: ((s[0] + x / s[0]) / 2, s[0]), (x, 0 * x))[0]

    exact, errors = samples(root, np.abs(normal(5)) + 1, dtype="bfloat16")
    assert np.isfinite(errors).all() and 0 < rms(errors / exact) < 0.02


def test_a_question_goes_to_every_type_with_the_same_numbers():
    fn = lambda x: jnp.sin(x)  # noqa: E731
    of = call(fn, (S(5),), {})
    inputs = {dtype: drawn(of, dtype, 0)[0][0] for dtype in ("float64", "float32", "bfloat16")}
    assert np.array_equal(inputs["float64"], inputs["float32"])
    assert np.array_equal(inputs["float32"].astype(jnp.bfloat16), inputs["bfloat16"])
    q = asked(applied(fn, of), *drawn(of, "float32", 0), "float32", 0)
    assert widened(q).inputs[0].dtype == np.float64 and q.dys[0].dtype == np.float32


def test_roundings_of_equal_shape_are_independent_over_samples():
    """They take overlapping stretches of one table: a sum over all must not see more noise in it, or less."""
    # Terms cancel in pairs, so that the sum itself is 0 and rounds nothing.
    x = np.repeat(normal(2**12), 2)
    terms = lambda x: jnp.where(jnp.arange(x.size) % 2, -1, 1) * jnp.exp(x)  # noqa: E731
    alone = lambda x: terms(x).sum()  # noqa: E731
    together = lambda x: jnp.concatenate([terms(x) for _ in range(8)]).sum()  # noqa: E731
    one, eight = (rms(samples(fn, x, dtype="bfloat16", count=64)[1]) for fn in (alone, together))
    # Of 64 samples a standard deviation is known to 9 %; noise in step would give 8 times as much, not its root.
    assert 0.7 < eight / (8**0.5 * one) < 1.4
