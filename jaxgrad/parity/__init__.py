"""Several engines' gradients of one batch, compared node by node: who agrees with whom, and where they part."""
