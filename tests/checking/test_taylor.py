"""A judge must see a wrong gradient, and must never call a right one wrong: each is tried as hard as the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking.taylor import judge

SHAPES = [(3,), (5,), (8,), (4, 7), (8, 5), (2, 3), (16,), (6, 6)]
FUNCTIONS = {
    "tanh": jnp.tanh,
    "exp": jnp.exp,
    "matmul": lambda x: x @ x.T,
    "hard_tanh": jax.nn.hard_tanh,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "abs": jnp.abs,
    "max": lambda x: x.max(-1),
    "sort": lambda x: jnp.sort(x, -1),
    "median": lambda x: jnp.median(x, -1),
    "huber": lambda x: jnp.where(jnp.abs(x) < 1, 0.5 * x * x, jnp.abs(x) - 0.5),
    "hinge": lambda x: jnp.maximum(0, 1 - x),
}
MISTAKES = {
    "doubled": lambda g: 2 * g,
    "negated": lambda g: -g,
    "zeroed": lambda g: 0 * g,
    "a little large": lambda g: (1 + 1e-6) * g,
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def normal(seed: int, *shape: int):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def verdict(f, x, gradient, seed: int = 0) -> str:
    """Of a function of one array."""
    return judge(lambda leaves: f(leaves[0]), [x], {"g": [gradient]}, jax.random.key(seed))["g"][0].verdict


def verdicts(f, x, seed: int = 0) -> dict[str, str]:
    """Of the right gradient and of each mistake."""
    g = jax.grad(f)(x)
    gradients = {"right": [g]} | {name: [mistake(g)] for name, mistake in MISTAKES.items()}
    found = judge(lambda leaves: f(leaves[0]), [x], gradients, jax.random.key(seed))
    return {name: judgements[0].verdict for name, judgements in found.items()}


EVERY = {"right": "right"} | dict.fromkeys(MISTAKES, "wrong")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_right_gradients_are_right_and_wrong_ones_wrong_whatever_kinks_are_near(name: str):
    for at, shape in enumerate(SHAPES):
        for seed in range(3):
            x = normal(100 * at + seed, *shape)
            y = FUNCTIONS[name](x)
            weights = normal(7 + seed, *y.shape)

            def f(x, weights=weights):
                return jnp.vdot(weights, FUNCTIONS[name](x))

            if seed == 0 and jnp.any(jax.grad(f)(x)):
                assert verdicts(f, x) == EVERY
            else:
                assert verdict(f, x, jax.grad(f)(x), seed) == "right"


@pytest.mark.parametrize(
    ("f", "point"),
    [
        (lambda x: jnp.sum(jnp.sin(x)) * 1e-30, lambda: normal(0, 10)),
        (lambda x: jnp.sum(jnp.sin(x)) * 1e30, lambda: normal(0, 10)),
        (lambda x: jnp.sum((1e30 * x) ** 3), lambda: 1e-30 * normal(0, 10)),
        (lambda x: jnp.sum((1e-30 * x) ** 3), lambda: 1e30 * normal(0, 10)),
        (lambda x: jnp.exp(x).sum(), lambda: 1e-30 * normal(0, 10)),
        (lambda x: jnp.exp(x).sum(), lambda: jnp.zeros(4)),
        (lambda x: jnp.log(x).sum(), lambda: jnp.abs(normal(0, 20))),
        (lambda x: jnp.linalg.eigvalsh(x + x.T) @ jnp.arange(1.0, 7), lambda: normal(0, 6, 6)),
        (lambda x: jnp.vdot(normal(1, 6, 6), jax.grad(lambda x: jnp.tanh(x @ x).sum())(x)), lambda: normal(0, 6, 6)),
        (lambda x: jnp.cumsum(x).mean(), lambda: normal(0, 10_000)),
        (lambda x: jax.nn.logsumexp(1000 * x), lambda: normal(0, 50)),
    ],
)
def test_any_scale_and_second_derivatives(f, point):
    assert verdicts(f, point()) == EVERY


def test_a_large_offset_hides_small_mistakes_only():
    found = verdicts(lambda x: 1e6 + jnp.sin(x).sum(), normal(0, 10))
    assert found | {"a little large": "wrong"} == EVERY
    assert verdict(lambda x: ((1e6 + jnp.sin(x)) - 1e6).sum(), normal(0, 10), jnp.cos(normal(0, 10))) != "wrong"


def test_an_offset_that_hides_the_slope_leaves_it_undecided():
    f = lambda x: 1e12 + jnp.sin(x).sum()  # noqa: E731
    x = normal(0, 4)
    assert verdict(f, x, jnp.cos(x)) == verdict(f, x, 1.01 * jnp.cos(x)) == "undecided"


def test_a_gradient_too_small_to_move_f():
    f = lambda x: -jax.nn.log_softmax(x)[1]  # noqa: E731
    x = jnp.array([0.0, 60.0, -30.0])
    assert verdict(f, x, jax.grad(f)(x)) == "right"
    assert verdict(f, x, jax.grad(f)(x) + jnp.array([1e-6, 0, 0])) == "wrong"


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: -jnp.log(x).sum(), [1e-8, 1.0, 2.0]),
        (lambda x: jnp.sqrt(x + 1e-12).sum(), [0.0, 1e-10, 1.0]),
        (lambda x: jnp.sin(x * jnp.array([1e-6, 1e6])).sum(), [1e6, 1e-6]),
    ],
)
def test_numbers_of_very_different_sizes(f, x):
    x = jnp.array(x)
    g = jax.grad(f)(x)
    for number in range(x.size):
        assert verdict(f, x, g) == "right" and verdict(f, x, g.at[number].multiply(1.1)) == "wrong"


def test_many_kinks_near_x():
    w = normal(1, 20, 500)
    found = verdicts(lambda x: jax.nn.relu(x @ w).sum(), normal(0, 200, 20))
    assert found.pop("a little large") in ("undecided", "wrong", "right")
    assert {found.pop(name) for name in ("doubled", "negated", "zeroed")} == {"wrong"}
    assert found == {"right": "right"}
    weights = normal(2, 300)
    assert verdicts(lambda x: weights @ jnp.abs(x).max(-1), normal(0, 300, 40))["right"] == "right"


def test_one_entry_of_a_thousand():
    x = normal(0, 1000)
    g = 3 * x**2
    median = int(jnp.argsort(g)[500])
    assert verdict(lambda x: (x**3).sum(), x, g.at[median].set(0)) == "wrong"


def test_a_dropped_term():
    x = normal(0, 8, 5)
    assert verdict(lambda x: ((x - x.mean(0)) ** 3).sum(), x, 3 * (x - x.mean(0)) ** 2) == "wrong"


def test_leaves_are_judged_alone_and_in_the_order_asked_for():
    x = [normal(0, 3), normal(1, 4), jnp.zeros((0, 3))]
    gradients = {"hand": [x[1][:3] * 0, 2 * x[1], x[2]]}

    def f(x):
        return jnp.sum(x[0]) + jnp.sum(x[1] ** 2)

    def of(**options):
        return [j.verdict for j in judge(f, x, gradients, jax.random.key(0), **options)["hand"]]

    assert of() == ["wrong", "right", "right"]
    assert of(inputs=[1, 0]) == ["right", "wrong"]


def test_an_unused_input_has_the_gradient_zero():
    x = [normal(0, 3), normal(1, 4)]
    gradients = {"zero": [0 * x[0], jnp.cos(x[1])], "one": [0 * x[0] + 1, jnp.cos(x[1])]}
    found = judge(lambda x: 1000 + jnp.sin(x[1]).sum(), x, gradients, jax.random.key(0))
    assert [found[name][0].verdict for name in ("zero", "one")] == ["right", "wrong"]


# A gradient of -0.5 lies between the slopes along a direction whose entries cancel; not along each entry alone.
@pytest.mark.parametrize(
    ("subgradient", "expected"), [(0, "kink"), (0.5, "kink"), (1, "kink"), (2, "wrong"), (-0.5, "wrong")]
)
@pytest.mark.parametrize("size", [1, 5])
def test_relu_at_zero(subgradient: float, expected: str, size: int):
    weights = normal(3, size)
    for seed in range(3):
        assert verdict(lambda x: weights @ jax.nn.relu(x), jnp.zeros(size), subgradient * weights, seed) == expected


def test_other_kinks():
    assert verdict(lambda x: jnp.abs(x).sum(), jnp.zeros(3), jnp.zeros(3)) == "kink"
    assert verdict(lambda x: jnp.abs(x).sum(), jnp.zeros(3), jnp.full(3, 1.5)) == "wrong"
    tied = jnp.array([1.0, 3, 3, 2])
    assert verdict(jnp.max, tied, jnp.array([0, 0.5, 0.5, 0])) == "kink"
    assert verdict(jnp.max, tied, jnp.array([0, 1.0, 0, 0])) == "kink"
    assert verdict(jnp.max, tied, jnp.array([0, 2.0, 0, 0])) in ("undecided", "wrong")


def test_a_mistake_beside_a_kink():
    x = jnp.array([[-1.0, 0, 2], [0, 0, 3]])
    assert verdict(lambda x: jax.nn.relu(x).sum(), x, (x > 0) * 1.0) == "kink"
    assert verdict(lambda x: jax.nn.relu(x).sum(), x, (x > 0) * 1.001) == "wrong"


def test_norm_at_zero():
    x = jnp.array([[0.0, 0, 0], [1, 2, 2]])
    g = x.at[1].divide(3)
    assert verdict(lambda x: jnp.sqrt((x**2).sum(-1)).sum(), x, g) == "kink"
    assert verdict(lambda x: jnp.sqrt((x**2).sum(-1)).sum(), x, g.at[0].set(jnp.nan)) == "wrong"


def test_a_row_of_zeros_before_a_layer_is_not_wrong():
    x, w, weights = normal(0, 4, 6).at[1].set(0), normal(1, 6, 30), normal(2, 4, 30)

    def f(x):
        return jnp.vdot(weights, x @ w[:, :30] + jax.nn.relu(x @ w))

    assert verdict(f, x, jax.grad(f)(x)) in ("kink", "undecided")
    assert verdict(f, x, 1.01 * jax.grad(f)(x)) == "wrong"


def test_what_is_not_finite():
    x = jnp.array([0.0, 0.5, 2, 4])

    def f(x):
        return jnp.where(x < 1, x, jnp.sqrt(x)).sum()

    assert verdict(f, x, jax.grad(f)(x)) == "wrong"
    assert verdict(f, x, jnp.where(x < 1, 1, 0.5 / jnp.sqrt(jnp.maximum(x, 1)))) == "right"
    assert verdict(lambda x: jnp.sqrt(x).sum(), x, jnp.zeros(4)) == "undecided"
    assert verdict(lambda x: jnp.log(x - 1).sum(), x, jnp.zeros(4)) == "undecided"
    assert verdict(lambda x: jnp.sqrt(jnp.abs(x)).sum(), x, 0.5 / jnp.sqrt(x).at[0].set(1)) != "right"


@pytest.mark.parametrize("size", [10, 1000, 100_000])
def test_float32_inside(size: int):
    x = normal(0, size)

    def f(x):
        return jnp.sin(x.astype(jnp.float32)).astype(jnp.float64).sum()

    found = verdicts(f, x)
    assert found.pop("a little large") == "narrow"
    assert found == {"right": "narrow", "doubled": "wrong", "negated": "wrong", "zeroed": "wrong"}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("size", [1, 10, 1000])
def test_narrower_types_inside(dtype, size: int):
    x = normal(0, size)
    assert verdict(lambda x: jnp.sin(x.astype(dtype)).astype(jnp.float64).sum(), x, jnp.cos(x)) in (
        "narrow",
        "undecided",
    )


def test_functions_with_steps_have_the_gradient_zero():
    assert verdict(lambda x: jnp.round(5 * x).sum(), normal(0, 8), jnp.zeros(8)) == "right"
    assert verdict(lambda x: (jnp.round(127 * x) / 127).sum(), normal(0, 8), jnp.zeros(8)) == "right"


def test_complex_leaves_have_the_convention_of_jax():
    z = normal(0, 6) + 1j * normal(1, 6)

    def f(z):
        return (jnp.abs(z) ** 2).sum() + jnp.real(jnp.exp(z)).sum()

    assert verdicts(f, z) == EVERY
    assert verdict(f, z, jax.grad(f)(z).conj()) == "wrong"


def test_f_too_rough_for_float64_is_not_wrong():
    x = normal(0, 10)
    assert verdict(lambda x: jnp.sin(1e12 * x).sum(), x, 1e12 * jnp.cos(1e12 * x)) != "wrong"
    huge = x.at[0].set(1e20)
    assert verdict(lambda x: jnp.sin(x[1:]).sum(), huge, jnp.cos(x).at[0].set(0)) != "wrong"


@pytest.mark.parametrize(("size", "count"), [(3, 1), (2**17, 2)])
def test_f_is_traced_once_for_its_program_and_once_more_where_it_is_compiled(size, count):
    traces = []

    def f(x):
        traces.append(1)
        return sum(jnp.sin(leaf).sum() for leaf in x)

    x = [normal(0, size), normal(1, 4)]
    judge(f, x, {"a": [jnp.cos(leaf) for leaf in x], "b": x}, jax.random.key(0))
    assert len(traces) == count


def test_float32_is_refused():
    with pytest.raises(ValueError, match="needs float64"):
        verdict(jnp.sum, jnp.ones(2, jnp.float32), jnp.ones(2))
