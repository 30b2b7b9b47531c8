"""The model's loss and gradients by hand in PyTorch, each layer's backward in closed form, without autograd.

`params` are the notebook's tensors by name; written `dx` is the derivative of the loss with respect to `x`.
"""

import torch
from torch import Tensor

EPS = 1e-5


def gradients(params: dict[str, Tensor], Xb: Tensor, Yb: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradient of every parameter, of contexts (batch, n) and targets (batch,) of type int64.

    Parameters that require no gradient leave autograd nothing to record.
    """
    C, W1, W2, b2, bn_gain, bn_bias = (params[name] for name in ("C", "W1", "W2", "b2", "bn_gain", "bn_bias"))
    n = Xb.shape[0]

    embcat = C[Xb].view(n, -1)
    h_prenorm = embcat @ W1
    var, mean = torch.var_mean(h_prenorm, 0, keepdim=True)
    var_inv = (var + EPS).rsqrt()
    bn_raw = (h_prenorm - mean) * var_inv
    h = torch.tanh(torch.addcmul(bn_bias, bn_gain, bn_raw))
    log_probs = torch.log_softmax(torch.addmm(b2, h, W2), 1)
    loss = -log_probs.gather(1, Yb[:, None]).mean()

    # Softmax minus one at the target, over the rows of the mean.
    dlogits = log_probs.exp()
    dlogits.scatter_add_(1, Yb[:, None], torch.full_like(log_probs[:, :1], -1.0))
    dlogits /= n
    dh_norm = (dlogits @ W2.T) * (1 - h * h)
    dbn_gain = (dh_norm * bn_raw).sum(0, keepdim=True)
    dbn_bias = dh_norm.sum(0, keepdim=True)
    # Through the mean and, by n - 1, through the variance; the sums over rows are those of bias and gain.
    dh_prenorm = bn_gain * var_inv * (dh_norm - dbn_bias / n - bn_raw * (dbn_gain / (n - 1)))
    demb = (dh_prenorm @ W1.T).view(-1, C.shape[1])
    return loss, {
        "C": torch.zeros_like(C).index_add_(0, Xb.reshape(-1), demb),
        "W1": embcat.T @ dh_prenorm,
        "W2": h.T @ dlogits,
        "b2": dlogits.sum(0),
        "bn_gain": dbn_gain,
        "bn_bias": dbn_bias,
    }
