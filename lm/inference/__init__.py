"""A trained model becomes answers: prediction and evaluation."""
