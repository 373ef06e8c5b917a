"""Turns text into batches: readers, token store, packing. Nothing here imports a model."""
