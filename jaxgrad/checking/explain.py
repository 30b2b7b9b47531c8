"""A check that failed, in words: where, who, by how much, against what, and how to see it again."""

from collections.abc import Callable

from jaxgrad.checking.compare import Difference
from jaxgrad.checking.findings import HAND, WRONG_ORDER, Finding, Setting, Tensor


def explain(
    name: str,
    wrong: list[Finding],
    findings: tuple[Finding, ...],
    expected: str,
    reproduce: Callable[[Setting], str],
) -> str:
    """The message of a failed check, of the first setting in which it failed."""
    finding = wrong[0]
    lines = [("setting", f"{finding.setting.dtype}, {finding.setting.transform}, seed {finding.setting.seed}")]
    if finding.first is None:
        title = f"{name}: the gradient agrees with its oracles, but expected='differs'"
    else:
        tensor = next(t for t in finding.tensors if t.name == finding.first)
        title = f"{name}: {_what(tensor)} is wrong"
        lines += _tensor_lines(finding, tensor)
    if finding.orders:
        lines.append(("taylor", _taylor(finding)))
    if len(findings) > 1:
        lines.append(("settings", _settings(wrong, findings)))
    lines.append(("again", reproduce(finding.setting)))
    return "\n".join([title, "", *(f"  {label:10s}{text}" for label, text in lines)])


def who(finding: Finding) -> str:
    """Who agrees with whom, at the first tensor where engines part."""
    tensor = next((t for t in finding.tensors if t.name == finding.first), None)
    engines = list(dict.fromkeys(engine for t in finding.tensors for engine in t.values))
    if tensor is None:
        return f"{_listed(engines)} agree" if len(engines) > 1 else f"only {engines[0]}, judged by Taylor's remainder"
    engines = list(tensor.values)
    if finding.alone is None:
        apart = [f"{a} from {b}" for (a, b), d in tensor.pairs.items() if not d.agrees]
        return "apart: " + ", ".join(apart)
    others = [engine for engine in engines if engine != finding.alone]
    if len(others) < 2:
        return f"{finding.alone} is wrong by the definition of the derivative"
    if finding.alone == HAND:
        return f"hand differs from both oracles: {_listed(others)} agree"
    return f"{finding.alone} stands alone: {_listed(others)} agree"


def _what(tensor: Tensor) -> str:
    return {"output": f"{tensor.name}", "node": f"the cotangent of node {tensor.name}"}.get(
        tensor.kind, f"the cotangent of input {tensor.name}"
    )


def _tensor_lines(finding: Finding, tensor: Tensor) -> list[tuple[str, str]]:
    also = [t.name for t in finding.tensors if not all(d.agrees for d in t.pairs.values()) and t.name != tensor.name]
    lines = [("who", who(finding))]
    disagreeing = {pair: d for pair, d in tensor.pairs.items() if not d.agrees}
    if disagreeing:
        pair, d = max(disagreeing.items(), key=lambda item: (item[1].not_finite is not None, item[1].relative))
        lines += [
            ("measured", _measured(pair, d, tensor)),
            ("tolerance", _tolerance(finding, tensor, d)),
            ("worst", f"{list(d.at)}: " + ", ".join(f"{e} {float(v[d.at]):.9g}" for e, v in tensor.values.items())),
        ]
    if also:
        lines.append(("then", "also wrong after it: " + ", ".join(also)))
    return lines


def _measured(pair: tuple[str, str], d: Difference, tensor: Tensor) -> str:
    a, b = pair
    if d.not_finite:
        return f"{a} against {b}: {d.not_finite}; nothing that is not finite agrees"
    of = "its norm" if tensor.scale.kind == "norm" else "the norm of the terms that cancel in it"
    return f"|{a} - {b}| is {d.relative:.3g} of {of}, {tensor.scale.value:.3g}; {d.ulps:.2g} ulps at most"


def _tolerance(finding: Finding, tensor: Tensor, d: Difference) -> str:
    if tensor.given_tolerance:
        return f"{d.tolerance:.3g}, given by you"
    return (
        f"{d.tolerance:.3g} = 4 eps({finding.setting.dtype}) x {tensor.scale.roundings:.3g} roundings, counted in the"
        " jaxpr of the oracle's backward pass"
    )


def _taylor(finding: Finding) -> str:
    said = []
    for engine, orders in finding.orders.items():
        name, order = min(orders.items(), key=lambda item: item[1])
        said.append(f"{engine} {'wrong' if order < WRONG_ORDER else 'right'} (h^{order:.2f} at {name})")
    return "the remainder falls with h^2 where a gradient is right: " + ", ".join(said)


def _settings(wrong: list[Finding], findings: tuple[Finding, ...]) -> str:
    if len(wrong) == len(findings):
        return f"in all {len(findings)} settings"
    listed = ", ".join(f"{f.setting.dtype}/{f.setting.transform}/{f.setting.seed}" for f in wrong[:6])
    more = f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
    wide = "" if any(f.setting.dtype == "float64" for f in wrong) else "; in float64 it is right"
    return f"in {len(wrong)} of {len(findings)}: {listed}{more}{wide}"


def _listed(names: list[str]) -> str:
    return " and ".join(names) if len(names) < 3 else ", ".join(names[:-1]) + " and " + names[-1]
