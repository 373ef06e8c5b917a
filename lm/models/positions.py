"""Positions without a table of vectors: sinusoidal vectors, rotary angles, and T5's relative bias.

Array names carry their shape: B batch, L length, S keys, D model, H heads, K head dim, R relative position buckets,
N distances between columns.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.models.initial import initial


def sinusoids(config: ModelConfig, positions_BL: jax.Array) -> jax.Array:
    """Returns the vectors of sinusoidal positions (Vaswani et al., 2017, section 3.5), float32 [B, L, D].

    The sines fill the first half of D and the cosines the second. Frequency k is 10000^(-2k / D). Tensor2tensor's last
    frequency is 1 / 10000 exactly: its frequency k is 10000^(-k / (D/2 - 1)).
    """
    half = config.d_model // 2
    steps = half - 1 if config.position == "sinusoidal-t2t" else half
    frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / steps)
    angles_BLK = (positions_BL + config.first_position)[:, :, None].astype(jnp.float32) * frequencies[None, None]
    return jnp.concatenate([jnp.sin(angles_BLK), jnp.cos(angles_BLK)], axis=-1)


def rotate(heads_BLHK: jax.Array, angles_BLK: jax.Array) -> jax.Array:
    """Applies rotary positions (Su et al., 2021): (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin).

    x1 is the first half of K and x2 the second.

    Args:
        heads_BLHK: queries or keys.
        angles_BLK: float32 [B, L, K / 2], position times frequency.
    """
    cos, sin = jnp.cos(angles_BLK)[:, :, None], jnp.sin(angles_BLK)[:, :, None]
    first, second = jnp.split(heads_BLHK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(heads_BLHK.dtype)


def angles(config: ModelConfig, positions_BL: jax.Array, *, local: bool) -> jax.Array | None:
    """Returns the rotary angles of the global layers, or of the `local` ones; None where the model has none."""
    if config.position != "rotary" or (local and config.global_every == 1):
        return None
    theta = config.rope_theta_local if local else config.rope_theta
    return rotary_angles(positions_BL, theta, config.width_per_head)


def rotary_angles(positions_BL: jax.Array, theta: float, head_dim: int) -> jax.Array:
    """Returns the angles p * theta^(-2k / K) of rotary positions, float32 [B, L, K / 2]."""
    frequencies = jnp.exp(-math.log(theta) * jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions_BL[:, :, None].astype(jnp.float32) * frequencies[None, None]


def relative_buckets(distance: jax.Array, *, causal: bool, num_buckets: int, max_distance: int) -> jax.Array:
    """Returns T5's bucket of each distance, key column minus query column (Raffel et al., 2020, section 2.1).

    Half of the buckets hold one distance each. The other half hold ranges, which grow logarithmically up to
    `max_distance`. Without `causal`, the keys to the right have buckets of their own.
    """
    offset = jnp.zeros_like(distance)
    if causal:
        distance = jnp.maximum(-distance, 0)
    else:
        num_buckets //= 2
        offset = jnp.where(distance > 0, num_buckets, 0)
        distance = jnp.abs(distance)
    exact = num_buckets // 2
    octaves = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (octaves * (num_buckets - exact)).astype(jnp.int32), num_buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)


def initial_bias(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Param:
    """Returns the initial relative bias of each bucket and head, float32 [R, H].

    T5's is uniform with the variance 2 / (R + H) (`RelativePositionBiases` in t5x/examples/scalable_t5/network.py of
    google-research/t5x: variance scaling by the mean of both axes).
    """
    shape = (config.relative_buckets, config.num_heads)
    if config.relative_init == "init":
        return initial(config, rngs, shape, config.d_model**-0.5)
    draw = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
    return nnx.Param(draw(rngs.params(), shape, jnp.float32))


def relative_bias(table_RH: jax.Array, distance: jax.Array, config: ModelConfig, *, causal: bool) -> jax.Array:
    """Returns the relative position bias of each distance, float32 [H, ...].

    A segment is contiguous, so the difference of two columns in it equals the difference of their positions.

    Args:
        table_RH: the bias of each bucket.
        distance: [N] or [L, S], key column minus query column.
        config: the config of the model.
        causal: whether keys to the right are masked.
    """
    buckets = relative_buckets(
        distance,
        causal=causal,
        num_buckets=config.relative_buckets,
        max_distance=config.relative_max_distance,
    )
    # A gather's gradient is a scatter-add, which is slow on every device. A product's gradient is a product.
    subscripts = {1: "NR,RH->HN", 2: "LSR,RH->HLS"}[distance.ndim]
    return jnp.einsum(subscripts, jax.nn.one_hot(buckets, config.relative_buckets), table_RH)
