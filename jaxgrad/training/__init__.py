"""Jitted training runs on hand-written gradients: steps, run folders, evaluation and sampling."""
