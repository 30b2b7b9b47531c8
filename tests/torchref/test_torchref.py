"""The two PyTorch witnesses, the notebook's forward and the idiomatic module, tell one story."""

import numpy as np
import torch

from torchref import module, notebook, seed_case


def drawn(dtype=torch.float64):
    params = seed_case.parameters(2147483647, 27, 3, 10, 200)
    g = torch.Generator().manual_seed(0)
    X = torch.randint(0, 27, (32, 3), generator=g)
    Y = torch.randint(0, 27, (32,), generator=g)
    return {name: p.to(dtype) for name, p in params.items()}, X, Y


def test_the_module_is_the_notebooks_function():
    params, X, Y = drawn()
    logits = module.from_notebook(params)(X)
    # Logits of size 1 are sums of some 230 rounded terms in float64.
    torch.testing.assert_close(logits, notebook.forward(params, X, Y)["logits"], rtol=0, atol=230 * 2.0**-52)


def test_the_module_has_the_notebooks_12097_parameters():
    params, _, _ = drawn()
    assert sum(p.numel() for p in module.from_notebook(params).parameters()) == 12_097


def test_gradients_leave_the_given_parameters_alone():
    params, X, Y = drawn()
    before = {name: p.clone() for name, p in params.items()}
    notebook.gradients(params, X, Y)
    module.gradients(params, X, Y)
    for name, p in params.items():
        assert torch.equal(p, before[name]) and p.grad is None and not p.requires_grad


def test_every_node_has_a_gradient_of_its_shape():
    params, X, Y = drawn()
    nodes = notebook.forward(params, X, Y)
    _, _, node_grads = notebook.gradients(params, X, Y)
    assert len(node_grads) == 20
    assert all(node_grads[name].shape == node.shape for name, node in nodes.items())


def test_the_maximums_gradient_goes_to_the_first_of_equal_logits():
    logits = torch.zeros(2, 3, requires_grad=True)
    logits.max(1, keepdim=True).values.sum().backward()
    assert np.array_equal(logits.grad, [[1, 0, 0], [1, 0, 0]])
