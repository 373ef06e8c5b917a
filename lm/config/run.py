"""The config of a whole run, and what must agree between its sections."""

import dataclasses

from lm.config.bounds import check, setting
from lm.config.checkpoint import CheckpointConfig
from lm.config.data import DataConfig
from lm.config.generation import GenerationConfig
from lm.config.mesh import MeshConfig
from lm.config.mixture import MixtureConfig, TaskConfig
from lm.config.model import ModelConfig
from lm.config.objective import ARCHITECTURES, OF_PAIRS, ObjectiveConfig
from lm.config.optim import OptimConfig
from lm.config.train import TrainConfig
from lm.errors import InputError

VOCABULARY_MULTIPLE = 128  # the width of an accelerator's matrix unit

# Fields that a task of a mixture sets in place of those of the section `data`.
_FIELDS_OF_A_TASK = ("source", "path", "field", "target_field", "languages", "store")


@dataclasses.dataclass(kw_only=True)
class Config:
    """A whole run. `seed` decides the initial weights, the order of the data, masking and dropout."""

    seed: int = setting(0, within=(0, 2**63 - 1))
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    mixture: MixtureConfig = dataclasses.field(default_factory=MixtureConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    generation: GenerationConfig = dataclasses.field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Checks every section and what must agree between them. Call it again after a field has changed.

        Raises:
            InputError: naming the field, its value and what is accepted.
        """
        check("", self)
        _check_text_of_mixture(self)
        for field in dataclasses.fields(self):
            if field.name != "seed":
                getattr(self, field.name).validate()
        _check_objective(self)
        for name, task in self.mixture.tasks.items():
            _check_task(self, name, task)
        if not self.mixture.tasks and not self.data.store:  # a store may hold another text than `data.source` says
            _check_text("objective.name", self.objective.name, "data.source", self.data)
        _check_positions(self)
        _check_step(self)

    def task_data(self, name: str) -> DataConfig:
        """Returns the section `data` with the text of one task of the mixture."""
        task = self.mixture.tasks[name]
        return dataclasses.replace(self.data, **{field: getattr(task, field) for field in _FIELDS_OF_A_TASK})

    def task_objective(self, name: str) -> ObjectiveConfig:
        """Returns the section `objective` with the objective of one task of the mixture."""
        return dataclasses.replace(self.objective, name=self.mixture.tasks[name].objective or self.objective.name)

    def check_vocabulary(self) -> None:
        """Checks that the model has a row for each piece of the tokenizer to train.

        `validate` does not, since a small corpus gives fewer pieces than `data.vocab_size`, and a trained model may
        have as many rows.

        Raises:
            InputError: `model.vocab_size` is too small.
        """
        trains_tokenizer = not (self.data.tokenizer or self.data.store)
        if trains_tokenizer and 0 < self.model.vocab_size < self.data.vocab_size:
            raise InputError(
                f"model.vocab_size is {self.model.vocab_size}, smaller than data.vocab_size={self.data.vocab_size}; "
                "set the model's to 0, which is the tokenizer's size rounded up to a multiple of 128."
            )

    def with_vocabulary(self, pieces: int) -> "Config":
        """Returns the config with as many rows of the token embedding as a tokenizer of so many pieces needs.

        Raises:
            InputError: `model.vocab_size` is smaller, and not 0.
        """
        rows = self.model.vocab_size or -(-pieces // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        if rows < pieces:
            raise InputError(
                f"model.vocab_size is {rows}, but the tokenizer has {pieces} pieces; set it to at least that, or to 0."
            )
        return dataclasses.replace(self, model=dataclasses.replace(self.model, vocab_size=rows))

    @property
    def languages(self) -> list[str]:
        """The target languages of all texts of the run."""
        texts = (self.data.languages, *(task.languages for task in self.mixture.tasks.values()))
        return list(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))


def _check_objective(config: Config) -> None:
    objective, model = config.objective, config.model
    needed = ARCHITECTURES[objective.name]
    if model.architecture != needed:
        raise InputError(
            f"objective.name={objective.name} is for architecture {needed!r}, but model.architecture is "
            f"{model.architecture!r}; change one of them."
        )
    if objective.name == "mlm" and objective.nsp and not (model.pooler and model.token_types >= 2):
        raise InputError(
            "objective.nsp is True, but the model cannot do it; set model.pooler=True and model.token_types=2, "
            "or objective.nsp=False."
        )


def _check_text(asks: str, objective: str, gives: str, data: DataConfig) -> None:
    """Refuses documents where the objective needs pairs, and pairs where it needs documents.

    Args:
        asks: the field of the objective, for the message.
        objective: the name of the objective.
        gives: the field of the text, for the message.
        data: the text.
    """
    if objective in OF_PAIRS and not data.pairs and data.source in ("jsonl", "parquet"):
        field = f"{gives.removesuffix('source')}target_field"
        raise InputError(
            f"{asks} is {objective!r}, and {gives}={data.source} gives pairs with {field}; set it to the field of the "
            "target."
        )
    if data.pairs != (objective in OF_PAIRS):
        raise InputError(
            f"{asks} is {objective!r}, but {gives}={data.source} gives "
            f"{'pairs' if data.pairs else 'documents'}; change one of them."
        )


def _check_text_of_mixture(config: Config) -> None:
    """Refuses a text of the run itself where each task has its own."""
    for name in ("path", "target_field", "languages"):
        if config.mixture.tasks and (value := getattr(config.data, name)):
            raise InputError(
                f"data.{name} is {value!r}, but the run is a mixture; give it to a task, as "
                f"mixture.tasks.NAME.{name}, and leave this one empty."
            )


def _check_task(config: Config, name: str, task: TaskConfig) -> None:
    where, objective = f"mixture.tasks.{name}", config.task_objective(name).name
    if ARCHITECTURES[objective] != config.model.architecture:
        raise InputError(
            f"{where}.objective is {objective!r}, which is for architecture {ARCHITECTURES[objective]!r}, but "
            f"model.architecture is {config.model.architecture!r}; change one of them."
        )
    if task.prefix and config.model.architecture != "encoder-decoder":
        raise InputError(
            f"{where}.prefix is {task.prefix!r}, but only an encoder-decoder has a source to put it before; "
            "leave it empty."
        )
    if task.store:
        return
    try:
        data = config.task_data(name)
        data.validate()
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    _check_text(f"{where}.objective", objective, "its source", data)


def _check_positions(config: Config) -> None:
    """Refuses rows that are longer than a table of learned positions."""
    if not config.model.has_position_table:
        return
    two_sides = config.model.architecture == "encoder-decoder"
    for name in ("seq_length", "target_length") if two_sides else ("seq_length",):
        if config.model.max_length < getattr(config.data, name):
            raise InputError(
                f"data.{name} is {getattr(config.data, name)}, more than model.max_length={config.model.max_length} "
                "learned positions; raise model.max_length or shorten the rows."
            )


def _check_step(config: Config) -> None:
    if config.data.batch_size % config.train.accumulation:
        raise InputError(
            f"data.batch_size is {config.data.batch_size}, which train.accumulation={config.train.accumulation} "
            "does not divide; change one of them."
        )
