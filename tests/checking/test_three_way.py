"""What `check` accepts and refuses, whom it blames, and what it says."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad import GradientMismatch, check, tap
from jaxgrad.checking import question
from jaxgrad.checking.report import mapped
from jaxgrad.checking.transforms import TRANSFORMS, Asked
from jaxgrad.errors import JaxgradError
from jaxgrad.progress import found_by

QUICK = {"dtypes": ("float64",), "transforms": ("jit",), "seeds": (0,)}


def scaled_slope(factor: float):
    """A sine whose hand-written derivative is `factor` times the true one."""

    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (factor * dy * jnp.cos(x),))
    return sine


X = np.linspace(-1, 2, 7)


def test_trees_numbers_none_integers_and_static_arguments_pass():
    def fn(params, power, offset, rows, nothing):
        picked = params["table"][rows] ** power
        return {"sum": (picked * params["scale"]).sum(0) + offset, "rows": rows + 1, "nothing": nothing}

    def twin(params, power, offset, rows, nothing):
        picked = params["table"][rows] ** power
        return {"sum": (picked * params["scale"]).sum(0) + offset, "rows": rows + 1, "nothing": nothing}

    params = {"table": jax.ShapeDtypeStruct((4, 3), jnp.float32), "scale": 2.0}
    report = check(
        fn, params, 2, 0.5, np.array([0, 3, 3]), None, reference=fn, torch_reference=twin, static_argnums=(1,)
    )
    names = [t.name for t in report.findings[0].tensors]
    assert names == ["output['rows']", "output['sum']", "params['scale']", "params['table']", "offset"]
    assert {f.setting.dtype for f in report.findings} == {"float64", "float32", "bfloat16"}


def test_other_seeds_draw_other_numbers_and_the_same_seed_the_same():
    def drawn(seed: int) -> np.ndarray:
        report = check(jnp.sin, jax.ShapeDtypeStruct((3,), jnp.float32), **{**QUICK, "seeds": (seed,)})
        return report.findings[0].tensors[0].values["hand"]

    assert np.array_equal(drawn(0), drawn(0))
    assert not np.array_equal(drawn(0), drawn(1))


def test_cotangents_are_not_only_ones():
    # Wrong by a permutation of the outputs, which a cotangent of ones cannot see.
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, dy: (2 * dy[::-1],))
    with pytest.raises(GradientMismatch):
        check(double, X, reference=lambda x: 2 * x, **QUICK)


@pytest.mark.parametrize(
    "oracles",
    [
        {"reference": jnp.sin, "torch_reference": torch.sin},
        {"reference": jnp.sin},
        {"torch_reference": torch.sin},
        {},
    ],
    ids=["both", "jax", "torch", "neither"],
)
def test_either_oracle_may_be_absent_and_hand_is_blamed_by_the_definition_of_the_derivative(oracles):
    assert check(scaled_slope(1.0), X, **oracles, **QUICK).passed
    with pytest.raises(GradientMismatch) as caught:
        check(scaled_slope(1.001), X, **oracles, **QUICK)
    finding = caught.value.report.findings[0]
    assert (finding.first, finding.alone) == ("x", "hand")
    assert finding.taylor["hand"]["x"].verdict == "wrong"
    assert all(finding.taylor[name]["x"].verdict == "right" for name in ("jax.grad", "torch") if name in finding.taylor)


def test_a_wrong_reference_is_blamed_rather_than_the_hand():
    with pytest.raises(GradientMismatch) as caught:
        check(scaled_slope(1.0), X, reference=scaled_slope(2.0), **QUICK)
    assert caught.value.report.findings[0].alone == "jax.grad"


def test_a_wrong_second_derivative_alone_is_found():
    # The first derivative is right; autodiff of its own backward, which hides x from it, is not.
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jax.lax.stop_gradient(jnp.cos(x)),))
    assert check(sine, X, reference=jnp.sin, **QUICK).passed
    for oracle in ({"reference": jnp.sin}, {}):
        with pytest.raises(GradientMismatch, match="float64, grad_of_grad, seed 0"):
            check(sine, X, **oracle, **{**QUICK, "transforms": ("jit", "grad_of_grad")})


def test_a_function_that_is_wrong_only_under_vmap_is_found_there():
    @jax.custom_batching.custom_vmap
    def sine(x):
        return jnp.sin(x)

    @sine.def_vmap
    def _(axis_size, in_batched, x):
        return jnp.sin(x) * 1.01, in_batched[0]

    fn = scaled_slope(1.0)
    outer = jax.custom_vjp(lambda x: sine(x))
    outer.defvjp(lambda x: (sine(x), x), lambda x, dy: (dy * jnp.cos(x),))
    assert check(fn, X, reference=jnp.sin, **QUICK).passed
    with pytest.raises(GradientMismatch) as caught:
        check(outer, X, reference=jnp.sin, dtypes=("float64",), transforms=("jit", "vmap"), seeds=(0,))
    assert [f.setting.transform for f in caught.value.report.findings if not f.agree] == ["vmap"]


def test_the_message_has_all_that_a_person_needs():
    with pytest.raises(GradientMismatch) as caught:
        check(scaled_slope(2.0), X, reference=jnp.sin, torch_reference=torch.sin, name="my_sine")
    lines = dict(line.strip().split(maxsplit=1) for line in str(caught.value).splitlines()[2:])
    assert str(caught.value).startswith("my_sine: the cotangent of input x is wrong\n")
    assert lines["setting"] == "float64, jit, seed 0"
    assert lines["who"] == "hand differs from both oracles: jax.grad and torch agree"
    assert lines["measured"].startswith("|hand - jax.grad| is 1 of |jax.grad|, and ")
    assert "measured over 32 runs of the oracle with its roundings in float64 at random" in lines["tolerance"]
    assert all(engine in lines["worst"] for engine in ("hand", "jax.grad", "torch"))
    assert "hand wrong" in lines["taylor"] and "torch right" in lines["taylor"]
    assert lines["settings"].startswith("in all 21 settings")
    assert lines["again"] == "check(..., dtypes=('float64',), transforms=('jit',), seeds=(0,))"


def test_a_given_tolerance_replaces_the_derived_one_and_is_named():
    fn = scaled_slope(1.001)
    assert check(fn, X, reference=jnp.sin, tolerance=0.01, **QUICK).passed
    assert check(fn, X, reference=jnp.sin, tolerance={"float64": 0.01}, **QUICK).passed
    with pytest.raises(GradientMismatch, match=r"0\.0001, given by you"):
        check(fn, X, reference=jnp.sin, tolerance=1e-4, **QUICK)


def test_nan_against_nan_does_not_agree():
    def root(x):
        return jnp.sqrt(x)

    with pytest.raises(GradientMismatch, match="not a number in every engine, first at"):
        check(root, np.array([1.0, -1.0]), reference=root, **QUICK)
    assert check(root, np.array([1.0, -1.0]), reference=root, nan="equal", **QUICK).passed


def test_a_sum_of_many_terms_and_a_scan_have_the_tolerance_that_they_need():
    x = jax.ShapeDtypeStruct((5000,), jnp.float32)

    def by_scan(x):
        return jax.lax.scan(lambda total, v: (total + v * v, None), jnp.zeros((), x.dtype), x)[0]

    check(by_scan, x, reference=lambda x: (x * x).sum(), dtypes=("float32",), transforms=("jit", "grad_of_grad"))
    check(lambda x: (x * x).sum(), x, reference=by_scan, dtypes=("float32",), transforms=("jit",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtypes": ("float8",)}, "no dtype 'float8'; choose from float64, float32, bfloat16, float16"),
        ({"dtypes": "float32"}, "dtypes is the text 'float32'; give a tuple"),
        ({"nan": "ignore"}, "nan is 'ignore'"),
        ({"no_gradient": ("y",)}, "no_gradient names 'y'; the arguments are "),
        ({"domains": {"y": "unit"}}, "domains names 'y'"),
        ({"domains": "unitt"}, "there is no domain 'unitt'"),
        ({"vary": {"n": (1, 2)}}, "vary names 'n', which is in no shape"),
        ({"transforms": ("pmap",)}, "no transform 'pmap'; choose from jit, vmap, scan, remat, grad_of_grad"),
        ({"expected": "maybe"}, "expected is 'maybe'"),
        ({"expected": "differs"}, "needs an oracle to differ from"),
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": 3}, r"seeds is 3; give a tuple of whole numbers"),
        ({"seeds": "01"}, r"seeds is '01'; give a tuple of whole numbers"),
        ({"seeds": (-1,)}, r"seeds is \(-1,\); give a tuple of whole numbers"),
        ({"tolerance": -1.0}, r"tolerance is -1.0; give a number that is not below 0"),
        ({"tolerance": math.nan}, r"tolerance is nan; give a number"),
        ({"tolerance": {"bfloat16": "wide"}}, "tolerance is 'wide'; give a number"),
        ({"tolerance": {"float61": 0.1}}, "tolerance names 'float61'; choose from float64"),
        ({"static_argnums": (3,)}, "static_argnums has 3, and there are 1 arguments, from 0 on"),
        ({"shardings": 3}, "shardings has 3 for .*; give a NamedSharding"),
    ],
)
def test_options_that_make_no_sense_are_named(options, message: str):
    with pytest.raises(JaxgradError, match=message):
        check(jnp.sin, X, **options)


def test_what_cannot_be_checked_is_named():
    with pytest.raises(JaxgradError, match="no argument is a float array"):
        check(lambda x: x * 2, np.arange(3), **QUICK)
    with pytest.raises(
        JaxgradError, match=r"i is a shape of int32, which the domain 'normal' cannot fill.*integers\(low, high\)"
    ):
        check(lambda x, i: x[i], X, jax.ShapeDtypeStruct((2,), jnp.int32), **QUICK)
    with pytest.raises(JaxgradError, match=r"the torch reference has float outputs of shapes \[\(7,\), \(7,\)\]"):
        check(jnp.sin, X, torch_reference=lambda x: (x, x), **QUICK)
    with pytest.raises(JaxgradError, match=r"the reference has float outputs of shapes \[\(1, 7\)\], and the function"):
        check(jnp.sin, X, reference=lambda x: jnp.sin(x)[None], **QUICK)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [(3, "vary has n=3; give a tuple"), ((), "vary has n="), ((1, -2), r"vary has n=\(1, -2\)")],
)
def test_sizes_that_make_no_sense_are_named(sizes, message: str):
    with pytest.raises(JaxgradError, match=message):
        check(jnp.sin, jax.ShapeDtypeStruct(("n",), jnp.float32), vary={"n": sizes}, **QUICK)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("sin", X), "the function to check is 'sin', which cannot be called"),
        ((jnp.sin, torch.ones(3)), r"x is a torch.Tensor of torch.float32; give a NumPy or JAX array"),
        ((jnp.sin, jax.ShapeDtypeStruct((-3,), jnp.float32)), r"x has the shape \(-3,\); sizes are 0 or more"),
    ],
)
def test_a_call_that_makes_no_sense_is_named(args, message: str):
    with pytest.raises(JaxgradError, match=message):
        check(*args, **QUICK)


def test_one_number_or_name_will_do_where_several_may_be_given():
    by_option = lambda x, times: times * jnp.sin(x)  # noqa: E731
    assert check(by_option, X, 3, reference=by_option, static_argnums=1, **QUICK).passed
    of_two = lambda x, beta: jnp.sin(x) * jax.lax.stop_gradient(beta)  # noqa: E731
    assert check(of_two, X, X, reference=lambda x, beta: jnp.sin(x) * beta, no_gradient="beta", **QUICK).passed


def test_an_output_that_is_a_number_of_python_is_one_in_every_engine():
    fn = lambda x: (jnp.sin(x), 1.0)  # noqa: E731
    assert check(fn, X, reference=fn, transforms=("jit", "vmap"), seeds=(0,)).passed


def test_an_oracle_that_answers_nowhere_is_told():
    broken = lambda x, dy: [np.sin(x)][1]  # noqa: E731
    for others in ({}, {"reference": jnp.sin}):
        with pytest.raises(JaxgradError, match="an oracle answers nowhere: numpy says IndexError: list index out of"):
            check(jnp.sin, X, oracles={"numpy": broken}, **others, **QUICK)
    with pytest.raises(JaxgradError, match="numpy gives 2 outputs, and the function 1"):
        check(jnp.sin, X, oracles={"numpy": lambda x, dy: ((x, x), dy)}, **QUICK)

    def in_float64(x, dy):
        assert x.dtype == np.float64
        return np.sin(x), dy * np.cos(x)

    assert check(jnp.sin, X, oracles={"numpy": in_float64}, transforms=("jit",)).passed
    narrow = {"dtypes": ("bfloat16",), "transforms": ("jit",), "seeds": (0,)}
    assert check(jnp.sin, X, reference=jnp.sin, oracles={"numpy": in_float64}, **narrow).passed


def test_functions_without_a_name_are_called_by_their_type():
    assert check(functools.partial(jnp.sum, axis=0), X, **QUICK).name == "partial"


def test_an_oracle_need_not_have_the_taps():
    fn = lambda x: tap("s", jnp.sin(x)) ** 2  # noqa: E731
    report = check(fn, X, reference=lambda x: jnp.sin(x) ** 2, torch_reference=lambda x: torch.sin(x) ** 2, **QUICK)
    (node,) = (t for t in report.findings[0].tensors if t.kind == "node")
    assert (node.name, node.pairs) == ("s", {}) and list(node.values) == ["hand"]


def test_an_oracle_of_another_function_is_not_judged_by_the_derivative_of_this_one():
    # By default JAX's GELU is the tanh approximation and PyTorch's is exact: both derivatives are right.
    with pytest.raises(GradientMismatch) as caught:
        check(
            jax.nn.gelu, jax.ShapeDtypeStruct((8, 5), jnp.float32), torch_reference=torch.nn.functional.gelu,
            dtypes=("float64",), transforms=("jit",), seeds=(0,),
        )  # fmt: skip
    message = str(caught.value)
    assert "output is wrong" in message and "apart: hand from torch" in message
    power = re.search(r"hand right at x \(the remainder falls with h\^([\d.]+)", message)
    # The last digit is rounding's, and so the compiler's.
    assert power and float(power[1]) == pytest.approx(2, abs=0.05) and "torch wrong" not in message


def test_progress_is_told_and_a_stopped_check_carries_what_it_judged():
    told = []

    def progress(done: int, total: int, note: str) -> None:
        told.append((done, total, note))
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        check(
            jnp.sin, jax.ShapeDtypeStruct(("n",), jnp.float32), reference=jnp.sin, dtypes=("float64",),
            transforms=("jit", "vmap"), seeds=(0,), vary={"n": (3, 4)}, progress=progress,
        )  # fmt: skip
    assert told == [(0, 4, "float64/jit/0 with n=3"), (1, 4, "float64/vmap/0 with n=3")]
    assert caught.type is KeyboardInterrupt and caught.value.__notes__ == [
        "sin: the check was stopped after 1 of 4 settings"
    ]
    report = found_by(caught.value)
    assert not report.passed and [(f.setting.transform, f.outcome) for f in report.findings] == [("jit", "agrees")]


def test_of_a_large_tensor_that_agrees_differences_are_kept_and_no_arrays():
    def kept(fn) -> tuple[int, list[str], bool]:
        try:
            report = check(fn, jax.ShapeDtypeStruct((2**16 + 1,), jnp.float32), reference=jnp.sin, **QUICK)
        except GradientMismatch as wrong:
            report = wrong.judged
        tensor = next(t for t in report.findings[0].tensors if t.kind == "input")
        return sum(value.size for value in tensor.values.values()), tensor.engines, "heat" in mapped(tensor)

    assert kept(scaled_slope(1.0)) == (0, ["hand", "jax.grad"], True)
    assert kept(scaled_slope(1.5)) == (2 * (2**16 + 1), ["hand", "jax.grad"], True)


def test_examples_of_one_name_are_one_question():
    asked = question.call(jnp.multiply, (X, X), {}, (), (), "normal")
    groups = TRANSFORMS["vmap"].groups(Asked(question.applied(jnp.multiply, asked), asked, "float64", 0, None))
    named = [(group.examples[k], jax.tree.leaves(q)) for group in groups for k, q in enumerate(group.questions)]
    assert len(named) == 6 and len(dict(named)) == 4
    for name, leaves in named:
        assert all(map(np.array_equal, leaves, dict(named)[name]))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_trace_needs_no_numbers_but_has_the_shapes_and_types_of_what_is_drawn(dtype: str):
    args = (
        jax.ShapeDtypeStruct((2, 3), jnp.float32), np.ones(4), 0.5, 2j, np.complex64(1), np.arange(3), True, "words",
        jax.ShapeDtypeStruct((5,), jnp.int32), jax.random.key(0), jnp.ones((2,), jnp.bfloat16),
    )  # fmt: skip
    asked = question.call(lambda *args: args, args, {}, domains={"arg8": "integers(0, 3)"})
    with jax.enable_x64(dtype == "float64"):
        for given, seen in zip(question.drawn(asked, dtype, 0), question.shaped(asked, dtype), strict=True):
            traced = jax.make_jaxpr(lambda *leaves: leaves)(*given).in_avals
            assert traced == jax.make_jaxpr(lambda *leaves: leaves)(*seen).in_avals
