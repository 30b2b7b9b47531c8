"""`jaxgrad.check` with a torch module: weights placed by names and by values, the place of a difference, buffers."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxgrad
from jaxgrad import GradientMismatch, check
from jaxgrad.errors import JaxgradError

ONCE: dict[str, Any] = {"dtypes": ("float64",), "transforms": ("jit",), "seeds": (0,)}


BOTH = ("jit", "grad_of_grad")


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def layer(n: int, m: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {"kernel": shape(n, m), "bias": shape(m)}


def dense(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p["bias"]


class Fused(torch.nn.Module):
    """Three projections in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(3, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return torch.tanh(q) * k + v


def projections(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(dense(p["query"], x)) * dense(p["key"], x) + dense(p["value"], x)


class Two(torch.nn.Module):
    """Two square layers; the second one is used first."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(3, 3)
        self.two = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(torch.tanh(self.two(x)))


def first_then_second(p: Any, x: jax.Array) -> jax.Array:
    return dense(p["second"], jnp.tanh(dense(p["first"], x)))


def with_sine(p: Any, x: jax.Array) -> jax.Array:
    hidden = jnp.sin(dense(p["first"], x))
    return dense(p["second"], hidden)


LAYERS = {"first": layer(3, 3), "second": layer(3, 3)}


def test_a_fused_weight_is_cut_and_its_cotangent_put_together():
    params = {name: layer(3, 4) for name in ("query", "key", "value")}
    report = check(projections, params, shape(2, 3), torch_reference=Fused(), **{**ONCE, "transforms": BOTH})
    assert report.passed and not report.not_judged


def test_leaves_go_where_values_say_and_names_do_not():
    assert check(first_then_second, LAYERS, shape(2, 3), torch_reference=Two(), **ONCE).passed


def test_a_mistake_is_told_with_its_line_though_names_do_not_fit():
    with pytest.raises(GradientMismatch) as failed:
        check(with_sine, LAYERS, shape(2, 3), torch_reference=Two(), **ONCE)
    told = str(failed.value)
    assert "parts     sin" in told and "hidden = jnp.sin(dense" in told and "tanh" in told
    assert "parts" not in failed.value.judged.message
    assert str(pickle.loads(pickle.dumps(failed.value))) == told


def test_a_square_weight_used_the_other_way_round_is_a_mistake_where_names_are_equal():
    params = {"one": {"weight": shape(3, 3), "bias": shape(3)}, "two": {"weight": shape(3, 3), "bias": shape(3)}}

    def port(p: Any, x: jax.Array, wrong: bool) -> jax.Array:
        hidden = jnp.tanh(x @ (p["two"]["weight"] if wrong else p["two"]["weight"].T) + p["two"]["bias"])
        return hidden @ p["one"]["weight"].T + p["one"]["bias"]

    assert check(port, params, shape(2, 3), False, torch_reference=lambda_free(Two()), **ONCE).passed
    with pytest.raises(GradientMismatch, match="output is wrong") as failed:
        check(port, params, shape(2, 3), True, torch_reference=lambda_free(Two()), **ONCE)
    assert "parts     dot_general" in str(failed.value) and 'x @ (p["two"]["weight"] if wrong' in str(failed.value)
    alone = torch.nn.Linear(3, 3)
    leaves = {"weight": shape(3, 3), "bias": shape(3)}
    assert check(lambda p, x: x @ p["weight"].T + p["bias"], leaves, shape(2, 3), torch_reference=alone, **ONCE).passed
    with pytest.raises(GradientMismatch, match="output is wrong") as failed:
        check(lambda p, x: x @ p["weight"] + p["bias"], leaves, shape(2, 3), torch_reference=alone, **ONCE)
    assert "parts     dot_general" in str(failed.value)


def test_two_leaves_for_one_tensor_are_told():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.out = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False)
            self.out.weight = self.into.weight

        def forward(self, i):
            return self.out(self.into(i))

    i, one, both = np.array([1, 2, 2]), {"into": shape(7, 4)}, {"into": shape(7, 4), "out": shape(7, 4)}
    assert check(lambda w, i: w["into"][i] @ w["into"].T, one, i, torch_reference=Tied(), **ONCE).passed
    with pytest.raises(JaxgradError, match=r"in the module out\.weight is into\.weight, and one tensor wants one"):
        check(lambda w, i: w["into"][i] @ w["out"].T, both, i, torch_reference=Tied(), **ONCE)


def lambda_free(module: torch.nn.Module) -> torch.nn.Module:
    """The module taking the option that the port has."""
    plain = type(module).forward
    kind = type("Optional", (type(module),), {"forward": lambda self, x, wrong: plain(self, x)})
    return kind()


def test_the_place_is_looked_for_when_the_message_is_read():
    wrong = jax.custom_vjp(jnp.sin)
    wrong.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x) * 2,))
    with pytest.raises(GradientMismatch) as failed:
        check(wrong, shape(3), reference=jnp.sin, **ONCE)
    asked = []
    failed.value.place = lambda: asked.append(1) or [("parts", "here")]
    assert not asked and failed.value.report.message.splitlines()[2] == "  parts     here"
    assert str(failed.value) and asked == [1]


def normed(p: Any, x: jax.Array) -> jax.Array:
    mean, var = p.get("mean", 0.0), p.get("var", 1.0)
    return (x - mean) / jnp.sqrt(var + 1e-5) * p["scale"] + p["bias"]


NORM = {"scale": shape(4), "bias": shape(4)}


def test_statistics_that_are_forgotten_are_noticed():
    with pytest.raises(GradientMismatch, match="only as long as the module's statistics are 0 and 1") as failed:
        check(normed, NORM, shape(3, 4), torch_reference=torch.nn.BatchNorm1d(4).eval(), **ONCE)
    assert "running_mean" in str(failed.value) and not failed.value.report.passed


@pytest.mark.parametrize("how", ["leaves", "closed over", "not as made"])
def test_statistics_that_are_used_are_right(how: str):
    module = torch.nn.BatchNorm1d(4).eval()
    fn, params = normed, NORM
    if how == "leaves":
        params = {**NORM, "mean": jnp.zeros(4), "var": jnp.ones(4)}
    elif how == "closed over":
        mean, var = jnp.zeros(4), jnp.ones(4)
        fn = lambda p, x: normed({**p, "mean": mean, "var": var}, x)  # noqa: E731
    else:
        module.running_mean.fill_(0.5)
        fn = lambda p, x: normed({**p, "mean": 0.5, "var": 1.0}, x)  # noqa: E731
    assert check(fn, params, shape(3, 4), torch_reference=module, **ONCE).passed


def test_updates_of_statistics_are_not_judged_and_said_so():
    def port(p: Any, x: jax.Array) -> jax.Array:
        return normed({**p, "mean": x.mean(0), "var": x.var(0)}, x)

    report = check(port, NORM, shape(3, 4), torch_reference=torch.nn.BatchNorm1d(4), **ONCE)
    assert report.passed
    assert [f.why for f in report.not_judged if "updates running_mean, running_var" in f.why]


def test_what_no_rule_can_place_is_listed():
    params = {**LAYERS, "extra": shape(7)}
    with pytest.raises(JaxgradError, match=r"JAX leaves \[\['extra'\] \(7,\)\]"):
        check(lambda p, x: first_then_second(p, x) + p["extra"].sum(), params, shape(2, 3), torch_reference=Two())


def test_the_front_door_has_the_signature_of_the_check_inside():
    import inspect

    from jaxgrad.checking import three_way

    assert inspect.signature(jaxgrad.check) == inspect.signature(three_way.check)
    assert np.shape(check(jnp.sin, shape(2), **ONCE).findings[0].tensors[0].values["hand"]) == (2,)


def test_a_wrong_rule_is_told_with_its_own_line():
    wrong = jax.custom_vjp(jnp.sin)
    wrong.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x) * 3,))
    with pytest.raises(GradientMismatch) as failed:
        check(lambda x: wrong(x) + 1, shape(3), reference=lambda x: jnp.sin(x) + 1, **ONCE)
    assert "rule      test_front.py" in str(failed.value) and "jnp.cos(x) * 3" in str(failed.value)


def test_a_right_rule_beside_a_stopped_gradient_is_not_blamed():
    right = jax.custom_vjp(jnp.sin)
    right.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x),))
    with pytest.raises(GradientMismatch) as failed:
        check(lambda x: right(x) + jax.lax.stop_gradient(x), shape(3), reference=lambda x: jnp.sin(x) + x, **ONCE)
    assert "rule      " not in str(failed.value)


def test_sizes_that_vary_are_located_at_the_first():
    wrong = lambda p, x: first_then_second(p, x) + x.sum()  # noqa: E731
    asked = {**ONCE, "vary": {"n": (2, 3)}, "torch_reference": Two()}
    with pytest.raises(GradientMismatch) as failed:
        check(wrong, LAYERS, jax.ShapeDtypeStruct(("n", 3), jnp.float32), **asked)
    assert "parts     " in str(failed.value)


def test_a_wrong_rule_of_forward_mode_is_told_where_it_begins():
    wrong = jax.custom_jvp(jnp.sin)
    wrong.defjvp(lambda primals, tangents: (jnp.sin(primals[0]), 2 * jnp.cos(primals[0]) * tangents[0]))
    with pytest.raises(GradientMismatch) as failed:
        check(wrong, shape(3), reference=jnp.sin, **ONCE)
    assert "rule      test_front.py" in str(failed.value) and "2 * jnp.cos" in str(failed.value)
