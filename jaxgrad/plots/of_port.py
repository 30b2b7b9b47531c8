"""What the picture of a port shows: which values both programs have, and what the verdict says."""

from collections.abc import Sequence

from jaxgrad.plots.parting import Side
from jaxgrad.port.locate import Verdict
from jaxgrad.port.values import Place, Step


def sides(verdict: Verdict) -> tuple[Side, Side]:
    """Both programs of a verdict; values whose numbers say nothing, such as constants, are left out."""
    return (
        _side("JAX", verdict.steps, verdict.jax),
        _side(verdict.other_name, verdict.other_steps, verdict.other),
    )


def _side(name: str, steps: Sequence[Step], first: Place | None) -> Side:
    told = [step for step in steps if step.agrees is not None]
    wrong = (k for k, step in enumerate(told) if step.place == first and not step.agrees)
    return Side(name, [bool(step.agrees) for step in told], next(wrong, None))


def said(verdict: Verdict) -> list[tuple[str, str]]:
    """The verdict in lines of a label and a text: the first lines on both sides, and what would mend them."""
    if verdict.agrees:
        return [("agrees", verdict.sentence)]
    lines = [
        (name, f"{place.op}, {place.line or place.module}")
        for name, place in (("JAX", verdict.jax), (verdict.other_name, verdict.other))
        if place is not None
    ]
    lines += [("would mend it", f"{mend.words}; the next values then agree to {mend.residual:.0e}")
              for mend in verdict.mends[:1]]  # fmt: skip
    return [*lines, *(("behind it", behind) for behind in verdict.behind)]
