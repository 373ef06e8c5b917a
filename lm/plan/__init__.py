"""Compiles a run for a pod before it is rented, and predicts its memory, time and cost."""
