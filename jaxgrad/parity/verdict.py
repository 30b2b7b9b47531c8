"""Several engines' gradients -> who agrees with whom, and the first node, in backward order, where they part."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from jaxgrad.checking.compare import Difference, Scale, compare, scale, stands_alone
from jaxgrad.models.mlp import BACKWARD_ORDER, Gradients, Params
from jaxgrad.parity.cases import Case
from jaxgrad.parity.engines import Target, roundings, run

# Rows are the loss itself, and then its cotangents in backward order.
FORWARD_LOSS = "forward loss"
USERS = {
    "emb": ["embcat"], "embcat": ["h_prenorm"], "C": ["emb"], "W1": ["h_prenorm"], "h_prenorm": ["bn_diff", "bnmean"],
    "bnmean": ["bn_diff"], "bn_diff": ["bn_diff_sq", "bn_raw"], "bn_diff_sq": ["bn_var"], "bn_var": ["bn_var_inv"],
    "bn_var_inv": ["bn_raw"], "bn_raw": ["h_norm"], "bn_gain": ["h_norm"], "bn_bias": ["h_norm"], "h_norm": ["h"],
    "h": ["logits"], "W2": ["logits"], "b2": ["logits"], "logits": ["norm_logits", "logit_maxes"],
    "logit_maxes": ["norm_logits"], "norm_logits": ["counts"], "counts": ["probs", "counts_sum"],
    "counts_sum": ["counts_sum_inv"], "counts_sum_inv": ["probs"], "probs": ["log_probs"], "log_probs": ["loss"],
}  # fmt: skip


class Row(NamedTuple):
    """The loss, or a cotangent by name: its scale, and the difference of each pair of engines that both have it."""

    name: str
    scale: Scale
    pairs: dict[tuple[str, str], Difference]


class Verdict(NamedTuple):
    """What a comparison found. `alone` is the engine that all others contradict at `first`, if there is one."""

    case: Case
    target: Target
    losses: dict[str, float]
    rows: tuple[Row, ...]
    agree: bool
    first: str | None
    alone: str | None
    sentence: str


def judge(case: Case, target: Target, engines: tuple[str, ...]) -> Verdict:
    """Run the engines on one case and compare every pair of them on every node and parameter.

    Raises `JaxgradError` as `engines.run` does.
    """
    return verdict(case, target, run(engines, case, target))


def verdict(case: Case, target: Target, gradients: dict[str, Gradients]) -> Verdict:
    """Compare engines' gradients, which must come from `case` in the type of `target`."""
    # Engines keep sums of bfloat16 in float32, whose roundoff is 2^-16 of bfloat16's.
    values, variances = roundings(case, wide_sums=2.0**-16 if target.dtype == "bfloat16" else 1.0)
    names = (FORWARD_LOSS, *BACKWARD_ORDER)
    rows = tuple(Row(name, scale(tensor(values, name), tensor(variances, name)), {}) for name in names)
    for row in rows:
        for a, b in itertools.combinations(gradients, 2):
            x, y = tensor(gradients[a], row.name), tensor(gradients[b], row.name)
            if x is not None and y is not None:
                row.pairs[a, b] = compare(x, y, row.scale, target.dtype)
    first = next((row for row in rows if not all(d.agrees for d in row.pairs.values())), None)
    alone = None if first is None else stands_alone(first.pairs)
    return Verdict(
        case,
        target,
        {name: float(g.loss) for name, g in gradients.items()},
        rows,
        first is None,
        None if first is None else first.name,
        alone,
        _sentence(tuple(gradients), rows, first, alone),
    )


def tensor(gradients: Gradients, name: str) -> Any:
    """The loss, or a cotangent by name; None where the engine has none."""
    if name == FORWARD_LOSS:
        return gradients.loss
    return getattr(gradients.params if name in Params._fields else gradients.nodes, name)


def _sentence(engines: tuple[str, ...], rows: tuple[Row, ...], first: Row | None, alone: str | None) -> str:
    if first is None:
        worst = max((d.relative / d.tolerance if d.tolerance else 0.0) for row in rows for d in row.pairs.values())
        return (
            f"All {len(engines)} engines agree on the loss and on {len(rows) - 1} cotangents;"
            f" the largest difference is {worst:.2g} of its tolerance."
        )
    disagree = [pair for pair, d in first.pairs.items() if not d.agrees]
    worst_pair = max(disagree, key=lambda pair: np.nan_to_num(first.pairs[pair].relative, nan=np.inf))
    d = first.pairs[worst_pair]
    measured = (
        f"{worst_pair[0]} and {worst_pair[1]} hold {d.not_finite}"
        if d.not_finite
        else f"{worst_pair[0]} and {worst_pair[1]} differ by {d.relative:.2e} of the {first.scale.kind},"
        f" tolerance {d.tolerance:.2e}; worst at {list(d.at)}: {d.values[0]:.9g} against {d.values[1]:.9g}"
    )
    if all(d.not_finite for d in first.pairs.values()):
        return (
            f"No two engines hold finite numbers at {first.name}, the first such in backward order: {measured}."
            " Who is right cannot be said there; look at what goes into it."
        )
    if alone is None:
        who = "Apart there: " + ", ".join(f"{a} from {b}" for a, b in disagree)
    else:
        others = [e for e in dict.fromkeys(itertools.chain.from_iterable(first.pairs)) if e != alone]
        who = f"{alone} stands alone: {', '.join(others)} agree"
    return f"Engines part at {first.name}, the first in backward order. {who}. There {measured}."


def appeal(contested: Verdict, gradients: dict[str, Gradients]) -> str:
    """What float64 says of a disagreement in a narrower type, in a sentence.

    `gradients` are those that were contested. Their engines run again in float64. If they agree there, the one
    whose narrow result lies farthest from theirs, at the node where they parted, is named; if not, the mistake is
    no matter of rounding. Raises `ValueError` for a verdict in which all agree.
    """
    if contested.first is None:
        raise ValueError("all engines agree, so there is nothing to appeal")
    wide = judge(contested.case, contested.target._replace(dtype="float64"), tuple(gradients))
    if not wide.agree:
        return f"In float64 they part too, so this is no matter of rounding. {wide.sentence}"
    truth, _ = roundings(contested.case, wide_sums=1.0)
    value = tensor(truth, contested.first)
    errors = {
        name: float(np.linalg.norm(np.asarray(narrow, np.float64) - value))
        for name, of_engine in gradients.items()
        if (narrow := tensor(of_engine, contested.first)) is not None
    }
    farthest = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    listed = ", ".join(f"{name} {error:.2e}" for name, error in errors.items())
    return (
        f"In float64 all agree, so the formulas are right and {contested.target.dtype} is not enough for them here."
        f" Distance from float64 at {contested.first}: {listed}; {farthest} is farthest off."
    )
