"""Random parameters for tests. Norms and biases are random too, so that no zero or one hides a mistake."""

import jax

from lm import models


def random_params(model: models.Model, seed: int = 7) -> models.Params:
    """Initial parameters with noise on each. Not as one program: what is compiled for a shape serves others too."""
    keys = iter(jax.random.split(jax.random.key(seed), 200))
    params = model.init(jax.random.key(0))
    return jax.tree.map(lambda param: param + 0.1 * jax.random.normal(next(keys), param.shape), params)
