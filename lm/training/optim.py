"""Learning-rate schedules and the optax chain.

Some optimizers compute a statistic of each tensor: LAMB's trust ratio, Adafactor's factors and scale, StableAdamW's
clipping. Our layers are stacked on a leading axis, so we map these transformations over that axis.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

from lm import parameters
from lm.config import OptimConfig
from lm.parameters import Params
from lm.sharding import path_name

T = TypeVar("T")

STACKED = "layers"  # the key of a stack's parameters that have a leading layer axis


def learning_rate(config: OptimConfig, steps: int, step: jax.Array) -> jax.Array:
    """Returns the learning rate of update number `step` (counted from 0) in a run of `steps`.

    In the first `warmup_steps` the rate rises linearly to the peak; where `config.warmup` is `constant`, it is the peak
    from the start. What follows depends on `config.schedule`:
        linear, cosine: a fall to `final_fraction` of the peak after the last step, which is one decrement above it.
        linear_from_start: a linear fall that begins at step 0; the warm-up replaces its beginning. So the rate drops
            at the end of a warm-up, by 1% after a warm-up of 1% of the run (optimization.py of google-research/bert).
        rsqrt: peak * sqrt(warmup / step) (Vaswani et al., 2017). With a constant warm-up of 10,000 steps and a peak of
            0.01 it is T5's 1 / sqrt(max(step, 10,000)) (Raffel et al., 2020, section 3.1.2).
        wsd: the peak, then a fall over the last `decay_fraction` of the run (Hu et al., 2024), as 1 - sqrt
            (`OneMinusSqrtScheduler` in src/scheduler.py of AnswerDotAI/ModernBERT) or linear.
        constant: the peak.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = config.warmup_steps
    rises = warmup and config.warmup == "linear"
    rising = jnp.minimum(1.0, step / warmup) if rises else jnp.float32(1.0)
    remaining = jnp.clip((steps - step) / max(1, steps - warmup), 0.0, 1.0)
    floor = config.final_fraction
    match config.schedule:
        case "linear":
            falling = floor + (1 - floor) * remaining
        case "linear_from_start":
            remaining = jnp.where(step < warmup, 1.0, jnp.maximum(steps - step, 0.0) / steps)
            falling = floor + (1 - floor) * remaining
        case "cosine":
            falling = floor + (1 - floor) * 0.5 * (1 - jnp.cos(math.pi * remaining))
        case "rsqrt":
            falling = jnp.sqrt(max(1, warmup) / jnp.maximum(step, max(1, warmup)))
        case "wsd":
            left = jnp.clip((steps - step) / max(1.0, config.decay_fraction * steps), 0.0, 1.0)
            falling = floor + (1 - floor) * (left if config.decay == "linear" else 1 - jnp.sqrt(1 - left))
        case _:
            falling = jnp.float32(1.0)
    return config.learning_rate * rising * falling


def decays(params: optax.Params) -> optax.Params:
    """Returns a tree that is True for parameters with weight decay: all but biases and the scales of norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).rsplit("/", 1)[-1] not in ("scale", "bias"), params
    )


class AdamState(NamedTuple):
    count: jax.Array
    mu: optax.Updates
    nu: optax.Updates


def scale_by_adam(config: OptimConfig, clip_update: bool = False) -> optax.GradientTransformation:
    """Turns gradients into Adam's direction m / (sqrt(v) + eps) (Kingma and Ba, 2015).

    Args:
        config: has b1, b2, eps and bias_correction. BERT's AdamW has no bias correction.
        clip_update: computes StableAdamW (Wortsman et al., 2023, algorithm 2; optimi/stableadamw.py of
            warner-benjamin/optimi): adds the weight decay, and divides each tensor's direction, decay included, by
            max(1, RMS(g / sqrt(v))). The paper divides the learning rate of the tensor instead, which is the same.
    """

    def init(params: optax.Params) -> AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(grads: optax.Updates, state: AdamState, params: optax.Params | None = None):
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: config.b1 * m + (1 - config.b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: config.b2 * v + (1 - config.b2) * g * g, state.nu, grads)
        correction = config.bias_correction
        mu_scale = 1 / (1 - config.b1 ** count.astype(jnp.float32)) if correction else 1.0
        nu_scale = 1 / (1 - config.b2 ** count.astype(jnp.float32)) if correction else 1.0

        def direction(m: jax.Array, v: jax.Array) -> jax.Array:
            return m * mu_scale / (jnp.sqrt(v * nu_scale) + config.eps)

        def clipped(m: jax.Array, v: jax.Array, g: jax.Array, param: jax.Array, decayed: bool) -> jax.Array:
            rms = jnp.sqrt(jnp.mean(g * g / jnp.maximum(v * nu_scale, config.eps**2)))
            step = direction(m, v) + config.weight_decay * param if decayed else direction(m, v)
            return step / jnp.maximum(1.0, rms)

        state = AdamState(count, mu, nu)
        if clip_update:
            assert params is not None
            return jax.tree.map(clipped, mu, nu, grads, params, decays(params)), state
        return jax.tree.map(direction, mu, nu), state

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def scale_by_trust_ratio() -> optax.GradientTransformation:
    """Multiplies the direction of each parameter with weight decay by the ratio of norms |parameter| / |direction|.

    The others keep their direction, as in the authors' code, and as with `exclude_from_layer_adaptation` in
    tensorflow_addons/optimizers/lamb.py of tensorflow/addons. Otherwise a bias that begins at 0 would keep a ratio near
    0 for ever.
    """
    every = optax.scale_by_trust_ratio()

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None):
        assert params is not None
        scaled, state = every.update(updates, state, params)
        return jax.tree.map(lambda adapts, new, old: new if adapts else old, decays(params), scaled, updates), state

    return optax.GradientTransformation(every.init, update)


def per_layer(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns a transformation that treats each layer of a stack as parameters of its own."""

    def split(tree: optax.Params) -> dict[str, Params]:
        """Returns the layers of each stack, `{"encoder": {"encoder": {"layers": ...}}}`, and all others as `rest`."""
        rest, groups = dict(cast(Params, tree)), {}
        for name, stack in rest.items():
            if isinstance(stack, dict) and STACKED in stack:
                groups[name] = {name: {STACKED: stack[STACKED]}}
                rest[name] = {inner: value for inner, value in stack.items() if inner != STACKED}
        return {**groups, "rest": rest}

    def mapped(name: str, function: Callable[..., T]) -> Callable[..., T]:
        return function if name == "rest" else jax.vmap(function)

    def init(params: optax.Params) -> optax.OptState:
        return {name: mapped(name, transformation.init)(group) for name, group in split(params).items()}

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert params is not None
        states, old = cast(dict[str, optax.OptState], state), split(params)
        results = {
            name: mapped(name, transformation.update)(group, states[name], old[name])
            for name, group in split(updates).items()
        }
        directions = functools.reduce(parameters.merge, (cast(Params, each[0]) for each in results.values()))
        return cast(optax.Updates, directions), {name: each[1] for name, each in results.items()}

    return optax.GradientTransformation(init, update)


def as_matrices(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns a transformation that receives the attention kernels [D, H, K] and [H, K, D] as matrices.

    Adafactor factors the second moment over the two largest axes. In a kernel with a heads axis these are not always
    the inputs and the outputs.
    """

    def flatten(path: tuple[object, ...], leaf: jax.Array) -> jax.Array:
        if leaf.ndim != 3:
            return leaf
        inputs_last = path_name(path).endswith(("out/kernel", "out/lora_a"))
        return leaf.reshape((-1, leaf.shape[-1]) if inputs_last else (leaf.shape[0], -1))

    def flat(tree: optax.Params | None) -> optax.Params:
        return jax.tree_util.tree_map_with_path(flatten, tree)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        directions, state = transformation.update(flat(updates), state, flat(params))
        return jax.tree.map(lambda new, old: new.reshape(old.shape), directions, updates), state

    return optax.GradientTransformation(lambda params: transformation.init(flat(params)), update)


def create(config: OptimConfig) -> optax.GradientTransformation:
    """Returns the chain that turns gradients into a direction; `train_step` subtracts the rate times the direction.

    The sources are Loshchilov and Hutter, 2019, for `adamw`, You et al., 2020, for `lamb`, and Shazeer and Stern, 2018,
    for `adafactor`. Adafactor has T5's settings: decay 0.8, clipping at 1, steps relative to the weights' scale.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    decay = optax.add_decayed_weights(config.weight_decay, mask=decays)
    match config.name:
        case "lamb":
            chain = [per_layer(optax.chain(scale_by_adam(config), decay, scale_by_trust_ratio()))]
        case "adafactor":
            factored = optax.chain(
                optax.scale_by_factored_rms(decay_rate=0.8),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(),
            )
            chain = [per_layer(as_matrices(factored)), decay]
        case "stable_adamw":
            # In earlier checkpoints the decay was a transformation of its own, with a state. We keep its place.
            chain = [per_layer(scale_by_adam(config, clip_update=True)), optax.masked(optax.identity(), decays)]
        case _:
            chain = [scale_by_adam(config), decay]
    return optax.chain(clip, *chain)
