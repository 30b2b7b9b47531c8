"""Which tensor each leaf is made from: names propose, the two programs' values decide.

The JAX program is walked from its inputs. Where a known value meets a leaf that has no rule yet, each tensor is tried
under each rule whose size fits, the likeliest name first, and the program run on until a value is found among those of
the torch program. Where several fit and a later leaf fits none, the walk goes back. Where the programs part before all
leaves are placed, names place the rest.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking import question
from jaxgrad.checking.oracles import rules
from jaxgrad.checking.oracles.align import (
    all_given,
    by_analogy,
    by_names,
    cost,
    in_order,
    is_free,
    module_and_kind,
    tokens_of,
    unlike_modules,
    words_of,
)
from jaxgrad.checking.oracles.rules import ONE, Rule
from jaxgrad.checking.oracles.torch import to_numpy, transposed_convolutions
from jaxgrad.checking.threads import of_each
from jaxgrad.errors import JaxgradError
from jaxgrad.port import fingerprint, jax_values, rounding, torch_values
from jaxgrad.port.fingerprint import SCATTERED, SWAPPED
from jaxgrad.port.jax_values import Op
from jaxgrad.port.mapping import Entry, is_parameter, paths
from jaxgrad.port.mapping import Mapping as WeightMapping
from jaxgrad.port.values import Value, as_float64

# How many candidates are tried in all, how many after a first leaf fits none, and for leaves placed together.
MOST_TRIED = 3000
MOST_TRIED_BEHIND = 250
MOST_TOGETHER = 400
# After a candidate, this many operations are run before it counts as not found: few at first, as what is found far
# behind may be so whatever the candidate is, as the softmax is whatever the bias of the keys.
_RUN_ON = (2, 40)
# How many values behind a candidate are looked up, and how many others are tried before one of which few are found.
_SUPPORT = 8
_MOST_WAITED = 40
# What a product over other axes than the torch program's weighs in the order of the candidates, more than any name; and
# through which operations, and up to which size, the axes of a leaf are followed.
_OTHER_AXES = 2.0
_FOLLOWED = frozenset("transpose reshape squeeze slice convert_element_type copy".split())
_BY_NUMBER = frozenset("mul div add sub neg abs max min tanh exp".split())
_MOST_LABELLED = 1_000_000
_PRODUCTS = frozenset(("dot_general", "mul", "conv_general_dilated"))
# So many numbers of a tensor tell their size to some 0.3 %.
_MOST_LOOKED_AT = 2**16


class Setting(NamedTuple):
    """Two programs at the same numbers: tensors drawn for the torch module, and how the JAX function is called.

    `fn` is a function of arrays: the float leaves of the parameters, then the arrays among the other arguments. The
    `spare` tensors are buffers that keep their numbers, and that no leaf need be made from.
    """

    fn: Callable[..., Any]
    leaves: list[tuple[str, Any]]
    others: list[Any]
    tensors: dict[str, np.ndarray]
    torch: torch_values.TorchRun
    spare: frozenset[str] = frozenset()


def match(
    params: Any,
    module: Any,
    *inputs: Any,
    fn: Callable[..., Any] | None = None,
    names: Mapping[str, str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    torch_inputs: Sequence[Any] | None = None,
    strict: bool = True,
    seed: int = 0,
) -> WeightMapping:
    """Which tensors of `module` each float leaf of `params` is made from, and how.

    Args:
        params: the tree of parameters, arrays or their shapes. An Equinox module is called by itself.
        module: an `nn.Module`.
        inputs: example inputs of both programs, arrays or shapes. Without any, names and shapes alone decide.
        fn: the JAX function, called as `fn(params, *inputs)`; without it `params` is called.
        names: torch names by leaf paths, which go first.
        kwargs: keyword arguments of both programs.
        torch_inputs: the module's inputs where they differ from JAX's, as of another layout of images.
        strict: whether leaves and tensors that are left over are an error.
        seed: of the numbers that both programs are given.

    Raises `JaxgradError` listing the leaves and tensors that are left over with their candidates.
    """
    if not hasattr(module, "named_parameters"):
        raise JaxgradError(f"the torch module is {module!r}; give an nn.Module")
    params, inputs = as_arrays((params, inputs))
    call = fn if fn is not None else (lambda p, *x, **k: p(*x, **k))
    if not inputs and torch_inputs is None:
        tensors = torch_values.tensors_of(module)
        shapes = {n: x.shape for n, x in tensors.items()}
        leaves = paths(params)
        given = all_given(leaves, names or {}, shapes)
        found = by_names(leaves, shapes, {}, given, transposed_convolutions(module), in_order(leaves, shapes))
        return _finished(paths(params), {}, found, tensors, set(tensors), module, strict)
    setting = prepare(call, params, inputs, module, kwargs or {}, torch_inputs, seed)
    return search(setting, module, names or {}, strict)[0]


def as_arrays(tree: Any) -> Any:
    """The tree with arrays in the place of PyTorch's tensors, as a state dict or a module's own input has them."""
    return jax.tree.map(lambda leaf: to_numpy(leaf) if hasattr(leaf, "detach") else leaf, tree)


def prepare(
    fn: Callable[..., Any],
    params: Any,
    inputs: Sequence[Any],
    module: Any,
    kwargs: Mapping[str, Any],
    torch_inputs: Sequence[Any] | None,
    seed: int,
) -> Setting:
    """Draw numbers for both programs and run the torch module."""
    given = filled(inputs, seed)
    call, leaves, others = flat_call(fn, params, given, kwargs)
    tensors = drawn(module, seed)
    names = question.parameter_names(fn, len(inputs) + 1)[1:]
    for_torch = list(given if torch_inputs is None else filled(torch_inputs, seed))
    try:
        run = torch_values.record(module, for_torch, kwargs, tensors, names)
    except JaxgradError:
        # JAX's images have their channels last, and torch's first.
        first = [channels_first(x) for x in for_torch]
        if torch_inputs is not None or all(x is y for x, y in zip(first, for_torch, strict=True)):
            raise
        run = torch_values.record(module, first, kwargs, tensors, names)
    spare = tables(run, [path for path, _ in leaves], tensors)
    return Setting(call, leaves, others, tensors | spare, run, frozenset(spare))


def channels_first(x: Any) -> Any:
    """A float array of three axes or more with its last axis brought behind the first; else what is given."""
    array = np.asarray(x) if hasattr(x, "dtype") else None
    return x if array is None or array.ndim < 3 or array.dtype.kind != "f" else np.moveaxis(array, -1, 1)


def filled(inputs: Sequence[Any], seed: int) -> tuple[Any, ...]:
    """Inputs with every shape in the place of an array filled with normal numbers, or small integers."""

    def one(number: int, x: Any) -> Any:
        if not isinstance(x, jax.ShapeDtypeStruct):
            return x
        rng = np.random.default_rng((seed, 5, number))
        if jnp.issubdtype(x.dtype, jnp.inexact):
            return rng.standard_normal(x.shape)
        raise JaxgradError(f"an input is given as a shape of {x.dtype}; give an array of numbers that make sense")

    leaves, structure = jax.tree.flatten(tuple(inputs))
    return jax.tree.unflatten(structure, [one(k, x) for k, x in enumerate(leaves)])


def flat_call(
    fn: Callable[..., Any], params: Any, inputs: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], list[tuple[str, Any]], list[Any]]:
    """`fn` as a function of arrays alone, the float leaves of the parameters with their paths, and the other arrays."""
    own, of_params = jax.tree_util.tree_flatten_with_path(params)
    rest, of_rest = jax.tree.flatten((tuple(inputs), dict(kwargs)))
    is_float = [is_parameter(leaf) for _, leaf in own]
    is_array = [hasattr(x, "dtype") and hasattr(x, "shape") for x in rest]
    count = sum(is_float)

    def call(*arrays: Any) -> Any:
        floats, others = iter(arrays[:count]), iter(arrays[count:])
        tree = jax.tree.unflatten(
            of_params, [next(floats) if w else leaf for (_, leaf), w in zip(own, is_float, strict=True)]
        )
        args, by_name = jax.tree.unflatten(
            of_rest, [next(others) if w else x for x, w in zip(rest, is_array, strict=True)]
        )
        return fn(tree, *args, **by_name)

    leaves = [(jax.tree_util.keystr(path), leaf) for (path, leaf), w in zip(own, is_float, strict=True) if w]
    return call, leaves, [x for x, w in zip(rest, is_array, strict=True) if w]


def drawn(module: Any, seed: int) -> dict[str, np.ndarray]:
    """New numbers for every float tensor of a module, of the size that it has; variances stay positive.

    A bias of zeros, or a weight of ones, would hide that it is forgotten.
    """
    if not hasattr(module, "named_parameters"):
        return {}
    tied, buffers = torch_values.tied(module), torch_values.buffers_of(module)
    tensors = torch_values.as_they_are(module)
    first = {name: tied.get(name, name) for name in tensors}
    wanted = [
        (number, name)
        for number, name in enumerate(tensors)
        # A table that the module computes with, such as a mask or frequencies, is what it is.
        if first[name] == name and (name not in buffers or re.search(r"running|mean|var", name))
    ]
    seeds = [(seed, 6, number) for number, _ in wanted]
    positive = ["var" in name.split(".")[-1] for _, name in wanted]
    numbers = of_each(redrawn, [tensors[name] for _, name in wanted], seeds, positive)
    found = {name: x for (_, name), x in zip(wanted, numbers, strict=True)}
    return {name: found[of] for name, of in first.items() if of in found}


def tables(run: torch_values.TorchRun, paths: Sequence[str], known: Container[str]) -> dict[str, np.ndarray]:
    """The buffers, beside those that are `known`, that a leaf has the name of, with the numbers that they have.

    So a spectral norm keeps its vectors. To try all others, too, would take long and find little.
    """
    kinds = {module_and_kind(path)[1] for path in paths}
    given = {v.place.module: v for v in run.trace.values if v.place.op == "parameter"}
    named = (n for n in run.buffers if n not in known and n in given and module_and_kind(n)[1] in kinds)
    return {name: given[name].array for name in named}


def redrawn(x: np.ndarray, seed: tuple[int, ...], positive: bool = False) -> np.ndarray:
    """New numbers of the size of those of an array; around its value where it is constant.

    Of a large array the size is that of some of its numbers.
    """
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(x.shape)
    if positive:
        return np.exp(0.3 * normal)
    some = x if x.size <= _MOST_LOOKED_AT else x.ravel()[rng.integers(0, x.size, _MOST_LOOKED_AT)]
    spread = float(some.std()) if some.size > 1 else 0.0
    if spread > 1e-6:
        # The median is at most a deviation from the mean, and takes much longer.
        centre = float(np.median(some)) if abs(float(some.mean())) > 2 * spread else 0.0
        normal *= spread
        return normal + centre if abs(centre) > 3 * spread else normal
    normal *= 0.3
    return normal + (float(some.flat[0]) if some.size else 0.0)


class _Dead(Exception):
    """A value needs a leaf that has no rule yet."""


class _Search:
    """What does not change while rules are tried: the program, what it needs, and torch's values."""

    def __init__(self, setting: Setting, names: Mapping[str, str], use: str) -> None:
        self.setting, self.leaves, self.use = setting, setting.leaves, use
        self.paths = frozenset(path for path, _ in setting.leaves)
        self.tensors = setting.tensors
        self.shapes = {name: tuple(x.shape) for name, x in setting.tensors.items()}
        self.turned = transposed_convolutions(setting.torch.module)
        self.given = all_given(self.leaves, names, self.shapes)
        self.close = {**self.namesakes(), **self.given}
        # Where names alone place every leaf, the program is recorded with what is probably right, and not again.
        self.all_close = len(self.close) == len(self.leaves)
        self.guess = by_names(self.leaves, self.shapes, {}, self.close, self.turned) if self.all_close else {}
        arrays = [
            rules.apply(self.guess[k], self.tensors) if k in self.guess else redrawn(np.zeros(leaf.shape), (7, k), True)
            for k, (_, leaf) in enumerate(self.leaves)
        ]
        args, looked_up = [*arrays, *setting.others], len(self.guess) == len(arrays)
        self.recorded = jax_values.record(setting.fn, args, len(arrays), use, looked_up=looked_up)
        program, trace = self.recorded.program, self.recorded.trace
        self.made = {number: op for op in program.ops for number in op.results}
        self.varies = [value.varies for value in trace.values]
        slots = {number: k for k, number in enumerate(program.inputs[: len(arrays)])}
        needs: list[frozenset[int]] = []
        zeros: set[int] = set()
        for number in range(len(trace.values)):
            op = self.made.get(number)
            if op is not None and op.name in _PRODUCTS and any(self.is_zero(n, needs) for n in op.operands):
                # As a first hidden state of zeros: the product is 0 whatever the leaf is.
                zeros.add(number)
                needs.append(frozenset())
                continue
            own = frozenset([slots[number]]) if number in slots else frozenset()
            below = () if op is None else (needs[n] for n in op.operands)
            needs.append(own.union(*below))
        self.ops = [op for op in program.ops if any(self.varies[n] for n in op.results)]
        self.wants = [
            frozenset().union(*(needs[n] for n in op.operands if not self.varies[n])) if op.operands else frozenset()
            for op in self.ops
        ]
        self.known = {
            n: self.recorded.values[n]
            for n in range(len(trace.values))
            if n in zeros or (n not in self.made and n not in slots)
        }
        self.slots = {k: number for number, k in slots.items()}
        values = setting.torch.trace.values
        self.theirs = fingerprint.index([v.held for v in values if v.varies and fingerprint.told(v.held)])
        order = {v.place.module: k for k, v in enumerate(values) if v.place.op == "parameter"}
        used = [n for v in values if v.place.op != "parameter" for n in v.operands]
        first = {
            values[n].place.module: k for k, n in reversed(list(enumerate(used))) if values[n].place.op == "parameter"
        }
        self.order = {name: first.get(name, len(used) + order.get(name, 0)) for name in setting.tensors}
        self.used = set(first)
        count = max(len(self.order), 1)
        self.places = {n: k / count for k, n in enumerate(sorted(self.order, key=self.order.__getitem__))}
        wanted = [leaf for want in self.wants for leaf in sorted(want)]
        self.first = {leaf: wanted.index(leaf) for leaf in set(wanted)}
        self.position = {
            leaf: k / len(self.first) for k, leaf in enumerate(sorted(self.first, key=self.first.__getitem__))
        }
        self.mirrored = mirrored_leaves(self.recorded, len(arrays))
        self.contracted = contracted_leaves(self.recorded, len(arrays))
        self.unlike = unlike_modules(self.leaves, self.shapes)
        self.contracted_by_torch = torch_values.contracted(setting.torch.trace, self.turned)
        self.left = MOST_TRIED
        self.best: dict[int, Rule] = {}
        self.guessed: frozenset[int] = frozenset()
        self.options: dict[int, list[Rule]] = {}

    def is_zero(self, number: int, needs: Sequence[frozenset[int]]) -> bool:
        """Whether a value is 0 all over, whatever the leaves and the inputs are."""
        if needs[number] or self.varies[number]:
            return False
        x = np.asarray(as_float64(self.recorded.values[number]))
        return bool(x.size and not x.any())

    def ranked(self, leaf: int) -> list[Rule]:
        """The candidates of a leaf, the likeliest first."""
        if leaf not in self.options:
            path, array = self.leaves[leaf]

            def total(item: tuple[int, Rule]) -> tuple[float, int]:
                number, rule = item
                return cost(path, rule, 0, self.paths) + 2 * self.away(leaf, rule), number

            found = self.given.get(leaf) or list(rules.candidates(tuple(array.shape), self.shapes, self.turned))
            self.options[leaf] = [rule for _, rule in sorted(enumerate(found), key=total)]
        return self.options[leaf]

    def away(self, leaf: int, rule: Rule) -> float:
        """How far apart a leaf and its tensors are first used in the two programs, of the whole of each.

        A rule with which a product would sum over other axes than the torch program's is far, and so is a tensor of a
        module that has weights of other sizes, and a window that is to be flipped and is not.
        """
        place = self.position.get(leaf, 0.5)
        path = self.leaves[leaf][0]
        apart = min((abs(self.places[n] - place) for n in rule.sources), default=1.0)
        apart += any(self.unlike(path, n) for n in rule.sources)
        turned = any(step[0] == "flip" for step in rule.steps)
        mirrored = leaf in self.mirrored and not self.turned.isdisjoint(rule.sources) and turned != self.mirrored[leaf]
        return apart + _OTHER_AXES * (not self.contracts_alike(leaf, rule)) + 2 * _OTHER_AXES * mirrored

    def contracts_alike(self, leaf: int, rule: Rule) -> bool:
        """Whether the axes of a leaf that products sum over are made from those of its tensors that torch sums over."""
        own, theirs = self.contracted.get(leaf), {self.contracted_by_torch.get(name) for name in rule.sources}
        if own is None or None in theirs or len(theirs) != 1:
            return True
        (axis,) = theirs
        return own == _made_from(rule, tuple(self.shapes[name] for name in rule.sources), axis)

    def by_names(self, taken: Mapping[int, Rule]) -> dict[int, Rule]:
        """Rules for all leaves that have none: as those of an earlier layer, else by their names."""
        same = {k: rule for k, rule in by_analogy(self.leaves, self.shapes, taken).items() if k not in self.given}
        rest = by_names(self.leaves, self.shapes, {**taken, **same}, self.given, self.turned, self.away)
        return {**same, **rest}

    def proposed(self, given: Mapping[int, list[Rule]]) -> dict[int, Rule]:
        """Rules for all leaves by their names, of those `given` for some; nothing is known of the values."""
        found = by_names(self.leaves, self.shapes, {}, given, self.turned, self.away)
        for k, (path, leaf) in enumerate(self.leaves):
            if k not in found and self.first.get(k) is not None:
                # A norm without weights of its own beside one with them, which are then ones and zeros.
                number = 0.0 if module_and_kind(path)[1] in ("bias", "running_mean") else 1.0
                found[k] = rules.constant(tuple(leaf.shape), number)
        return found

    def namesakes(self) -> dict[int, list[Rule]]:
        """The candidates of those leaves that have the name of a tensor: those made from it alone."""
        tensors: dict[Any, list[str]] = {}
        for name in self.tensors:
            tensors.setdefault(module_and_kind(name), []).append(name)
        found = {}
        for k, (path, leaf) in enumerate(self.leaves):
            shapes = {name: self.shapes[name] for name in tensors.get(module_and_kind(path), ())}
            if len(shapes) == 1 and (fits := list(rules.candidates(tuple(leaf.shape), shapes, self.turned))):
                found[k] = fits
        return found

    def holds(self, proposed: Mapping[int, Rule]) -> bool:
        """Whether all outputs are the torch program's with these rules."""
        found: Mapping[int, Any] = self.recorded.values
        arrays = {k: rules.apply(rule, self.tensors) for k, rule in proposed.items()}
        if proposed != self.guess:
            given = {self.slots[k]: array for k, array in arrays.items()}
            found = jax_values.outputs(self.recorded.program, {**self.known, **given})
        if self.agrees(found):
            return True
        # They may be off by little, and that by rounding.
        if not self.agrees(found, rounding.COARSEST):
            return False
        args = [*(arrays[k] for k in sorted(arrays)), *self.setting.others]
        as_it_is = proposed == self.guess
        run = self.recorded if as_it_is else jax_values.record(self.setting.fn, args, len(arrays), self.use)
        own, theirs = rounding.noise_of(run), torch_values.noise_of(self.setting.torch)
        noise = [own.get(n, 0.0) for n in run.program.outputs]
        noise += [theirs.get(n, 0.0) for n in self.setting.torch.trace.outputs]
        return self.agrees(found, min(rounding.TIMES * max(noise), rounding.COARSEST))

    def value(self, number: int, memo: dict[int, Any]) -> Any:
        """A value, computed if all leaves that it needs have rules."""
        if number in memo:
            return memo[number]
        op = self.made.get(number)
        if op is None:
            raise _Dead
        made = op.run([self.value(n, memo) for n in op.operands])
        memo.update(zip(op.results, made, strict=True))
        return memo[number]

    def found(
        self,
        number: int,
        memo: Mapping[int, Any],
        without: tuple[str, ...] = (),
        tolerance: float = fingerprint.TOLERANCE,
    ) -> bool:
        """Whether a value is one of the torch program's."""
        x = as_float64(memo[number])
        if not fingerprint.told(x):
            return False
        for other in fingerprint.like(x, self.theirs, tolerance):
            how = fingerprint.layout(x, self.theirs.arrays[other], tolerance)
            if how is not None and how.kind not in (SCATTERED, *without):
                return True
        return False

    def run_on(
        self, start: int, memo: dict[int, Any], assigned: Mapping[int, Rule], most: int
    ) -> tuple[bool, frozenset[int]]:
        """Whether a value that the operation `start` leads to is found, and else which leaves were missing."""
        after = set(self.ops[start].results)
        missing: frozenset[int] = frozenset()
        count = 0
        for k in range(start, len(self.ops)):
            op = self.ops[k]
            if k > start and not after.intersection(op.operands):
                continue
            after.update(op.results)
            lacks = self.wants[k] - assigned.keys()
            if lacks and not self.of_nothing(k, memo):
                missing = missing or lacks
                after.difference_update(op.results)
                continue
            try:
                for number in op.results:
                    self.value(number, memo)
            except _Dead:
                after.difference_update(op.results)
                continue
            count += not self.recorded.trace.values[op.results[0]].moved
            if any(self.found(number, memo) for number in op.results):
                return True, frozenset()
            if count >= most:
                break
        return False, missing

    def support(self, start: int, memo: dict[int, Any], assigned: Mapping[int, Rule]) -> float:
        """Which part of the next values behind an operation is found, of those that need no other leaf."""
        after = set(self.ops[start].results)
        found: list[bool] = []
        for k in range(start, len(self.ops)):
            op = self.ops[k]
            if len(found) >= _SUPPORT or (k > start and not after.intersection(op.operands)):
                continue
            if self.wants[k] - assigned.keys() and not self.of_nothing(k, memo):
                continue
            try:
                for number in op.results:
                    self.value(number, memo)
            except _Dead:
                continue
            after.update(op.results)
            if not self.recorded.trace.values[op.results[0]].moved:
                found += [self.found(n, memo) for n in op.results if fingerprint.told(as_float64(memo[n]))]
        return sum(found) / max(len(found), 1)

    def walk(self, start: int, memo: dict[int, Any], assigned: dict[int, Rule], guessed: frozenset[int]) -> bool:
        """Place every leaf from an operation on; `best` keeps the furthest that was reached.

        A leaf behind which nothing is found is guessed by its name, and the walk goes on: not every value has a
        counterpart in a right port.
        """
        k = start
        while k < len(self.ops) and (not self.wants[k] - assigned.keys() or self.of_nothing(k, memo)):
            for number in self.ops[k].results:
                self.value(number, memo)
            k += 1
        if len(assigned) - len(guessed) > len(self.best) - len(self.guessed):
            self.best, self.guessed = dict(assigned), guessed
        if k == len(self.ops):
            if self.agrees(memo):
                self.best, self.guessed = dict(assigned), frozenset()
                return True
            self.left = min(self.left, MOST_TRIED_BEHIND)
            return False
        any_found = False
        for added, tried in self.fitting(k, memo, assigned):
            any_found = True
            if self.walk(k, tried, {**assigned, **added}, guessed):
                return True
            if self.left <= 0:
                return False
        # Either an earlier choice was wrong, or the programs part here, where going back finds nothing better.
        self.left = min(self.left, MOST_TRIED_BEHIND)
        wanted = sorted(self.wants[k] - assigned.keys())
        guess = next(self.combinations(wanted, assigned), None)
        if any_found or guess is None or self.left <= 0:
            return False
        for leaf, rule in guess.items():
            memo[self.slots[leaf]] = jnp.asarray(rules.apply(rule, self.tensors))
        return self.walk(k, memo, {**assigned, **guess}, guessed | set(wanted))

    def of_nothing(self, k: int, memo: dict[int, Any]) -> bool:
        """Whether an operation multiplies zeros, as of a first hidden state: the result is 0 whatever the leaf is."""
        op = self.ops[k]
        if op.name not in _PRODUCTS:
            return False
        known = [np.asarray(memo[n]) for n in op.operands if n in memo and self.varies[n]]
        if not any(x.size and not x.any() for x in known):
            return False
        memo.update((n, self.recorded.values[n] * 0) for n in op.results)
        return True

    def agrees(self, memo: Mapping[int, Any], tolerance: float = fingerprint.TOLERANCE) -> bool:
        """Whether the float outputs are found, after all leaves have been placed."""
        outputs = [n for n in self.recorded.program.outputs if self.varies[n]]
        wanted = [n for n in outputs if fingerprint.told(as_float64(memo[n]))]
        return bool(wanted) and all(self.found(n, memo, (SWAPPED,), tolerance) for n in wanted)

    def fitting(
        self, k: int, memo: dict[int, Any], assigned: dict[int, Rule]
    ) -> Iterator[tuple[dict[int, Rule], dict[int, Any]]]:
        """Rules for the leaves that an operation meets with which a value is found, and the values then known.

        Those with which most of the values behind it are not found wait until some others have been tried: the first
        turn of a recurrent cell is found with one of its two biases, and nothing behind it.
        """
        alone = self.wants[k] - assigned.keys()
        missing: frozenset[int] = frozenset()
        for most in _RUN_ON:
            for number in range(2):
                # Where nothing can be found before other leaves are placed, these are placed together.
                wanted = alone | missing if number else alone
                if number and not missing:
                    continue
                any_found = False
                waiting: list[tuple[float, int, dict[int, Rule], dict[int, Any]]] = []
                since = 0
                for added in self.combinations(sorted(wanted), assigned):
                    self.left -= 1
                    since += bool(waiting)
                    if self.left <= 0 or since > _MOST_WAITED:
                        break
                    tried = dict(memo)
                    for leaf, rule in added.items():
                        tried[self.slots[leaf]] = jnp.asarray(rules.apply(rule, self.tensors))
                    found, lacks = self.run_on(k, tried, {**assigned, **added}, most)
                    missing = missing | lacks
                    if not found:
                        continue
                    any_found = True
                    share = self.support(k, tried, {**assigned, **added})
                    if share >= 0.5:
                        yield added, tried
                    else:
                        waiting.append((-share, len(waiting), added, tried))
                        since = since or 1
                yield from ((added, tried) for _, _, added, tried in sorted(waiting, key=lambda each: each[:2]))
                if any_found or self.left <= 0:
                    return

    def combinations(self, wanted: Sequence[int], assigned: Mapping[int, Rule]) -> Iterator[dict[int, Rule]]:
        taken = [rule for leaf, rule in assigned.items()]
        if len(wanted) == 1:
            # The first that is tried is mostly right, and there are many.
            yield from ({wanted[0]: rule} for rule in self.ranked(wanted[0]) if is_free(rule, taken))
            return
        lists = [[rule for rule in self.ranked(leaf) if is_free(rule, taken)] for leaf in wanted]
        lists = [each[:60] for each in lists]
        # Those that are likely on the whole come first.
        ranks = itertools.product(*(range(len(each)) for each in lists))
        for rank in sorted(itertools.islice(ranks, 200_000), key=sum)[:MOST_TOGETHER]:
            chosen = [each[r] for each, r in zip(lists, rank, strict=True)]
            if all(is_free(rule, chosen[:n]) for n, rule in enumerate(chosen)):
                yield dict(zip(wanted, chosen, strict=True))


def contracted_leaves(recorded: jax_values.Recorded, count: int) -> dict[int, frozenset[int]]:
    """The axes of each leaf over which the first product that it goes into sums, for the first `count` inputs.

    Of a convolution's window it is the axis of the channels that go in. A product with what depends on the inputs goes
    before one with other weights, such as that for a spectral norm.
    """
    program, values = recorded.program, recorded.trace.values
    found: dict[int, frozenset[int]] = {}
    with_inputs: dict[int, frozenset[int]] = {}
    # For every axis an array that holds the index along it is moved as the leaf is.
    labels: dict[int, tuple[int, list[np.ndarray]]] = {}
    for leaf, number in enumerate(program.inputs[:count]):
        shape = np.shape(recorded.values[number])
        if 2 <= len(shape) <= 5 and math.prod(shape) <= _MOST_LABELLED:
            labels[number] = leaf, [np.broadcast_to(x, shape) for x in np.indices(shape, np.float64, sparse=True)]
    for op in program.ops:
        for side, n in enumerate(op.operands):
            if n not in labels or op.name not in ("dot_general", "conv_general_dilated"):
                continue
            leaf, of_axes = labels[n]
            if op.name == "dot_general":
                over = frozenset(op.eqn.params["dimension_numbers"][0][side])
            elif side == 1:
                over = frozenset(op.eqn.params["dimension_numbers"].rhs_spec[1:2])
            else:
                continue
            axes = frozenset(a for a, x in enumerate(of_axes) if _varying(x) & over)
            found.setdefault(leaf, axes)
            if any(values[m].varies for m in op.operands):
                with_inputs.setdefault(leaf, axes)
        if (source := _followed(op, labels, values)) is not None:
            leaf, of_axes = labels[source]
            labels[op.results[0]] = leaf, [np.asarray(op.run([x])[0]) if op.name in _FOLLOWED else x for x in of_axes]
    return {**found, **with_inputs}


def _followed(op: Op, known: Container[int], values: Sequence[Value]) -> int | None:
    """The operand among the `known` ones whose numbers lie in the result: moved, or each changed by itself.

    So is a weight that is scaled to some norm. With what depends on the inputs it is no weight any more.
    """
    if op.name in _FOLLOWED and len(op.operands) == 1:
        return next((n for n in op.operands if n in known), None)
    if op.name not in _BY_NUMBER or values[op.results[0]].varies:
        return None
    same = [n for n in op.operands if n in known and values[n].shape == values[op.results[0]].shape]
    return same[0] if len(same) == 1 else None


def mirrored_leaves(recorded: jax_values.Recorded, count: int) -> dict[int, bool]:
    """For each leaf that a transposed convolution is written with: whether the program leaves its window as it is.

    Such a one is a convolution of what is spread out, whose window is the other way round.
    """
    program, values = recorded.program, recorded.trace.values
    flips = {number: (leaf, False) for leaf, number in enumerate(program.inputs[:count])}
    found: dict[int, bool] = {}
    for op in program.ops:
        if op.name == "conv_general_dilated" and op.operands[1] in flips:
            leaf, flipped = flips[op.operands[1]]
            if any(by > 1 for by in op.eqn.params["lhs_dilation"]):
                found.setdefault(leaf, not flipped)
        elif op.name == "rev" and op.operands[0] in flips:
            leaf, flipped = flips[op.operands[0]]
            flips[op.results[0]] = leaf, not flipped
        elif (source := _followed(op, flips, values)) is not None:
            flips[op.results[0]] = flips[source]
    return found


def _varying(x: np.ndarray) -> frozenset[int]:
    """The axes along which an array is not constant."""
    return frozenset(axis for axis in range(x.ndim) if x.shape[axis] > 1 and np.ptp(x, axis).any())


@functools.lru_cache(maxsize=4096)
def _made_from(rule: Rule, shapes: tuple[tuple[int, ...], ...], axis: int) -> frozenset[int]:
    """The axes of a leaf along which the index along an axis of its tensors varies."""
    labels = {
        n: np.broadcast_to(np.indices(s, sparse=True)[axis], s) for n, s in zip(rule.sources, shapes, strict=True)
    }
    return _varying(rules.apply(rule, labels))


def search(
    setting: Setting, module: Any, names: Mapping[str, str], strict: bool, use: str = "float32"
) -> tuple[WeightMapping, jax_values.Recorded | None]:
    """The mapping of two programs: that of the names if all outputs agree with it, else what the walk finds.

    With it comes the JAX program as it ran with these weights, where it did.
    """
    with jax_values.float64():
        found = _Search(setting, names, use)
        rest = setting.tensors, found.used, module, strict, setting.spare
        # Looking at every leaf beside every tensor takes longer than all else.
        refused: dict[int, Rule] | None = None
        for given in (found.close,) if found.all_close else (found.close, found.given):
            proposed = found.proposed(given)
            if proposed != refused and len(proposed) == len(setting.leaves) and found.holds(proposed):
                mapping = _finished(setting.leaves, proposed, {}, *rest)
                return mapping, found.recorded if proposed == found.guess else None
            refused = proposed
        found.walk(0, dict(found.known), {}, frozenset())
    proved = {k: rule for k, rule in found.best.items() if k not in found.guessed}
    placed = found.by_names(proved)
    return _finished(setting.leaves, proved, placed, *rest), None


def odd_ones(mapping: WeightMapping) -> dict[str, Rule]:
    """Square leaves that are transposed, or not, unlike all others of the same last name; with the usual rule.

    That a square weight is used the other way round is a mistake that no shape shows.
    """
    ways: dict[str, dict[str, bool]] = {}
    for entry in mapping.entries:
        shapes = {mapping.tensors[name] for name in entry.rule.sources}
        if entry.rule.join == ONE and len(entry.shape) == 2 and entry.rule.steps in ((), (_FLAT,)) and len(shapes) == 1:
            ways.setdefault("".join(tokens_of(entry.path)[-1:]), {})[entry.path] = bool(entry.rule.steps)
    found = {}
    for votes in ways.values():
        for path, way in votes.items():
            entry = next(e for e in mapping.entries if e.path == path)
            others = [other for p, other in votes.items() if p != path]
            if len(others) > 1 and way not in others and entry.shape[0] == entry.shape[1]:
                found[path] = entry.rule._replace(steps=() if way else (_FLAT,))
    return found


_FLAT: tuple[Any, ...] = ("transpose", (1, 0))
_Named = TypeVar("_Named")


class Crossing(NamedTuple):
    """A leaf's path, the tensor that it is made from, and the tensor and the leaf that have the name of either."""

    path: str
    tensor: str
    namesake: str
    other: str


def crossings(mapping: WeightMapping) -> list[Crossing]:
    """Leaves that values proved to be made from each other's namesakes, as keys from values and values from keys.

    Their names need not be the same: `cross.k` is the namesake of `cross_attn.k.weight` where there are a `cross.v` and
    a `cross_attn.v.weight`. A row of numbers that only begins elsewhere leads to no leaf that is made from the first's.
    """
    whole = [e for e in mapping.entries if e.proved and e.rule.join == ONE and not _is_part(e.rule)]
    leaves = _alone((words_of(e.path), e) for e in whole)
    tensors = _alone((words_of(e.rule.sources[0]), e.rule.sources[0]) for e in whole)
    found: dict[str, Crossing] = {}
    for words, entry in leaves.items():
        tensor = entry.rule.sources[0]
        for own, theirs in _exchanged(words, words_of(tensor)):
            if own not in leaves or theirs not in tensors:
                continue
            other, namesake = leaves[own], tensors[theirs]
            if other.shape == entry.shape and mapping.tensors[namesake] == mapping.tensors[tensor]:
                found.setdefault(entry.path, Crossing(entry.path, tensor, namesake, other.path))
    return [each for path, each in found.items() if _returns(path, found)]


def _is_part(rule: Rule) -> bool:
    return any(step[0] == "slice" for step in rule.steps)


def _alone(named: Iterable[tuple[tuple[str, ...], _Named]]) -> dict[tuple[str, ...], _Named]:
    """What has words that nothing else has. Numbers alone are no name, nor is that of a bias."""
    groups: dict[tuple[str, ...], list[_Named]] = {}
    for words, each in named:
        groups.setdefault(words, []).append(each)
    return {w: g[0] for w, g in groups.items() if len(g) == 1 and not all(x.isdigit() or x == "bias" for x in w)}


def _exchanged(words: tuple[str, ...], theirs: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Two names with all of their words exchanged, and then with one word of either, which is no number."""
    if words == theirs:
        return
    yield theirs, words
    for (i, a), (j, b) in itertools.product(enumerate(words), enumerate(theirs)):
        if a != b and not (a.isdigit() or b.isdigit()):
            yield (*words[:i], b, *words[i + 1 :]), (*theirs[:j], a, *theirs[j + 1 :])


def _returns(path: str, found: Mapping[str, Crossing]) -> bool:
    """Whether one comes back to a leaf from the leaf that has the name of its tensor, and so on."""
    at = path
    for _ in found:
        if at not in found:
            return False
        at = found[at].other
        if at == path:
            return True
    return False


def _finished(
    leaves: Sequence[tuple[str, Any]],
    proved: Mapping[int, Rule],
    placed: Mapping[int, Rule],
    tensors: Mapping[str, np.ndarray],
    used: set[str],
    module: Any,
    strict: bool,
    spare: frozenset[str] = frozenset(),
) -> WeightMapping:
    entries = []
    for k, (path, leaf) in enumerate(leaves):
        rule = proved.get(k) or placed.get(k)
        if rule is not None:
            entries.append(Entry(path, tuple(leaf.shape), rule, k in proved))
    same = torch_values.tied(module) if hasattr(module, "named_parameters") else {}
    taken = {same.get(name, name) for entry in entries for name in entry.rule.sources}
    own = (name for name in tensors if same.get(name, name) == name and name not in spare)
    free = {name: tensors[name].shape for name in own if name not in taken}
    missing = [
        (path, tuple(leaf.shape)) for k, (path, leaf) in enumerate(leaves) if k not in proved and k not in placed
    ]
    needed = {name: shape for name, shape in free.items() if name in used}
    if strict and (missing or needed):
        told = [f"{path} {shape}" for path, shape in missing]
        raise JaxgradError(
            f"weights left over: JAX leaves [{', '.join(told)}], torch tensors"
            f" [{', '.join(f'{name} {tuple(shape)}' for name, shape in needed.items())}]; give names={{leaf path:"
            " torch name}, or see with compare where the programs part"
        )
    return WeightMapping(tuple(entries), {n: tuple(x.shape) for n, x in tensors.items()}, tuple(free))
