"""Text becomes batches: readers, tokenizer, token store, packing. Nothing here imports a model."""
