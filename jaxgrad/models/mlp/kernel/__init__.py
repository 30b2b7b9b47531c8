"""Pallas: training steps of the model in one kernel, and what they cost."""
