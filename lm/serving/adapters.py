"""The low-rank adapters of a served model: read, compared with their base, and put beside each other."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lm import checkpoint, checksums, lora, parameters
from lm.data import sentence_encoder
from lm.data.sentence_encoder import SentenceEncoder
from lm.errors import InputError
from lm.inference.decode_state import TokenIds
from lm.inference.load import Loaded
from lm.inference.predict import Predictor
from lm.inference.runner import Runner
from lm.tasks import heads
from lm.tokenizers.tokenizer import load_tokenizer

# Fields of a model that change nothing of what it computes once it is trained.
_OF_TRAINING = ("init", "init_std", "relative_init", "dropout", "attention_dropout", "mlp_dropout")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a run with adapters has trained.

    Attributes:
        loaded: the model of the run, without parameters.
        trained: its adapters and heads, by path.
        factor: alpha / r.
    """

    loaded: Loaded
    trained: Mapping[str, jax.Array]
    factor: float


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the weights of a served model are made of: a base, and adapters."""

    base: Loaded
    adapters: tuple[Adapter, ...] = ()

    def predictors(self, runner: Runner | None = None) -> list[Predictor]:
        """Returns the predictor of the base, then that of each adapter. They share all parameters of the base.

        Args:
            runner: has the compiled programs of other weights of the same shapes.
        """
        params = self.base.params
        if self.adapters:
            trained, factors = ([getattr(each, name) for each in self.adapters] for name in ("trained", "factor"))
            params = parameters.unflatten(lora.side_by_side(params, trained, factors))
        models = [dataclasses.replace(each, params=params) for each in (self.base, *(a.loaded for a in self.adapters))]
        runner = Runner(models[0]) if runner is None else runner.with_params(params)
        return [Predictor(loaded, runner.of_adapter(number)) for number, loaded in enumerate(models)]


def read_adapter(path: str, base: Loaded) -> Adapter:
    """Reads the adapters and heads of a run.

    Args:
        path: `WORKDIR` or `WORKDIR/checkpoints/N` of a run with `optim.lora_rank`.
        base: the model that it began with. An input may be as long as the base reads.

    Raises:
        InputError: the run has no adapters, has another base, or cannot be read.
    """
    workdir, step = checkpoint.locate(path)
    config = checkpoint.read_config(workdir)
    if not config.optim.lora_rank:
        raise InputError(f"--adapters has {path}, a run without adapters (optim.lora_rank=0); give it to --checkpoint.")
    ours, theirs = dataclasses.asdict(base.config.model), dataclasses.asdict(config.model)
    if different := [name for name in ours if name not in _OF_TRAINING and ours[name] != theirs[name]]:
        shown = f"model.{different[0]}={theirs[different[0]]!r}, and {base.workdir} {ours[different[0]]!r}"
        raise InputError(f"--adapters has {path}, whose base is another model: it has {shown}.")
    tokenizer = load_tokenizer(str(workdir))
    ids = [TokenIds.of(each, tokenizer.special, tokenizer.vocab_size) for each in (config, base.config)]
    if tokenizer.fingerprint != base.tokenizer.fingerprint or ids[0] != ids[1]:
        raise InputError(f"--adapters has {path}, whose tokenizer or start and end tokens are not those of its base.")
    saved = checkpoint.SavedParams(workdir, step)
    check_base(path, saved.frozen, base.params)
    data = dataclasses.replace(config.data, seq_length=min(config.data.seq_length, base.config.data.seq_length))
    loaded = Loaded(
        config=dataclasses.replace(config, data=data),
        params={},
        tokenizer=base.tokenizer,
        sentence_encoder=sentence_encoder.read(str(workdir)) or SentenceEncoder(),
        mesh=base.mesh,
        workdir=workdir,
        step=step,
        untrained=heads.read_untrained(str(workdir), step),
    )
    place = jax.tree.leaves(base.params)[0].sharding if base.mesh is None else NamedSharding(base.mesh, PartitionSpec())
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place) for name, leaf in saved.trained.items()
    }
    trained = saved.read_apart(wanted)
    check_finite(path, parameters.unflatten(trained))
    return Adapter(loaded, trained, lora.scale(config.optim))


def check_base(path: str, frozen: checksums.Sums, params: parameters.Params) -> None:
    """Refuses a base that is not the one of an adapter.

    Raises:
        InputError: names a parameter that differs.
    """
    found = checksums.compute(params)
    if different := sorted(name for name, value in frozen.items() if found.get(name) != value):
        raise InputError(
            f"--adapters has {path}, whose base is another one: {len(different)} of its {len(frozen)} frozen "
            f"parameters differ, such as {different[0]}; serve it with the model of its checkpoint.init_from."
        )


def same_shapes(old: Adapter, new: Adapter) -> bool:
    """Returns whether the programs that were compiled for an adapter can compute another."""
    shapes = [{name: leaf.shape for name, leaf in each.trained.items()} for each in (old, new)]
    return shapes[0] == shapes[1]


def check_finite(path: str, params: parameters.Params) -> None:
    """Refuses parameters that are not finite.

    Raises:
        InputError: names the checkpoint.
    """
    for leaf in jax.tree.leaves(params):
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            raise InputError(f"{path} has values that are not finite; serve another checkpoint.")
