"""Where a port parts from its module: the line of each planted mistake, what would mend it, and right ports."""

import functools
import json
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgrad import port
from jaxgrad.errors import JaxgradError
from jaxgrad.port import locate
from jaxgrad.port.values import Values
from jaxgrad.progress import found_by

from . import mistakes

# Those that are told by one operation; the slowest and those that no line of their own makes are left out.
PLANTED = [
    ("block", "unbiased variance"), ("block", "epsilon"), ("block", "epsilon outside the root"),
    ("block", "bias subtracted"), ("block", "gelu by tanh"), ("block", "bfloat16 inside"),
    ("block", "dropout left on"), ("block", "residual doubled"), ("block", "transposed"), ("block", "slope"),
    ("block", "sign"), ("attention", "heads split"), ("attention", "queries for keys"),
    ("attention", "mask's diagonal"), ("attention", "softmax's axis"), ("attention", "heads joined"),
    ("conv", "kernel flipped"), ("conv", "padding"), ("conv", "batch norm's epsilon"), ("conv", "padding counted"),
    ("stem", "padded as SAME"), ("stem", "pooled as SAME"), ("loss", "temperature"),
    ("loss", "labels shifted"), ("loss", "smoothing"), ("loss", "absolute for square"),
]  # fmt: skip


def compared(name: str, bug: str, **options) -> port.Verdict:
    program, module = mistakes.PROGRAMS[name], mistakes.PROGRAMS[name].module()
    return port.compare(lambda *args: program.fn(*args, bug), program.params, *program.inputs, torch=module, **options)


@pytest.mark.parametrize("name", mistakes.PROGRAMS)
def test_a_right_port_agrees_and_is_given_no_suggestion(name: str):
    verdict = compared(name, "")
    assert verdict.agrees and not verdict.mends and verdict.kind == "agrees"
    assert all(entry.proved for entry in verdict.mapping.entries)


@pytest.mark.parametrize(("name", "bug"), PLANTED)
def test_the_line_of_a_mistake_is_named_and_what_would_mend_it(name: str, bug: str):
    verdict = compared(name, bug)
    assert not verdict.agrees and bug in verdict.jax.line.text, str(verdict)
    assert mistakes.PROGRAMS[name].mistakes[bug] in " | ".join(mend.words for mend in verdict.mends), str(verdict)
    assert not verdict.behind


@pytest.mark.parametrize(
    ("name", "bug", "words"),
    [
        ("block", "scale forgotten", "['norm']['scale'] is not multiplied with"),
        ("block", "bias forgotten", "['first']['bias'] is not added"),
        ("attention", "scale forgotten", "a factor 1/2 is missing"),
        ("loss", "sum for mean", "a sum in the place of a mean"),
    ],
)
def test_what_is_forgotten_has_no_line_and_is_told(name: str, bug: str, words: str):
    verdict = compared(name, bug)
    assert not verdict.agrees and words in verdict.mends[0].words, str(verdict)


def test_what_no_known_change_explains_is_said_to_be_unexplained():
    verdict = compared("loss", "penalty forgotten")
    assert not verdict.agrees and not verdict.mends and "no known change explains it" in str(verdict)


def test_a_stopped_gradient_is_found_where_outputs_agree():
    verdict = compared("block", "gradient stopped")
    assert verdict.kind == "backward" and "gradient stopped" in verdict.jax.line.text
    assert verdict.jax.op == "stop_gradient"


def test_a_wrong_custom_rule_is_found():
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, dy: (3 * dy,))

    class Double(torch.nn.Module):
        def forward(self, x):
            return (2 * torch.tanh(x)).exp()

    verdict = port.compare(lambda p, x: jnp.exp(double(jnp.tanh(x))), {}, mistakes.shape(3), torch=Double())
    assert verdict.kind == "backward" and verdict.jax.op.startswith("custom_vjp_call")


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_convolution_of_groups_agrees_and_its_wrong_rule_is_found(groups: int):
    def convolved(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        options = {"dimension_numbers": numbers, "feature_group_count": groups}
        return jax.lax.conv_general_dilated(x, p["kernel"], (2, 2), [(1, 1)] * 2, **options) + p["bias"]

    scaled = jax.custom_vjp(convolved)
    scaled.defvjp(
        lambda p, x: jax.vjp(convolved, p, x),
        lambda pull, dy: jax.tree.map(lambda dx: groups * dx, pull(dy)),
    )

    def fn(layer, p, x):
        return jnp.moveaxis(jnp.tanh(layer(p, jnp.moveaxis(jnp.sin(x), 1, -1))), -1, 1)

    class Grouped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups)

        def forward(self, x):
            return torch.tanh(self.conv(torch.sin(x)))

    shape, module = mistakes.shape, Grouped()
    given = {"kernel": shape(3, 3, 8 // groups, 16), "bias": shape(16)}, shape(2, 8, 5, 6)
    assert port.compare(functools.partial(fn, convolved), *given, torch=module).agrees
    verdict = port.compare(functools.partial(fn, scaled), *given, torch=module)
    # The rule's gradient is as many times too large as there are groups: right for one.
    assert verdict.agrees if groups == 1 else verdict.kind == "backward", str(verdict)


@pytest.mark.parametrize(
    ("name", "bug"),
    [("conv", ""), ("block", "epsilon"), ("block", "gradient stopped")],
)
def test_runs_that_are_let_go_have_the_verdict_of_those_that_are_kept(name: str, bug: str, monkeypatch):
    kept = compared(name, bug)
    monkeypatch.setattr(Values, "most", 0)
    monkeypatch.setattr(Values, "few", 0)
    parts = compared(name, bug)
    assert parts._replace(off=None, distance=None, mends=()) == kept._replace(off=None, distance=None, mends=())
    assert [mend.words for mend in parts.mends] == [mend.words for mend in kept.mends]


def test_a_part_that_is_taken_wrongly_is_named_and_not_the_line_that_uses_it():
    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(x).cumsum(1)[:, -1])

    def fn(p, x):
        y = jnp.cumsum(jnp.tanh(x), 1)
        y = y[:, 0]  # the first
        return y @ p["head"]["kernel"] + p["head"]["bias"]

    params = {"head": {"kernel": mistakes.shape(4, 3), "bias": mistakes.shape(3)}}
    verdict = port.compare(fn, params, mistakes.shape(2, 5, 4), torch=Last(), suggest=False)
    assert verdict.kind == "forward" and "# the first" in verdict.jax.line.text, str(verdict)


def test_a_gradient_too_many_is_named_by_its_use():
    class Straight(torch.nn.Module):
        def forward(self, x):
            code = x.round() + torch.sin(x)
            return torch.tanh(x + (code - x).detach()) + torch.exp((code - x.detach()) ** 2)

    def fn(p, x):
        code = jnp.round(x) + jnp.sin(x)
        first = jnp.exp((code - jax.lax.stop_gradient(x)) ** 2)
        return jnp.tanh(code) + first  # not straight through

    verdict = port.compare(fn, {}, mistakes.shape(3, 4), torch=Straight(), suggest=False)
    assert verdict.kind == "backward" and "# not straight through" in verdict.jax.line.text, str(verdict)


def test_a_second_mistake_is_told_behind_the_first():
    def fn(p, x):
        y = jnp.tanh(jnp.exp(jnp.sin(x) * 3.0)) ** 2
        return jnp.cos(y - 0.5) * y

    class Module(torch.nn.Module):
        def forward(self, x):
            y = torch.tanh(torch.exp(torch.sin(x) * 2.0)) ** 2
            return torch.cos(y - 0.25) * y

    verdict = port.compare(fn, {}, mistakes.shape(3, 4), torch=Module())
    assert "3 should be 2" in verdict.mends[0].words
    assert len(verdict.behind) == 1 and "0.5 should be 0.25 would mend it" in verdict.behind[0]


def test_two_jax_programs_are_compared():
    def slow(p, x):
        return jax.lax.scan(lambda c, row: (c + row * 0.5, None), jnp.zeros(3), x)[0] @ p["w"]

    def fast(p, x):
        return jnp.sum(x * 0.25, 0) @ p["w"]

    params = {"w": mistakes.shape(3, 2)}
    assert port.compare(slow, params, mistakes.shape(4, 3), jax=lambda p, x: (0.5 * x).sum(0) @ p["w"]).agrees
    verdict = port.compare(fast, params, mistakes.shape(4, 3), jax=slow)
    assert "0.25" in verdict.jax.line.text and verdict.mends[0].words == "0.25 should be 0.5"


def test_buffers_after_a_call_in_training_mode():
    params = {"weight": mistakes.shape(4), "bias": mistakes.shape(4)}

    def forgets(p, x):
        return p["weight"] * (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5) + p["bias"]

    verdict = port.compare(forgets, params, mistakes.shape(6, 4), torch=torch.nn.BatchNorm1d(4))
    assert verdict.kind == "buffer" and "running_mean, running_var" in verdict.sentence


def test_running_statistics_that_are_forgotten_are_noticed():
    params = {"weight": mistakes.shape(4), "bias": mistakes.shape(4)}

    def forgets(p, x):
        return x / jnp.sqrt(1 + 1e-5) * p["weight"] + p["bias"]

    verdict = port.compare(forgets, params, mistakes.shape(6, 4), torch=torch.nn.BatchNorm1d(4).eval())
    assert not verdict.agrees and any("running_mean" in note for note in verdict.notes)


def test_constants_known_to_float32_are_no_difference():
    class Buffer(torch.nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("c", torch.tensor(0.1))

        def forward(self, x):
            return super().forward(x) * self.c

    params = {"kernel": mistakes.shape(4, 3), "bias": mistakes.shape(3)}
    fn = lambda p, x: (x @ p["kernel"] + p["bias"]) * 0.1  # noqa: E731
    assert port.compare(fn, params, mistakes.shape(2, 4), torch=Buffer()).agrees


@pytest.mark.parametrize("fill", [-1e9, -np.inf, np.finfo(np.float32).min])
def test_masks_of_any_fill_agree(fill: float):
    keep = np.tril(np.ones((4, 4), bool))

    def theirs(x):
        return torch.softmax(x.masked_fill(~torch.from_numpy(keep), float("-inf")), -1)

    fn = lambda p, x: jax.nn.softmax(jnp.where(keep, x, fill), -1)  # noqa: E731
    assert port.compare(fn, {}, mistakes.shape(4, 4), torch=theirs).agrees


def test_a_result_of_fields_and_an_input_by_name():
    import dataclasses

    @dataclasses.dataclass
    class Out:
        logits: object

    class Named(torch.nn.Linear):
        def forward(self, x, *, mask):
            return Out(super().forward(x) * mask)

    params = {"kernel": mistakes.shape(4, 3), "bias": mistakes.shape(3)}

    def fn(p, x, mask):
        return (x @ p["kernel"] + p["bias"]) * mask

    assert port.compare(fn, params, mistakes.shape(2, 4), mistakes.shape(2, 3), torch=Named(4, 3)).agrees


def test_the_verdict_as_json_and_as_a_page():
    verdict = compared("loss", "temperature")
    data = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
    assert data["schema"] == "jaxgrad.port/1" and data["mends"][0]["words"] == "0.8 should be 0.7"
    assert data["jax"]["line"]["text"].startswith("logits = x @")
    page = verdict.html()
    assert "0.8 should be 0.7" in page and "<script" not in page and "x @ p[&quot;head&quot;]" in page


def test_the_page_has_the_region_and_a_map_of_the_error():
    verdict = compared("loss", "temperature")
    assert {step.like for step in verdict.steps} - {None} <= set(range(len(verdict.other_steps)))
    assert verdict.off is not None and verdict.off["grid"] and min(map(min, verdict.off["grid"])) > 0
    page = verdict.html()
    assert "Where the first differing value is off" in page and '<details class="parts" open' in page


def test_a_map_of_the_error_is_in_the_layout_of_the_jax_value():
    a = np.arange(24.0).reshape(2, 3, 4) + 1
    assert np.array_equal(locate.laid_like(a.transpose(2, 0, 1), a + 1e-3), a)
    assert np.array_equal(locate.laid_like(a.reshape(6, 4), a), a)


def test_what_is_stopped_leaves_the_verdict_or_the_mapping(monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    told = []
    monkeypatch.setattr("jaxgrad.port.mend.mended", stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        compared("loss", "temperature", progress=lambda done, total, note: told.append((done, total)))
    verdict = found_by(caught.value)
    assert not verdict.agrees and not verdict.complete and "not looked for to the end" in str(verdict)
    assert verdict.as_json()["complete"] is False and told == [(0, 5), (1, 5), (2, 5), (4, 5)]
    monkeypatch.setattr(locate, "judged", stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        compared("loss", "temperature")
    assert isinstance(found_by(caught.value), port.Mapping)


def test_one_other_program_must_be_given():
    with pytest.raises(JaxgradError, match="torch=module or jax=function"):
        port.compare(lambda p, x: x, {}, mistakes.shape(2))


def test_a_module_that_raises_is_an_error_that_quotes_it():
    with pytest.raises(JaxgradError, match="raised RuntimeError in its forward pass"):
        port.compare(lambda p, x: x, {}, mistakes.shape(2, 5), torch=torch.nn.Linear(4, 3))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_padding_of_an_embedding_is_named():
    ids, params = np.array([[0, 1], [3, 0]]), {"table": mistakes.shape(5, 3)}
    module = torch.nn.Embedding(5, 3, padding_idx=0)
    verdict = port.compare(lambda p, x: p["table"][x], params, ids, torch=module)
    assert verdict.kind == "backward" and "row 0 has none in torch" in verdict.sentence, str(verdict)
    plain = port.compare(lambda p, x: 2 * p["table"][x] - p["table"][x], params, ids, torch=torch.nn.Embedding(5, 3))
    assert plain.agrees, str(plain)


def test_an_input_that_is_one_number_everywhere_is_noted_and_its_shape_finds_what_it_hides():
    module = type("Module", (torch.nn.Module,), {"forward": lambda self, x: torch.tanh(x)})()
    hidden = port.compare(lambda p, x: jnp.tanh(jnp.sort(x)), {}, jnp.ones((4, 8)), torch=module)
    assert hidden.agrees and "input[0] is 1 everywhere, which hides much" in str(hidden)
    told = port.compare(lambda p, x: jnp.tanh(jnp.sort(x)), {}, mistakes.shape(4, 8), torch=module)
    assert not told.agrees and not told.notes
    other = port.compare(lambda p, x: jnp.tanh(jnp.sort(x)), {}, jnp.ones((4, 8)), jax=lambda p, x: jnp.tanh(x))
    assert other.agrees and "which hides much" in str(other)
    assert not port.compare(lambda p, x: jnp.tanh(x), {}, jnp.arange(3.0), torch=torch.nn.Tanh()).notes


def test_an_epsilon_is_told_by_the_gradient_where_the_norm_is_zero():
    module = torch.nn.Sequential(torch.nn.LayerNorm(8, elementwise_affine=False), torch.nn.Tanh())

    def fn(epsilon: float):
        return lambda p, x: jnp.tanh(jax.nn.standardize(x, epsilon=epsilon))

    assert port.compare(fn(1e-5), {}, jnp.ones((4, 8)), torch=module).agrees
    verdict = port.compare(fn(1e-3), {}, jnp.ones((4, 8)), torch=module)
    assert not verdict.agrees and verdict.kind == "backward", str(verdict)
    told = port.compare(fn(1e-3), {}, mistakes.shape(4, 8), torch=module)
    assert told.mends[0].words == "0.001 should be 1e-05"
