"""Numbers become a model: objectives, optimizers and the training loop."""
