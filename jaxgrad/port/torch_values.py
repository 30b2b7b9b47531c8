"""Every value of a PyTorch module in float64, with its module, its call and the line of source.

A dispatch mode sees each operation below autograd. Operations that hide arithmetic (layer norm, softmax, attention,
GELU, batch norm, losses) are computed step by step, so that both libraries' values are equally fine; what is recorded
besides are the forms that other libraries compute.
"""

import contextlib
import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad.checking.oracles.torch import paired, to_torch
from jaxgrad.checking.oracles.torch_noise import Draws, Roundings, rounding_mode
from jaxgrad.errors import JaxgradError
from jaxgrad.port.fingerprint import Held, in_place, largest_error
from jaxgrad.port.values import (
    Line,
    Place,
    Trace,
    Value,
    Values,
    as_float64,
    decimal,
    in_library,
    lines_here,
    raised,
)

_MOVES = frozenset(
    "view _unsafe_view reshape t transpose permute unsqueeze squeeze expand clone contiguous _reshape_alias alias "
    "detach copy_ _to_copy lift_fresh lift_fresh_copy as_strided".split()
)
_SAMPLED = frozenset("bernoulli_ bernoulli native_dropout uniform_ normal_ rand rand_like randn".split())


# Where torch calls a module from.
_CALLS = frozenset(("module.py", "_jit_internal.py", "_contextlib.py"))

# Steps that other libraries go, and torch does not.
ALTERNATIVES = frozenset((
    "mean of squares", "sqrt", "inverse * weight", "logsumexp", "cdf", "log of sum", "logarithm", "its squares",
    "sum of its squares",
))  # fmt: skip


class TorchRun(NamedTuple):
    """A recorded run: its trace, where cotangents arrive by number, the module that ran, and its outputs as tensors.

    `edges` are those of autograd's graph, of the values that have a cotangent: tensors themselves are not kept.
    `buffers` are the float buffers by name as they were after the call. `whole` tells whether all values were kept,
    `call` how the module was called.
    """

    trace: Trace
    edges: dict[int, Any]
    module: Any
    outputs: list[Any]
    buffers: dict[str, np.ndarray]
    whole: bool
    call: "_Call"


def tensors_of(module: Any) -> dict[str, np.ndarray]:
    """The float parameters and buffers of a module by name, copied; a tensor that two names share is under both."""
    return {name: _host(x) for name, x in _floats(module)}


def as_they_are(module: Any) -> dict[str, np.ndarray]:
    """The same, each in its own type and, on the CPU, in the module's own memory."""
    return {name: _plain(x, copies=False) for name, x in _floats(module)}


def _floats(module: Any) -> list[tuple[str, Any]]:
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return [(name, x) for name, x in named if x.dtype.is_floating_point or x.dtype.is_complex]


def buffers_of(module: Any) -> set[str]:
    """The names of a module's buffers."""
    return {name for name, _ in module.named_buffers(remove_duplicate=False)}


def tied(module: Any) -> dict[str, str]:
    """For every name of a parameter the first name of the same tensor."""
    first: dict[int, str] = {}
    return {n: first.setdefault(id(x), n) for n, x in module.named_parameters(remove_duplicate=False)}


def record(
    module: Any,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    values: Mapping[str, np.ndarray] | None = None,
    names: Sequence[str] = (),
) -> TorchRun:
    """Run a copy of a module, or a function of tensors, in float64 and keep every value.

    Of a run that is too large to keep there are sketches, and a value that is asked for is computed by another run.

    Args:
        module: an `nn.Module`, which does not change, or a function.
        inputs: JAX or NumPy arrays, or anything else that is passed on as it is.
        kwargs: keyword arguments likewise.
        values: numbers for parameters and buffers by name, in the place of the module's own.
        names: the names of `inputs` in the JAX function, for those that `forward` takes by name alone.

    Raises `JaxgradError` where the module raises.
    """
    import torch

    call = _Call(module, inputs, kwargs or {}, values or {}, names, torch.get_rng_state())
    own, state, outputs = _run(call, lambda: _State(_Again(call).value))
    fixed = own if hasattr(own, "named_parameters") else None
    for name, buffer in fixed.named_buffers() if fixed is not None else []:
        if (number := state.at.get(_key(buffer))) is not None and not np.array_equal(
            state.values[number].array, as_float64(_plain(buffer))
        ):
            state.new(buffer, True, Place("buffer after the call", name, ()), (), False, (), alias=False)
    numbers = [state.number(y) for y in outputs]
    state.settle()
    for number, y in zip(numbers, outputs, strict=True):
        state.values[number] = state.values[number]._replace(held=as_float64(_plain(y)))
    trace = Trace(tuple(state.values), tuple(numbers), tuple(f"output[{k}]" for k in range(len(outputs))))
    buffers = {} if fixed is None else {n: _host(b) for n, b in fixed.named_buffers() if b.dtype.is_floating_point}
    return TorchRun(trace, state.edges, own, outputs, buffers, state.all, call)


class _Call(NamedTuple):
    """What a module is called with, and the state of torch's random numbers then."""

    module: Any
    inputs: Sequence[Any]
    kwargs: Mapping[str, Any]
    values: Mapping[str, np.ndarray]
    names: Sequence[str]
    random: Any


def _run(call: _Call, new: Callable[[], "_State"], mode: Any = None) -> tuple[Any, "_State", list[Any]]:
    """Call a copy of the module and record it in a `new` state; the copy, the state, and the outputs as tensors.

    A `mode` of dispatch changes what operations give.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    own = in_float64(call.module, call.values)
    given = [tensor(x) for x in call.inputs]
    by_place, by_name = _bound(own, given, call.names, {k: tensor(x) for k, x in call.kwargs.items()})
    state = new()
    for x in jax.tree.leaves((by_place, by_name), is_leaf=lambda x: isinstance(x, torch.Tensor)):
        if isinstance(x, torch.Tensor):
            state.new(x, True, Place("input", "", ()), (), False, ())
    fixed = own if hasattr(own, "named_parameters") else None
    for name, x in [*fixed.named_parameters(), *fixed.named_buffers()] if fixed is not None else []:
        state.new(x, False, Place("parameter", name, ()), (), False, ())
    state.settle()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.set_rng_state(call.random)
            stack.enter_context(torch.enable_grad())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(_watching(own, state))
            stack.enter_context(mode if mode is not None else contextlib.nullcontext())
            stack.enter_context(_mode(state))
            out = own(*by_place, **by_name)
    except (JaxgradError, _Enough):
        raise
    except Exception as error:
        raise JaxgradError(f"the torch module {raised(error, ' in its forward pass')}") from error
    finally:
        torch.set_default_dtype(before)
    return own, state, _leaves(out)


def noise_of(run: TorchRun) -> dict[int, float]:
    """The largest error that rounding makes of each value, by number, of its largest number: drawn at random once."""
    roundings = Roundings(Draws(np.random.default_rng(12)), 2.0**-53, 2.0**-53, 1.0)
    _, state, _ = _run(run.call, lambda: _Noisy(run.trace.values), rounding_mode(roundings))
    assert isinstance(state, _Noisy)
    return state.found


class _Enough(Exception):
    """As many values have been computed again as are kept at once."""


class _Again:
    """Values of a run that were let go: from one that is asked for, as many as may be kept are computed again."""

    def __init__(self, call: _Call) -> None:
        self.call = call
        self.found: dict[int, np.ndarray] = {}

    def value(self, number: int) -> np.ndarray:
        if number not in self.found:
            self.found = {}
            with contextlib.suppress(_Enough):
                _run(self.call, lambda: _Window(self.found, number))
        return self.found[number]


def cotangents(run: TorchRun, dys: Sequence[np.ndarray]) -> dict[int, Held]:
    """The cotangents of all values of a run that have one, by number, for those of its float outputs.

    Where the run let values go there are sketches of all but the smallest. The run's graph is used up.
    """
    import torch

    ys = [(y, dy) for y, dy in zip(run.outputs, dys, strict=True) if y.requires_grad]
    if not ys or not run.edges:
        return {}
    found: dict[int, Held] = {}
    handles = []

    def take(edges: Sequence[tuple[int, int]], dxs: Sequence[Any]) -> None:
        for number, place in edges:
            if (dx := dxs[place]) is not None:
                whole = run.whole or dx.numel() <= Values.few
                found[number] = _host(dx) if whole else in_place(_plain(dx, copies=False))

    nodes: dict[Any, list[tuple[int, int]]] = {}
    for number, edge in run.edges.items():
        nodes.setdefault(edge.node, []).append((number, edge.output_nr))
    for node, edges in nodes.items():
        handles.append(node.register_prehook(functools.partial(take, edges)))
        if hasattr(node, "variable"):
            handles.append(node.variable.register_post_accumulate_grad_hook(_forget))
    try:
        given = [torch.as_tensor(np.asarray(dy, np.float64)).reshape(y.shape) for y, dy in ys]
        paired([y for y, _ in ys], given).backward()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _forget(leaf: Any) -> None:
    leaf.grad = None


# Which operand of a product is summed over which axis, and what changes each number of a weight by itself.
_SUMMED = {"mm": {0: 1, 1: 0}, "addmm": {1: 1, 2: 0}, "bmm": {0: 2, 1: 1}, "baddbmm": {1: 2, 2: 1}}
_BY_NUMBER = frozenset("mul div add sub neg abs clamp tanh exp _weight_norm_interface".split())


def contracted(trace: Trace, turned: frozenset[str] = frozenset()) -> dict[str, int]:
    """The axis of each parameter over which the first product that it goes into sums, by name.

    Of a convolution's window it is that of the channels that go in; `turned` are those of transposed convolutions.
    """
    found: dict[str, int] = {}
    for value in trace.values:
        window = _weight(trace, value.operands[1]) if value.place.op == "convolution" else None
        if window is not None and not window.transposed:
            found.setdefault(window.name, 0 if window.name in turned else 1)
        for side, axis in _SUMMED.get(value.place.op, {}).items():
            weight = _weight(trace, value.operands[side])
            if weight is not None and weight.axes == 2:
                found.setdefault(weight.name, 1 - axis if weight.transposed else axis)
    return found


class _Weight(NamedTuple):
    """A parameter by name, how many axes it has, and whether what is used is its transpose."""

    name: str
    axes: int
    transposed: bool


def _weight(trace: Trace, number: int) -> _Weight | None:
    """The parameter that a value is, moved, or each number changed by itself, as by a norm; None where it is none."""
    transposed = False
    while True:
        used = trace.values[number]
        while trace.values[number].moved and trace.values[number].operands:
            number = trace.values[number].operands[0]
        root = trace.values[number]
        if root.varies or sorted(root.shape) != sorted(used.shape):
            return None
        if used is not root and not (used.shape == root.shape and np.array_equal(used.array, root.array)):
            if len(root.shape) != 2 or not np.array_equal(used.array.T, root.array):
                return None
            transposed = not transposed
        if root.place.op == "parameter":
            return _Weight(root.place.module, len(root.shape), transposed)
        same = [n for n in root.operands if trace.values[n].shape == root.shape]
        if root.place.op not in _BY_NUMBER or len(same) != 1:
            return None
        number = same[0]


def _leaves(out: Any) -> list[Any]:
    from jaxgrad.checking.oracles import torch as oracle

    return oracle.leaves(out)


def _host(x: Any) -> np.ndarray:
    x = x.detach().cpu().resolve_conj().resolve_neg()
    return np.array(x.double().numpy() if x.dtype.is_floating_point else x.numpy())


def tensor(x: Any) -> Any:
    import torch

    if isinstance(x, (str, bool, int)) or x is None or callable(x):
        return x
    if isinstance(x, float):
        return x
    if isinstance(x, torch.Tensor):
        return x.double() if x.dtype.is_floating_point else x
    if isinstance(x, (tuple, list)):
        return type(x)(tensor(each) for each in x)
    if isinstance(x, Mapping):
        return {key: tensor(each) for key, each in x.items()}
    made = to_torch(x)
    return made.double().requires_grad_() if made.dtype.is_floating_point else made


def in_float64(module: Any, values: Mapping[str, np.ndarray]) -> Any:
    """A copy with float tensors in float64, constants that are no buffers among them, and given values."""
    import torch

    module = getattr(module, "_orig_mod", module)
    if not hasattr(module, "named_parameters"):
        return module
    # What a hook computes anew in each call, as `weight_norm` does, is no leaf of autograd, and is not copied as it is.
    held = [x for m in module.modules() for x in vars(m).values() if isinstance(x, torch.Tensor) and not x.is_leaf]
    # Numbers that are given for a weight are used where they lie: with copies, all weights would be there twice.
    given = {
        id(p): torch.nn.Parameter(torch.from_numpy(np.ascontiguousarray(values[name], np.float64)).reshape(p.shape))
        for name, p in module.named_parameters(remove_duplicate=False)
        if type(p) is torch.nn.Parameter and p.dtype.is_floating_point and name in values
    }
    try:
        module = copy.deepcopy(module, {**{id(x): x.detach().clone() for x in held}, **given})
    except Exception as error:
        raise JaxgradError(f"the torch module cannot be copied ({error}); give one that copy.deepcopy takes") from error
    attributes = [
        x for m in module.modules() for x in (*m._parameters.values(), *m._buffers.values(), *vars(m).values())
    ]
    for x in {id(x): x for x in attributes if isinstance(x, torch.Tensor)}.values():
        if x.dtype == torch.float32 and not isinstance(x, torch.nn.Parameter):
            x.data = torch.from_numpy(np.array(decimal(x.detach().cpu().numpy())))
        elif x.dtype.is_floating_point:
            x.data = x.detach().cpu().double()
    named = {
        **dict(module.named_buffers(remove_duplicate=False)),
        **dict(module.named_parameters(remove_duplicate=False)),
    }
    for name, value in values.items():
        if name in named and named[name].data_ptr() != np.asarray(value).ctypes.data:
            named[name].data = torch.from_numpy(np.array(value, np.float64)).reshape(named[name].shape)
    for p in module.parameters():
        if p.dtype.is_floating_point:
            p.requires_grad_()
    return module


def _bound(
    module: Any, given: list[Any], names: Sequence[str], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    try:
        signature = inspect.signature(module.forward if hasattr(module, "forward") else module)
    except (TypeError, ValueError):
        return given, kwargs
    by_name = {p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    places = [x for x, name in zip(given, [*names, *[""] * len(given)], strict=False) if name not in by_name]
    named = {n: x for x, n in zip(given, names, strict=False) if n in by_name}
    return places, {**named, **kwargs}


class _State(Values):
    """What a run has recorded so far. Tensors are known again by their storage and how they lie in it."""

    def __init__(self, again: Callable[[int], np.ndarray]) -> None:
        super().__init__(again)
        self.edges: dict[int, Any] = {}
        self.at: dict[Any, int] = {}
        self.last: dict[int, int] = {}
        self.modules: list[str] = []
        # Autograd gives a tensor its place in the graph after the operation that made it has returned.
        self.fresh: list[tuple[int, Any]] = []
        # While there is a reference, if a weak one, no other storage has the same address.
        self.storages: dict[int, Any] = {}
        self.weights: set[int] = set()

    def new(
        self,
        x: Any,
        varies: bool,
        place: Place,
        operands: tuple[int, ...],
        moved: bool,
        scalars: Any,
        alias: bool = True,
    ) -> int:
        from torch.multiprocessing.reductions import StorageWeakRef

        number = self.add(Value(self.array(x, place), varies, place, operands, moved, scalars))
        key = _key(x)
        # Autograd keeps results by detaching them: the same memory, and no value of its own.
        if alias and not (place.op == "detach" and key in self.at):
            # A tensor that was written to is the new value, and has the new value's cotangent.
            self.edges.pop(self.at.get(key, -1), None)
            self.fresh.append((number, x))
            self.at[key] = number
            self.last[x.untyped_storage()._cdata] = number
            if key[0] not in self.storages:
                self.storages[key[0]] = StorageWeakRef(x.untyped_storage())
        return number

    def array(self, x: Any, place: Place) -> np.ndarray:
        """A tensor's numbers; those of weights where they lie, as a forward pass does not write to them."""
        storage = x.untyped_storage()._cdata
        if place.op == "parameter" and x.requires_grad:
            self.weights.add(storage)
        return as_float64(_plain(x, copies=storage not in self.weights))

    def settle(self, leaves: bool = True) -> None:
        """Note where the cotangents of the newest tensors arrive, and let the tensors go.

        Inside of an operation autograd can be asked for those of results alone, and not of `leaves`.
        """
        from torch.autograd.graph import get_gradient_edge

        for number, x in self.fresh:
            if x.requires_grad and (x.grad_fn is not None or (leaves and _accumulates(x))):
                self.edges[number] = get_gradient_edge(x)
        self.fresh = [] if leaves else [(n, x) for n, x in self.fresh if x.requires_grad and x.grad_fn is None]

    def number(self, x: Any) -> int:
        found = self.at.get(_key(x), self.last.get(x.untyped_storage()._cdata))
        if found is None:
            found = self.new(x, False, Place("constant", "/".join(self.modules[-1:]), _lines()), (), False, ())
        return found


class _Window(_State):
    """A run of which only the arrays from the number `first` on are kept, as many as fit."""

    def __init__(self, found: dict[int, np.ndarray], first: int) -> None:
        super().__init__(found.__getitem__)
        self.found, self.first = found, first

    def add(self, value: Value) -> int:
        number = len(self.values)
        if number >= self.first:
            if self.found and self.kept > self.most:
                raise _Enough
            self.found[number] = value.array
            self.kept += 8 * value.size
        self.values.append(value._replace(held=np.zeros(0)))
        return number


class _Noisy(_State):
    """A run beside an exact one: how far each value is off."""

    def __init__(self, exact: Sequence[Value]) -> None:
        super().__init__(lambda number: exact[number].array)
        self.exact, self.found = exact, dict[int, float]()

    def add(self, value: Value) -> int:
        number = len(self.values)
        if number < len(self.exact) and self.exact[number].size == value.size:
            self.found[number] = largest_error(value.array, self.exact[number].held)
        self.values.append(value._replace(held=np.zeros(0)))
        return number


def _plain(x: Any, copies: bool = True) -> np.ndarray:
    x = x.detach()
    return np.array(
        x.cpu().resolve_conj().resolve_neg().numpy()
        if x.element_size() > 2 or not x.dtype.is_floating_point
        else x.double().numpy(),
        copy=copies or None,
    )


def _key(x: Any) -> Any:
    return x.untyped_storage()._cdata, x.storage_offset(), tuple(x.shape), x.stride(), x.dtype


def _accumulates(x: Any) -> bool:
    """Whether a cotangent arrives at a leaf: at a view of a weight that was taken under `no_grad` none does."""
    import torch

    with torch.enable_grad():
        return x.view_as(x).grad_fn.next_functions[0][0] is not None


def _lines() -> tuple[Line, ...]:
    """The lines outside of torch that led here, the innermost first; those of torch where there is no other."""
    found = lines_here()
    own = [line for line in found if not in_library(line.file)]
    return tuple((own or [line for line in found if Path(line.file).name not in _CALLS])[:12])


@contextlib.contextmanager
def _watching(module: Any, state: _State) -> Iterator[None]:
    """Note which module is running. In a module that is called twice, the second call is `name#2`."""
    if not hasattr(module, "named_modules"):
        yield
        return
    handles, calls = [], {}
    for name, child in module.named_modules():
        calls[name] = 0

        def enter(_: Any, __: Any, name: str = name) -> None:
            calls[name] += 1
            state.modules.append(name if calls[name] == 1 else f"{name}#{calls[name]}")

        def leave(_: Any, __: Any, ___: Any) -> None:
            state.modules.pop()

        handles.append(child.register_forward_pre_hook(enter))
        handles.append(child.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mode(state: _State) -> Any:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recording(TorchDispatchMode):  # type: ignore[misc]
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # Otherwise torch imports its compiler, which takes seconds, in order not to compile this method.
            return False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            state.settle(leaves=False)
            # What is asked for in float32 is computed in float64, as the rest of the run.
            if kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
            name = func.overloadpacket.__name__
            tensors = [x for x in jax.tree.leaves(args) if isinstance(x, torch.Tensor)]
            place = Place(name, state.modules[-1] if state.modules else "", _lines())
            operands = tuple(state.number(x) for x in tensors)
            steps = _STEPS.get(name)
            if steps is not None:
                told = functools.partial(_step, state, place, operands)
                with contextlib.suppress(_NotKnown):
                    steps(told, *(x.detach() if isinstance(x, torch.Tensor) else x for x in args), **kwargs)
            out = func(*args, **kwargs)
            scalars = tuple((f"argument {k}", float(x)) for k, x in enumerate(args) if isinstance(x, (int, float)))
            varies = any(state.values[n].varies for n in operands) or name in _SAMPLED
            for x in jax.tree.leaves(out):
                if isinstance(x, torch.Tensor):
                    state.new(x, varies, place, operands, name in _MOVES, scalars)
            return out

    return Recording()


# Operations, step by step.


class _NotKnown(Exception):
    """The steps of an operation with such arguments are not known."""


def _step(state: _State, place: Place, operands: tuple[int, ...], what: str, x: Any, *scalars: float) -> Any:
    """Record a value inside of an operation."""
    varies = any(state.values[n].varies for n in operands)
    named = tuple((what, float(s)) for s in scalars)
    state.new(x, varies, place._replace(op=f"{place.op}: {what}"), operands, False, named, alias=False)
    return x


def _layer_norm(told: Any, x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> None:
    axes = tuple(range(-len(shape), 0))
    _normalised(told, x, axes, eps, weight, bias)


def _normalised(told: Any, x: Any, axes: Any, eps: float, weight: Any, bias: Any) -> None:
    mean = told("mean", x.mean(axes, keepdim=True))
    told("mean of squares", (x * x).mean(axes, keepdim=True))
    var = told("variance", x.var(axes, unbiased=False, keepdim=True))
    _scaled(told, x, mean, var, eps, weight, bias)


def _scaled(told: Any, x: Any, mean: Any, var: Any, eps: float, weight: Any, bias: Any) -> None:
    centred = told("x - mean", x - mean)
    told("variance + eps", var + eps, eps)
    told("sqrt", (var + eps).sqrt())
    inverse = told("rsqrt", (var + eps).rsqrt())
    y = told("normalised", centred * inverse)
    if weight is not None:
        told("inverse * weight", inverse * weight)
        y = told("times weight", y * weight)
    if bias is not None:
        told("plus bias", y + bias)


def _group_norm(told: Any, x: Any, weight: Any, bias: Any, n: int, c: int, _: int, groups: int, eps: float) -> None:
    grouped = x.reshape(n, groups, -1)
    mean = told("mean", grouped.mean(-1, keepdim=True))
    told("mean of squares", (grouped**2).mean(-1, keepdim=True))
    var = told("variance", grouped.var(-1, unbiased=False, keepdim=True))
    told("x - mean", grouped - mean)
    told("variance + eps", var + eps, eps)
    told("rsqrt", (var + eps).rsqrt())
    y = told("normalised", ((grouped - mean) * (var + eps).rsqrt()).reshape(x.shape))
    shape = (1, c, *[1] * (x.dim() - 2))
    if weight is not None:
        y = told("times weight", y * weight.reshape(shape))
    if bias is not None:
        told("plus bias", y + bias.reshape(shape))


def _batch_norm(
    told: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, *_: Any
) -> None:
    axes, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
    if training:
        mean, var = x.mean(axes), x.var(axes, unbiased=False)
        told("mean", mean)
        told("mean of squares", (x * x).mean(axes))
        told("variance", var)

    def wide(v: Any) -> Any:
        return None if v is None else v.reshape(shape)

    _scaled(told, x, wide(mean), wide(var), eps, wide(weight), wide(bias))


def _batch_norm_legit(told: Any, x: Any, weight: Any, bias: Any, *rest: Any) -> None:
    if len(rest) == 5:
        _batch_norm(told, x, weight, bias, *rest)
    else:
        _batch_norm(told, x, weight, bias, None, None, *rest)


def _cudnn_batch_norm(
    told: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> None:
    _batch_norm(told, x, weight, bias, mean, var, False, momentum, eps)


def _softmax(told: Any, x: Any, axis: int, *_: Any) -> None:
    shifted = told("x - max", x - x.amax(axis, keepdim=True))
    exp = told("exp", shifted.exp())
    total = told("sum of exp", exp.sum(axis, keepdim=True))
    told("log of sum", total.log())
    told("logarithm", shifted - total.log())


def _log_softmax(told: Any, x: Any, axis: int, *_: Any) -> None:
    shifted = told("x - max", x - x.amax(axis, keepdim=True))
    exp = told("exp", shifted.exp())
    total = told("sum of exp", exp.sum(axis, keepdim=True))
    told("log of sum", total.log())
    told("logsumexp", x.logsumexp(axis, keepdim=True))


def _gelu(told: Any, x: Any, *, approximate: str = "none") -> None:
    if approximate == "none":
        told("x / sqrt(2)", x / math.sqrt(2), math.sqrt(2))
        told("cdf", 0.5 * (1 + (x / math.sqrt(2)).erf()))
    else:
        inner = told("inner", math.sqrt(2 / math.pi) * (x + 0.044715 * x**3), 0.044715)
        told("tanh", inner.tanh())


def _silu(told: Any, x: Any) -> None:
    told("sigmoid", x.sigmoid())


def _addmm(told: Any, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> None:
    told("product", a @ b)


def _convolution(told: Any, x: Any, weight: Any, bias: Any, *rest: Any) -> None:
    import torch

    if bias is not None:
        told("without bias", torch.ops.aten.convolution(x, weight, None, *rest))


def _nll(told: Any, x: Any, target: Any, weight: Any, reduction: int, ignore: int) -> None:
    kept = target != ignore
    used = target.where(kept, 0)
    if x.dim() != 2 or bool(((used < 0) | (used >= x.shape[1])).any()):
        raise _NotKnown
    picked = told("picked", x.gather(1, used[:, None])[:, 0])
    losses = told("losses", (-picked if weight is None else -picked * weight[used]) * kept)
    if reduction == 0:
        return
    weights = kept.double() if weight is None else weight[used] * kept
    total = told("sum", losses.sum())
    told("mean", total / told("sum of weights", weights.sum()))


def _mean(told: Any, x: Any, axes: Any = None, *rest: Any, **kwargs: Any) -> None:
    told("sum", x.sum() if axes is None else x.sum(axes, keepdim=bool(rest and rest[0])))


def _var(told: Any, x: Any, axes: Any = None, *_: Any, **__: Any) -> None:
    if isinstance(axes, bool):
        raise _NotKnown
    over = tuple(range(x.dim())) if axes is None else axes
    mean = told("mean", x.mean(over, keepdim=True))
    told("x - mean", x - mean)
    told("squares", (x - mean) ** 2)
    told("sum of squares", ((x - mean) ** 2).sum(over))
    told("biased variance", ((x - mean) ** 2).mean(over))


def _vector_norm(told: Any, x: Any, order: float = 2, axes: Any = None, *_: Any, **__: Any) -> None:
    if order != 2:
        raise _NotKnown
    squares = told("its squares", x.abs() ** 2)
    told("sum of its squares", squares.sum() if axes is None else squares.sum(axes))


def _pointwise_loss(told: Any, x: Any, target: Any, reduction: int = 1, *_: Any) -> None:
    told("difference", x - target)


def _mse(told: Any, x: Any, target: Any, reduction: int = 1) -> None:
    told("difference", x - target)
    squares = told("squares", (x - target) ** 2)
    told("sum", squares.sum())


def _average(told: Any, x: Any, size: Any, *rest: Any) -> None:
    import torch

    stride = rest[0] if rest and rest[0] else size
    padding = rest[1] if len(rest) > 1 else 0
    if x.dim() == 4:
        told("sum", torch.nn.functional.avg_pool2d(x, size, stride, padding, divisor_override=1))


def _baddbmm(told: Any, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> None:
    told("product", a @ b)


def _rms_norm(told: Any, x: Any, shape: Any, weight: Any = None, eps: Any = None) -> None:
    axes = tuple(range(-len(shape), 0))
    eps = 2.0**-52 if eps is None else eps
    squares = told("mean of squares", (x * x).mean(axes, keepdim=True))
    told("plus eps", squares + eps, eps)
    inverse = told("rsqrt", (squares + eps).rsqrt())
    y = told("normalised", x * inverse)
    if weight is not None:
        told("times weight", y * weight)


_STEPS: dict[str, Callable[..., None]] = {
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm_legit,
    "_batch_norm_with_update": lambda told, x, w, b, m, v, momentum, eps: _batch_norm(
        told, x, w, b, m, v, True, momentum, eps
    ),
    "_batch_norm_no_update": _cudnn_batch_norm,
    "_softmax": _softmax,
    "_safe_softmax": _softmax,
    "_log_softmax": _log_softmax,
    "gelu": _gelu,
    "silu": _silu,
    "addmm": _addmm,
    "baddbmm": _baddbmm,
    "convolution": _convolution,
    "nll_loss_forward": _nll,
    "mean": _mean,
    "var": _var,
    "std": _var,
    "linalg_vector_norm": _vector_norm,
    "mse_loss": _mse,
    "smooth_l1_loss": _pointwise_loss,
    "huber_loss": _pointwise_loss,
    "avg_pool2d": _average,
    "_fused_rms_norm": _rms_norm,
}
