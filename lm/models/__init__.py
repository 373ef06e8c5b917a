"""Batches become numbers: one Transformer whose families are settings."""
