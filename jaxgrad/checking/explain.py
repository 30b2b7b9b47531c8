"""A check that failed, in words: where, who, by how much, against what, and how to see it again."""

import re
from collections.abc import Callable

import numpy as np

from jaxgrad.checking.compare import Difference
from jaxgrad.checking.findings import (
    ACCURACY,
    DIFFERS,
    HAND,
    NOT_JUDGED,
    OF_A_LOOP,
    TORCH,
    TRUTH,
    Finding,
    Report,
    Setting,
    Tensor,
)

# Special functions are often computed to some ten digits, which is all that the definition shows too.
_FEWER_DIGITS = 1e-8
# Why an engine may give zeros alone.
_NOTHING = {
    HAND: "the rule returns no cotangent; if on purpose, no_gradient=({!r},)",
    TORCH: "the torch reference is cut off from {!r} for autograd, by .detach(), torch.no_grad() or NumPy inside",
}


def explain(report: Report, expected: str, reproduce: Callable[[Setting], str]) -> str:
    """The message of a failed check, of the first setting in which it failed."""
    findings, name = report.findings, report.name
    wrong = [finding for finding in findings if not finding.passed]
    if not wrong:
        return _nothing_judged(name, findings)
    finding = wrong[0]
    lines = [("setting", _setting(finding.setting))]
    if finding.outcome != DIFFERS:
        title = f"{name}: the gradient agrees with its oracles, but expected='differs'"
    elif finding.first is None:
        title = f"{name}: {finding.why}"
    else:
        tensor = next((t for t in finding.tensors if t.name == finding.first), None)
        title = f"{name}: {_what(tensor) if tensor else f'the cotangent of input {finding.first}'} is wrong"
        lines += _tensor_lines(finding, tensor) if tensor else []
        lines += [("note", finding.why)] if finding.why else []
    if finding.taylor:
        lines.append(("taylor", _taylor(finding)))
    if len(findings) > 1:
        lines.append(("settings", _settings(wrong, findings)))
    lines.append(("again", reproduce(finding.setting)))
    return _page(title, lines)


def _nothing_judged(name: str, findings: tuple[Finding, ...]) -> str:
    alike: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.outcome == NOT_JUDGED:
            alike.setdefault(_without_setting(finding), []).append(finding)
    reasons = [f"{of[0].why}{f'; and so in {len(of) - 1} more' if len(of) > 1 else ''}" for of in alike.values()]
    return _page(f"{name}: nothing was judged, in {len(findings)} settings", [("because", why) for why in reasons])


def _without_setting(finding: Finding) -> str:
    """Why a setting was not judged, but for the words that tell which it is."""
    setting = finding.setting
    without = finding.why.replace(str(setting), "")
    for words in (f"{setting.dtype} under {setting.transform}", setting.dtype):
        without = without.replace(words, "")
    # What is traced in float64 has other names for its integers too.
    return re.sub(r"int(32|64)", "int", without)


def _page(title: str, lines: list[tuple[str, str]]) -> str:
    return "\n".join([title, "", *(f"  {label:10s}{text}" for label, text in lines)])


def _setting(setting: Setting) -> str:
    said = f"{setting.dtype}, {setting.transform}, seed {setting.seed}"
    return f"{said}, {setting.sizes}" if setting.sizes else said


def who(finding: Finding) -> str:
    """Who agrees with whom, at the first tensor where engines part."""
    tensor = next((t for t in finding.tensors if t.name == finding.first), None)
    engines = list(dict.fromkeys(engine for t in finding.tensors for engine in t.engines))
    if tensor is None:
        return f"{_listed(engines)} agree" if len(engines) > 1 else f"only {engines[0]}, judged by Taylor's remainder"
    engines = tensor.engines
    apart = [f"{a} from {b}" for (a, b), d in tensor.pairs.items() if not d.agrees]
    if not apart and len(engines) == 1:
        return _by_definition(finding) if finding.alone else f"only {engines[0]}"
    if not apart:
        return f"{_listed(engines)} agree"
    if finding.alone is None:
        return "apart: " + ", ".join(apart)
    others = [engine for engine in engines if engine != finding.alone]
    if others == [TRUTH]:
        return f"{finding.alone} differs from its own float64" if finding.taylor == {} else _by_definition(finding)
    if len(others) < 2:
        return _by_definition(finding)
    oracles = [engine for engine in others if engine != TRUTH]
    if finding.alone == HAND and len(oracles) == 1:
        return f"hand differs from its oracle: {oracles[0]} agrees with its own float64"
    if finding.alone == HAND:
        both = "both" if len(oracles) == 2 else f"all {len(oracles)}"
        return f"hand differs from {both} oracles: {_listed(oracles)} agree"
    return f"{finding.alone} stands alone: {_listed(others)} agree"


def _by_definition(finding: Finding) -> str:
    return f"{finding.alone} is wrong by the definition of the derivative"


def _what(tensor: Tensor) -> str:
    return {"output": f"{tensor.name}", "node": f"the cotangent of node {tensor.name}"}.get(
        tensor.kind, f"the cotangent of input {tensor.name}"
    )


def _tensor_lines(finding: Finding, tensor: Tensor) -> list[tuple[str, str]]:
    also = [t.name for t in finding.tensors if not t.agree and t.name != tensor.name]
    lines = [("who", who(finding))] if len(tensor.engines) > 1 or finding.alone else []
    disagreeing = {pair: d for pair, d in tensor.pairs.items() if not d.agrees}
    if disagreeing:
        pair, d = max(disagreeing.items(), key=lambda item: (item[1].not_finite is not None, item[1].share))
        lines += [("measured", _measured(pair, d)), ("tolerance", _tolerance(finding, tensor, d))]
        if d.size:
            each = (f"{engine} {_number(value, d.at)}" for engine, value in tensor.values.items())
            lines.append(("worst", f"{list(d.at)}: " + ", ".join(each)))
        if _converges(finding, d.relative):
            lines.append(("perhaps", OF_A_LOOP))
        if tensor.kind == "input" and finding.setting.transform != "grad_of_grad":
            silent = [e for e in _NOTHING if _returned_nothing(tensor, e) and not _is_right(finding, tensor, e)]
            lines += [("perhaps", _NOTHING[engine].format(tensor.name)) for engine in silent]
        if all(_is_right(finding, tensor, engine) for engine in pair) and d.relative < _FEWER_DIGITS:
            lines.append(("perhaps", "one of them has fewer digits; if that is meant, give tolerance="))
    elif (judged := finding.taylor.get(finding.alone or "", {}).get(tensor.name)) and _converges(finding, judged.error):
        lines.append(("perhaps", OF_A_LOOP))
    if also:
        lines.append(("then", "also wrong after it: " + ", ".join(also)))
    return lines


def _converges(finding: Finding, off: float) -> bool:
    """Whether a small difference may be what an iteration leaves that ends before the last digit."""
    return finding.iterates and off < ACCURACY


def _is_right(finding: Finding, tensor: Tensor, engine: str) -> bool:
    """Whether the definition of the derivative has nothing against an engine's cotangent."""
    judged = finding.taylor.get(engine, {}).get(tensor.name)
    return judged is not None and judged.verdict in ("right", "kink")


def _returned_nothing(tensor: Tensor, engine: str) -> bool:
    value = tensor.values.get(engine)
    return value is not None and value.size > 0 and not np.any(value)


def _number(value: np.ndarray, at: tuple[int, ...]) -> str:
    number = np.asarray(value)[at] if np.shape(value) else np.asarray(value)[()]
    return f"{complex(number):.9g}" if np.iscomplexobj(number) else f"{float(number):.9g}"


def _measured(pair: tuple[str, str], d: Difference) -> str:
    a, b = pair
    if d.not_finite:
        return f"{b} against {a}: {d.not_finite}; what is not finite agrees only with the same"
    limit = f"{d.share:.3g} times its limit {d.where}"
    return f"|{a} - {b}| is {d.relative:.3g} of |{b}|, and {limit}; {d.ulps:.2g} ulps at most"


def _tolerance(finding: Finding, tensor: Tensor, d: Difference) -> str:
    if tensor.given_tolerance:
        return f"{d.tolerance:.3g}, given by you"
    return (
        f"{d.tolerance:.3g} as a whole, for a rounding noise of {d.noise:.3g}, measured over {tensor.noise.samples}"
        f" runs of the oracle with its roundings in {finding.setting.dtype} at random"
    )


def _taylor(finding: Finding) -> str:
    said = []
    for engine, of_input in finding.taylor.items():
        order = ("wrong", "narrow", "undecided", "kink", "right")
        name, worst = min(of_input.items(), key=lambda item: order.index(item[1].verdict))
        said.append(f"{engine} {worst.verdict} at {name} ({worst.why})")
    return "by the definition of the derivative, in float64: " + "; ".join(said)


def _settings(wrong: list[Finding], findings: tuple[Finding, ...]) -> str:
    skipped = sum(finding.outcome == NOT_JUDGED for finding in findings)
    more_skipped = f"; {skipped} not judged" if skipped else ""
    if len(wrong) == len(findings):
        return f"in all {len(findings)} settings"
    listed = ", ".join(str(f.setting) for f in wrong[:6])
    more = f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
    wide = any(f.setting.dtype == "float64" and f.passed and f.outcome != NOT_JUDGED for f in findings)
    right = "; in float64 it is right" if wide and all(f.setting.dtype != "float64" for f in wrong) else ""
    return f"in {len(wrong)} of {len(findings)}: {listed}{more}{right}{more_skipped}"


def _listed(names: list[str]) -> str:
    return " and ".join(names) if len(names) < 3 else ", ".join(names[:-1]) + " and " + names[-1]
