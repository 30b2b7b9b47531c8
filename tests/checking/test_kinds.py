"""Kinds of mistakes that a check finds, each beside its right neighbour, which it leaves alone."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgrad import GradientMismatch, check
from jaxgrad.checking.transforms import TRANSFORMS, Transform
from jaxgrad.errors import JaxgradError

QUICK = {"dtypes": ("float64",), "transforms": ("jit",), "seeds": (0,)}
KEEP = jnp.tril(jnp.ones((4, 4), bool))


def of(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def ruled(plain, backward):
    """`plain` with a rule: `backward(inputs, dy)` gives the cotangents."""
    fn = jax.custom_vjp(plain)
    fn.defvjp(lambda *args: (plain(*args), args), backward)
    return fn


def tanh(change=lambda dx, x: dx):
    return ruled(jnp.tanh, lambda r, dy: (change(dy * (1 - jnp.tanh(r[0]) ** 2), r[0]),))


def fails(*args, says: str = "", **options) -> str:
    with pytest.raises(GradientMismatch) as caught:
        check(*args, **options)
    assert says in str(caught.value), str(caught.value)
    return str(caught.value)


def test_what_cancels_exactly_in_one_program_leaves_a_rounding_in_another():
    # XLA contracts the product and the difference where it fuses them: fma(x, 0.3, -max) is not 0 at the maximum.
    fn = lambda x: (y := x * 0.3) - y.max()  # noqa: E731
    types = {"dtypes": ("float64", "float32"), "seeds": (0,)}
    assert check(fn, of(8), reference=fn, **types).passed
    wrong = ruled(fn, lambda r, dy: (jax.vjp(fn, r[0])[1](dy)[0].at[jnp.argmax(r[0])].add(1e-4),))
    fails(wrong, of(8), reference=fn, says="the cotangent of input x is wrong", **types)


def test_equal_numbers_are_not_drawn_where_their_order_would_be_a_convention():
    backwards = lambda x: -jnp.sort(-x)[::-1]  # noqa: E731
    types = {"dtypes": ("bfloat16",), "transforms": ("jit", "reach"), "seeds": (0, 1, 2, 3)}
    assert check(backwards, of(64), reference=jnp.sort, **types).passed
    wrong = ruled(lambda x: jnp.sort(x), lambda r, dy: (dy[jnp.argsort(r[0])],))
    fails(wrong, of(64), reference=jnp.sort, says="wrong", **types)


def test_an_iteration_that_stops_at_an_accuracy_of_its_own():
    def heron(x):
        start = (x, jnp.full((), jnp.inf, x.dtype))
        better = lambda y: 0.5 * (y + x / y)  # noqa: E731
        turn = lambda s: (better(s[0]), jnp.max(jnp.abs(better(s[0]) - s[0])))  # noqa: E731
        return jax.lax.while_loop(lambda s: s[1] > 1e-3, turn, start)[0]

    # From negative numbers, where Taylor's steps may lead, it never ends.
    x, accurate = np.linspace(0.5, 3.0, 8), {**QUICK, "tolerance": 1e-5}
    right = jax.custom_vjp(heron)
    right.defvjp(lambda x: (heron(x), heron(x)), lambda y, dy: (dy / (2 * y),))
    assert "give tolerance=" in fails(right, x, reference=jnp.sqrt, **QUICK)
    assert check(right, x, reference=jnp.sqrt, **accurate).passed
    wrong = jax.custom_vjp(heron)
    wrong.defvjp(lambda x: (heron(x), heron(x)), lambda y, dy: (dy / y,))
    assert "give tolerance=" not in fails(wrong, x, reference=jnp.sqrt, says="the cotangent of input x", **accurate)


def test_far_out_a_reference_that_overflows_says_nothing():
    overflows = lambda x: jnp.log1p(jnp.exp(x))  # noqa: E731
    report = check(jax.nn.softplus, of(8), reference=overflows, transforms=("jit", "reach"), seeds=(0,))
    assert report.passed
    wrong = ruled(jax.nn.softplus, lambda r, dy: (dy * jax.nn.sigmoid(r[0]) * jnp.where(r[0] > 20, 0, 1),))
    fails(wrong, of(8), reference=overflows, says="wrong", transforms=("jit", "reach"), seeds=(0,))


@pytest.mark.parametrize("fill", [-1e9, -jnp.inf])
def test_masked_softmax(fill):
    masked = lambda s: jax.nn.softmax(jnp.where(KEEP, s, fill))  # noqa: E731
    twin = lambda s: torch.softmax(s.masked_fill(~torch.tensor(np.array(KEEP)), -torch.inf), -1)  # noqa: E731
    types = {"dtypes": ("float64", "bfloat16"), "transforms": ("jit",), "seeds": (0,)}
    assert check(masked, of(4, 4), torch_reference=twin, **types).passed
    wrong = ruled(masked, lambda r, dy: (7 * jax.vjp(masked, r[0])[1](dy)[0],))
    fails(wrong, of(4, 4), torch_reference=twin, says="the cotangent of input s is wrong", **QUICK)
    fails(wrong, of(4, 4), says="wrong", **QUICK)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x * jnp.arange(4.0, dtype=x.dtype),
        lambda x: x * jnp.linspace(0, 1, 4),
        lambda x: jax.image.resize(x, (6, 8), "bilinear"),
        lambda x: jax.scipy.linalg.expm(x @ x.T),
        lambda x: jnp.sort(x, -1),
        jax.nn.hard_tanh,
        jax.scipy.special.exp1,
    ],
    ids=["arange", "linspace", "resize", "expm", "sort", "hard_tanh", "exp1"],
)
def test_primitives_without_operands_and_with_loops_or_kinks(fn):
    domains = "positive" if fn is jax.scipy.special.exp1 else "normal"
    assert check(fn, of(3, 4), dtypes=("float64", "float32"), transforms=("jit",), seeds=(0,), domains=domains).passed


def test_a_convolution_and_a_steep_function_in_float32():
    conv = lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME")  # noqa: E731
    single = {"dtypes": ("float32",), "transforms": ("jit",), "seeds": (0,)}
    twin = functools.partial(torch.nn.functional.conv2d, padding=1)
    assert check(conv, of(2, 64, 8, 8), of(64, 64, 3, 3), torch_reference=twin, **single).passed
    assert check(lambda x, w: jnp.sin(10 * x @ w), of(16, 64), of(64, 8), **single).passed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [64, 4096])
def test_one_lost_row_of_many(rows: int, dtype: str):
    options = {"reference": jnp.tanh, "dtypes": (dtype,), "transforms": ("jit",), "seeds": (0,)}
    assert check(tanh(), of(rows, 4), **options).passed
    fails(tanh(lambda dx, x: dx.at[-1].set(0)), of(rows, 4), **options)


@pytest.mark.parametrize(
    "change",
    [lambda dx, x: 0 * dx, lambda dx, x: -dx, lambda dx, x: 2 * dx, lambda dx, x: dx * jnp.asarray(1.05, dx.dtype)],
    ids=["zero", "negated", "doubled", "five per cent"],
)
def test_bfloat16_alone(change):
    wide = lambda x, w: x @ w  # noqa: E731

    def backward(r, dy):
        dx, dw = jax.vjp(wide, *r)[1](dy)
        return change(dx, r[0]), dw

    narrow = {"reference": wide, "dtypes": ("bfloat16",), "transforms": ("jit",), "seeds": (0,)}
    assert check(ruled(wide, lambda r, dy: jax.vjp(wide, *r)[1](dy)), of(32, 64), of(64, 16), **narrow).passed
    fails(ruled(wide, backward), of(32, 64), of(64, 16), **narrow)


def test_a_mistake_in_one_type_alone_without_an_oracle():
    def flipped(dtype):
        return tanh(lambda dx, x: -dx if x.dtype == dtype else dx)

    jitted = {"transforms": ("jit",), "seeds": (0,)}
    assert check(tanh(), of(6, 3), **jitted).passed
    fails(flipped(jnp.bfloat16), of(6, 3), says="bfloat16, jit", **jitted)
    fails(flipped(jnp.float32), of(6, 3), says="float32, jit", **jitted)


@pytest.mark.parametrize("options", [{"dtypes": ("float32",)}, {"transforms": ("vmap",)}], ids=["float32", "vmap"])
def test_without_an_oracle_no_setting_passes_unseen(options):
    assert check(tanh(), of(6, 3), seeds=(0,), **options).passed
    fails(tanh(lambda dx, x: 2 * dx), of(6, 3), seeds=(0,), says="not the derivative", **options)


def test_complex_outputs_and_inputs():
    def conjugated(z):
        return (z * jnp.conj(z)).real

    z = jnp.array([1 + 2j, 3 - 1j])
    right, wrong = (ruled(conjugated, lambda r, dy, s=s: (2 * dy * s(r[0]),)) for s in (jnp.conj, lambda z: z))
    for options in ({"reference": conjugated}, {"torch_reference": lambda z: (z * z.conj()).real}, {}):
        assert check(right, z, **options, **QUICK).passed
        fails(wrong, z, says="wrong", **options, **QUICK)
    fft = ruled(jnp.fft.fft, lambda r, dy: (7 * jnp.real(dy),))
    assert check(jnp.fft.fft, of(8), torch_reference=torch.fft.fft, **QUICK).passed
    fails(fft, of(8), reference=jnp.fft.fft, **QUICK)


def test_a_rule_whose_forward_pass_is_another_function():
    def two(called, differentiated):
        fn = jax.custom_vjp(lambda x: called(x) * jnp.tanh(x))
        fn.defvjp(lambda x: (differentiated(x) * jnp.tanh(x), x), lambda x, dy: (dy * (1 - jnp.tanh(x) ** 2),))
        return fn

    right, wrong = lambda x: 1, lambda x: 1 + (x.dtype != jnp.float32) * jnp.arange(3, dtype=x.dtype) / 8
    types = {"transforms": ("jit",), "seeds": (0,)}
    assert check(two(right, right), of(4, 3), reference=jnp.tanh, **types).passed
    said = fails(two(wrong, right), of(4, 3), reference=jnp.tanh, says="output of a call without a gradient", **types)
    assert "in 2 of 3: float64/jit/0, bfloat16/jit/0" in said
    fails(two(wrong, right), of(4, 3), says="a custom rule's own forward pass gives the output", **QUICK)
    said = fails(two(right, wrong), of(4, 3), reference=jnp.tanh, says="output is wrong", **QUICK)
    assert "called without a gradient it agrees" in said


def test_second_derivatives_of_complex_numbers_in_torch():
    twice = {"dtypes": ("float64",), "transforms": ("grad_of_grad",), "seeds": (0,)}
    z = jax.ShapeDtypeStruct((4,), jnp.complex64)
    for fn, in_torch in ((jnp.exp, torch.exp), (jnp.abs, torch.abs)):
        assert check(fn, z, torch_reference=in_torch, **twice).passed
    fails(lambda z: jnp.exp(jax.lax.stop_gradient(z)) * z, z, torch_reference=torch.exp, says="wrong", **twice)


def test_float16_and_what_has_no_gradient():
    assert check(tanh(), of(5), reference=jnp.tanh, dtypes=("float16",), transforms=("jit",)).passed
    eight = jnp.ones(3, jnp.float8_e4m3fn)
    scaled = lambda x, s, key, mode: x * s.astype(x.dtype) * jax.random.uniform(key, x.shape, x.dtype)  # noqa: E731
    given = (of(3), eight, jax.random.key(0), "mode")
    jitted = {"transforms": ("jit",), "seeds": (0,)}
    # Random numbers of a key are others in float32 than in float64: an oracle that draws them is what is expected.
    assert check(scaled, *given, reference=scaled, dtypes=("float64", "float32"), **jitted).passed
    wrong = jax.custom_vjp(scaled, nondiff_argnums=(3,))
    wrong.defvjp(
        lambda x, s, key, mode: (scaled(x, s, key, mode), (x, s, key)),
        lambda mode, r, dy: (2 * jax.vjp(lambda x: scaled(x, *r[1:], mode), r[0])[1](dy)[0], None, None),
    )
    fails(wrong, *given, reference=scaled, dtypes=("float32",), **jitted)
    assert check(scaled, *given, **jitted).not_judged[0].why.startswith("it draws random numbers")


def test_a_kernel_that_refuses_float64_is_judged_against_its_reference():
    def kernel(wrong):
        def tanh32(x):
            if x.dtype == jnp.float64:
                raise TypeError("the kernel takes float32")
            return jnp.tanh(x)

        return ruled(tanh32, lambda r, dy: (wrong * dy * (1 - jnp.tanh(r[0]) ** 2),))

    jitted = {"reference": jnp.tanh, "transforms": ("jit",), "seeds": (0,)}
    report = check(kernel(1), of(4, 3), dtypes=None, **{**jitted, "transforms": None})
    assert report.passed and {f.setting.dtype for f in report.not_judged} == {"float64"}
    assert "the kernel takes float32" in report.not_judged[0].why
    fails(kernel(2), of(4, 3), dtypes=("float32",), **jitted)
    fails(kernel(1), of(4, 3), dtypes=("float64",), says="the kernel takes float32", **jitted)
    fails(kernel(1), of(4, 3), says="nothing was judged", seeds=(0,))


def test_a_right_kernel_that_computes_in_float32_inside():
    def norm(x):
        wide = x.astype(jnp.float32)
        return (wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)

    plain = lambda x: x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)  # noqa: E731
    report = check(norm, of(8, 16), reference=plain, **QUICK)
    assert "computes in float32 inside (test_kinds.py:" in report.findings[0].why
    assert "computes in float32 inside (test_kinds.py:" in check(norm, of(8, 16), **QUICK).findings[0].why
    fails(ruled(norm, lambda r, dy: (1.001 * jax.vjp(norm, r[0])[1](dy)[0],)), of(8, 16), reference=plain, **QUICK)


@pytest.mark.parametrize("inside", [jnp.float32, jnp.bfloat16])
def test_without_an_oracle_a_narrow_type_inside_hides_no_mistake(inside):
    def product(x, w):
        return jax.lax.dot(x.astype(inside), w.astype(inside), preferred_element_type=jnp.float32).astype(x.dtype)

    def rule(factor):
        return ruled(product, lambda r, dy: (product(dy, r[1].T), factor * product(r[0].T, dy)))

    report = check(rule(1), of(4, 6), of(6, 3), **QUICK)
    assert f"{jnp.dtype(inside)} inside" in report.findings[0].why
    said = fails(rule(1.001), of(4, 6), of(6, 3), says="the cotangent of input w is wrong", **QUICK)
    # The measured order is 1 but for its last digit, which depends on how XLA compiled the function.
    assert re.search(r"in float64 throughout, the remainder falls with h\^(1\.00|0\.99) ", said)


def test_a_number_that_was_rounded_to_float32():
    plain = lambda x: x * 0.1  # noqa: E731
    report = check(lambda x: x * jnp.float32(0.1), of(4), reference=plain, **QUICK)
    assert "has a number in float32" in report.findings[0].why
    fails(lambda x: x * jnp.float32(0.1001), of(4), reference=plain, says="output is wrong", **QUICK)


def test_a_backward_pass_that_alone_computes_in_bfloat16_is_wrong():
    plain = lambda x, w: x @ w  # noqa: E731

    def narrow(x, w):
        return (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(x.dtype)

    def backward(r, dy):
        return jax.vjp(narrow, *r)[1](dy)

    of_w = {"reference": plain, "transforms": ("jit",)}
    for dtype in ("float64", "float32"):
        fails(
            ruled(plain, backward), of(8, 5), of(5, 4), dtypes=(dtype,), **of_w,
            says="its backward pass computes in bfloat16",
        )  # fmt: skip
    # A function of which all computes so has chosen it, and in bfloat16 itself there is nothing narrower.
    chosen = {**of_w, "reference": narrow}
    assert check(ruled(narrow, backward), of(8, 5), of(5, 4), dtypes=("float32",), **chosen).passed
    assert check(ruled(plain, backward), of(8, 5), of(5, 4), dtypes=("bfloat16",), **of_w).passed


def test_a_tail_that_nearly_underflows_beside_large_numbers_is_judged_by_its_own_size():
    gelu = lambda x: x * jax.scipy.stats.norm.cdf(x)  # noqa: E731

    def backward(r, dy):
        (x,) = r
        return (dy * (jax.scipy.stats.norm.cdf(x) + x * jnp.exp(-x * x / 2) / jnp.sqrt(2 * jnp.pi).astype(x.dtype)),)

    x = jnp.array([-31.6, -20.0, -1.0, 0.5, 30.0])
    asked = {"reference": gelu, "dtypes": ("float64",), "transforms": ("jit",), "seeds": (0,)}
    assert check(ruled(gelu, backward), x, **asked).passed
    fails(ruled(gelu, lambda r, dy: (backward(r, dy)[0] * jnp.where(r[0] < -31, 1.001, 1.0),)), x, **asked)


@pytest.mark.parametrize("subgradient", [0.0, 0.5, 1.0])
def test_a_subgradient_at_a_kink_is_quiet_and_a_number_outside_is_not(subgradient: float):
    relu = ruled(jax.nn.relu, lambda r, dy: (jnp.where(r[0] > 0, dy, jnp.where(r[0] == 0, subgradient * dy, 0)),))
    x = jnp.array([-1.0, 0.0, 2.0])
    assert "a kink here" in check(relu, x, **QUICK).findings[0].why
    outside = ruled(jax.nn.relu, lambda r, dy: (jnp.where(r[0] > 0, dy, jnp.where(r[0] == 0, 3 * dy, 0)),))
    fails(outside, x, says="wrong", **QUICK)


def test_a_reversed_gradient_may_have_the_same_second_derivative():
    meant = {"reference": lambda x: x, "expected": "differs", "dtypes": ("float64",), "seeds": (0,)}
    reversed_, plain = (ruled(lambda x: x, lambda r, dy, s=sign: (s * dy,)) for sign in (-1, 1))
    assert check(reversed_, of(4), transforms=("jit", "grad_of_grad"), **meant).passed
    fails(plain, of(4), transforms=("jit", "grad_of_grad"), says="the gradient agrees with its oracles", **meant)
    fails(reversed_, of(4), transforms=("grad_of_grad",), says="the gradient agrees with its oracles", **meant)


def test_where_several_kinks_meet_the_gradient_beside_them_counts():
    def layer(x, w, b):
        return jax.nn.relu(x @ w + b)

    def backward(r, dy, factor):
        x, w, b = r
        d = dy * (x @ w + b > 0)
        return d @ w.T, x.T @ d, factor * d.sum(0)

    # As a layer is initialised; at this point a gradient of 0 is right, and any factor of it.
    args = of(5, 3), jnp.zeros((3, 4)), jnp.zeros(4)
    report = check(ruled(layer, lambda r, dy: backward(r, dy, 1)), *args, **QUICK)
    assert "several kinks meet here: beside them the gradient is right" in report.findings[0].why
    fails(ruled(layer, lambda r, dy: backward(r, dy, 2)), *args, says="beside a kink here", **QUICK)


def test_forward_mode_and_rules_that_are_not_linear():
    def rule(tangent):
        fn = jax.custom_jvp(jnp.tanh)
        fn.defjvp(lambda p, t: (jnp.tanh(p[0]), tangent((1 - jnp.tanh(p[0]) ** 2) * t[0])))
        return fn

    report = check(rule(lambda t: t), of(4), reference=jnp.tanh, dtypes=("float64",), seeds=(0,))
    assert "jvp" in {f.setting.transform for f in report.findings if f.agree}
    for bent in (jnp.abs, lambda t: t * t, lambda t: t + 1.0, lambda t: jnp.maximum(t, 0)):
        fails(rule(bent), of(4), reference=jnp.tanh, says="not linear in the tangents", **QUICK)


def test_one_argument_batched_alone():
    def pulled(forgets):
        @jax.custom_batching.custom_vmap
        def pull(x, w, dy):
            return dy @ w.T, x.T @ dy

        @pull.def_vmap
        def _(size, batched, x, w, dy):
            args = [a if b else jnp.broadcast_to(a, (size, *a.shape)) for a, b in zip((x, w, dy), batched, strict=True)]
            dw = jnp.einsum("bij,bik->bjk", args[0], args[2])
            shared = jnp.broadcast_to(dw.sum(0), dw.shape) if forgets and not batched[1] else dw
            return (jnp.einsum("bik,bjk->bij", args[2], args[1]), shared), (True, True)

        return ruled(lambda x, w: x @ w, lambda r, dy: pull(*r, dy))

    batched = {"reference": lambda x, w: x @ w, "dtypes": ("float64",), "transforms": ("vmap",), "seeds": (0,)}
    assert check(pulled(False), of(3, 4), of(4, 2), **batched).passed
    assert "batched)" in fails(pulled(True), of(3, 4), of(4, 2), **batched)


def test_a_backward_pass_of_torch_that_takes_its_cotangent_for_contiguous():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, dy):
            room = dy.untyped_storage().size() // dy.element_size() - dy.storage_offset()
            if dy.numel() > room:
                return 2 * dy
            return 2 * torch.as_strided(dy, dy.shape, torch.empty(dy.shape).stride(), dy.storage_offset())

    twice = lambda x: 2 * x  # noqa: E731
    assert check(twice, of(3, 4), torch_reference=twice, **QUICK).passed
    fails(twice, of(3, 4), torch_reference=Doubled.apply, says="takes its cotangent for contiguous", **QUICK)


@pytest.mark.parametrize("refuses", [False, True])
def test_two_answers_to_one_call(refuses: bool):
    calls = [0]

    def now_and_then(dy):
        calls[0] += 1
        return dy if calls[0] % 2 else 0 * dy

    def backward(r, dy):
        if refuses and dy.dtype == np.float64:
            raise TypeError("in float32 alone")
        like = jax.ShapeDtypeStruct(dy.shape, dy.dtype)
        return (2 * jax.pure_callback(now_and_then, like, dy, vmap_method="sequential"),)

    types = {**QUICK, "dtypes": None if refuses else QUICK["dtypes"]}
    fails(ruled(lambda x: 2 * x, backward), of(4), reference=lambda x: 2 * x, says="not deterministic", **types)


def test_the_tail_of_a_block_is_met_by_varied_sizes():
    def summed(blocks):
        def backward(r, dy):
            (x,) = r
            seen = jnp.arange(len(x)) < blocks(len(x)) * 4
            return (jnp.where(seen[:, None], dy * (1 - jnp.tanh(x) ** 2), 0),)

        return ruled(lambda x: jnp.tanh(x).sum(0), backward)

    shape, sizes = jax.ShapeDtypeStruct(("n", 3), jnp.float32), {"n": (12, 13)}
    options = {"reference": lambda x: jnp.tanh(x).sum(0), "dtypes": ("float64",), "transforms": ("jit",), "seeds": (0,)}
    assert len(check(summed(lambda n: -(-n // 4)), shape, vary=sizes, **options).findings) == 2
    assert "n=13" in fails(summed(lambda n: n // 4), shape, vary=sizes, **options)


def test_inputs_that_normal_numbers_never_reach():
    reach = {"transforms": ("jit", "reach"), "dtypes": ("float32",), "seeds": (0,)}
    relu6 = ruled(lambda x: jnp.clip(x, 0, 6), lambda r, dy: (jnp.where(r[0] > 0, dy, 0),))
    fails(relu6, of(8, 16), reference=jax.nn.relu6, says="float32, reach", **reach)
    assert check(jax.nn.relu6, of(8, 16), reference=jax.nn.relu6, **reach).passed
    late = ruled(jax.nn.softplus, lambda r, dy: (dy * jnp.exp(r[0]) / (1 + jnp.exp(r[0])),))
    fails(late, of(8, 16), reference=jax.nn.softplus, says="float32, reach", **reach)
    # Given numbers are moved: at a bias of 0 a gradient that forgets the bias looks right.
    plain = lambda x, b: jnp.tanh(x + b)  # noqa: E731
    forgets = ruled(plain, lambda r, dy: (dy * (1 - jnp.tanh(r[0]) ** 2), dy * (1 - jnp.tanh(r[0]) ** 2)))
    assert check(forgets, of(5), jnp.zeros(5), reference=plain, **QUICK).passed
    fails(forgets, of(5), jnp.zeros(5), reference=plain, says="moved", **reach)


def test_a_rule_takes_its_own_options_as_they_are_and_is_named_without_an_oracle():
    scaled = jax.custom_vjp(lambda x, by: by * jnp.tanh(x), nondiff_argnums=(1,))
    scaled.defvjp(lambda x, by: (by * jnp.tanh(x), x), lambda by, x, dy: (dy * (1 - jnp.tanh(x) ** 2),))
    assert check(scaled, of(3), 1.0, reference=lambda x, by: by * jnp.tanh(x), **QUICK).passed
    said = fails(scaled, of(3), 2.0, says="hand is wrong by the definition", **QUICK)
    assert "rule      test_kinds.py:" in said


def test_what_many_settings_say_is_said_once():
    def refuses(x):
        raise TypeError("not today")

    said = fails(refuses, of(3), reference=jnp.tanh, says="nothing was judged, in 21 settings")
    assert said.count("because") == 1 and "not today" in said and "and so in 20 more" in said


def test_a_choice_by_the_sign_of_a_sum_falls_both_ways():
    plain = lambda x: jnp.where(x.sum() > 0, jnp.sin(x), x)  # noqa: E731
    x, only = jax.ShapeDtypeStruct((3,), jnp.float32), {"dtypes": ("float64",), "transforms": ("jit", "reach")}
    for side in (1, -1):

        def backward(r, dy, side=side):
            return (jax.vjp(plain, *r)[1](dy)[0] * jnp.where(side * r[0].sum() > 0, 1, 2),)

        fails(ruled(plain, backward), x, reference=plain, says="the cotangent of input x", **only)


def test_a_special_function_near_a_zero_of_its_own_is_no_false_alarm():
    x = jnp.array([1.0, 1.001, 1.46, 1.47, 2.0, 2.1])
    for special in (jax.scipy.special.gammaln, jax.scipy.special.digamma):
        types = {"dtypes": ("float32",), "transforms": ("jit",), "seeds": (0,)}
        assert check(special, x, **types).passed
        wrong = ruled(special, lambda r, dy, f=special: (1.001 * jax.vjp(f, *r)[1](dy)[0],))
        fails(wrong, x, reference=special, says="the cotangent of input x", **types)


def test_a_function_without_a_float_output_has_no_gradient_to_check():
    with pytest.raises(JaxgradError, match="no output is a float or complex array"):
        check(jnp.argmax, of(4), reference=jnp.argmax)


def test_plain_numbers_keywords_and_arguments_without_a_gradient():
    def scaled(x, eps, *, factor):
        return factor * x / jnp.sqrt((x * x).mean() + eps)

    def backward(r, dy):
        x, eps, factor = r
        return *jax.vjp(lambda x: scaled(x, eps, factor=factor), x)[1](dy), None, None

    rule = ruled(lambda x, eps, factor: scaled(x, eps, factor=factor), backward)
    plain = lambda x, eps, factor: scaled(x, eps, factor=factor)  # noqa: E731
    factor = jnp.ones(5)
    fails(rule, of(5), 1e-5, factor, reference=plain, says="no_gradient=('factor',)", **QUICK)
    report = check(rule, of(5), 1e-5, factor, reference=plain, no_gradient=("factor",), **QUICK)
    assert "eps is a plain number without a gradient" in report.findings[0].why
    keyword = {"kwargs": {"factor": factor}, **QUICK}
    assert check(scaled, of(5), 1e-5, reference=scaled, **keyword).passed
    in_torch = lambda x, eps, *, factor: factor * x / torch.sqrt((x * x).mean() + eps)  # noqa: E731
    # What torch.compile makes of a function, without the seconds that its import takes.
    compiled = lambda *args, **kwargs: pytest.fail("the compiler's wrapper was called")  # noqa: E731
    compiled._torchdynamo_orig_callable = in_torch
    assert check(scaled, of(5), 1e-5, torch_reference=compiled, **keyword).passed


def test_a_mesh():
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))
    spec = PartitionSpec("d")
    split = jax.shard_map(jnp.tanh, mesh=mesh, in_specs=spec, out_specs=spec)
    assert check(split, of(8, 3), reference=jnp.tanh, **QUICK).passed
    report = check(tanh(), of(8, 3), reference=jnp.tanh, dtypes=("float64",), shardings=NamedSharding(mesh, spec))
    assert "sharded" in {f.setting.transform for f in report.findings if f.agree}
    wrong = tanh(lambda dx, x: 2 * jax.shard_map(lambda d: d, mesh=mesh, in_specs=spec, out_specs=spec)(dx))
    fails(wrong, of(8, 3), reference=jnp.tanh, says="perhaps a psum over its mesh is missing", **QUICK)


@pytest.mark.parametrize("reduced", [True, False])
def test_a_mesh_whose_axes_are_explicit_is_a_part_of_every_type(reduced: bool):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])
    rows, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("d"), PartitionSpec()))
    product = lambda x, w: x @ w  # noqa: E731

    def backward(r, dy):
        def of_rows(x, dy):
            return jax.lax.psum(x.T @ dy, "d") if reduced else x.T @ dy

        both = {"in_specs": (rows.spec, rows.spec), "out_specs": whole.spec, "check_vma": False}
        return dy @ r[1].T, jax.shard_map(of_rows, mesh=mesh, **both)(r[0], dy)

    asked = {"reference": product, "shardings": (rows, whole), "seeds": (0,)}
    fn = ruled(product, backward)
    # It takes nothing but what is split, so that alone is judged.
    if reduced:
        report = check(fn, of(8, 3), of(3, 2), **asked)
        assert {f.setting.transform for f in report.findings if f.agree} == {"sharded"}
        assert check(fn, of(8, 3), of(3, 2), transforms=("sharded",), **asked).passed
    else:
        fails(fn, of(8, 3), of(3, 2), says="perhaps a psum over the mesh is missing", **asked)


def test_several_references_and_an_oracle_in_numpy():
    shifted = lambda x: jnp.cos(x - jnp.pi / 2)  # noqa: E731
    assert check(jnp.sin, of(4), reference=(jnp.sin, shifted), **QUICK).passed
    by_hand = lambda x, dy: (np.sin(x), dy * np.cos(x))  # noqa: E731
    report = check(jnp.sin, of(4), oracles={"numpy": by_hand}, **QUICK)
    assert "numpy" in report.findings[0].tensors[0].values
    fails(jnp.sin, of(4), oracles={"numpy": lambda x, dy: (np.sin(x), 2 * dy * np.cos(x))}, says="numpy", **QUICK)


def test_a_rule_that_does_not_fit_its_function_is_told_in_a_sentence():
    product = lambda m, v: m @ v  # noqa: E731
    short = ruled(product, lambda r, dy: (jnp.outer(dy, r[1]),))
    fails(short, of(4, 3), of(3), reference=product, says="the function's own rule is at fault", **QUICK)
    endless = lambda x: jax.lax.while_loop(lambda c: c.sum() > 1, lambda c: c / 2, x)  # noqa: E731
    fails(endless, of(3), says="nothing was judged")


def test_the_table_of_transformations_takes_one_more_row(monkeypatch):
    twice = Transform("as it is", TRANSFORMS["jit"].groups, TRANSFORMS["jit"].programs)
    monkeypatch.setitem(TRANSFORMS, "again", twice)
    report = check(tanh(), of(3), reference=jnp.tanh, dtypes=("float64",), transforms=("again",), seeds=(0,))
    assert [f.setting.transform for f in report.findings] == ["again"] and report.passed


def with_slope_of(fn, factor=1.0):
    """A function whose rule is JAX's own derivative, times a factor."""
    return ruled(fn, lambda args, dy: (factor * jax.vjp(fn, *args)[1](dy)[0],))


CUBIC = 0.7978845608028654
ACCURATE_AND_NOT = {
    "gelu by tanh": (
        lambda x: x * jax.nn.sigmoid(2 * CUBIC * (x + 0.044715 * x**3)),
        lambda x: 0.5 * x * (1 + jnp.tanh(CUBIC * (x + 0.044715 * x**3))),
    ),
    "gelu by erf": (
        lambda x: x * jax.scipy.special.erfc(-x / np.sqrt(2)) / 2,
        lambda x: x * (1 + jax.lax.erf(x / np.sqrt(2))) / 2,
    ),
    "softplus": (lambda x: jnp.logaddexp(x, 0), lambda x: jnp.log(1 + jnp.exp(x))),
    "sigmoid by tanh": (jax.nn.sigmoid, lambda x: 0.5 * (1 + jnp.tanh(x / 2))),
    "one minus sigmoid": (lambda x: jax.nn.sigmoid(-x), lambda x: 1 - jax.nn.sigmoid(x)),
    "exp minus one": (jnp.expm1, lambda x: jnp.exp(x) - 1),
    "one minus cosine": (lambda x: 2 * jnp.sin(x / 2) ** 2, lambda x: 1 - jnp.cos(x)),
    "erfc": (jax.scipy.special.erfc, lambda x: 1 - jax.lax.erf(x)),
    "log softmax": (lambda x: jax.nn.log_softmax(x), lambda x: jnp.log(jax.nn.softmax(x))),
}


@pytest.mark.parametrize("name", ACCURATE_AND_NOT)
def test_an_oracle_that_cancels_to_nothing_far_from_0_accuses_nobody(name: str):
    """1 + tanh(x) is 0 where x is -20: a rounding of what is not 0, although 0 and 1 are whole numbers."""
    accurate, other = ACCURATE_AND_NOT[name]
    settings = {"dtypes": ("float64", "float32"), "transforms": ("jit", "reach"), "seeds": (0,)}
    like = of(6, 5)
    assert check(with_slope_of(accurate), like, reference=other, **settings).passed
    with pytest.raises(GradientMismatch, match="the cotangent of input x"):
        check(with_slope_of(accurate, 1 + 1e-5), like, reference=other, **settings)


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-3])
def test_what_underflows_at_the_edges_of_a_type_is_nobody_s_fault(factor: float):
    """Dy * x is 0 where x is as small as can be, and 1e-277 once it is divided by 1e-32: dy * (x / r) is that."""

    def backward(args, dy):
        y, x = args
        return factor * dy * x / (x * x + y * y), -dy * y / (x * x + y * y)

    settings = {"dtypes": ("float64", "float32"), "transforms": ("reach",), "seeds": (0,)}
    fn, like = ruled(jnp.arctan2, backward), (of(6, 5), of(6, 5))
    if factor == 1:
        assert check(fn, *like, reference=jnp.arctan2, **settings).passed
        return
    with pytest.raises(GradientMismatch, match="cotangent of input x1"):
        check(fn, *like, reference=jnp.arctan2, **settings)


def test_an_oracle_that_is_off_in_a_narrow_type_alone_accuses_nobody():
    x = np.asarray(300 + np.random.default_rng(0).standard_normal((8, 16)), np.float32)

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def backward(args, dy, factor):
        deviation, y = jnp.sqrt(args[0].var(-1, keepdims=True) + 1e-5), norm(args[0])
        mean = lambda z: z.mean(-1, keepdims=True)  # noqa: E731
        return (factor * (dy - mean(dy) - y * mean(dy * y)) / deviation,)

    # Its variance is the mean of squares less the square of the mean.
    settings = {"reference": lambda x: jax.nn.standardize(x, epsilon=1e-5), "transforms": ("jit",), "seeds": (0,)}
    report = check(ruled(norm, functools.partial(backward, factor=1)), x, **settings)
    assert any("jax.grad itself is off in bfloat16" in f.why for f in report.findings)
    with pytest.raises(GradientMismatch, match="the cotangent of input x"):
        check(ruled(norm, functools.partial(backward, factor=1.5)), x, **settings)


@pytest.mark.parametrize("factor", [1.0, 1.5, -1.0])
def test_a_place_that_is_counted_in_floats_is_no_choice(factor: float):
    """A median's place is half the count less 1, rounded down: exact, although 0.5 is no whole number."""
    median = with_slope_of(lambda x: jnp.median(x, 1), factor)
    settings = {"dtypes": ("bfloat16",), "transforms": ("jit",), "reference": lambda x: jnp.sort(x, 1)[:, 2]}
    if factor == 1:
        assert check(median, of(6, 5), **settings).passed
        return
    with pytest.raises(GradientMismatch, match="the cotangent of input x"):
        check(median, of(6, 5), **settings)


@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.disable_jit(),
        lambda: jax.debug_nans(True),
        lambda: jax.debug_infs(True),
        lambda: jax.transfer_guard("disallow"),
        lambda: jax.checking_leaks(),
    ],
    ids=["disable_jit", "debug_nans", "debug_infs", "transfer_guard", "checking_leaks"],
)
def test_what_people_set_to_find_a_mistake_changes_no_verdict(setting):
    nowhere = lambda x: jnp.log(-jnp.exp(x))  # noqa: E731
    x, quick = np.linspace(0.5, 2.0, 4), {"seeds": (0,), "dtypes": ("float64", "bfloat16")}
    with setting():
        assert not check(tanh(), x, reference=jnp.tanh, **quick).not_judged
        assert not check(tanh(), x, **quick).not_judged
        assert check(tanh(), x, torch_reference=torch.tanh, **QUICK).passed
        fails(tanh(lambda dx, x: 2 * dx), x, reference=jnp.tanh, says="the cotangent of input x", **quick)
        assert "not a number in every engine" in fails(nowhere, x, reference=nowhere, **QUICK)
        assert check(nowhere, x, reference=nowhere, nan="equal", **QUICK).passed


@pytest.mark.parametrize("times", [1, 2])
def test_the_number_of_the_largest_beside_it(times: int):
    def largest(x):
        at = jnp.argmax(x, -1)
        return jnp.take_along_axis(x, at[:, None], 1)[:, 0], at

    fn = ruled(
        largest, lambda r, dy: (times * dy[0][:, None] * jax.nn.one_hot(jnp.argmax(r[0], -1), 5, dtype=dy[0].dtype),)
    )
    if times == 1:
        assert not check(fn, of(6, 5), reference=largest).not_judged
    else:
        said = fails(fn, of(6, 5), reference=largest, says="the cotangent of input x is wrong")
        assert "rule      test_kinds.py" in said and "one_hot" in said


def test_where_an_iteration_began_counts_for_nothing_once_it_has_converged():
    def fixed(a, start, steps=100):
        return jax.lax.fori_loop(0, steps, lambda _, x: jnp.cos(a * x), start)

    def implicit(change):
        rule = jax.custom_vjp(fixed, nondiff_argnums=(2,))

        def backward(steps, residuals, dy):
            a, x = residuals
            slope = jnp.sin(a * x)
            return change(-x * slope * dy / (1 + a * slope)), jnp.zeros_like(x)

        rule.defvjp(lambda a, start, n: (fixed(a, start, n), (a, fixed(a, start, n))), backward)
        return rule

    # What is left of the start after 100 steps is some 1e-67 of it; after 8 it is 1e-6.
    a, start = np.array([0.3, 0.5, 0.6]), np.ones(3)
    quick = {"transforms": ("jit", "reach", "grad_of_grad"), "seeds": (0,)}
    right = implicit(lambda da: da)
    assert not check(right, a, start, 100, reference=fixed, static_argnums=(2,), **quick).not_judged
    fails(implicit(lambda da: 1.001 * da), a, start, 100, reference=fixed, static_argnums=(2,), says="input a", **quick)
    fails(right, a, start, 8, reference=fixed, static_argnums=(2,), says="wrong", **quick)


def test_without_an_oracle_an_iteration_may_stop_at_an_accuracy_of_its_own():
    def heron(x):
        near = lambda y: jnp.max(jnp.abs(y * y - x)) <= 1e-6 * jnp.max(x)  # noqa: E731
        turn = lambda s: (0.5 * (s[0] + x / s[0]), s[1] + 1)  # noqa: E731
        return jax.lax.while_loop(lambda s: ~near(s[0]) & (s[1] < 20), turn, (1.0 + x / 2, 0))[0]

    quick = {"transforms": ("jit",), "domains": "positive"}
    right = ruled(heron, lambda r, dy: (dy / (2 * jnp.sqrt(r[0])),))
    told = "perhaps   a loop in it stops at an accuracy of its own; if that is meant, give tolerance="
    assert told in fails(right, of(4), says="the cotangent of input x is wrong", seeds=(1,), **quick)
    near = np.linspace(0.5, 3.0, 8)
    assert "perhaps a loop in it" in fails(right, near, says="the definition cannot tell", seeds=(0,), **quick)
    # One number for all types, of which the noise of bfloat16 is larger.
    assert not check(right, of(4), tolerance=1e-5, **quick).not_judged
    wrong = ruled(heron, lambda r, dy: (dy / (2.01 * jnp.sqrt(r[0])),))
    assert "a loop in it" not in fails(wrong, of(4), says="the cotangent of input x", tolerance=1e-5, **quick)


def test_a_torch_reference_that_is_cut_off_from_its_input_is_told_so():
    said = fails(tanh(), of(4), torch_reference=lambda x: x.detach().tanh(), **QUICK)
    assert "torch is wrong by the definition" in said and "cut off from 'x' for autograd, by .detach()" in said


def test_the_line_of_a_reference_that_is_a_function_of_jax_is_not_ours():
    said = fails(lambda x: jnp.tanh(1.01 * x), of(4), reference=jnp.tanh, says="output", **QUICK)
    assert "test_kinds.py" in said and "front.py" not in said


def test_at_a_kink_there_is_no_second_derivative_to_be_finite():
    norm = lambda x: jnp.sqrt(jnp.sum(x * x))  # noqa: E731
    safe = ruled(norm, lambda r, dy: (dy * r[0] / jnp.where(norm(r[0]) == 0, 1, norm(r[0])),))
    orders = {"transforms": ("jit", "grad_of_grad"), "seeds": (0,)}
    for oracle in ({}, {"torch_reference": torch.linalg.vector_norm}):
        report = check(safe, np.zeros(3), **oracle, **orders)
        assert {f.setting.transform for f in report.not_judged} == {"grad_of_grad"}
        assert all("at a kink there is no second derivative" in f.why for f in report.not_judged)
    # Where there is none, a second derivative has to be one.
    odd = ruled(lambda x: x * x, lambda r, dy: (2 * dy * jnp.sqrt((r[0] - 1) ** 2) * jnp.sign(r[0] - 1) + 2 * dy,))
    fails(odd, np.ones(3), says="input x is wrong", **orders)


def test_what_xla_computes_twice_and_rounds_in_two_ways_is_no_fault_of_the_function():
    def attention(q, k, v):
        return jax.nn.softmax(q @ k.T / jnp.sqrt(jnp.array(8.0, q.dtype))) @ v

    far = {"dtypes": ("float32",), "transforms": ("jit", "reach"), "seeds": (0,)}
    args = (of(10, 8), of(5, 8), of(5, 8))
    in_torch = torch.nn.functional.scaled_dot_product_attention
    assert check(attention, *args, torch_reference=in_torch, **far).passed
    overflows = lambda q, k, v: attention(q * jnp.where(jnp.abs(q) > 1e8, 1e30, 1), k, v)  # noqa: E731
    fails(overflows, *args, torch_reference=in_torch, says="(large) is wrong", **far)


def test_zeros_of_autograd_that_are_not_in_memory():
    # Of its second derivative torch says such zeros, and of i0e's first it adds noise to them.
    report = check(jnp.abs, of(4), torch_reference=torch.abs, transforms=("grad_of_grad",), seeds=(0,))
    assert not report.not_judged
    assert check(jax.scipy.special.i0e, of(4), torch_reference=torch.special.i0e, transforms=("jit",)).passed
    wrong = lambda x: jax.scipy.special.i0e(1.0001 * x)  # noqa: E731
    fails(wrong, of(4), torch_reference=torch.special.i0e, says="output is wrong", **QUICK)


def test_a_special_function_with_fewer_digits_and_a_rule_that_is_not_at_fault():
    said = fails(jax.scipy.special.digamma, of(4), torch_reference=torch.digamma, domains="positive", **QUICK)
    assert "perhaps   one of them has fewer digits; if that is meant, give tolerance=" in said
    off = ruled(jnp.sin, lambda r, dy: (dy * jnp.cos(r[0]) * (1 + 1e-6),))
    assert "fewer digits" not in fails(off, of(4), reference=jnp.sin, says="input x is wrong", **QUICK)
    # The rule returns zeros, as it should, and it is the oracle that is wrong.
    norm = lambda x: jnp.sqrt(jnp.sum(x * x))  # noqa: E731
    safe = ruled(norm, lambda r, dy: (dy * r[0] / jnp.where(norm(r[0]) == 0, 1, norm(r[0])),))
    said = fails(safe, np.zeros(3), reference=norm, says="jax.grad is wrong by the definition", **QUICK)
    assert "rule  " not in said and "returns no cotangent" not in said
