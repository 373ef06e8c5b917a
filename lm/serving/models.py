"""Reads the models of a server: each checkpoint, and each adapter under a name of its own."""

import dataclasses
from collections.abc import Iterator, Sequence

from etils import epath

from lm.config.paths import named_models
from lm.errors import InputError
from lm.serving.adapters import read_adapter, same_shapes
from lm.serving.served import Served, Weights, able_tasks
from lm.serving.settings import Settings


class Adapted(Served):
    """The model that an adapter and its base make, under the adapter's name. All programs are the base's."""

    def __init__(self, name: str, path: str, settings: Settings, base: Served, number: int):
        """Makes the model of an adapter that its base has read, as adapter `number`.

        Raises:
            InputError: it can do none of the tasks.
        """
        self.name, self.path, self._settings = name, path, settings
        self._base, self._number = base, number
        predictor = self.predictor
        self.loaded_at, self.mesh, self.is_encoder = base.loaded_at, base.mesh, base.is_encoder
        self.batch_tokens = base.batch_tokens
        self.longest, self.longest_written = predictor.loaded.config.data.seq_length, base.longest_written
        self.tasks = able_tasks(self.path, predictor, settings.tasks)
        self._refused, self._workdir = None, str(predictor.loaded.workdir)

    @property
    def weights(self) -> Weights:
        return self._base.weights.adapters[self._number - 1]

    def use(self, weights: Weights) -> None:
        self._base.use(weights)

    def _read(self, workdir: epath.PathLike, step: int) -> Weights:
        parts = self.weights.parts
        new = read_adapter(f"{workdir}/checkpoints/{step}", parts.base)
        adapters = list(parts.adapters)
        if not same_shapes(adapters[self._number - 1], new):
            raise InputError(f"{workdir} now has adapters of other kernels or ranks; start a new server for it.")
        adapters[self._number - 1] = new
        return self._base.make(dataclasses.replace(parts, adapters=tuple(adapters)))

    def warm_up(self) -> Iterator[None]:
        """Compiles nothing: the base does."""
        return iter(())


def read_models(named: Sequence[tuple[str, str]], settings: Settings) -> list[Served]:
    """Reads the models of a server, with their adapters; compiles nothing.

    Args:
        named: the name and the path of each model.
        settings: of the server.

    Raises:
        InputError: one cannot be served, two have one name, or there are adapters beside several models.
    """
    if settings.adapters and len(named) > 1:
        raise InputError("--adapters needs the one model that all adapters belong to, but --checkpoint has several.")
    found = [Served(name, path, settings) for name, path in named]
    adapters = named_models(",".join(settings.adapters), "--adapters") if settings.adapters else []
    found += [Adapted(*each, settings, found[0], number) for number, each in enumerate(adapters, 1)]
    names = [each.name for each in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"--adapters has {twice[0]!r}, the name of the model; choose another name.")
    return found
