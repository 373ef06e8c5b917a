"""Pretrain, fine-tune, evaluate, convert and serve encoders and encoder-decoders with JAX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `import lm` loads no JAX
    import jax

    from lm.inference.predict import Predictor

__version__ = "0.1.0"  # setup.py reads it; an image has this file and no metadata of a distribution


def load(path: str, mesh: "jax.sharding.Mesh | None" = None) -> "Predictor":
    """Returns a trained model with its tasks as methods.

        model = lm.load("runs/quickstart")
        model.fill_mask(["Return a [MASK] of strings."])

    Args:
        path: `WORKDIR`, which means its newest checkpoint, or `WORKDIR/checkpoints/N`; local or on object storage.
        mesh: from `lm.sharding.make_mesh`, to shard the model over several devices.

    Raises:
        lm.errors.InputError: there is no such checkpoint.
    """
    from lm.accelerators import skip_absent_tpus

    skip_absent_tpus()
    from lm.inference.load import load
    from lm.inference.predict import Predictor

    return Predictor(load(path, mesh))
