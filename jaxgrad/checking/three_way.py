"""`check`: a function with a gradient of its own against oracles, in every type and under every transformation."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jaxgrad.checking import explain, verdict
from jaxgrad.checking.domains import Domain
from jaxgrad.checking.findings import (
    AGREES,
    DIFFERS,
    HAND,
    NOT_JUDGED,
    REFERENCE,
    TORCH,
    Finding,
    GradientMismatch,
    Report,
    Setting,
)
from jaxgrad.checking.oracles import Oracle
from jaxgrad.checking.oracles.jax import jax_oracle
from jaxgrad.checking.oracles.numpy import numpy_oracle
from jaxgrad.checking.oracles.torch import torch_oracle
from jaxgrad.checking.programs import garbage_waits
from jaxgrad.checking.question import CARRIED, DTYPES, Call, applied, call
from jaxgrad.checking.subject import Subject, forward
from jaxgrad.checking.transforms import DEFAULT, TRANSFORMS
from jaxgrad.checking.verdict import judge
from jaxgrad.errors import JaxgradError
from jaxgrad.jaxprs import casts
from jaxgrad.progress import Progress, kept, silent
from jaxgrad.settings import compared_in


def check(
    fn: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    reference: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
    torch_reference: Any = None,
    torch_names: Mapping[str, Any] | None = None,
    oracles: Mapping[str, Callable[..., Any]] | None = None,
    dtypes: Sequence[str] | None = None,
    transforms: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1),
    domains: Domain | Mapping[str, Domain] = "normal",
    vary: Mapping[str, Sequence[int]] | None = None,
    static_argnums: int | Sequence[int] = (),
    no_gradient: str | Sequence[str] = (),
    shardings: Any = None,
    tolerance: float | Mapping[str, float] | None = None,
    nan: str = "error",
    expected: str = "agrees",
    name: str | None = None,
    reproduce: Callable[[Setting], str] | None = None,
    progress: Progress = silent,
) -> Report:
    """Compare the outputs of `fn` and its cotangents of every input with those of independent oracles.

    Every setting (a type, a transformation, a seed) ends as agrees, differs or not judged; a check in which nothing
    was judged fails. Where there is no oracle, or oracles differ, the definition of the derivative decides, in
    float64 (`checking.taylor`). Tolerances are measured: the noise of the oracle's own arithmetic, element by element
    (`jaxprs.noise`, `checking.compare`). `tap` marks nodes inside.

    Args:
        fn: the function under test, of trees of arrays; traceable by JAX.
        args: its arguments: arrays, numbers, or `jax.ShapeDtypeStruct`, which is filled with numbers drawn by the
            seed. Leaves that are no arrays or floats are static.
        kwargs: its keyword arguments, likewise.
        reference: the same function in plain JAX, differentiated by JAX; or several of them.
        torch_reference: the same in PyTorch: a function of tensors or an `nn.Module` (`checking.oracles.align`).
        torch_names: by leaf paths, the torch name of a parameter or buffer, several names, or a rule of
            `checking.oracles.rules`, where names and values do not tell.
        oracles: by a name, functions of the arguments and then of the output cotangents, in NumPy, that return
            `(outputs, cotangents)`.
        dtypes: of `DTYPES`; float64, float32 and bfloat16 by default. A type that is named here and refused fails.
        transforms: rows of `transforms.TRANSFORMS`; by default all that apply. Those named here and refused fail.
        seeds: whole numbers; the first is used in every setting, the others under jit.
        domains: where shapes are filled from, for all or by argument: "normal", "positive", "unit", "probabilities",
            "spd", "sorted", "integers(low, high)", or a function of a key.
        vary: sizes by name, for shapes that have names among their sizes, such as `ShapeDtypeStruct(("n", 3), ...)`.
        static_argnums: numbers of arguments that are passed as they are.
        no_gradient: names of arguments or leaves that have no gradient on purpose.
        shardings: a `NamedSharding` for each argument, or a tree of them; adds the setting "sharded".
        tolerance: the largest relative 2-norm of a difference: by type, in the place of the measured noise; one number
            for all, wherever noise allows less.
        nan: "error", or "equal" where NaN at the same place in every engine is meant.
        expected: "agrees", or "differs" for a gradient that is meant not to be the derivative: then outputs must
            agree, the oracles too, and the cotangents of `fn` must differ from theirs.
        name: what messages call the function.
        reproduce: turns a setting into the command that runs it alone.
        progress: is told how many settings are judged, of how many, and which is next.

    Returns:
        The report. `report.not_judged` are the settings that nothing could be said of.

    Raises:
        GradientMismatch: the gradient is not as expected; the message explains where, by how much and who says so.
        JaxgradError: arguments that cannot be checked, or an oracle that answers nowhere.
        KeyboardInterrupt: as ever; its `found` is the report of the settings judged until then, and a note counts them.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> fn = jax.custom_vjp(jnp.sin)
        >>> fn.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x),))
        >>> check(fn, jax.ShapeDtypeStruct((3,), jnp.float32), reference=jnp.sin).passed
        True
    """
    if not callable(fn):
        raise JaxgradError(f"the function to check is {fn!r}, which cannot be called")
    _check_options(dtypes, transforms, seeds, tolerance, nan, expected, (reference, torch_reference, oracles))
    title = name or str(getattr(fn, "__name__", type(fn).__name__))
    findings: list[Finding] = []
    unheard: dict[str, str] = {}
    total = 0

    def so_far() -> Report:
        return _stopped(title, findings, total)

    all_sizes = list(with_sizes(args, dict(kwargs or {}), vary or {}))
    for number, (sizes, sized, sized_kwargs) in enumerate(all_sizes, 1):
        asked = call(fn, sized, sized_kwargs, static_argnums, no_gradient, domains)
        asked, torch_oracles = _with_torch(asked, torch_reference, torch_names)
        subject = Subject(
            title,
            asked,
            applied(fn, asked),
            (
                *_plain(asked, reference),
                *torch_oracles,
                *(numpy_oracle(n, f, asked) for n, f in (oracles or {}).items()),
            ),
            tolerance,
            nan,
            _sharded(asked, shardings),
            sizes,
        )
        settings = list(_settings(subject, dtypes, transforms, seeds, not findings))
        rest = list(_settings(subject, dtypes, transforms, seeds, False)) * (len(all_sizes) - number)
        total = len(findings) + len(settings) + len(rest)
        with ThreadPoolExecutor(max_workers=1) as pool, garbage_waits():
            for at, (setting, asked_for) in enumerate(settings):
                usable = any(f.setting.dtype == setting.dtype and f.outcome == AGREES for f in findings)
                # What is refused in a type that agrees elsewhere is the transformation, or an input of unusual size.
                with kept(so_far, lambda: so_far().message):
                    progress(len(findings), total, str(setting))
                    for following, _ in settings[at + 1 : at + 2]:
                        verdict.begin(subject, following, pool)
                    found = judge(subject, setting, asked_for if usable else dtypes is not None)
                    if all(earlier.outcome == NOT_JUDGED for earlier in findings):
                        found = _twice(subject, found)
                findings.append(found._replace(passed=_as_expected(found, expected, findings)).without_arrays())
        unheard.update({name: why for name, why in subject.kept.refused.items() if name not in subject.kept.answered})
    report = Report(title, _passes(findings), tuple(findings), "")
    if report.passed and unheard:
        listed = "; ".join(f"{oracle} says {why}" for oracle, why in unheard.items())
        raise JaxgradError(f"{title}: an oracle answers nowhere: {listed}; mend it, or leave it out")
    if report.passed:
        return report
    said = explain.explain(report, expected, reproduce or _call_again)
    raise GradientMismatch(report._replace(message=said))


def _stopped(name: str, findings: Sequence[Finding], total: int) -> Report:
    """The report of a check that Ctrl-C stopped, which has not passed."""
    wrong = ", ".join(str(finding.setting) for finding in findings if not finding.passed)
    said = f"{name}: the check was stopped after {len(findings)} of {total} settings"
    return Report(name, False, tuple(findings), f"{said}; wrong in {wrong}" if wrong else said)


def _check_options(
    dtypes: Sequence[str] | None,
    transforms: Sequence[str] | None,
    seeds: Sequence[int],
    tolerance: float | Mapping[str, float] | None,
    nan: str,
    expected: str,
    oracles: tuple[Any, ...],
) -> None:
    if expected not in ("agrees", "differs"):
        raise JaxgradError(f"expected is {expected!r}; choose 'agrees' or 'differs'")
    if nan not in ("error", "equal"):
        raise JaxgradError(f"nan is {nan!r}; choose 'error' or 'equal'")
    for kind, given, choices in (("dtype", dtypes, DTYPES), ("transform", transforms, tuple(TRANSFORMS))):
        if isinstance(given, str):
            raise JaxgradError(f"{kind}s is the text {given!r}; give a tuple, such as ({given!r},)")
        for one in given or ():
            if one not in choices:
                raise JaxgradError(f"there is no {kind} {one!r}; choose from {', '.join(choices)}")
        if given is not None and not given:
            raise JaxgradError(f"{kind}s is empty; choose from {', '.join(choices)}")
    if expected == "differs" and all(one is None for one in oracles):
        raise JaxgradError("expected='differs' needs an oracle to differ from; give a reference or a torch_reference")
    if not _are_whole(seeds):
        raise JaxgradError(f"seeds is {seeds!r}; give a tuple of whole numbers, such as (0, 1)")
    if not seeds:
        raise JaxgradError("seeds is empty; give at least one whole number")
    for dtype, limit in tolerance.items() if isinstance(tolerance, Mapping) else ((DTYPES[0], tolerance),):
        if dtype not in DTYPES:
            raise JaxgradError(f"tolerance names {dtype!r}; choose from {', '.join(DTYPES)}")
        if limit is not None and not (isinstance(limit, (int, float)) and 0 <= limit < math.inf):
            raise JaxgradError(f"tolerance is {limit!r}; give a number that is not below 0, such as 1e-6")


def _are_whole(numbers: Any) -> bool:
    """Whether it is a sequence of whole numbers that are not below 0."""
    return isinstance(numbers, Sequence) and all(isinstance(n, (int, np.integer)) and n >= 0 for n in numbers)


def with_sizes(
    args: tuple[Any, ...], kwargs: dict[str, Any], vary: Mapping[str, Sequence[int]]
) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """The arguments with each choice of sizes in the places of their names, and the choice in words."""
    named = {size for leaf in jax.tree.leaves((args, kwargs)) for size in _named_sizes(leaf)}
    for missing in named - vary.keys():
        raise JaxgradError(f"a shape has the size {missing!r}; give vary={{{missing!r}: (1, 7, 12)}} or a number")
    for unused in vary.keys() - named:
        raise JaxgradError(
            f"vary names {unused!r}, which is in no shape; write ShapeDtypeStruct(({unused!r}, ...), ...)"
        )
    for name, choices in vary.items():
        if not _are_whole(choices) or not choices:
            raise JaxgradError(f"vary has {name}={choices!r}; give a tuple of sizes, such as (1, 7, 12)")
    for sizes in itertools.product(*vary.values()):
        of = dict(zip(vary, sizes, strict=True))

        def sized(leaf: Any, of: Mapping[str, int] = of) -> Any:
            if not _named_sizes(leaf):
                return leaf
            return jax.ShapeDtypeStruct(tuple(of.get(size, size) for size in leaf.shape), leaf.dtype)

        said = ", ".join(f"{name}={size}" for name, size in of.items())
        yield said, *jax.tree.map(sized, (args, kwargs))


def _named_sizes(leaf: Any) -> list[str]:
    return [size for size in leaf.shape if isinstance(size, str)] if isinstance(leaf, jax.ShapeDtypeStruct) else []


def _plain(asked: Call, reference: Any) -> list[Oracle]:
    several = reference if isinstance(reference, (tuple, list)) else () if reference is None else (reference,)
    names = [REFERENCE, *(f"{REFERENCE} {number}" for number in range(2, len(several) + 1))]
    return [jax_oracle(name, applied(fn, asked)) for name, fn in zip(names, several, strict=False)]


def _with_torch(asked: Call, reference: Any, names: Mapping[str, Any] | None) -> tuple[Call, list[Oracle]]:
    """The torch oracle, and the call with the leaves that it freezes left out on both sides."""
    if reference is None:
        return asked, []
    oracle, frozen = torch_oracle(TORCH, reference, asked, names)
    leaves = [
        leaf._replace(kind=CARRIED) if number in frozen and leaf.kind == "input" else leaf
        for number, leaf in enumerate(asked.leaves)
    ]
    return asked._replace(leaves=tuple(leaves)), [oracle]


def _sharded(asked: Call, shardings: Any) -> Any:
    """A sharding for each input, from one for each argument or a tree of them."""
    if shardings is None:
        return None
    of_arguments = shardings if isinstance(shardings, (tuple, list)) else (shardings,) * len(asked.arguments)
    if len(of_arguments) != len(asked.arguments):
        raise JaxgradError(
            f"shardings has {len(of_arguments)} entries; give one for each of {', '.join(asked.arguments)}"
        )
    found = []
    for number in range(len(asked.arguments)):
        inputs = [leaf for leaf in asked.of_kind("input") if leaf.argument == number]
        given = jax.tree.leaves(of_arguments[number])
        for one in given:
            if not isinstance(one, jax.sharding.Sharding):
                raise JaxgradError(f"shardings has {one!r} for {asked.arguments[number]}; give a NamedSharding")
        found += given * len(inputs) if len(given) == 1 else given
    return found


def _settings(
    subject: Subject,
    dtypes: Sequence[str] | None,
    transforms: Sequence[str] | None,
    seeds: Sequence[int],
    first_sizes: bool,
) -> Iterator[tuple[Setting, bool]]:
    """The settings of a subject, each with whether its transformation was asked for by name.

    Other sizes are tried under jit alone.
    """
    rows = [row for row in transforms or DEFAULT if transforms is not None or _applies(row, subject)]
    for dtype in dtypes or DTYPES[:3]:
        for row in rows if first_sizes or transforms is not None else ("jit",):
            yield Setting(dtype, row, seeds[0], subject.sizes), transforms is not None
        for seed in seeds[1:] if first_sizes else ():
            if "jit" in rows:
                yield Setting(dtype, "jit", seed, subject.sizes), False


def _applies(row: str, subject: Subject) -> bool:
    """Whether a row says anything of a function that it was not asked for: forward mode only of its own rules."""
    if row == "sharded":
        return subject.shardings is not None
    return row != "jvp" or _has_forward_mode(subject)


def _has_forward_mode(subject: Subject) -> bool:
    for dtype in ("float64", "float32"):
        try:
            with compared_in(dtype):
                program = forward(subject, dtype)
            return casts.has_custom_jvp(program) and not casts.has_custom_vjp(program)
        except Exception:
            continue
    return False


def _twice(subject: Subject, found: Finding) -> Finding:
    """A finding that agrees, unless the same call gives two answers, or an oracle contradicts itself."""
    if found.outcome != AGREES:
        return found
    if subject.kept.unsteady:
        return found._replace(outcome=DIFFERS, why=subject.kept.unsteady, alone=HAND)
    oracle, flaw = subject.kept.flaw or ("", "")
    return found._replace(outcome=DIFFERS, why=flaw, alone=oracle) if flaw else found


def _as_expected(finding: Finding, expected: str, earlier: Sequence[Finding]) -> bool:
    if expected == "agrees":
        return finding.outcome != DIFFERS
    if finding.outcome == NOT_JUDGED:
        return True
    if finding.outcome == AGREES:
        # A gradient that is another all over may have the same derivative: of a reversed one it is 0, too.
        return TRANSFORMS[finding.setting.transform].second and any(f.outcome == DIFFERS for f in earlier)
    # A gradient that is meant to differ has to differ from oracles that agree with one another, and only the gradient.
    return all(
        d.agrees
        for tensor in finding.tensors
        for pair, d in tensor.pairs.items()
        if HAND not in pair or tensor.kind == "output"
    )


def _passes(findings: Sequence[Finding]) -> bool:
    return all(f.passed for f in findings) and any(f.outcome != NOT_JUDGED for f in findings)


def _call_again(setting: Setting) -> str:
    return f"check(..., dtypes=({setting.dtype!r},), transforms=({setting.transform!r},), seeds=({setting.seed},))"
