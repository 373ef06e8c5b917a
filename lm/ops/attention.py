"""Two parts of plain attention whose obvious form is slow: the bias of the scores, and the weighted sum of the values.

Array names carry their shape: B batch, L queries, S keys, H heads, K head dim.
"""

import jax
import jax.numpy as jnp


def add_bias_plain(scores_BHLS: jax.Array, bias_HLS: jax.Array) -> jax.Array:
    """The scores with a bias that all rows share; L may be 1 for all queries."""
    return scores_BHLS + bias_HLS[None]


def mix_plain(weights_BHLS: jax.Array, value_BSHK: jax.Array) -> jax.Array:
    """The values of each head, summed by the attention weights: [B, L, H, K]."""
    return jnp.einsum("BHLS,BSHK->BLHK", weights_BHLS, value_BSHK)


@jax.custom_vjp
def add_bias(scores_BHLS: jax.Array, bias_HLS: jax.Array) -> jax.Array:
    """`add_bias_plain`, whose gradient of the bias is a product."""
    return add_bias_plain(scores_BHLS, bias_HLS)


def _add_bias_backward(shape: tuple[int, ...], gradient_BHLS: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The gradient is a sum over rows. XLA's CPU backend takes eighty times as long for it as for a product with ones.
    ones_B = jnp.ones(len(gradient_BHLS), gradient_BHLS.dtype)
    of_bias_HLS = jnp.tensordot(ones_B, gradient_BHLS, axes=1)
    return gradient_BHLS, of_bias_HLS.sum(axis=1, keepdims=True) if shape[1] == 1 else of_bias_HLS


add_bias.defvjp(lambda scores_BHLS, bias_HLS: (add_bias(scores_BHLS, bias_HLS), bias_HLS.shape), _add_bias_backward)


def mix(weights_BHLS: jax.Array, value_BSHK: jax.Array) -> jax.Array:
    """`mix_plain`, written as a product and a transpose.

    XLA's CPU backend takes ten times as long for the product that writes [B, L, H, K] itself, where queries are few.
    """
    return jnp.einsum("BHLS,BSHK->BHLK", weights_BHLS, value_BSHK).swapaxes(1, 2)
