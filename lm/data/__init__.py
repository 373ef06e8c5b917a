"""Turns text into batches: readers, tokenizers, token store, packing. Nothing here imports a model."""
