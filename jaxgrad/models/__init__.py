"""Models as pure functions: parameters, named nodes, forward, and the backward written by hand."""
