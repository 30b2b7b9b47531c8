r"""Do competitors compute the same? Their losses, step by step, lie near the median within what rounding explains.

A competitor that rounds differently has, when its parameters are those of the others but for rounding, a loss that
varies by the roundings of one forward pass, of variance $V_L$ in units of the squared unit roundoff (see
`jaxgrad.jaxprs.rounding`). After k steps of SGD its parameters differ too, to first order by
$-\eta \sum_k \delta g_k$ and by the roundings of k updates. An engine may round alike at every step, so its gradients'
errors are added up, not their squares; to the loss they carry, through its derivative g,
$$V_k = V_L + k^2 \eta^2 \sum_i g_i^2 V_{g_i} + k \sum_i g_i^2 p_i^2.$$
All are taken at the first batch, in float64, where gradients are largest; how training bends small differences is
left out, because on a model that learns at this rate they do not grow. The tolerance of a loss is then
`4 × eps × sqrt(V_k)`, as everywhere in `jaxgrad.parity`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxgrad.bench.task import Task, examples, rows
from jaxgrad.checking.compare import tolerance
from jaxgrad.parity import engines
from jaxgrad.parity.cases import Case


class Judged(NamedTuple):
    """A competitor's losses, judged: the one after the last step checked, and the worst of all.

    `worst` is the largest distance from the median in units of the tolerance, at step `at`; above 1 it is wrong.
    """

    loss: float
    worst: float
    at: int


def tolerances(task: Task, steps: int) -> np.ndarray:
    """How far from the others a loss may be, for the loss before each update and the one after the last: steps + 1."""
    first = rows(task, 1)[0]
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), task.params)
    batch = jax.tree.map(lambda symbols: np.asarray(symbols)[first], examples(task))
    value, variance = engines.roundings(Case("first batch", params, batch), wide_sums=1.0)
    grads, of_grads = jax.tree.leaves(value.params), jax.tree.leaves(variance.params)
    k = np.arange(steps + 1)
    by_gradients = sum(float((g**2 * v).sum()) for g, v in zip(grads, of_grads, strict=True))
    by_updates = sum(float((g**2 * p**2).sum()) for g, p in zip(grads, jax.tree.leaves(params), strict=True))
    variances = float(variance.loss) + (k * task.learning_rate) ** 2 * by_gradients + k * by_updates
    return tolerance(np.float32, 1.0) * np.sqrt(variances)


def judge(losses: Mapping[str, np.ndarray], limits: np.ndarray) -> dict[str, Judged]:
    """Each competitor's losses against the median of all. A NaN is infinitely far, as is everything from a NaN."""
    together = np.stack(list(losses.values()))
    median = np.median(np.where(np.isfinite(together), together, np.inf), axis=0)
    judged = {}
    for name, own in losses.items():
        with np.errstate(invalid="ignore"):
            distance = np.nan_to_num(np.abs(own - median) / limits, nan=np.inf)
        at = int(np.argmax(distance))
        judged[name] = Judged(float(own[-1]), float(distance[at]), at)
    return judged
