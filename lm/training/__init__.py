"""Trains a model: the step, the optimizers and the loop."""
