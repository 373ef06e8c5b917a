"""Two parts of plain attention whose plain form is slow on CPUs: adding the bias, and summing the values.

Array names carry their shape: B batch, L queries, S keys, H heads, K head dim.
"""

import jax
import jax.numpy as jnp


def add_bias_plain(scores_BHLS: jax.Array, bias_HLS: jax.Array) -> jax.Array:
    """Returns scores plus a bias that all rows share. Its L may be 1 for all queries."""
    return scores_BHLS + bias_HLS[None]


def mix_plain(weights_BHLS: jax.Array, value_BSHK: jax.Array) -> jax.Array:
    """Returns each head's sum of the values, weighted by the attention weights: [B, L, H, K]."""
    return jnp.einsum("BHLS,BSHK->BLHK", weights_BHLS, value_BSHK)


@jax.custom_vjp
def add_bias(scores_BHLS: jax.Array, bias_HLS: jax.Array) -> jax.Array:
    """Computes `add_bias_plain`. Its gradient for the bias is a matrix product."""
    return add_bias_plain(scores_BHLS, bias_HLS)


def _add_bias_backward(shape: tuple[int, ...], gradient_BHLS: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The bias's gradient is a sum over rows. XLA's CPU backend takes eighty times as long for the sum as for a product
    # with ones.
    ones_B = jnp.ones(len(gradient_BHLS), gradient_BHLS.dtype)
    of_bias_HLS = jnp.tensordot(ones_B, gradient_BHLS, axes=1)
    return gradient_BHLS, of_bias_HLS.sum(axis=1, keepdims=True) if shape[1] == 1 else of_bias_HLS


add_bias.defvjp(lambda scores_BHLS, bias_HLS: (add_bias(scores_BHLS, bias_HLS), bias_HLS.shape), _add_bias_backward)


def mix(weights_BHLS: jax.Array, value_BSHK: jax.Array) -> jax.Array:
    """Computes `mix_plain` as a product and a transpose.

    XLA's CPU backend can also write [B, L, H, K] from the product itself. For few queries that takes ten times as long.
    """
    return jnp.einsum("BHLS,BSHK->BHLK", weights_BHLS, value_BSHK).swapaxes(1, 2)
