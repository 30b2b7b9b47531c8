"""The PyTorch twins of models and operations: same names, same order, no code shared with jaxgrad, which they judge."""
