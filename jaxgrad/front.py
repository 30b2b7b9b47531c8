"""`jaxgrad.check`: `checking` judges, and where it finds a difference `port` looks for its line.

Of an `nn.Module` names propose which weight goes where. Where outputs then differ, the values of both programs decide,
and the check is made again; what is left of the difference is located in both programs' own lines when the message is
read.
"""

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, ParamSpec

import jax
import numpy as np

from jaxgrad import jax_seam
from jaxgrad.checking import three_way
from jaxgrad.checking.findings import DIFFERS, HAND, NOT_JUDGED, Finding, GradientMismatch, Report, Setting
from jaxgrad.checking.oracles.align import Unmatched, certain
from jaxgrad.checking.oracles.torch import matched_tensors
from jaxgrad.checking.question import Call, applied, arguments, call, drawn
from jaxgrad.errors import JaxgradError
from jaxgrad.settings import compared_in

P = ParamSpec("P")


class Asked(NamedTuple):
    """A check that was asked for: the function, its arguments, and the options by name."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    options: Mapping[str, Any]

    @property
    def module(self) -> Any:
        """The torch reference, if it is a module with parameters; else None."""
        given = self.options.get("torch_reference")
        module: Any = getattr(given, "_orig_mod", given)
        return module if hasattr(module, "named_parameters") and dict(module.named_parameters()) else None

    def option(self, name: str, default: Any) -> Any:
        """An option, or its default where it was not given or given as None."""
        value = self.options.get(name)
        return default if value is None else value


def _located(judge: Callable[P, Report]) -> Callable[P, Report]:
    @functools.wraps(judge)
    def check(*args: P.args, **options: P.kwargs) -> Report:
        if not args:
            return judge(*args, **options)
        fn, *others = args
        asked = Asked(fn, tuple(others), options)  # type: ignore[arg-type]
        try:
            report = judge(*args, **options)
        except Unmatched as unmatched:
            report, asked = _by_values(asked, unmatched)
        except GradientMismatch as failed:
            # Where outputs agree, the weights are where they belong.
            other = asked.module is not None and "torch_names" not in options and _outputs_differ(failed)
            if not other:
                raise _with_place(failed, asked) from None
            report, asked = _by_values(asked, failed)
        return _with_buffers(report, asked)

    return check


def _outputs_differ(failed: GradientMismatch) -> bool:
    return any(t.kind == "output" and not t.agree for f in failed.judged.findings for t in f.tensors)


def _of_an_oracle(failed: GradientMismatch) -> bool:
    """Whether the first setting that failed did by an oracle that is wrong, and not by the function."""
    first = next(f for f in failed.judged.findings if not f.passed)
    return first.alone is not None and first.alone != HAND


def _by_values(asked: Asked, failed: GradientMismatch | Unmatched) -> tuple[Report, Asked]:
    """The check made again with the weights where values place them, and what was then asked.

    Raises `failed` where that is not elsewhere.
    """
    rules = _rules_by_values(asked)
    if rules is None:
        raise failed if isinstance(failed, Unmatched) else _with_place(failed, asked)
    again = asked._replace(options={**asked.options, "torch_names": rules})
    try:
        return three_way.check(again.fn, *again.args, **again.options), again
    except Unmatched:
        raise failed from None
    except GradientMismatch as second:
        raise _with_place(second, again) from None


def _rules_by_values(asked: Asked) -> dict[str, Any] | None:
    """The rule of each leaf of the parameters with which both programs compute the same; None where none is found."""
    from jaxgrad import port

    by_names = _matched(asked)
    if (by_names and all(certain(path, rule) for path, rule in by_names.items())) or not _fits_in_memory(asked):
        return None
    try:
        (params, *inputs), kwargs = _arguments(asked)
        mapping = port.match(params, asked.module, *inputs, fn=asked.fn, kwargs=kwargs, strict=False)
    except Exception:
        # A program that cannot be walked, or one that raises at these numbers, is mapped by names alone.
        return None
    odd = port.odd_ones(mapping)
    found = {e.path: odd.get(e.path, e.rule) for e in mapping.entries}
    # That a square weight is used the other way round than its name says is a mistake, and no layout of its own.
    found |= {path: rule for path, rule in by_names.items() if certain(path, rule)}
    # Of a tensor with two names a check knows the first: its gradient is that of both uses.
    known = {name for tensors in (asked.module.named_parameters(), asked.module.named_buffers()) for name, _ in tensors}
    if not all(known.issuperset(rule.sources) for rule in found.values()):
        return None
    return None if found == by_names else found


def _matched(asked: Asked) -> dict[str, Any]:
    try:
        return {m.path: m.rule for m in matched_tensors(asked.module, asked.args[0], asked.options.get("torch_names"))}
    except JaxgradError:
        return {}


def _call(asked: Asked) -> Call:
    # Of several sizes the first.
    _, args, kwargs = next(three_way.with_sizes(asked.args, asked.option("kwargs", {}), asked.option("vary", {})))
    return call(
        asked.fn,
        args,
        kwargs,
        asked.option("static_argnums", ()),
        asked.option("no_gradient", ()),
        asked.option("domains", "normal"),
    )


def _arguments(asked: Asked) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with numbers in the place of shapes, in float64."""
    of = _call(asked)
    return arguments(of, *drawn(of, "float64", asked.option("seeds", (0,))[0]))


# Every value of a program is kept in float64, and of the other one too.
_MOST_NUMBERS = 2**27


def _fits_in_memory(asked: Asked) -> bool:
    """Whether all values of the function may be kept; so it is of one that JAX cannot trace, which has none."""
    of = _call(asked)
    with contextlib.suppress(Exception):
        return _numbers(jax.make_jaxpr(applied(asked.fn, of))(*drawn(of, "float32", 0)).jaxpr) <= _MOST_NUMBERS
    return True


def _numbers(jaxpr: Any) -> int:
    """How many numbers a program makes in all, those of each turn of a scan too."""
    own = sum(math.prod(getattr(var.aval, "shape", ())) for eqn in jaxpr.eqns for var in eqn.outvars)
    inside = (
        _numbers(body) * (scan.length if (scan := jax_seam.scan(eqn)) else 1)
        for eqn in jaxpr.eqns
        for body in jax_seam.inner(eqn)
    )
    return own + sum(inside)


# Where the programs part.


def _with_place(failed: GradientMismatch, asked: Asked) -> GradientMismatch:
    """The same failure, whose message tells the place too, once it is read."""
    first = next((f for f in failed.judged.findings if not f.passed), None)
    expected = asked.options.get("expected", "agrees") == "agrees"
    if first is None or first.setting.transform != "jit" or not expected:
        return failed
    return GradientMismatch(failed.judged, functools.partial(_place, failed, asked))


def _place(failed: GradientMismatch, asked: Asked) -> list[tuple[str, str]]:
    """Lines of a message, each with its label, that tell where two programs part; nothing where that is not found."""
    from jaxgrad import port
    from jaxgrad.mutation.blame import wrong_line, wrong_rule
    from jaxgrad.port.explain import brief
    from jaxgrad.port.values import Line

    # Where outputs agree, what is wrong is a rule, and a rule's own line says more than that of its call.
    # Of a rule of forward mode that is the function itself, no program tells more than where it begins.
    blamed = wrong_line if isinstance(asked.fn, jax.custom_jvp) else wrong_rule
    rule = None
    if not _outputs_differ(failed):
        if _of_an_oracle(failed):
            return []
        rule = blamed(failed.judged, asked.fn, *asked.args, **asked.options)
    if rule is not None:
        return [("rule", str(Line(rule.file, rule.line, "")))]

    def bare(params: tuple[()], *inputs: Any, **kwargs: Any) -> Any:
        return asked.fn(*inputs, **kwargs)

    plain = asked.option("reference", None)
    if not (asked.module is not None or callable(asked.options.get("torch_reference")) or callable(plain)):
        # Only a rule can be compared with something: with its own primal.
        return []
    if not _fits_in_memory(asked):
        return [("place", "not looked for in a program of this size; jaxgrad.port.compare finds it in a smaller one")]
    try:
        args, kwargs = _arguments(asked)
        if asked.module is not None:
            # By values alone a weight that is used the other way round would be one that lies so.
            sure = {path: rule for path, rule in _matched(asked).items() if certain(path, rule)}
            names = asked.option("torch_names", sure)
            return brief(port.compare(asked.fn, *args, torch=asked.module, names=names, kwargs=kwargs))
        if callable(plain):
            other = lambda params, *inputs, **options: plain(*inputs, **options)  # noqa: E731
            return brief(port.compare(bare, (), *args, jax=other, kwargs=kwargs))
        return brief(port.compare(bare, (), *args, torch=asked.options["torch_reference"], kwargs=kwargs))
    except Exception:
        # The verdict stands without its place; not every program that can be judged can be recorded.
        return []


# Buffers, which a check of gradients alone would never look at.


def _with_buffers(report: Report, asked: Asked) -> Report:
    """The report of a check that passed, with what there is to say of the statistics of the module's norms.

    Raises `GradientMismatch` where the programs agree only as long as the statistics are 0 and 1, as they are made.
    """
    norms = [] if asked.module is None else list(_norms(asked.module))
    if not norms:
        return report
    training = [name for name, norm in norms if norm.training]
    if training:
        listed = ", ".join(_inside(name, kind) for name in training for kind in ("running_mean", "running_var"))
        why = (
            f"in training mode the module updates {listed}; jaxgrad.port.compare compares them with what the function"
            " returns, a check of gradients does not"
        )
        setting = Setting("float64", "buffers", asked.option("seeds", (0,))[0])
        unjudged = Finding(setting, (), {}, NOT_JUDGED, why, None, None, True)
        return report._replace(findings=(*report.findings, unjudged))
    taken = {name for rule in _matched(asked).values() for name in rule.sources}
    as_made = [
        (name, norm)
        for name, norm in norms
        if not norm.running_mean.any() and (norm.running_var == 1).all() and _inside(name, "running_mean") not in taken
    ]
    shapes = [norm.running_mean.shape for _, norm in as_made]
    if not as_made or _holds_statistics(asked, report.findings[0].setting.dtype, shapes):
        return report
    moved = copy.deepcopy(asked.module)
    of_moved = dict(moved.named_modules())
    for name, _ in as_made:
        of_moved[name].running_mean.fill_(0.25)
        of_moved[name].running_var.fill_(2.25)
    first = report.findings[0].setting
    options = {
        **{name: value for name, value in asked.options.items() if name != "progress"},
        "torch_reference": moved,
        "dtypes": (first.dtype,),
        "transforms": ("jit",),
        "seeds": (first.seed,),
    }
    try:
        three_way.check(asked.fn, *asked.args, **options)
    except GradientMismatch as failed:
        listed = ", ".join(_inside(name, "running_mean") for name, _ in as_made)
        said = (
            f"{report.name}: it agrees only as long as the module's statistics are 0 and 1, as they are made\n\n"
            f"  setting   {first.dtype}, jit, seed {first.seed}, with other statistics in {listed}\n"
            "  because   the outputs then differ: the function uses no running mean and variance\n"
            "  mend      give them as leaves of the first argument, as batch_stats for instance, or close over them"
        )
        findings = tuple(f._replace(passed=f.outcome != DIFFERS) for f in failed.judged.findings)
        both = report.findings + findings
        raise GradientMismatch(report._replace(passed=False, findings=both, message=said)) from None
    return report


def _norms(module: Any) -> Iterator[tuple[str, Any]]:
    """The norms of a module that keep running statistics, with their names."""
    for name, one in module.named_modules():
        if getattr(one, "running_mean", None) is not None and getattr(one, "running_var", None) is not None:
            yield name, one


def _inside(module: str, name: str) -> str:
    return f"{module}.{name}".lstrip(".")


def _holds_statistics(asked: Asked, dtype: str, shapes: list[Any]) -> bool:
    """Whether the function closes over arrays of zeros or ones of these shapes, which may be the statistics."""
    of = _call(asked)
    with compared_in(dtype):
        program = jax.make_jaxpr(applied(asked.fn, of))(*drawn(of, dtype, 0))
    constants = [np.asarray(x) for x in program.consts]
    wanted = [tuple(shape) for shape in shapes]
    return any(x.shape in wanted and (not x.any() or (x == 1).all()) for x in constants)


check = _located(three_way.check)
