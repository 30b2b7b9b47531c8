"""PyTorch as an oracle: a module or function -> its outputs and cotangents for JAX's arguments, and their noise.

`prepare` finds out once how a reference is called; `pull` runs its backward pass, with the cotangents laid out in
memory in one of several ways; `noise` runs it again with every rounding drawn at random. All give host arrays.
"""

import contextlib
import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking.oracles import Oracle, Samples, rules
from jaxgrad.checking.oracles.align import Match, Unmatched, align
from jaxgrad.checking.oracles.torch_noise import (
    FLOAT32,
    Draws,
    Roundings,
    differentiable,
    known_to_float32,
    rounding_mode,
)
from jaxgrad.checking.pullback import Pulled
from jaxgrad.checking.question import INPUT, STATIC, Call, Question
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs.noise import Rounding
from jaxgrad.jaxprs.taps import collecting_torch_taps

# How a cotangent lies in memory. A backward that takes its cotangent for contiguous is right in the first alone.
LAYOUTS = ("contiguous", "expanded", "transposed", "strided")


class TorchProgram(NamedTuple):
    """A torch reference, and how it is called with JAX's arguments.

    `inputs` are the leaves of `(args, kwargs)` that `pull` returns cotangents of, by number and in their order.
    `frozen` are float leaves that the reference has no cotangent of: parameters with `requires_grad=False`, buffers,
    float8 leaves, and numbers in the tree of parameters that are no parameters of the module. Leave them out of the
    comparison on the other side too.

    `matches` has one entry for each leaf of the tree of parameters, None for one that is no tensor of the module.
    `shapes` are those of the module's tensors.
    `skip` is 1 where the first argument is that tree, and `keywords` names each further positional argument that
    `forward` takes by name alone.
    """

    reference: Any
    matches: tuple[Match | None, ...]
    skip: int
    keywords: tuple[str | None, ...]
    inputs: tuple[int, ...]
    frozen: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]


def prepare(
    reference: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    names: Mapping[str, Any] | None = None,
    *,
    arg_names: Sequence[str] = (),
    no_gradient: Collection[int] = (),
) -> TorchProgram:
    """How to call `reference`, from arguments of which only shapes and types matter (`ShapeDtypeStruct` will do).

    Of an `nn.Module` with parameters, `args[0]` is the tree of parameters that `align` matches with them. Of a
    function, or of a module without parameters, all arguments are inputs. An argument goes by position where the
    reference takes it so, otherwise by its name in JAX. Strings, functions, None, Python's int and bool, and other
    objects that are not arrays are passed as they are. A module is copied for each call: its buffers take the type
    of the parameters, and the user's module does not change.

    Args:
        reference: an `nn.Module` or a function of tensors.
        args: the JAX function's positional arguments.
        kwargs: its keyword arguments.
        names: torch names by leaf paths, for `align`. A leaf made from a buffer gives the buffer its value.
        arg_names: the names of `args` in the JAX function; more of them are not looked at.
        no_gradient: numbers of the leaves of `(args, kwargs)` whose cotangents are not wanted.

    Raises `JaxgradError` for a PRNG key, for parameters that are left over, and for arguments that do not fit.
    """
    # The compiler's wrapper of a module or function has other names, and computes the same.
    reference = getattr(reference, "_orig_mod", getattr(reference, "_torchdynamo_orig_callable", reference))
    if _is_module(reference) and type(reference).__module__.startswith("torch.jit"):
        raise JaxgradError("a TorchScript module cannot be run in other types; give the nn.Module that it was made of")
    kwargs = dict(kwargs or {})
    arg_names = [*arg_names[: len(args)], *(f"arg{number}" for number in range(len(arg_names), len(args)))]
    _no_keys(args, kwargs, arg_names)
    matches: tuple[Match | None, ...] = ()
    skip = 0
    if _is_module(reference):
        if dict(reference.named_parameters()):
            if not args:
                raise JaxgradError("the torch module has parameters; give the tree of parameters as first argument")
            matches, skip = _matched(reference, args[0], names), 1
        elif args and args[0] is not None and not jax.tree.leaves(args[0]):
            skip = 1  # An empty tree of parameters, for a module that has none.
    keywords = _keywords(reference, arg_names[skip:], kwargs)
    without = set(_frozen(reference, matches))
    leaves = jax.tree.leaves((args, kwargs))
    inexact = [number for number, leaf in enumerate(leaves) if _is_inexact(leaf)]
    # PyTorch stores float8 and computes nothing in it.
    without |= {number for number in inexact if getattr(leaves[number], "dtype", np.dtype(float)).itemsize == 1}
    inputs = tuple(number for number in inexact if number not in without and number not in set(no_gradient))
    frozen = tuple(number for number in inexact if number in without)
    shapes = {name: tuple(x.shape) for name, x in _tensors(reference).items()} if matches else {}
    return TorchProgram(reference, matches, skip, keywords, inputs, frozen, shapes)


def pull(
    program: TorchProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dys: list[np.ndarray],
    directions: list[Any] | None = None,
    *,
    layout: str = "contiguous",
) -> tuple[Pulled, list[str]]:
    r"""Outputs, cotangents of the taps in backward order, and those of `program.inputs`; and the names of the taps.

    `dys` are the cotangents of the float and complex outputs, which are numbered in the order of JAX's leaves: the
    keys of a plain dict sorted, the fields of a dataclass or ModelOutput as they are declared. `layout` is how they
    lie in memory, of `LAYOUTS`; "expanded" takes ones for them, as the backward of `sum()` does.

    With `directions`, one for each input, it is the second order: the gradient, in `inputs` alone, of
    $\sum_i \mathrm{Re} \sum v_i\,dx_i$, without a conjugate, as JAX pairs a tangent and a cotangent.

    Cotangents of complex numbers are given and returned in JAX's convention. JAX transposes the derivative, so that
    $dz = f'(z)\,dy$; PyTorch gives the direction of steepest ascent, $dz = \overline{f'(z)}\,dy$. The one is made
    from the other by conjugating what goes in and what comes out.

    Raises `JaxgradError` where torch raises, or where the outputs have other shapes than `dys`.
    """
    return _pull_program(program, args, kwargs, dys, directions, layout, None)


def layouts(shapes: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
    """Those of `LAYOUTS` that differ from one another for some of these shapes of outputs, "contiguous" first.

    >>> layouts([(3, 4)])
    ('contiguous', 'expanded', 'transposed', 'strided')
    >>> layouts([(5,)]), layouts([()])
    (('contiguous', 'expanded', 'strided'), ('contiguous',))
    """
    many = any(np.prod(shape) > 1 for shape in shapes)
    matrix = any(sum(size > 1 for size in shape) > 1 for shape in shapes)
    wanted = {"contiguous": True, "expanded": many, "transposed": matrix, "strided": many}
    return tuple(layout for layout in LAYOUTS if wanted[layout])


def noise(
    program: TorchProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dys: list[np.ndarray],
    directions: list[Any] | None = None,
    *,
    unit: float,
    sums: float,
    enlarged: float = 1.0,
    seeds: Sequence[int],
) -> list[Pulled]:
    r"""What `pull` gives in float64 with every rounding drawn at random, once for each seed.

    `enlarged` says by how much `unit` and `sums` are, and with them the roundings of narrower types inside.

    Monte Carlo arithmetic: the result of an operation is multiplied by $1 + u\xi$, with $\xi = \pm1$ drawn for each
    element, and so are the operands of what hides arithmetic inside: by `sums` times $\sqrt{n/2}$ where n terms are
    summed, as n partial sums are rounded. The spread of the samples is then the rounding error of an arithmetic with
    unit roundoff `unit` that accumulates sums with `sums`. Moves of data and choices are exact. A narrower type
    inside the reference, and a float32 constant in a float64 run, are known no better than to their own type.

    A unit below 2^-52, the spacing of float64 at 1, counts as 2^-52. The same seed gives the same numbers, and
    torch's own random state is left as it was.
    Source: Parker 1997, Monte Carlo Arithmetic, UCLA CSD-970002; Denis et al. 2016, arXiv:1509.01347 (Verificarlo).
    """
    samples = []
    for seed in seeds:
        roundings = Roundings(Draws(np.random.default_rng(seed)), unit, sums, enlarged)
        samples.append(_pull_program(program, args, kwargs, dys, directions, "contiguous", roundings)[0])
    return samples


def to_torch(leaf: Any) -> Any:
    """A JAX or NumPy array as a tensor on the CPU: floats as they are, integers as int64, which torch indexes by.

    Raises `JaxgradError` for a type that torch does not have.
    """
    import torch

    array = np.asarray(leaf)
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    if jnp.issubdtype(array.dtype, jnp.integer):
        return torch.from_numpy(array.astype(np.int64))
    if array.dtype == np.bool_ or (array.dtype.kind in "fc" and array.dtype.isbuiltin == 1):
        return torch.from_numpy(array.copy())
    # The float8 types have the same names in ml_dtypes and in torch, and NumPy hands over their bytes.
    if array.dtype.itemsize == 1 and hasattr(torch, array.dtype.name):
        return torch.from_numpy(array.view(np.uint8).copy()).view(getattr(torch, array.dtype.name))
    raise JaxgradError(f"PyTorch has no type like {array.dtype.name}; convert the array before the call")


def to_numpy(tensor: Any) -> Any:
    """A tensor as a NumPy array, bfloat16 and float8 included, of which NumPy has no types of its own."""
    import torch

    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(jnp.bfloat16)
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
        return tensor.contiguous().view(torch.uint8).numpy().view(jnp.dtype(str(tensor.dtype).removeprefix("torch.")))
    # Zeros of autograd that are not in memory have to be asked for.
    return tensor.numpy(force=True)


def transposed_convolutions(module: Any) -> frozenset[str]:
    """The names of the weights of a module's transposed convolutions."""
    if not hasattr(module, "named_modules"):
        return frozenset()
    inside = ((n, m) for n, m in module.named_modules() if "ConvTranspose" in type(m).__name__)
    return frozenset(f"{name}.weight".lstrip(".") for name, _ in inside)


def matched_tensors(module: Any, params: Any, names: Mapping[str, Any] | None = None) -> list[Match]:
    """The matches of a module's tensors with the leaves of `params` that are any; raises as `align` does."""
    return [match for match in _matched(module, params, names) if match is not None]


# Preparing: which argument goes where.


def _is_module(reference: Any) -> bool:
    return hasattr(reference, "named_parameters")


def _is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, or the shape of one, and so a tensor for torch."""
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")


def _is_number(leaf: Any) -> bool:
    """Whether a leaf is a Python number that has a cotangent; Python's int and bool are options, such as an axis."""
    return isinstance(leaf, (float, complex))


def _is_inexact(leaf: Any) -> bool:
    return _is_number(leaf) or (_is_array(leaf) and bool(jnp.issubdtype(leaf.dtype, jnp.inexact)))


def _no_keys(args: tuple[Any, ...], kwargs: Mapping[str, Any], arg_names: Sequence[str]) -> None:
    for own, arg in (*zip(arg_names, args, strict=True), *kwargs.items()):
        for path, leaf in jax.tree_util.tree_leaves_with_path(arg):
            if _is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                raise JaxgradError(
                    f"{own + jax.tree_util.keystr(path)} is a PRNG key, which PyTorch does not have: close over the"
                    " key in the JAX function, draw from it there, and let the torch reference close over the same"
                    " numbers, or pass the numbers as an array to both"
                )


def _tensors(module: Any) -> dict[str, Any]:
    """The parameters and buffers of a module by name, tied ones once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _matched(module: Any, params: Any, names: Mapping[str, Any] | None) -> tuple[Match | None, ...]:
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    # Buffers are the module's own, unless a leaf is made from one.
    buffers = {name: tuple(b.shape) for name, b in module.named_buffers() if differentiable(b)}

    def of(wanted: Callable[[Any], bool]) -> tuple[Match | None, ...]:
        leaves, structure = jax.tree.flatten(params)
        matched = [wanted(leaf) for leaf in leaves]
        tree = jax.tree.unflatten(structure, [x if w else None for x, w in zip(leaves, matched, strict=True)])
        found = iter(align(tree, shapes, names, buffers=buffers, turned=transposed_convolutions(module)))
        return tuple(next(found) if w else None for w in matched)

    failed: JaxgradError | None = None
    # A number may be a parameter, or an option that the tree keeps, such as the rate of Equinox's Dropout. An array
    # that is no float may be a count, such as that of steps.
    for wanted in (lambda x: _is_array(x) or _is_number(x), _is_array, lambda x: _is_array(x) and _is_inexact(x)):
        try:
            return of(wanted)
        except JaxgradError as error:
            failed = failed or error
    assert failed is not None
    tied = _tied(module) if isinstance(failed, Unmatched) else []
    if tied:
        raise Unmatched(f"{failed}; in the module {', '.join(tied)}, and one tensor wants one leaf")
    raise failed


def _tied(module: Any) -> list[str]:
    """That a parameter is the same tensor as an earlier one, for each that is."""
    first: dict[int, str] = {}
    every = [(name, first.setdefault(id(p), name)) for name, p in module.named_parameters(remove_duplicate=False)]
    return [f"{name} is {other}" for name, other in every if name != other]


def _frozen(module: Any, matches: tuple[Match | None, ...]) -> Iterator[int]:
    for number, match in enumerate(matches):
        named = dict(module.named_parameters())
        sources = () if match is None else match.rule.sources
        if not sources or not any(name in named and named[name].requires_grad for name in sources):
            yield number


def _keywords(reference: Any, arg_names: Sequence[str], kwargs: Mapping[str, Any]) -> tuple[str | None, ...]:
    """For each positional argument its name where it has to go by it, else None."""
    try:
        parameters = inspect.signature(reference.forward if _is_module(reference) else reference).parameters.values()
    except (TypeError, ValueError):
        # Most of torch's own functions do not tell, and take tensors by position.
        return (None,) * len(arg_names)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        room = len(arg_names)
    else:
        by_place = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        room = len([name for name in by_place if name not in kwargs])
    by_name = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    keywords: list[str | None] = []
    for name in arg_names:
        if name in by_name:
            keywords.append(name)
        elif keywords.count(None) < room:
            keywords.append(None)
        elif takes_any:
            keywords.append(name)
        else:
            raise JaxgradError(
                f"the torch reference takes {room} arguments by position and {sorted(by_name) or 'none'} by name, so"
                f" there is no place for {name!r}; give it a parameter of that name"
            )
    return tuple(keywords)


# Running: one forward and backward pass.


class _Call(NamedTuple):
    """A call of the reference: what to call, with what, the tensors to differentiate, and the type of the run.

    `inputs` are by the name of the module's tensor, or the number of the leaf.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: dict[str | int, Any]
    dtype: Any


def _pull_program(
    program: TorchProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dys: list[Any],
    directions: list[Any] | None,
    layout: str,
    roundings: Roundings | None,
    look: Callable[[Sequence[Any]], None] = lambda ys: None,
) -> tuple[Pulled, list[str]]:
    """What `pull` gives, or one sample of `noise`; `look` is given the outputs that are differentiated."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if layout not in LAYOUTS:
        raise JaxgradError(f"there is no layout {layout!r}; choose from {', '.join(LAYOUTS)}")
    call = _bound(program, args, dict(kwargs), roundings)
    rounding = contextlib.nullcontext() if roundings is None else rounding_mode(roundings)
    # Of the fused kernels of attention torch has no second derivatives.
    kernels = sdpa_kernel(SDPBackend.MATH) if directions is not None else contextlib.nullcontext()
    with _calling(call), kernels, rounding:
        with collecting_torch_taps() as taps, _our_errors("forward pass"):
            outs = leaves(call.fn(*call.args, **call.kwargs))
        ys = [y for y in outs if differentiable(y)]
        look(ys)
        cotangents = [_laid_out(dy, layout, y.dtype) for dy, y in zip(_fitting(dys, ys), ys, strict=True)]
        at = list(call.inputs.values())
        first = _gradients(ys, cotangents, [*at, *taps.values()], directions is not None, "backward pass")
        of_inputs, of_taps = first[: len(at)], first[len(at) :]
        if directions is not None:
            # JAX's pairing of v and dx, Re(v dx), and dx is the conjugate of what torch gives.
            along = _as_tensors(program, dict(zip(program.inputs, directions, strict=True)))
            vs = [to_torch(along[key]).to(g.dtype) for key, g in zip(call.inputs, of_inputs, strict=True)]
            inner = [torch.real((v * g.conj()).sum()) for v, g in zip(vs, of_inputs, strict=True)]
            ones = [torch.ones_like(term) for term in inner]
            of_inputs = _gradients(inner, ones, at, False, "second backward pass")
    inputs = _as_leaves(program, {key: _conjugate(g) for key, g in zip(call.inputs, of_inputs, strict=True)})
    if directions is not None:
        return Pulled([], [], inputs), []
    return Pulled([to_numpy(y) for y in outs], [_conjugate(g) for g in reversed(of_taps)], inputs), list(reversed(taps))


@contextlib.contextmanager
def _calling(call: _Call) -> Iterator[None]:
    """Torch's settings for a call: new tensors have its type, and gradients are kept.

    Dropout draws the same mask in every call, and leaves torch's random state as it found it.
    """
    import torch

    with torch.random.fork_rng(devices=[]), _default_dtype(call.dtype), torch.enable_grad():
        yield


def _bound(program: TorchProgram, args: tuple[Any, ...], kwargs: dict[str, Any], roundings: Roundings | None) -> _Call:
    leaves, structure = jax.tree.flatten((args, kwargs))
    if roundings is not None:
        leaves = [_widened(leaf) for leaf in leaves]
    dtype = _run_dtype(leaves[: len(program.matches)]) or _run_dtype(leaves)
    tensors = []
    for number, leaf in enumerate(leaves):
        if _match(program, number) is not None:
            leaf = None
        elif _is_array(leaf):
            leaf = to_torch(leaf)
        elif _is_number(leaf):
            tensor = to_torch(leaf)
            leaf = tensor.to(dtype) if dtype is not None and tensor.dtype.is_floating_point else tensor
        tensors.append(leaf)
    fn = program.reference
    named: dict[str, Any] = {}
    if _is_module(fn):
        matched = {k: _as_array(x, dtype) for k, x in enumerate(leaves) if _match(program, k) is not None}
        given = {name: to_torch(x) for name, x in _as_tensors(program, matched).items() if isinstance(name, str)}
        wanted = {name for number in program.inputs for name in _sources(program, number)}
        fn = _module_with(fn, given, wanted, dtype, roundings)
        # The module's own parameters hold these values now, and it is they that are differentiated.
        named = dict(fn.named_parameters())
    inputs: dict[str | int, Any] = {}
    for number in program.inputs:
        for name in _sources(program, number):
            if name in named:
                inputs[name] = named[name].requires_grad_()
        if _match(program, number) is None:
            inputs[number] = tensors[number].requires_grad_()
    args, kwargs = jax.tree.unflatten(structure, tensors)
    passed = list(zip(program.keywords, args[program.skip :], strict=True))
    by_place = tuple(arg for name, arg in passed if name is None)
    by_name = {name: arg for name, arg in passed if name is not None}
    return _Call(fn, by_place, {**by_name, **kwargs}, inputs, dtype)


def _as_array(leaf: Any, dtype: Any) -> np.ndarray:
    """A leaf as an array; a number in the type of the run."""
    if _is_number(leaf) and dtype is not None:
        return np.asarray(leaf, jnp.dtype(str(dtype).removeprefix("torch.")))
    return np.asarray(leaf)


def _widened(leaf: Any) -> Any:
    """A float leaf in float64 and a complex one in complex128, others as they are."""
    if not _is_array(leaf) or not _is_inexact(leaf) or leaf.dtype.itemsize == 1:
        return leaf
    return np.asarray(leaf).astype(np.complex128 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else np.float64)


def _run_dtype(leaves: Sequence[Any]) -> Any:
    """The torch type that these float arrays promote to, None where there are none."""
    import torch

    floats = [x.dtype.name for x in leaves if _is_array(x) and _is_inexact(x) and x.dtype.itemsize > 1]
    found = [getattr(torch, name).to_real() for name in floats]
    return functools.reduce(torch.promote_types, found) if found else None


def _module_with(
    reference: Any, given: Mapping[str, Any], wanted: Collection[str], dtype: Any, roundings: Roundings | None
) -> Any:
    """A copy of a module with the tensors `given`, of which those `wanted` need gradients, and buffers of `dtype`.

    The data of a parameter is replaced, not the parameter: tied parameters stay tied, and a module that keeps a list
    of its parameters beside their names, as `nn.LSTM` does, sees the new ones.
    """
    import torch

    # A parameter that gets another value is not copied first: of a large model that is most of the copy.
    made = {
        id(p): torch.nn.Parameter(given[name], requires_grad=name in wanted)
        for name, p in reference.named_parameters()
        if name in given and type(p) is torch.nn.Parameter
    }
    with _our_errors("copy"):
        module = copy.deepcopy(reference, made)
    named = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    attributes = (x for m in module.modules() for x in (*m._buffers.values(), *vars(m).values()))
    # Tensors that are attributes and no buffers are constants just the same; some are both, or in two modules.
    for constant in {id(x): x for x in attributes if isinstance(x, torch.Tensor)}.values():
        constant.data = _constant(constant.data, dtype, roundings)
    for name, tensor in given.items():
        named[name].data = tensor
    # A copy of a parameter has not the hooks that were registered on it, which change its gradient.
    hooks = {name: dict(p._backward_hooks or {}).values() for name, p in reference.named_parameters()}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in wanted)
        for hook in hooks[name] if name in wanted else ():
            parameter.register_hook(hook)
    return module


def _constant(x: Any, dtype: Any, roundings: Roundings | None) -> Any:
    """A buffer in the type of the run. In float64 one of float32 is known to float32, as 0.1 is for instance."""
    import torch

    x = x.cpu()
    if dtype is None or not differentiable(x):
        return x
    wide = x.to(dtype.to_complex() if x.is_complex() else dtype)
    if roundings is None or roundings.unit >= FLOAT32 or x.dtype != torch.float32:
        return wide
    return known_to_float32(wide, roundings)


@contextlib.contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    """While open, tensors that a reference makes without naming a type are of float64 in a run of float64.

    So are those of a JAX function with 64-bit types enabled.
    """
    import torch

    before = torch.get_default_dtype()
    if dtype == torch.float64:
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _our_errors(where: str) -> Iterator[None]:
    try:
        yield
    except JaxgradError:
        raise
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), "no message")
        raise JaxgradError(f"the torch reference raised {type(error).__name__} in its {where}: {said}") from error


def leaves(out: Any) -> list[Any]:
    """The tensors of what a reference returns, in the order that JAX has for the same container."""
    import torch

    if out is None:
        return []
    if isinstance(out, torch.Tensor):
        return [out]
    if isinstance(out, (bool, int, float, complex)):
        return [torch.as_tensor(out)]
    if isinstance(out, (tuple, list)):
        parts: Any = out
    elif isinstance(out, Mapping):
        # JAX sorts the keys of a dict, and keeps the order of any other mapping, as of a ModelOutput.
        parts = [out[key] for key in sorted(out)] if type(out) is dict else out.values()
    elif dataclasses.is_dataclass(out):
        parts = [getattr(out, field.name) for field in dataclasses.fields(out)]
    elif hasattr(out, "to_tuple"):
        parts = out.to_tuple()
    else:
        raise JaxgradError(f"the torch reference returned a {type(out).__name__}, which is no tensor and holds none")
    return [leaf for part in parts for leaf in leaves(part)]


def _fitting(dys: list[Any], ys: list[Any]) -> list[Any]:
    """`dys`, if they are of the shapes of the outputs `ys`, and complex where these are."""
    given, own = [tuple(np.shape(dy)) for dy in dys], [tuple(y.shape) for y in ys]
    if own != given:
        raise JaxgradError(f"the torch reference has float outputs of shapes {own}, and the function {given}")
    words = {True: "complex", False: "real"}
    for number, (dy, y) in enumerate(zip(dys, ys, strict=True)):
        if np.iscomplexobj(dy) != y.is_complex():
            raise JaxgradError(
                f"float output {number} of the torch reference is {words[y.is_complex()]}, and of the function"
                f" {words[np.iscomplexobj(dy)]}"
            )
    return dys


def _laid_out(dy: Any, layout: str, dtype: Any) -> Any:
    """A cotangent in torch's convention, with the same values in another order or at other distances in memory."""
    import torch

    dy = np.asarray(dy)
    x = to_torch(np.conj(dy) if np.iscomplexobj(dy) else dy).to(dtype)
    match layout:
        case "expanded":
            return torch.ones((), dtype=dtype).expand(x.shape)
        case "transposed" if x.dim() > 1:
            backwards = tuple(reversed(range(x.dim())))
            return x.permute(backwards).contiguous().permute(backwards)
        case "strided" if x.dim() > 0:
            # What lies between is not a number, so that a backward that reads it shows it.
            buffer = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=dtype)
            buffer[..., ::2] = x
            return buffer[..., ::2]
        case _:
            return x


def paired(ys: Sequence[Any], dys: Sequence[Any]) -> Any:
    """A number whose gradients are those of the tensors `ys` for their cotangents `dys`, as they are.

    Torch imports sympy, which takes longer than a small backward pass, where it is itself given cotangents.
    """
    return _pairing().apply(dys, *ys)


@functools.cache
def _pairing() -> Any:
    import torch

    class Pairing(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, dys: Sequence[Any], *ys: Any) -> Any:
            ctx.dys = dys
            return torch.zeros(())

        @staticmethod
        def backward(ctx: Any, *_: Any) -> Any:
            return None, *ctx.dys

    return Pairing


def _gradients(ys: list[Any], dys: list[Any], at: list[Any], again: bool, where: str) -> list[Any]:
    """Gradients of the outputs `ys` at the tensors `at`, zeros where they do not depend on them."""
    import torch

    wanted = [(y, dy) for y, dy in zip(ys, dys, strict=True) if y.requires_grad]
    if not wanted or not at:
        return [torch.zeros_like(x) for x in at]
    with _our_errors(where):
        found = torch.autograd.grad(paired(*zip(*wanted, strict=True)), at, create_graph=again, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(at, found, strict=True)]


def _tapped(program: TorchProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """The names of a reference's taps, in backward order."""
    call = _bound(program, args, dict(kwargs), None)
    with _calling(call), collecting_torch_taps() as taps, _our_errors("forward pass"):
        call.fn(*call.args, **call.kwargs)
    return list(reversed(taps))


def _have_own_backward(ys: Sequence[Any]) -> bool:
    """Whether somebody's `autograd.Function`, in Python or C++, is on the way back from outputs."""
    import torch

    left, seen = [y.grad_fn for y in ys], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction) or "CppNode" in node.name():
            return True
        left += [following for following, _ in node.next_functions]
    return False


def _conjugate(gradient: Any) -> Any:
    """A gradient of torch as a cotangent of JAX, on the host."""
    array = to_numpy(gradient)
    return np.conj(array) if np.iscomplexobj(array) else array


def _match(program: TorchProgram, number: int) -> Match | None:
    return program.matches[number] if number < len(program.matches) else None


def _sources(program: TorchProgram, number: int) -> tuple[str, ...]:
    match = _match(program, number)
    return () if match is None else match.rule.sources


def _as_tensors(program: TorchProgram, leaves: Mapping[int, Any]) -> dict[str | int, np.ndarray]:
    """Leaves by number as the module's tensors by name; a leaf that is no tensor of it stays under its number."""
    found: dict[str | int, np.ndarray] = {}
    for number, leaf in leaves.items():
        match = _match(program, number)
        if match is None:
            found[number] = np.asarray(leaf)
            continue
        for piece in rules.undone(match.rule, np.asarray(leaf), program.shapes):
            shape = program.shapes[piece.name]
            if piece.numbers.shape == shape:
                found[piece.name] = piece.numbers
            else:
                # Zeros where no leaf reaches, as in a direction that another leaf has a part of.
                found.setdefault(piece.name, np.zeros(shape, piece.numbers.dtype))[piece.at] = piece.numbers
    return found


def _as_leaves(program: TorchProgram, tensors: Mapping[str | int, np.ndarray]) -> list[np.ndarray]:
    """Cotangents of the module's tensors, and of leaves by number, as those of `program.inputs`."""
    found = []
    for number in program.inputs:
        match = _match(program, number)
        if match is None:
            found.append(tensors[number])
        else:
            of = {name: tensors.get(name, np.zeros(program.shapes[name])) for name in match.rule.sources}
            found.append(rules.shared(match.rule, of))
    return found


def torch_oracle(name: str, reference: Any, asked: Call, names: Mapping[str, Any] | None) -> tuple[Oracle, set[int]]:
    """A torch reference as an oracle of a call, and the numbers of the call's leaves that it has no cotangent of.

    Raises `JaxgradError` as `prepare` does.
    """
    kinds = [leaf.kind for leaf in asked.leaves]
    values = jax.tree.unflatten(asked.structure, [leaf.value for leaf in asked.leaves])
    carried = {number for number, kind in enumerate(kinds) if kind != INPUT}
    args, kwargs = values
    program = prepare(reference, args, kwargs, names, arg_names=asked.arguments, no_gradient=carried)

    def given(q: Question) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Leaves that the reference freezes are inputs of nobody any more, and are carried.
        left = iter(q.inputs), iter(q.carried)
        values = [
            leaf.value
            if leaf.kind == STATIC
            else next(left[0] if leaf.kind == INPUT and number not in program.frozen else left[1])
            for number, leaf in enumerate(asked.leaves)
        ]
        args, kwargs = jax.tree.unflatten(asked.structure, values)
        return args, kwargs

    has_own_backward: set[bool] = set()

    def answered(q: Question, second: bool) -> tuple[Pulled, list[str]]:
        look = lambda ys: has_own_backward.add(_have_own_backward(ys))  # noqa: E731
        directions = q.directions if second else None
        return _pull_program(program, *given(q), q.dys, directions, "contiguous", None, look)

    def sampled(q: Question, second: bool) -> Samples:
        def sample(rounding: Rounding, seed: int) -> Pulled:
            if rounding.unit == 0:
                return answered(q, second)[0]
            directions = q.directions if second else None
            args, kwargs = given(q)
            units = rounding._asdict()
            del units["reductions"]
            return noise(program, args, kwargs, q.dys, directions, **units, seeds=(seed,))[0]

        return lambda draws: (sample(*draw) for draw in draws)

    def flaw(q: Question) -> str:
        if not has_own_backward:
            answered(q, False)
        if True not in has_own_backward:
            return ""
        shapes = [dy.shape for dy in q.dys]
        usual = pull(program, *given(q), q.dys)[0].inputs
        ones = pull(program, *given(q), [np.ones_like(dy) for dy in q.dys])[0].inputs
        for layout in layouts(shapes)[1:]:
            try:
                other = pull(program, *given(q), q.dys, layout=layout)[0].inputs
            except JaxgradError as error:
                return f"where the cotangent is {layout} in memory, with the same numbers, {error}"
            for dx, again in zip(ones if layout == "expanded" else usual, other, strict=True):
                # Another kernel may run for another layout, and round otherwise; wrong strides read other numbers.
                wide = np.asarray(dx, np.complex128), np.asarray(again, np.complex128)
                if np.linalg.norm(wide[0] - wide[1]) > 2.0**-4 * np.linalg.norm(wide[0]):
                    return (
                        f"the backward pass of the torch reference takes its cotangent for contiguous: where it is"
                        f" {layout} in memory, with the same numbers, another cotangent comes out"
                    )
        return ""

    oracle = Oracle(name, answered, sampled, lambda q: _tapped(program, *given(q)), flaw=flaw)
    return oracle, set(program.frozen)
