"""Numbers become a model: the step, the optimizers and the training loop."""
