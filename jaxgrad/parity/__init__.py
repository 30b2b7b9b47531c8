"""The notebook's model: its hand-written backward passes against `jax.grad` and PyTorch, node by node, on one batch."""
