"""Several engines' gradients -> who agrees with whom, and the first node, in backward order, where they part.

The comparison is that of `jaxgrad.checking`: the noise of each tensor is measured from the program of `jax.grad`. In
float64 every pair of engines is compared; in a narrower type each engine is compared with the truth in float64. Where
engines differ, noise that their own formulas have is looked at too: a closed form may cancel where single nodes do not.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np

from jaxgrad.checking.compare import Difference, Noise, compare, stands_alone
from jaxgrad.checking.expected import combined
from jaxgrad.checking.findings import AGREES, DIFFERS, NOT_JUDGED, TRUTH, Tensor
from jaxgrad.checking.measure import Measured
from jaxgrad.models.model import named
from jaxgrad.parity.cases import Case
from jaxgrad.parity.engines import Gradients, Target, graph, own_noise, run, truth

# Tensors are the loss itself, and then its cotangents in backward order.
FORWARD_LOSS = "forward loss"


class Verdict(NamedTuple):
    """What a comparison found.

    `tensors` are the loss and its cotangents in backward order, as a check has them. `outcome` is "agrees" where
    nothing differs and something was judged, "differs", or "not judged". `first` is where engines part, and `alone`
    the engine that is wrong there, if there is one.
    """

    case: Case
    target: Target
    losses: dict[str, float]
    tensors: tuple[Tensor, ...]
    outcome: str
    first: str | None
    alone: str | None
    sentence: str

    @property
    def agree(self) -> bool:
        """Whether engines agree."""
        return self.outcome == AGREES


def judge(case: Case, target: Target, engines: tuple[str, ...]) -> Verdict:
    """Run the engines on one case and compare them on every node and parameter.

    Raises `JaxgradError` as `engines.run` does.
    """
    return verdict(case, target, run(engines, case, target))


def verdict(case: Case, target: Target, gradients: dict[str, Gradients]) -> Verdict:
    """Compare engines' gradients, which must come from `case` in the type of `target`."""
    expected = truth(case, target)
    order = graph(case.model, case.sizes, case.vocab_size).order
    tensors = tuple(_tensor(name, target.dtype, expected, gradients, {}) for name in (FORWARD_LOSS, *order))
    if not all(t.agree for t in tensors):
        own = {engine: noise for engine in gradients if (noise := own_noise(engine, case, target.dtype)) is not None}
        tensors = tuple(t if t.agree else _tensor(t.name, target.dtype, expected, gradients, own) for t in tensors)
    first = next((t for t in tensors if not t.agree or not all(map(_finite, t.values.values()))), None)
    alone = None if first is None else _alone(first)
    judged = [t for t in tensors if t.pairs and was_judged(t)]
    return Verdict(
        case,
        target,
        {name: float(g.loss) for name, g in gradients.items()},
        tensors,
        DIFFERS if first is not None else AGREES if judged else NOT_JUDGED,
        None if first is None else first.name,
        alone,
        _agreement(tuple(gradients), target.dtype, tensors) if first is None else _disagreement(first, alone),
    )


def tensor(gradients: Gradients, name: str) -> Any:
    """The loss, or a cotangent by name; None where the engine has none."""
    if name == FORWARD_LOSS:
        return gradients.loss
    return gradients.nodes[name] if name in gradients.nodes else named(gradients.params, _is_noise).get(name)


def _is_noise(leaf: Any) -> bool:
    return isinstance(leaf, Noise)


def was_judged(tensor: Tensor) -> bool:
    """Whether enough of a tensor was compared, in every pair, for its agreement to mean something."""
    return all(d.judged for d in tensor.pairs.values())


def _tensor(
    name: str, dtype: str, expected: Measured, gradients: dict[str, Gradients], own: dict[str, Gradients]
) -> Tensor:
    """The comparison of one tensor; `own` is noise that engines have beside that of `expected`."""
    values = {engine: value for engine, g in gradients.items() if (value := tensor(g, name)) is not None}
    noise: Noise = tensor(expected.noise, name)
    extra = {engine: added for engine, of in own.items() if (added := tensor(of, name)) is not None}
    of_engine = {e: combined((noise, extra[e])) if e in extra else noise for e in values}
    if dtype == "float64":
        pairs = {
            (a, b): compare(values[b], values[a], combined((of_engine[a], of_engine[b])), dtype)
            for a, b in itertools.combinations(values, 2)
        }
    else:
        right = tensor(expected.values, name)
        pairs = {(engine, TRUTH): compare(right, value, of_engine[engine], dtype) for engine, value in values.items()}
        values = {**values, TRUTH: right}
    kind = "output" if name == FORWARD_LOSS else "node" if name in expected.values.nodes else "input"
    note = "judged with the noise of each engine's own formulas" if extra else ""
    return Tensor(name, kind, noise, False, values, pairs, note)


def _finite(value: np.ndarray) -> bool:
    return bool(np.isfinite(np.asarray(value, np.float64)).all())


def _alone(first: Tensor) -> str | None:
    """The one engine that differs from float64, or from all others in float64."""
    if TRUTH not in first.values:
        return stands_alone(first.pairs)
    wrong = [engine for (engine, _), d in first.pairs.items() if not d.agrees]
    return wrong[0] if len(wrong) == 1 and len(first.pairs) > 1 else None


def _agreement(engines: tuple[str, ...], dtype: str, tensors: tuple[Tensor, ...]) -> str:
    compared = [t for t in tensors if t.pairs]
    judged = [t for t in compared if was_judged(t)]
    lost = [t.name for t in compared if not was_judged(t)]
    rest = (
        f" {len(lost)} {'is' if len(lost) == 1 else 'are'} not judged, because rounding in {dtype} is as large as"
        f" what they hold or decides a choice in them: {', '.join(lost)}."
        if lost
        else ""
    )
    if not judged:
        return f"Nothing was judged.{rest}"
    share = max(d.share for t in judged for d in t.pairs.values())
    cotangents = sum(t.name != FORWARD_LOSS for t in judged)
    on = ["the loss"] if any(t.name == FORWARD_LOSS for t in judged) else []
    on += [f"{'on ' if on else ''}{cotangents} cotangent{'' if cotangents == 1 else 's'}"] if cotangents else []
    with_truth = "" if dtype == "float64" else " with float64"
    return (
        f"All {len(engines)} engines agree{with_truth} on {' and '.join(on)};"
        f" the largest difference is {share:.2g} of its limit.{rest}"
    )


def _disagreement(first: Tensor, alone: str | None) -> str:
    finite = [engine for engine, value in first.values.items() if _finite(value)]
    if len(finite) < 2:
        lost = ", ".join(f"{engine} {_not_finite(v)}" for engine, v in first.values.items() if engine not in finite)
        return (
            f"No two engines hold finite numbers at {first.name}, the first such in backward order: {lost}."
            " Who is right cannot be said there; look at what goes into it."
        )
    apart = {pair: d for pair, d in first.pairs.items() if not d.agrees}
    if alone is None:
        who = "Apart there: " + ", ".join(f"{a} from {b}" for a, b in apart)
    else:
        others = [engine for engine in first.values if engine not in (alone, TRUTH)]
        with_truth = " with float64" if TRUTH in first.values else ""
        who = f"{alone} stands alone: {', '.join(others)} agree{with_truth}"
    pair, d = max(apart.items(), key=lambda item: (item[1].not_finite is not None, item[1].share))
    return f"Engines part at {first.name}, the first in backward order. {who}. There {_measured(*pair, d)}."


def _measured(a: str, b: str, d: Difference) -> str:
    """How far `a` is from `b`; the difference holds the value of `b`, which was expected, first."""
    if d.not_finite:
        return f"{b} and {a} hold {d.not_finite}"
    return (
        f"{a} and {b} differ by {d.relative:.2e} of the whole, {d.share:.3g} times the limit {d.where};"
        f" worst at {list(d.at)}: {d.values[1]:.9g} against {d.values[0]:.9g}"
    )


def _not_finite(value: np.ndarray) -> str:
    wide = np.asarray(value, np.float64)
    places = np.argwhere(~np.isfinite(wide))
    return f"{wide[tuple(places[0])]} at {places[0].tolist()}, {len(places)} in all"


def appeal(contested: Verdict) -> str:
    """What float64 says of a disagreement in a narrower type, in a sentence.

    The engines run again in float64. If they agree there, the one whose narrow result lies farthest from the truth,
    at the node where they parted, is named; if not, the mistake is no matter of rounding. Raises `ValueError` for a
    verdict in which nothing differs.
    """
    if contested.first is None:
        raise ValueError("no engine differs, so there is nothing to appeal")
    wide = judge(contested.case, contested.target._replace(dtype="float64"), tuple(contested.losses))
    if wide.outcome == DIFFERS:
        return f"In float64 they part too, so this is no matter of rounding. {wide.sentence}"
    first = next(t for t in contested.tensors if t.name == contested.first)
    errors = {
        engine: float(np.linalg.norm(np.asarray(value, np.float64) - first.values[TRUTH]))
        for engine, value in first.values.items()
        if engine != TRUTH
    }
    farthest = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    listed = ", ".join(f"{name} {error:.2e}" for name, error in errors.items())
    return (
        f"In float64 all agree, so the formulas are right and {contested.target.dtype} is not enough for them here."
        f" Distance from float64 at {contested.first}: {listed}; {farthest} is farthest off."
    )
