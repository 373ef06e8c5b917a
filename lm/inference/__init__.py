"""Prediction with a trained model, and evaluation of what it writes."""
