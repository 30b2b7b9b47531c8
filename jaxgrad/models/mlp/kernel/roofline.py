"""What a launch has to do at least, to compare with what a chip can: operations and bytes."""

from typing import NamedTuple

from jaxgrad.models.mlp.kernel.padding import Sizes


class Counts(NamedTuple):
    """Floating-point operations of one step of one model, and bytes that a launch of one model moves."""

    flops: int
    bytes_per_launch: int


def counts(size: Sizes, steps: int, itemsize: int = 4) -> Counts:
    """The least work of a launch of `steps` steps, without what padding adds; `itemsize` is that of a parameter.

    Operations, with a multiplication and an addition counted as two: each of the two layers is a product of matrices
    three times, once forward and twice backward. Besides, a number of (batch, h_size) takes 18 operations (mean 1,
    difference 1, variance 2, x_hat 1, gain and bias 2, tanh's derivative 3, sums of bias and gain 3, dx 5), one of
    (batch, vocab) 9 (bias 1, maximum 1, difference 1, sum 1, probabilities 1, targets 1, mean 1, b2's sum 1, log and
    pick 1), one of emb 1 (the scatter's sum), and a parameter 2 (its update). exp, tanh, log and roots are not
    counted, as XLA does not.

    Bytes: parameters in and out, and for each step its symbols (int32), its rate and its loss. Nothing else of a
    step need leave the multiprocessor.
    """
    n_emb = size.n * size.emb_size
    products = 3 * 2 * size.batch * size.h_size * (n_emb + size.vocab)
    elementwise = size.batch * (18 * size.h_size + 9 * size.vocab + n_emb)
    parameters = size.vocab * (size.emb_size + 1) + size.h_size * (n_emb + size.vocab + 2)
    of_step = 4 * size.batch * (size.n + 1) + 2 * itemsize
    return Counts(products + elementwise + 2 * parameters, 2 * itemsize * parameters + steps * of_step)
