"""Each leaf finds its tensors, by names that propose and values that decide, and a checkpoint is loaded by that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from jaxgrad import check, port
from jaxgrad.checking.oracles import rules
from jaxgrad.errors import JaxgradError
from jaxgrad.port import jax_values

from . import mistakes
from .layers import layers

TRIED = [
    "nnx.Linear", "eqx.Linear", "linen.Conv 2d", "linen.ConvTranspose", "eqx.GroupNorm", "nnx.BatchNorm eval",
    "linen.BatchNorm training", "nnx.Embed", "eqx.GRUCell", "linen.GRU sequence", "linen.MultiHeadAttention",
    "eqx.MultiheadAttention", "linen encoder layer", "eqx.PReLU", "linen scan over layers", "fused qkv",
    "linen dtype=float32",
]  # fmt: skip


@pytest.mark.parametrize("name", TRIED)
def test_layers_of_both_libraries_agree_out_of_the_box(name: str):
    p = layers()[name]()
    verdict = port.compare(p.fn, p.params, *p.inputs, torch=p.module, torch_inputs=p.torch_inputs)
    assert verdict.agrees, str(verdict)
    assert all(entry.proved for entry in verdict.mapping.entries)


def test_a_bare_array_may_be_all_parameters():
    module, x = torch.nn.Linear(3, 4, bias=False), np.ones((2, 3), np.float32)
    right, wrong = (jnp.asarray(module.weight.detach().numpy().T) * factor for factor in (1, 2))
    assert port.compare(lambda w, x: x @ w, right, x, torch=module).agrees
    assert port.match(wrong, module, x, fn=lambda w, x: x @ w).entries[0].rule.sources == ("weight",)
    assert not port.compare(lambda w, x: 2 * (x @ w), right, x, torch=module).agrees


def scrambled() -> tuple[dict, dict]:
    """The leaves of two attention blocks under names that say nothing."""
    names = iter(np.random.default_rng(0).permutation(100))
    flat: dict = {}

    def new(*sizes: int) -> str:
        name = f"z{next(names)}"
        flat[name] = mistakes.shape(*sizes)
        return name

    def dense() -> tuple[str, str]:
        return new(8, 8), new(8)

    return flat, {"blocks": [{n: dense() for n in ("v", "k", "o", "q")} for _ in range(2)]}


class Blocks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        one = lambda: torch.nn.ModuleDict({n: torch.nn.Linear(8, 8) for n in "qkvo"})  # noqa: E731
        self.blocks = torch.nn.ModuleList([one(), one()])

    def forward(self, x):
        for b in self.blocks:
            q, k, v = b["q"](x), b["k"](x), b["v"](x)
            x = x + b["o"](torch.softmax(q @ k.mT / 8**0.5, -1) @ v)
        return x


def test_square_weights_with_scrambled_names_are_placed_by_values_alone():
    flat, tree = scrambled()

    def fn(p, x):
        def dense(names, y):
            return y @ p[names[0]] + p[names[1]]

        for b in tree["blocks"]:
            weights = jax.nn.softmax(dense(b["q"], x) @ dense(b["k"], x).mT / 8**0.5, -1)
            x = x + dense(b["o"], weights @ dense(b["v"], x))
        return x

    mapping = port.match(flat, Blocks(), mistakes.shape(2, 5, 8), fn=fn)
    by_path = {entry.path: entry for entry in mapping.entries}
    for k, block in enumerate(tree["blocks"]):
        for name, (kernel, bias) in block.items():
            assert by_path[f"['{kernel}']"].rule == rules.Rule(
                (f"blocks.{k}.{name}.weight",), steps=(("transpose", (1, 0)),)
            )
            assert by_path[f"['{bias}']"].rule == rules.Rule((f"blocks.{k}.{name}.bias",))


def test_names_that_swap_biases_do_not_mislead():
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc1, self.fc2 = torch.nn.LayerNorm(6), torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

        def forward(self, x):
            return x + self.fc2(torch.tanh(self.fc1(self.norm(x))))

    import flax.linen as nn

    class Flax(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = jnp.tanh(nn.Dense(6)(nn.LayerNorm(epsilon=1e-5)(x)))
            return x + nn.Dense(6)(h)

    module = Flax()
    params = module.init(jax.random.key(0), jnp.zeros((3, 6)))
    mapping = port.match(params, Module(), mistakes.shape(3, 6), fn=module.apply)
    found = {entry.path: str(entry.rule) for entry in mapping.entries}
    assert found["['params']['LayerNorm_0']['bias']"] == "norm.bias"
    assert found["['params']['Dense_0']['kernel']"] == "fc1.weight · transposed"
    assert found["['params']['Dense_1']['bias']"] == "fc2.bias"


PARAMS = {"fc": {"kernel": mistakes.shape(4, 3), "bias": mistakes.shape(3)}}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x)


def run(p, x):
    return x @ p["fc"]["kernel"] + p["fc"]["bias"]


def test_a_mapping_is_kept_and_a_checkpoint_loaded_by_it(tmp_path):
    module, x = Net(), np.ones((2, 4), np.float32)
    mapping = port.match(PARAMS, module, x, fn=run)
    mapping.save(tmp_path / "map.json")
    assert port.read(tmp_path / "map.json") == mapping
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    for state in (module.state_dict(), tmp_path / "weights.safetensors", tmp_path / "weights.pt"):
        loaded = port.load(PARAMS, state, mapping)
        assert loaded["fc"]["kernel"].dtype == jnp.float32
        assert np.allclose(run(loaded, x), module(torch.from_numpy(x)).detach(), atol=1e-6)
    names: dict = {}
    exec(mapping.as_code(), names)
    made = names["leaves"]({n: t.numpy() for n, t in module.state_dict().items()})
    assert np.array_equal(made["['fc']['kernel']"], module.fc.weight.detach().numpy().T)
    assert "fc.weight · transposed" in str(mapping)


def test_tensors_are_taken_for_arrays_and_a_text_for_no_module():
    module, x = Net(), torch.linspace(-1, 1, 8).reshape(2, 4)
    state = {"fc": {"kernel": module.fc.weight.T, "bias": module.fc.bias.to(torch.bfloat16)}}
    mapping = port.match(state, module, x, fn=run)
    assert all(entry.proved for entry in mapping.entries)
    assert port.compare(run, state, x, torch=module).agrees
    with pytest.raises(JaxgradError, match="the torch module is 'Net'; give an"):
        port.match(state, "Net")


def test_names_given_go_first_and_are_checked():
    with pytest.raises(JaxgradError, match="which the module lacks"):
        port.match(PARAMS, Net(), mistakes.shape(2, 4), fn=run, names={"fc.kernel": "fc.wieght"})
    with pytest.raises(JaxgradError, match="no rule makes the one from the other"):
        port.match(PARAMS, Net(), mistakes.shape(2, 4), fn=run, names={"fc.kernel": "fc.bias"})
    with pytest.raises(JaxgradError, match="which are no leaves"):
        port.match(PARAMS, Net(), mistakes.shape(2, 4), fn=run, names={"fc.kernle": "fc.weight"})
    one = lambda kernel, x: x @ kernel.T  # noqa: E731
    with pytest.raises(JaxgradError, match="the first argument is one array; with a module it is the tree of all its"):
        check(
            one, mistakes.shape(3, 4), mistakes.shape(2, 4), torch_reference=Net(), torch_names={"kernel": "fc.weight"}
        )
    mapping = port.match(PARAMS, Net(), mistakes.shape(2, 4), fn=run, names={"fc.kernel": "fc.weight"})
    assert mapping.entries[1].proved


def test_what_is_left_over_is_an_error_that_lists_it():
    with pytest.raises(JaxgradError, match=r"torch tensors \[fc.bias \(3,\)\]"):
        port.match({"kernel": mistakes.shape(4, 3)}, Net(), mistakes.shape(2, 4), fn=lambda p, x: x @ p["kernel"])
    extra = {**PARAMS, "more": mistakes.shape(7)}
    with pytest.raises(JaxgradError, match=r"JAX leaves \[\['more'\] \(7,\)\]"):
        port.match(extra, Net(), mistakes.shape(2, 4), fn=run)


def test_loading_says_which_tensor_is_missing_or_of_another_shape(tmp_path):
    mapping = port.match(PARAMS, Net(), mistakes.shape(2, 4), fn=run)
    with pytest.raises(JaxgradError, match=r"'fc.bias', which the state dict lacks"):
        port.load(PARAMS, {"fc.weight": np.ones((3, 4))}, mapping)
    with pytest.raises(JaxgradError, match="the mapping was made for"):
        port.load(PARAMS, {"fc.weight": np.ones((3, 5)), "fc.bias": np.ones(3)}, mapping)
    with pytest.raises(JaxgradError, match="there is no checkpoint"):
        port.load(PARAMS, tmp_path / "none.safetensors", mapping)
    (tmp_path / "map.json").write_text("{}")
    with pytest.raises(JaxgradError, match="is not a mapping"):
        port.read(tmp_path / "map.json")


def test_rules_are_transposed():
    rng = np.random.default_rng(0)
    sizes = {"a": (6, 4), "b": (6, 4), "c": (6,), "d": (6,)}
    tensors = {name: rng.standard_normal(size) for name, size in sizes.items()}
    shapes = {name: x.shape for name, x in tensors.items()}
    tried = [
        rules.Rule(("a",), steps=(("slice", 0, 2, 4), ("transpose", (1, 0)))),
        rules.Rule(("a", "b"), rules.STACK, (("transpose", (0, 2, 1)),)),
        rules.Rule(("a", "b"), rules.CONCATENATE, (("reshape", (12, 2, 2)),)),
        rules.Rule(("c", "d"), rules.SUM, (("slice", 0, 0, 2),)),
        rules.Rule(("c", "d"), rules.GATED),
        rules.Rule(("a",), steps=(("blocks", 0, (2, 0, 1)), ("flip", (1,)))),
    ]
    for rule in tried:
        leaf = rules.apply(rule, tensors)
        dleaf = rng.standard_normal(leaf.shape)
        back = rules.transposed(rule, dleaf, shapes)
        assert np.isclose((leaf * dleaf).sum(), sum((back[n] * tensors[n]).sum() for n in rule.sources)), rule
        assert np.array_equal(eval(rules.as_code(rule), {"np": np, "state": tensors}), leaf), rule


def by_path(mapping: port.Mapping) -> dict[str, rules.Rule]:
    return {entry.path: entry.rule for entry in mapping.entries}


def test_a_cell_with_one_bias_has_the_sum_of_both():
    def fn(p, x):
        def step(carry, row):
            h, c = carry
            i, f, g, o = jnp.split(row @ p["wi"] + h @ p["wh"] + p["b"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        start = (jnp.zeros((2, 3)), jnp.zeros((2, 3)))
        return jax.lax.scan(step, start, x)[1]

    class Last(torch.nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    params = {"wi": mistakes.shape(3, 12), "wh": mistakes.shape(3, 12), "b": mistakes.shape(12)}
    found = by_path(port.match(params, Last(3, 3), mistakes.shape(3, 2, 3), fn=fn))
    assert {name: rule.sources for name, rule in found.items()} == {
        "['wi']": ("weight_ih_l0",), "['wh']": ("weight_hh_l0",), "['b']": ("bias_ih_l0", "bias_hh_l0"),
    }  # fmt: skip


def test_layers_are_stacked_and_not_the_tensors_of_one():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.q, self.k = torch.nn.LayerNorm(4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x):
            x = self.norm(x)
            return torch.tanh(self.q(x)) * self.k(x)

    def layer(x, w):
        x = jax.nn.standardize(x, -1, epsilon=1e-5) * w["norm"]["g"] + w["norm"]["b"]
        return jnp.tanh(x @ w["q"]["w"] + w["q"]["b"]) * (x @ w["k"]["w"] + w["k"]["b"]), None

    dense = {"w": mistakes.shape(3, 4, 4), "b": mistakes.shape(3, 4)}
    params = {"norm": {"g": mistakes.shape(3, 4), "b": mistakes.shape(3, 4)}, "q": dense, "k": dense}
    module = torch.nn.Sequential(*(Layer() for _ in range(3)))
    found = by_path(port.match(params, module, mistakes.shape(2, 4), fn=lambda p, x: jax.lax.scan(layer, x, p)[0]))
    assert all(rule.join == "stack" for rule in found.values())
    assert found["['norm']['b']"].sources == ("0.norm.bias", "1.norm.bias", "2.norm.bias")


def test_what_a_product_sums_over_tells_weights_of_one_size_apart():
    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            linear = torch.nn.Linear
            self.experts = torch.nn.ModuleList(
                torch.nn.Sequential(linear(3, 5), torch.nn.Tanh(), linear(5, 3)) for _ in range(2)
            )

        def forward(self, x):
            out = torch.zeros_like(x)
            for n, expert in enumerate(self.experts):
                rows = torch.arange(len(x)) % 2 == n
                out[rows] += expert(x[rows])
            return out

    def fn(p, x):
        hidden = jnp.tanh(jnp.einsum("nd,edf->enf", x, p["w1"]) + p["b1"][:, None])
        y = jnp.einsum("enf,efd->end", hidden, p["w2"]) + p["b2"][:, None]
        return jnp.einsum("end,ne->nd", y, jax.nn.one_hot(jnp.arange(len(x)) % 2, 2))

    params = {
        "w1": mistakes.shape(2, 3, 5),
        "b1": mistakes.shape(2, 5),
        "w2": mistakes.shape(2, 5, 3),
        "b2": mistakes.shape(2, 3),
    }
    found = by_path(port.match(params, Experts(), mistakes.shape(5, 3), fn=fn))
    assert found["['w1']"].sources == ("experts.0.0.weight", "experts.1.0.weight")
    assert found["['w2']"].sources == ("experts.0.2.weight", "experts.1.2.weight")


def test_behind_a_mistake_a_layer_is_placed_as_those_before():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.post = torch.nn.LayerNorm(4), torch.nn.LayerNorm(4)
            self.inner = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.post(torch.tanh(self.inner(self.norm(x))))

    def norm(x, w, epsilon=1e-5):
        return jax.nn.standardize(x, -1, epsilon=epsilon) * w["scale"] + w["bias"]

    def fn(p, x):
        for n in range(2):
            w = p[f"Layer_{n}"]
            x = norm(x, w["Norm_1"], 1e-3 if n else 1e-5)
            x = norm(jnp.tanh(x @ w["Dense_0"]["kernel"] + w["Dense_0"]["bias"]), w["Norm_0"])
        return x

    gains = {"scale": mistakes.shape(4), "bias": mistakes.shape(4)}
    layer = {"Norm_0": gains, "Norm_1": gains, "Dense_0": {"kernel": mistakes.shape(4, 4), "bias": mistakes.shape(4)}}
    params = {"Layer_0": layer, "Layer_1": layer}
    verdict = port.compare(fn, params, mistakes.shape(3, 4), torch=torch.nn.Sequential(Layer(), Layer()))
    found = by_path(verdict.mapping)
    assert found["['Layer_1']['Norm_1']['scale']"].sources == ("1.norm.weight",)
    assert found["['Layer_1']['Norm_0']['bias']"].sources == ("1.post.bias",)
    assert "0.001 should be 1e-05" in verdict.mends[0].words and not verdict.behind


def test_a_port_with_the_names_of_the_original_is_recorded_once(monkeypatch):
    """The search and the comparison share a run where names alone say what is right, and not where they lie."""
    runs = []
    record = jax_values.record
    monkeypatch.setattr(jax_values, "record", lambda *args, **options: runs.append(args) or record(*args, **options))
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3))
    shape = mistakes.shape
    tree = {n: {"kernel": shape(3, 3), "bias": shape(3)} for n in ("0", "2")}
    for first, last, count in (("0", "2", 1), ("2", "0", 2)):

        def port_of(p, x, first=first, last=last):
            return mistakes.linear(p[last], jnp.tanh(mistakes.linear(p[first], x)))

        runs.clear()
        verdict = port.compare(port_of, tree, shape(4, 3), torch=module)
        assert verdict.agrees and len(runs) == count, str(verdict)
        rule = next(e.rule for e in verdict.mapping.entries if e.path == f"['{first}']['bias']")
        assert rule.sources == ("0.bias",)


class WeightNormed(torch.nn.Module):
    """Residual blocks of square convolutions, summed."""

    def __init__(self):
        super().__init__()
        normed = torch.nn.utils.parametrizations.weight_norm
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(*(normed(torch.nn.Conv1d(8, 8, 3, padding=1)) for _ in range(2))) for _ in range(2)
        )

    def forward(self, x):
        return sum(x + b[1](torch.tanh(b[0](torch.tanh(x)))) for b in self.blocks)


@pytest.mark.parametrize("over", [(0, 1), (0, 2)])
def test_what_is_normed_before_a_product_is_placed_by_what_the_product_sums_over(over: tuple[int, int]):
    def conv(p, x):
        w = p["v"] * p["g"] / jnp.sqrt(jnp.sum(p["v"] ** 2, over, keepdims=True))
        return jax.lax.conv_general_dilated(x, w, (1,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")) + p["b"]

    def fn(blocks, x):
        x = x.swapaxes(1, 2)
        return sum(x + conv(b["out"], jnp.tanh(conv(b["in"], jnp.tanh(x)))) for b in blocks).swapaxes(1, 2)

    layer = {"v": mistakes.shape(3, 8, 8), "g": mistakes.shape(1, 1, 8), "b": mistakes.shape(8)}
    given = [{"in": layer, "out": layer}] * 2, mistakes.shape(2, 8, 6)
    verdict = port.compare(fn, *given, torch=WeightNormed(), suggest=False)
    assert verdict.agrees == (over == (0, 1)), str(verdict)
    steps = {entry.rule.steps for entry in verdict.mapping.entries if entry.path.endswith("['v']")}
    assert steps == {(("transpose", (2, 1, 0)),)}
    assert verdict.agrees or "jnp.sqrt(jnp.sum(" in verdict.jax.line.text


class SpectralNormed(torch.nn.Module):
    def __init__(self, normed):
        super().__init__()
        self.conv, self.head = normed(torch.nn.Conv1d(3, 4, 3, padding=1)), normed(torch.nn.Linear(4, 4))

    def forward(self, x):
        return self.head(torch.tanh(self.conv(x)).mT)


NORMS = {"hook": torch.nn.utils.spectral_norm, "parametrized": torch.nn.utils.parametrizations.spectral_norm}


@pytest.mark.parametrize("bug", ["", "root of sigma"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_vectors_of_a_spectral_norm_are_leaves(norm: str, bug: str):
    def spectral(p):
        rows = jnp.moveaxis(p["kernel"], (-1, -2), (0, 1)).reshape(p["kernel"].shape[-1], -1)
        sigma = p["u"] @ rows @ p["v"]
        return p["kernel"] / (jnp.abs(sigma) ** 0.5 if bug else sigma)

    def fn(p, x):
        numbers = ("NWC", "WIO", "NWC")
        y = jax.lax.conv_general_dilated(
            x.swapaxes(1, 2), spectral(p["conv"]), (1,), [(1, 1)], dimension_numbers=numbers
        )
        return jnp.tanh(y + p["conv"]["bias"]) @ spectral(p["head"]) + p["head"]["bias"]

    shape = mistakes.shape
    params = {
        "conv": {"kernel": shape(3, 3, 4), "bias": shape(4), "u": shape(4), "v": shape(9)},
        "head": {"kernel": shape(4, 4), "bias": shape(4), "u": shape(4), "v": shape(4)},
    }
    verdict = port.compare(fn, params, shape(2, 3, 6), torch=SpectralNormed(NORMS[norm]).eval(), suggest=False)
    assert verdict.agrees == (not bug), str(verdict)
    found = by_path(verdict.mapping)
    assert found["['head']['u']"].sources[0].endswith("_u") and found["['head']['v']"].sources[0].endswith("_v")
    assert verdict.agrees or "if bug" in verdict.jax.line.text, str(verdict)


def test_a_buffer_that_no_leaf_takes_is_not_left_over():
    """A leaf `v` makes the buffers of that name candidates, and no more: a spectral norm may be folded."""

    class Folded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.v = torch.nn.Linear(3, 4)
            self.register_buffer("weight_v", torch.rand(4))

        def forward(self, x):
            return self.v(x) * self.weight_v

    module = Folded()
    scale = module.weight_v.numpy().astype(np.float64)
    params = {"v": {"kernel": mistakes.shape(3, 4), "v": mistakes.shape(4)}}

    def fn(p, x):
        return (x @ p["v"]["kernel"] + p["v"]["v"]) * scale

    found = by_path(port.match(params, module, mistakes.shape(2, 3), fn=fn))
    assert found["['v']['v']"].sources == ("v.bias",)


class Mixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cross_attn = torch.nn.ModuleDict({n: torch.nn.Linear(4, 4) for n in ("q", "k", "v")})

    def forward(self, x):
        q, k, v = (torch.tanh(layer(x)) for layer in self.cross_attn.values())
        return torch.softmax(q @ k.mT, -1) @ v


@pytest.mark.parametrize(
    ("queries", "keys", "values", "crossed"),
    [
        ("q", "k", "v", ""), ("q", "v", "k", "kv"), ("k", "v", "q", "qkv"),
        # Names that are not torch's, or not where torch has them, say nothing.
        ("a", "b", "c", ""), ("q", "v", "w", ""), ("0", "1", "2", ""), ("2", "1", "0", ""),
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_than_values_are_told(queries: str, keys: str, values: str, crossed: str):
    def fn(p, x):
        q, k, v = (jnp.tanh(mistakes.linear(p["cross"][name], x)) for name in (queries, keys, values))
        return jax.nn.softmax(q @ k.mT, -1) @ v

    layer = {"kernel": mistakes.shape(4, 4), "bias": mistakes.shape(4)}
    params = {"cross": dict.fromkeys((queries, keys, values), layer)}
    verdict = port.compare(fn, params, mistakes.shape(2, 3, 4), torch=Mixed())
    assert verdict.agrees, str(verdict)
    expected = {f"['cross']['{name}']['{kind}']" for name in crossed for kind in layer}
    assert {note.split(" agrees only as ")[0] for note in verdict.notes} == expected
    if crossed == "kv":
        assert verdict.notes[0].startswith(
            "['cross']['k']['bias'] agrees only as cross_attn.v.bias, although torch has cross_attn.k.bias"
        )


@pytest.mark.parametrize(("first", "crossed"), [(0, False), (1, False), (-1, True)])
def test_rows_of_layers_that_begin_elsewhere_are_not_crossed(first: int, crossed: bool):
    """`block_1` is torch's `block_2` where one counts from 0, and its own mirror image where one counts back."""
    module = torch.nn.Sequential()
    for n in range(3):
        module.add_module(f"block_{n}", torch.nn.Linear(4, 4))
        module.add_module(f"tanh_{n}", torch.nn.Tanh())
    numbers = range(3)[::-1] if first < 0 else range(first, first + 3)

    def fn(p, x):
        for n in numbers:
            x = jnp.tanh(mistakes.linear(p[f"block_{n}"], x))
        return x

    layer = {"kernel": mistakes.shape(4, 4), "bias": mistakes.shape(4)}
    verdict = port.compare(fn, {f"block_{n}": layer for n in numbers}, mistakes.shape(2, 4), torch=module)
    assert verdict.agrees and bool(verdict.notes) == crossed, str(verdict)
