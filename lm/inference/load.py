"""Reads a trained model from its working directory."""

import dataclasses

import jax
from etils import epath

from lm import checkpoint, models, sharding
from lm.config import Config, check_divisible
from lm.data import sentence_encoder
from lm.data.sentence_encoder import SentenceEncoder
from lm.tasks import heads
from lm.tokenizers import tokenizer as tokenizers
from lm.tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained model with its config and tokenizer.

    Attributes:
        config: the config of the run; `data.seq_length` is the longest input in tokens.
        params: the parameters, in the tree that `models.build(config.model).init` returns.
        tokenizer: the tokenizer that the model was trained with.
        sentence_encoder: how a text is embedded.
        mesh: the devices that hold the parameters; None for one device.
        workdir: the working directory of the run.
        step: of the checkpoint.
        untrained: the heads whose weights are random; see `lm.tasks.heads`.
    """

    config: Config
    params: models.Params
    tokenizer: Tokenizer
    sentence_encoder: SentenceEncoder = dataclasses.field(default_factory=SentenceEncoder)
    mesh: jax.sharding.Mesh | None = None
    workdir: epath.PathLike = ""
    step: int = 0
    untrained: tuple[str, ...] = ()

    @property
    def is_encoder(self) -> bool:
        return self.config.model.architecture == "encoder"


def load(path: str, mesh: jax.sharding.Mesh | None = None) -> Loaded:
    """Reads a trained model.

    Args:
        path: `WORKDIR`, which means its newest checkpoint, or `WORKDIR/checkpoints/N`; local or on object storage.
        mesh: from `sharding.make_mesh`. Each device reads only its shards of the parameters.

    Raises:
        InputError: there is no such checkpoint, or it is damaged.
    """
    workdir, step = checkpoint.locate(path)
    config = checkpoint.read_config(workdir)
    abstract = None
    if mesh is not None:
        check_divisible(mesh.shape, _with_rows(config, mesh))
        model = models.build(config.model)
        with jax.set_mesh(mesh):
            shapes = {"params": jax.eval_shape(lambda: model.init(jax.random.key(0)))}
        abstract = checkpoint.abstract_like(shapes, sharding.state_shardings(mesh, shapes))["params"]
    params = checkpoint.load_params(workdir, step, abstract)
    return Loaded(
        config=config,
        params=params,
        tokenizer=tokenizers.load_tokenizer(str(workdir)),
        sentence_encoder=sentence_encoder.read(str(workdir)) or SentenceEncoder(),
        mesh=mesh,
        workdir=workdir,
        step=step,
        untrained=heads.read_untrained(str(workdir), step),
    )


def _with_rows(config: Config, mesh: jax.sharding.Mesh) -> Config:
    """Returns the config with a batch size that the mesh divides: inference does not use the training batch size."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=sharding.batch_shards(mesh)),
        train=dataclasses.replace(config.train, accumulation=1),
    )
