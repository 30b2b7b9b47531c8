"""The PyTorch twin of the seed notebook: same names, same order, and no code shared with jaxgrad, which it judges."""
