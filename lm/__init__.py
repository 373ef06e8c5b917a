"""Pretrain, fine-tune, evaluate, convert and serve encoders and encoder-decoders with JAX."""
