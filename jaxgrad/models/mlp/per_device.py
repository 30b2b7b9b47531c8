"""What one step takes of each device of a mesh, counted by hand."""

from jaxgrad.models.mlp.kernel.padding import Sizes as Padded
from jaxgrad.models.mlp.kernel.roofline import counts
from jaxgrad.models.mlp.sizes import Sizes
from jaxgrad.models.model import PerDevice

ITEMSIZE = 4


def per_device(sizes: Sizes, vocab_size: int, batch_size: int, data: int, model: int) -> PerDevice:
    r"""The closed forms' step in float32, its batch split over `data` devices and its hidden layer over `model`.

    With b = batch/data rows and k = hidden/model neurons on a device, $K = n \cdot emb$ and $V$ symbols:
    operations are those of `kernel.roofline.counts` at (b, k), some $6\,b\,k\,(K+V)$. Four arrays of (b, k) are alive
    at once: x_hat, tanh's output, a cotangent and what it becomes. Over `data` go batch norm's mean (k), its variance
    (k), two sums of its backward (2k), and once all other gradients and the loss
    ($V\,emb + (K+V)\,k + V + 1$); over `model` go logits (b V) and embcat's cotangent (b K).
    """
    b, k = batch_size // data, sizes.hidden // model
    n_emb = sizes.context * sizes.embedding
    size = Padded(batch=b, n=sizes.context, vocab=vocab_size, emb_size=sizes.embedding, h_size=k, block=k)
    over_data = 4 * k + vocab_size * sizes.embedding + (n_emb + vocab_size) * k + vocab_size + 1
    over_model = b * (vocab_size + n_emb)
    return PerDevice(
        counts(size, steps=1).flops,
        4 * b * k * ITEMSIZE,
        4 * (data > 1) + 2 * (model > 1),
        ITEMSIZE * (over_data * (data > 1) + over_model * (model > 1)),
    )
