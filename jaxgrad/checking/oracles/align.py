"""Which tensors of a PyTorch module each leaf of a JAX tree is made from, as far as names and shapes say.

The likeliest names go first, and the leaves of one module are made from tensors of one module, where they can be. What
names propose, values decide: `jaxgrad.port.match` looks for a mapping with which both programs compute the same.
"""

import difflib
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad.checking.oracles import rules
from jaxgrad.checking.oracles.rules import CONCATENATE, GATED, ONE, SUM, Rule
from jaxgrad.errors import JaxgradError

_KINDS = {
    "kernel": "weight", "w": "weight", "scale": "weight", "gain": "weight", "gamma": "weight", "embedding": "weight",
    "table": "weight", "embeddings": "weight", "weights": "weight", "b": "bias", "beta": "bias", "offset": "bias",
    "biases": "bias", "mean": "running_mean", "var": "running_var", "moving_mean": "running_mean",
    "negative_slope": "weight",
}  # fmt: skip
# How a reparametrised weight and what belongs to it are called: its length and direction, and the vectors of its
# spectral norm. A module may have a `weight_v`, or keep the same below `parametrizations`.
_REPARAMETRISED = {"original": "", "original0": "g", "original1": "v", "orig": "", "g": "g", "u": "u", "v": "v"}
_HOLDERS = frozenset(("params", "batch_stats", "value", "raw_value", "state", "layers", "model", "module", "net"))


class Unmatched(JaxgradError):
    """Leaves or tensors are left over."""


class Match(NamedTuple):
    """A leaf's path and shape, and the rule that makes it from tensors of the module."""

    path: str
    shape: tuple[int, ...]
    rule: Rule

    @property
    def torch_name(self) -> str:
        """The name of the tensor, or of each of several."""
        return ", ".join(self.rule.sources)

    @property
    def axes(self) -> tuple[int, ...] | None:
        """The axes that turn the leaf's layout into the tensor's; None where there is more to it than that."""
        match self.rule.join, self.rule.steps:
            case "one", ():
                return tuple(range(len(self.shape)))
            case "one", (("transpose", axes),):
                return tuple(int(axis) for axis in np.argsort(axes))
            case _:
                return None


def align(
    params: Any,
    torch_shapes: Mapping[str, tuple[int, ...]],
    names: Mapping[str, Any] | None = None,
    *,
    buffers: Mapping[str, tuple[int, ...]] | None = None,
    turned: frozenset[str] = frozenset(),
) -> list[Match]:
    """A match for every leaf of `params`, in order of the leaves, by names and shapes.

    Args:
        params: the tree of arrays, their shapes, or numbers.
        torch_shapes: the parameters of the module; each is needed.
        names: torch names by leaf paths, as `jax.tree_util.keystr` writes them or with dots; several names, or a
            `Rule`, where a leaf is made of several tensors. They go first.
        buffers: further tensors for leaves that no parameter is left for.
        turned: tensors whose windows may be flipped, as those of transposed convolutions.

    Raises `Unmatched` listing every leaf and tensor that is left over, and `JaxgradError` for names that do not fit.
    """
    leaves = [
        (jax.tree_util.keystr(path), jax.ShapeDtypeStruct(np.shape(leaf), np.float32))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    of_buffers = dict(buffers or {})
    shapes = dict(torch_shapes)
    given = all_given(leaves, names or {}, shapes | of_buffers)
    named = {name for options in given.values() for rule in options for name in rule.sources}
    shapes |= {name: of_buffers[name] for name in named & of_buffers.keys()}
    away = in_order(leaves, shapes | of_buffers)
    # Where each leaf can be one tensor, none is a part or a sum of several.
    whole = {k: given.get(k) or _whole(leaf.shape, shapes) for k, (_, leaf) in enumerate(leaves)}

    def left_over(way: Mapping[int, Rule]) -> int:
        return len(leaves) - len(way) + len(_free(way, torch_shapes, shapes))

    found = by_names(leaves, shapes, {}, whole, turned, away)
    if left_over(found):
        found = min(found, by_names(leaves, shapes, {}, given, turned, away), key=left_over)
    if len(found) < len(leaves) and of_buffers:
        found = by_names(leaves, shapes | of_buffers, found, given, turned, away) | found
    free = _free(found, torch_shapes, shapes | of_buffers)
    left = [f"{path} {leaf.shape}" for number, (path, leaf) in enumerate(leaves) if number not in found]
    if left or free:
        tensors = [f"{name} {tuple(shape)}" for name, shape in free.items()]
        raise Unmatched(
            f"parameters left over: JAX leaves [{', '.join(left)}], torch tensors [{', '.join(tensors)}];"
            " give names={leaf path: torch name} for them"
        )
    return [Match(path, leaf.shape, found[number]) for number, (path, leaf) in enumerate(leaves)]


def _free(
    found: Mapping[int, Rule], needed: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The tensors needed of which some number is taken by no rule."""
    taken: dict[str, int] = {}
    for rule in found.values():
        for name in rule.sources:
            taken[name] = taken.get(name, 0) + rules.covered(rule, name, shapes)
    return {name: shape for name, shape in needed.items() if taken.get(name, 0) < math.prod(shape)}


def _whole(shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> list[Rule]:
    """The rules that make a leaf of one whole tensor."""
    same = {name: own for name, own in shapes.items() if math.prod(own) == math.prod(shape)}
    found = (Rule((name,), ONE, steps) for name, own in same.items() for steps in rules.arranged(own, shape))
    return list(found)


def in_order(leaves: Sequence[tuple[str, Any]], shapes: Mapping[str, tuple[int, ...]]) -> Callable[[int, Rule], float]:
    """How far apart a leaf and a tensor stand, each among those of its kind and size, in the order of modules.

    A module with weights of other sizes is far.
    """

    def places(items: Sequence[tuple[Any, str, tuple[int, ...]]]) -> dict[Any, float]:
        groups: dict[Any, list[Any]] = {}
        for key, name, shape in items:
            groups.setdefault((module_and_kind(name)[1], math.prod(shape)), []).append(key)
        return {key: n / len(group) for group in groups.values() for n, key in enumerate(group)}

    natural = sorted(enumerate(leaves), key=lambda each: _natural(each[1][0]))
    of_leaves = places([(k, path, leaf.shape) for k, (path, leaf) in natural])
    of_tensors = places([(name, name, shape) for name, shape in shapes.items()])
    unlike = unlike_modules(leaves, shapes)

    def away(k: int, rule: Rule) -> float:
        return min((abs(of_leaves[k] - of_tensors[n]) + unlike(leaves[k][0], n) for n in rule.sources), default=1.0)

    return away


def unlike_modules(
    leaves: Sequence[tuple[str, Any]], shapes: Mapping[str, tuple[int, ...]]
) -> Callable[[str, str], bool]:
    """Whether the module of a leaf has weights of other sizes than that of a tensor, both by name."""
    own = _sizes_by_module([(path, leaf.shape) for path, leaf in leaves])
    theirs = _sizes_by_module(list(shapes.items()))
    return lambda path, name: own[_module(path)] != theirs[_module(name)]


def _module(name: str) -> tuple[str, ...]:
    return module_and_kind(name)[0]


def _sizes_by_module(items: Sequence[tuple[str, tuple[int, ...]]]) -> dict[tuple[str, ...], list[list[int]]]:
    found: dict[tuple[str, ...], list[list[int]]] = {}
    for name, shape in items:
        found.setdefault(_module(name), []).append(sorted(size for size in shape if size > 1))
    return {module: sorted(sizes) for module, sizes in found.items()}


def _natural(path: str) -> list[Any]:
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.findall(r"\d+|\D+", path.lower())]


def by_names(
    leaves: Sequence[tuple[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    taken: Mapping[int, Rule],
    given: Mapping[int, list[Rule]],
    turned: frozenset[str],
    away: Callable[[int, Rule], float] = lambda leaf, rule: 0.0,
) -> dict[int, Rule]:
    """Rules for the leaves that are not `taken`, the likeliest name first; `away` decides where names say as much."""
    all_paths = frozenset(path for path, _ in leaves)
    proposals = []
    fitting: dict[tuple[int, ...], list[Rule]] = {}
    for k, (path, leaf) in enumerate(leaves):
        if k in taken:
            continue
        shape = tuple(leaf.shape)
        if k not in given and shape not in fitting:
            fitting[shape] = list(rules.candidates(shape, shapes, turned))
        fits = given[k] if k in given else fitting[shape]
        proposals += [
            (cost(path, rule, number, all_paths) + away(k, rule), k, number, rule) for number, rule in enumerate(fits)
        ]
    placed: dict[int, Rule] = {}
    used = list(taken.values())
    # The leaves of one module are made from tensors of one module, where they can be.
    modules: dict[tuple[str, ...], str] = {}
    owners: dict[str, tuple[str, ...]] = {}
    ranked = sorted(proposals, key=lambda each: each[:3])
    for together in (True, False):
        for _, k, _, rule in ranked:
            holder = module_and_kind(leaves[k][0])[0]
            module = _owner(rule.sources[0])
            fused = rule.join != ONE or any(step[0] == "slice" for step in rule.steps)
            apart = modules.get(holder, module) != module or (owners.get(module, holder) != holder and not fused)
            if k in placed or not is_free(rule, used) or (together and apart):
                continue
            modules.setdefault(holder, module)
            owners.setdefault(module, holder)
            placed[k] = rule
            used.append(rule)
    return placed


def by_analogy(
    leaves: Sequence[tuple[str, Any]], shapes: Mapping[str, tuple[int, ...]], taken: Mapping[int, Rule]
) -> dict[int, Rule]:
    """Rules for leaves that are in another layer what a leaf with a rule is in its own.

    Two paths that differ in their n-th number alone are made from tensors whose n-th numbers differ by as much.
    """
    found: dict[int, Rule] = {}
    used = list(taken.values())
    shown = {path: (leaf.shape, taken[k]) for k, (path, leaf) in enumerate(leaves) if k in taken}
    by_form: dict[tuple[str, int], list[str]] = {}
    for path in shown:
        for nth, number in enumerate(re.finditer(r"\d+", path)):
            by_form.setdefault((path[: number.start()] + path[number.end() :], nth), []).append(path)
    for k, (path, leaf) in enumerate(leaves):
        if k in taken:
            continue
        for nth, number in enumerate(re.finditer(r"\d+", path)):
            for like in by_form.get((path[: number.start()] + path[number.end() :], nth), ()):
                shape, rule = shown[like]
                by = int(number[0]) - int(re.findall(r"\d+", like)[nth])
                names = tuple(_counted_on(name, nth, by) for name in rule.sources)
                alike = [shapes.get(name) == shapes[old] for name, old in zip(names, rule.sources, strict=True)]
                other = rule._replace(sources=names)
                if k not in found and names and all(alike) and shape == leaf.shape and is_free(other, used):
                    found[k] = other
                    used.append(other)
    return found


def _counted_on(name: str, nth: int, by: int) -> str:
    """A name with its n-th number larger; empty where it has no such number."""
    numbers = list(re.finditer(r"\d+", name))
    if nth >= len(numbers):
        return ""
    number = numbers[nth]
    return f"{name[: number.start()]}{int(number[0]) + by}{name[number.end() :]}"


def is_free(rule: Rule, taken: Sequence[Rule]) -> bool:
    """Whether no part of a rule's tensors is taken by other rules."""

    def pieces(r: Rule) -> set[tuple[str, Any]]:
        cut = next((step for step in r.steps if step[0] == "slice"), None)
        if r.join == GATED:
            return {(r.sources[0], None), (r.sources[1], GATED)}
        return {(name, cut) for name in r.sources}

    own = pieces(rule)
    for other in taken:
        for name, cut in pieces(other):
            for mine, own_cut in own:
                # Of a gated sum's second tensor the last third is left, which a slice may take.
                if name == mine and (cut is None or own_cut is None or cut == own_cut):
                    return False
    return True


def all_given(
    leaves: Sequence[tuple[str, Any]], names: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[int, list[Rule]]:
    """The rules of the leaves that a caller named. Raises `JaxgradError` for a path that is no leaf's."""
    found = {}
    for k, (path, leaf) in enumerate(leaves):
        if (name := _named(path, names)) is not None:
            found[k] = _given(path, tuple(leaf.shape), name, shapes)
    if len(found) < len(names):
        known = {".".join(tokens_of(path)) for path, _ in leaves}
        unknown = [path for path in names if ".".join(tokens_of(path)) not in known]
        if list(known) == [""]:
            raise JaxgradError(
                f"names has {unknown}, and the first argument is one array; with a module it is the tree of all its"
                " parameters, such as a dict of them"
            )
        raise JaxgradError(f"names has {unknown}, which are no leaves; the leaves are {[path for path, _ in leaves]}")
    return found


def _given(path: str, shape: tuple[int, ...], name: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[Rule]:
    """The rules from the tensors that a caller named. Raises `JaxgradError` where there is none."""
    if isinstance(name, Rule):
        return [name]
    sources = (name,) if isinstance(name, str) else tuple(name)
    for source in sources:
        if source not in shapes:
            close = difflib.get_close_matches(source, shapes, 3)
            raise JaxgradError(
                f"names sends {path}, of shape {shape}, to {source!r}, which the module lacks; close are {close}"
            )
    found = [r for r in rules.candidates(shape, {n: shapes[n] for n in sources}) if set(r.sources) == set(sources)]
    # The first of a series stands for all that are stacked into one leaf.
    found = found or [r for r in rules.candidates(shape, shapes) if set(sources) <= set(r.sources)]
    if not found:
        raise JaxgradError(
            f"names sends {path}, of shape {shape}, to {name!r} of {[shapes[n] for n in sources]}:"
            " no rule makes the one from the other"
        )
    return found


def _named(path: str, names: Mapping[str, Any]) -> Any:
    plain = ".".join(tokens_of(path))
    return next((name for given, name in names.items() if given == path or ".".join(tokens_of(given)) == plain), None)


# There are as many pairs of names as leaves times tensors, and of names few.
_remembered = functools.lru_cache(maxsize=65_536)


def tokens_of(path: str) -> list[str]:
    return list(_tokens_of(path))


@_remembered
def _tokens_of(path: str) -> tuple[str, ...]:
    return tuple(token.lower() for token in re.findall(r"[A-Za-z0-9_]+", path))


@_remembered
def module_and_kind(path: str) -> tuple[tuple[str, ...], str]:
    """The words of a path's modules without holders, and its last in PyTorch's words."""
    # A bare array, given for all parameters, has no path.
    tokens = _by_its_owner(_tokens_of(path))
    *modules, last = [token for token in tokens if token not in _HOLDERS] or tokens or [""]
    bare = last.rstrip("0123456789_")
    words = tuple(w for m in modules for w in re.findall(r"[a-z]+|\d+", m))
    return words, _KINDS.get(last, _KINDS.get(bare, last))


def words_of(path: str) -> tuple[str, ...]:
    """The words of a name, in which a weight is called as its module is.

    >>> words_of("cross_attn.k.weight"), words_of(".cross.k"), words_of("wi_0.bias")
    (('cross', 'attn', 'k'), ('cross', 'k'), ('wi', '0', 'bias'))
    """
    modules, kind = module_and_kind(path)
    return modules if kind == "weight" else (*modules, *re.findall(r"[a-z]+|\d+", kind))


def _by_its_owner(tokens: Sequence[str]) -> list[str]:
    """The words of a name as they would be if a module kept a reparametrised weight like any other.

    >>> _by_its_owner(("fc", "parametrizations", "weight", "0", "_u")), _by_its_owner(("fc", "weight_orig"))
    (['fc', 'u'], ['fc', 'weight'])
    """
    if "parametrizations" in tokens[:-2]:
        at = tokens.index("parametrizations")
        owner, weight, part = list(tokens[:at]), tokens[at + 1], tokens[-1].strip("_")
        return [*owner, _REPARAMETRISED.get(part, part) or weight]
    *owner, last = tokens or ("",)
    weight, _, part = last.rpartition("_")
    return [*owner, _REPARAMETRISED[part] or weight] if weight == "weight" and part in _REPARAMETRISED else list(tokens)


def _owner(name: str) -> str:
    """The name of the module that a tensor belongs to, wherever a reparametrisation keeps it."""
    return re.sub(r"(^|\.)parametrizations\..*", "", name) if "parametrizations." in name else name.rpartition(".")[0]


# Which part of a fused tensor a name says: queries, keys and values; gates of an LSTM and of a GRU in torch's order.
_PARTS = (
    {"query": 0, "q": 0, "key": 1, "k": 1, "value": 2, "v": 2},
    {"i": 0, "f": 1, "g": 2, "o": 3},
    {"r": 0, "z": 1, "n": 2},
)


def cost(path: str, rule: Rule, number: int, paths: frozenset[str]) -> float:
    """How unlikely a rule is for a leaf by names and by what libraries do; `number` is its place among the rules."""
    found = -likeness(path, rule.sources) + 0.01 * min(number, 50)
    found += 0.0 if rule.join == ONE else 0.5
    # Biases that are added up are those of one module, as of a recurrent cell.
    apart = rule.join in (SUM, GATED) and len({name.rpartition(".")[0] for name in rule.sources}) > 1
    found += 1.0 if apart else 0.0
    # Tensors of one module are seldom stacked; those of a series of modules are.
    found += 0.5 if rule.join == CONCATENATE and _stacks(rule) else 0.0
    found += 3.0 if any(step[0] in ("blocks", "flip") for step in rule.steps) else 0.0
    *modules, last = [token for token in tokens_of(path) if token not in _HOLDERS] or tokens_of(path) or [""]
    turned = next((step[1] for step in rule.steps if step[0] == "transpose"), None)
    if last in ("kernel", "w"):
        # Flax and haiku have kernels with the inputs before the outputs, and windows before both.
        ordinary = turned is not None and turned[-2:] == (1, 0)
        found += 0.0 if ordinary else 1.5
    elif last in ("weight", "embedding", "bias"):
        found += 1.0 if turned is not None else 0.0
    cut = next((step for step in rule.steps if step[0] == "slice"), None)
    gate = re.fullmatch(r"([ih])([ifgorzn])", modules[-1]) if modules else None
    if cut is not None:
        part = cut[2] // (cut[3] - cut[2])
        word = gate[2] if gate else re.sub(r"_?proj|_?linear", "", modules[-1] if modules else last)
        named = [parts[word] for parts in _PARTS if word in parts]
        found += (-1.5 if part in named else 1.0) if named else 0.0
    if gate is not None:
        side = f"_{gate[1]}h"
        found += 0.0 if side in rule.sources[0] or len(rule.sources) > 1 else 1.0
        other = path.replace(gate[0], ("h" if gate[1] == "i" else "i") + gate[2])
        # A gate with one bias in JAX has the sum of torch's two.
        if last == "bias" and (other in paths) == (len(rule.sources) > 1):
            found += 2.0
    return found


def _stacks(rule: Rule) -> bool:
    """Whether concatenated tensors get an axis of their own."""
    shapes = [step[1] for step in rule.steps if step[0] == "reshape"]
    return any(shape and shape[0] == len(rule.sources) for shape in shapes)


def certain(path: str, rule: Rule) -> bool:
    """Whether a leaf has the name of its tensor, up to what wraps either, and PyTorch's word for it.

    Then its layout is the tensor's too. A `kernel` may lie in memory as the author likes, and so may the direction of a
    weight that PyTorch does not call `v`.
    """
    last = tokens_of(path)[-1:]
    if len(rule.sources) != 1 or last == ["kernel"] or (last == ["v"] and tokens_of(rule.sources[0])[-1:] != last):
        return False
    (own, kind), (theirs, other) = module_and_kind(path), module_and_kind(rule.sources[0])
    return kind == other and _one_ends_in_the_other(own, theirs)


def _one_ends_in_the_other(own: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether one name is another's end, as where either is wrapped once more. Numbers alone are no name.

    A module that is not inside of any has the empty name.
    """
    shorter = min(len(own), len(theirs))
    end = own[len(own) - shorter :]
    named = not all(word.isdigit() for word in end) or not (own or theirs)
    return end == theirs[len(theirs) - shorter :] and named


def likeness(path: str, sources: Sequence[str]) -> float:
    """How much the path of a leaf is like the names of tensors, from 0 to 7."""
    return max(0.0, _likeness(path, sources[0])) if sources else 0.0


@_remembered
def _likeness(path: str, name: str) -> float:
    modules, kind = module_and_kind(path)
    theirs, own = module_and_kind(name)
    same = 2.0 * (kind == own or (own.startswith(kind) and kind in ("weight", "bias")))
    words = _ratio(" ".join(modules), " ".join(theirs))
    # Below this the letters are alike by chance, and the order of the modules says more.
    words *= words >= 0.5
    # That says more than any place in the program.
    words += _one_ends_in_the_other(modules, theirs)
    numbers = [w for w in modules if w.isdigit()], [w for w in theirs if w.isdigit()]
    # Between names that are not alike, one may count from 0 and the other from 1.
    return same + 2 * words + (numbers[0] == numbers[1] and words >= 0.5)


@_remembered
def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
