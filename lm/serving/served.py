"""One model of a server: what it can do, its compiled programs, and its weights, which can be replaced."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
from etils import epath

from lm import checkpoint, models, sharding, storage
from lm.config import Config, MeshConfig
from lm.config.paths import named_models
from lm.data import sentence_encoder
from lm.errors import InputError
from lm.inference import predict, prompts
from lm.inference.languages import Languages
from lm.inference.load import Loaded, load
from lm.inference.options import Decoding, Extras
from lm.inference.packed import Row
from lm.inference.predict import Options, Predictor, Reading
from lm.inference.requests import EXTRA_OPTIONS
from lm.ops import few_rows
from lm.serving.adapters import Parts, check_finite, read_adapter
from lm.serving.attending import Attending
from lm.serving.lanes import Lane, LaneShape, Readers, make_decoders
from lm.serving.refusals import Refusal
from lm.serving.settings import Settings
from lm.storage import StorageError
from lm.tokenizers.tokenizer import load_tokenizer

_SHORT_SOURCE = 128  # tokens; longer sources have a lane of their own, since a step reads the whole width of its lane
_TOGETHER = {"cpu": 1}  # sources that one call encodes. The number is fixed, so a lone source pays for all
_TOGETHER_ON_ACCELERATORS = 4
_READ_TOGETHER = {"cpu": 512}  # tokens; more are read no faster there, and what comes meanwhile waits longer
# Fields of `Extras` that are the sizes of lists -> the option of a request.
_LISTS = {"bad_words": "bad_words_ids", "suppressed": "suppress_tokens", "begin_suppressed": "begin_suppress_tokens"}
VECTORS = "vectors"  # the vector of every token, which no task of `predict` asks for
ATTENTION = "attention"  # the attention weights of a row, which none asks for either


@dataclasses.dataclass(frozen=True)
class Weights:
    """One set of weights of a model, with the groups that compute with it.

    A request keeps the weights that it was admitted with. Replaced weights are freed with their last request.

    Attributes:
        predictor: turns requests into rows, and results into answers.
        readers: the groups of an encoder, by the name of their program; `ATTENTION` alone for a model that writes.
        lanes: the groups of a model that writes; shorter sources first.
        parts: what the weights are made of.
        adapter: which of the adapters these are; 0 is the base.
        adapters: the weights of each adapter of the base. They have the groups of the base, except for `ATTENTION`.
    """

    predictor: Predictor
    readers: Mapping[str, Readers]
    lanes: Sequence[Lane]
    parts: Parts
    adapter: int = 0
    adapters: tuple["Weights", ...] = ()

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return self.predictor.loaded.step

    @property
    def width(self) -> int:
        """How many numbers the vector of a token has."""
        return self.predictor.loaded.config.model.d_model

    def embedding_size(self, prompt: prompts.Embed) -> int:
        """Returns how many numbers an embedding has."""
        return self.width * len(prompt.encoder.pooling)

    def reading(self, task: str, options: Options) -> tuple[Reading, Readers]:
        """Returns the prompt and the group of an encoder's task.

        Raises:
            InputError: the model cannot do it so.
            Refusal: the program was not compiled.
        """
        reading = self.predictor.reading(task, options)
        if reading.name not in self.readers:
            message = f"this server has no program {reading.name!r}; it has {', '.join(self.readers)}."
            raise Refusal("invalid", message, param="pooling")
        return reading, self.readers[reading.name]

    def own(self, row: Row) -> Row:
        """Returns a row that is computed with these weights."""
        return dataclasses.replace(row, adapter=self.adapter) if self.adapter else row

    @property
    def attending(self) -> Attending:
        """The group that computes attention weights."""
        group = self.readers[ATTENTION]
        assert isinstance(group, Attending)
        return group

    def lane(self, row: Row, decoding: Decoding) -> Lane:
        """Returns the lane of a source.

        Raises:
            Refusal: no lane has this number of beams, these options, or room for so many tokens.
        """
        tokens = len(row.tokens)
        beams = sorted({lane.shape.beams for lane in self.lanes})
        if decoding.num_beams not in beams:
            accepted = ", ".join(map(str, beams))
            raise Refusal(
                "invalid", f"num_beams is {decoding.num_beams}; this server accepts {accepted}.", param="num_beams"
            )
        for lane in self.lanes:
            if lane.shape.beams == decoding.num_beams and tokens <= lane.shape.source:
                if decoding.max_length > lane.shape.written:
                    most = f"this server writes at most {lane.shape.written} tokens"
                    raise Refusal("invalid", f"max_length is {decoding.max_length}; {most}.", param="max_length")
                if missing := lane.lacks(decoding):
                    raise _not_compiled(missing)
                return lane
        raise Refusal("invalid", f"the input has {tokens} tokens, too many for this server.", param="inputs")


class Served:
    """One model under its name.

    Attributes:
        name: by which requests ask for it.
        path: `WORKDIR` or `WORKDIR/checkpoints/N`.
        mesh: the devices that hold it; None for one device.
        tasks: what it is asked to do and can do.
        batch_tokens: of a batch, and of what enters slots between two steps, on each device.
        longest: the most tokens of an input.
        longest_written: the most tokens that it writes; 0 for an encoder.
        loaded_at: when the first ones were read, in seconds since 1970.
    """

    def __init__(self, name: str, path: str, settings: Settings):
        """Reads the model and the adapters of the settings; compiles nothing.

        Raises:
            InputError: there is no such model, it is damaged, can do none of the tasks, or the mesh does not divide it;
                or an adapter does not belong to it.
        """
        self.name, self.path, self._settings = name, path, settings
        self.loaded_at = time.time()
        self._refused: tuple[str, int] | None = None
        self.mesh = _make_mesh(settings.mesh)
        loaded = _limited(load(path, self.mesh), settings.max_input_tokens)
        self._workdir = str(loaded.workdir)
        check_finite(path, loaded.params)
        named = named_models(",".join(settings.adapters), "--adapters") if settings.adapters else []
        parts = Parts(loaded, tuple(read_adapter(path, loaded) for _, path in named))
        predictors = parts.predictors()
        self.tasks = able_tasks(path, predictors[0], settings.tasks)
        self.is_encoder = loaded.is_encoder
        budget = predictors[0].runner.budget
        if self.is_encoder:
            budget = _READ_TOGETHER.get(sharding.platform(), budget)
        self.batch_tokens = settings.batch_tokens or budget
        self.longest = loaded.config.data.seq_length
        self.longest_written = 0 if self.is_encoder else self._most_written(predictors)
        shapes = [] if self.is_encoder else self._lane_shapes(predictors)
        model = models.build(loaded.config.model, models.Execution(dtype=loaded.config.train.activations))
        self._shapes = shapes
        self._decoders = make_decoders(model, [shape.slots * shape.beams for _, shape in shapes], self.mesh)
        self._weights = self.make(parts, predictors)

    @property
    def weights(self) -> Weights:
        """The newest weights."""
        return self._weights

    def use(self, weights: Weights) -> None:
        """Makes weights from `load` the newest ones."""
        self._weights = weights

    @property
    def predictor(self) -> Predictor:
        return self.weights.predictor

    def load(self, again: bool = True) -> Weights | None:
        """Reads the newest checkpoint beside the present weights; None if it is the present one.

        Without `again`, one that was refused before is not read once more. One that the storage did not give is.

        Any thread may call it. The engine then passes the weights to `use`.

        Raises:
            InputError: it is damaged, has values that are not finite, or belongs to another model.
        """
        workdir, step = checkpoint.locate(self.path)
        found = str(workdir), step
        if found == (self._workdir, self.weights.step) or (found == self._refused and not again):
            return None
        try:
            weights = self._read(workdir, step)
        except StorageError:
            raise
        except InputError:
            self._refused = found
            raise
        self._workdir = str(workdir)
        return weights

    def _read(self, workdir: epath.PathLike, step: int) -> Weights:
        """Returns the weights of a step, placed as those in use."""
        parts = self.weights.parts
        old = parts.base
        if parts.adapters:
            raise InputError(f"{self.name} has adapters, which are those of step {old.step}; start a new server.")
        config = checkpoint.read_config(workdir)
        if config.model != old.config.model:
            raise InputError(f"{workdir} now has another model; start a new server for it.")
        if str(workdir) != self._workdir:
            self._check_like(str(workdir), config)
        shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)  # noqa: E731
        params = checkpoint.load_params(workdir, step, jax.tree.map(shape, old.params))
        check_finite(f"{workdir}/checkpoints/{step}", params)
        return self.make(dataclasses.replace(parts, base=dataclasses.replace(old, params=params, step=step)))

    def _check_like(self, workdir: str, config: Config) -> None:
        """Refuses another run whose answers depend on other settings than those that are served."""
        old = self.weights.parts.base
        files = (sentence_encoder.SETTINGS_FILE, sentence_encoder.WEIGHTS_FILE)
        others = {
            "tokenizer": load_tokenizer(workdir).fingerprint != old.tokenizer.fingerprint,
            "generation settings": config.generation != old.config.generation,
            "data.seq_length": config.data.seq_length != old.config.data.seq_length,
            "train.activations": config.train.activations != old.config.train.activations,
            "pooling": storage.read_keys(workdir, files) != storage.read_keys(self._workdir, files),
        }
        if differ := [name for name, is_other in others.items() if is_other]:
            raise InputError(f"{workdir} has another {', another '.join(differ)}; start a new server for it.")

    def warm_up(self) -> Iterator[None]:
        """Compiles every program, by running it once. Yields now and then, so that a start can be broken off."""
        for each in (*self.weights.readers.values(), *self.weights.lanes):
            each.warm_up()
            yield

    def _most_written(self, predictors: Sequence[Predictor]) -> int:
        """Returns how many tokens a request may write."""
        config = predictors[0].loaded.config
        longest = prompts.longest_output(config)
        if self._settings.max_length > longest:
            raise InputError(
                f"--max_length is {self._settings.max_length}; {self.path} writes at most {longest} tokens."
            )
        default = max(predictor.decoding({}).max_length for predictor in predictors)
        return self._settings.max_length or min(longest, max(128, default))

    def _lane_shapes(self, predictors: Sequence[Predictor]) -> list[tuple[int, LaneShape]]:
        """Returns the shapes of the lanes, each with the length of the shortest source that belongs to it."""
        widths = [_SHORT_SOURCE, self.longest] if self.longest > 2 * _SHORT_SOURCE else [self.longest]
        found = []
        multiple = predictors[0].runner.multiple
        for beams in sorted({*self._settings.beams, *(each.decoding({}).num_beams for each in predictors)}):
            shortest, tops = 1, self._settings.top_logprobs if beams == 1 else 0
            for width in widths:
                slots = _up(max(1, self._settings.slots // beams), multiple)
                found.append((shortest, LaneShape(slots, beams, width, self.longest_written, tops)))
                shortest = width + 1
        return found

    def make(self, parts: Parts, predictors: Sequence[Predictor] | None = None) -> Weights:
        """Returns the groups of new weights, whose programs are those of the present ones.

        Args:
            parts: the base and the adapters.
            predictors: of the parts, if they exist already.
        """
        predictors = predictors or parts.predictors(self.predictor.runner)
        readers = self._readers(predictors) if self.is_encoder else {}
        lanes = [] if self.is_encoder else self._lanes(predictors)
        found = [
            Weights(each, {**readers, ATTENTION: Attending(each)}, lanes, parts, number)
            for number, each in enumerate(predictors)
        ]
        return dataclasses.replace(found[0], adapters=tuple(found[1:]))

    def _readers(self, predictors: Sequence[Predictor]) -> dict[str, Readers]:
        runner, special = predictors[0].runner, predictors[0].loaded.tokenizer.special
        wanted = self._settings.tasks or predict.TASKS
        able = [(each, task) for each in predictors for task in wanted if each.can(task)]
        readings = [predictor.reading(task, Options()) for predictor, task in able]
        programs = {reading.name: (reading.program, reading.tokens_a_place) for reading in readings}
        if any(task == "embed" for _, task in able):
            programs[VECTORS] = (runner.vectors, 1)
        packing = {
            "longest": self.longest,
            "budget": self.batch_tokens,
            "multiple": runner.multiple,
            "pad_id": special.pad,
        }
        # On CPUs a batch costs what its tokens cost, padding included. `VECTORS` is rarely asked for.
        is_fine = {name: name != VECTORS and sharding.platform() == "cpu" for name in programs}
        return {
            name: Readers(program, width, fine=is_fine[name], **packing) for name, (program, width) in programs.items()
        }

    def _lanes(self, predictors: Sequence[Predictor]) -> list[Lane]:
        base = predictors[0]
        decoders = self._decoders(base.loaded.params)
        together = _up(_TOGETHER.get(sharding.platform(), _TOGETHER_ON_ACCELERATORS), base.runner.multiple)
        extras = Extras.of([each.decoding({}) for each in predictors])
        extras = dataclasses.replace(extras, **dict.fromkeys(self._settings.extra_options, True))
        if Languages.of(base.loaded.tokenizer).ids:  # a request's code is a forced first token
            extras = dataclasses.replace(extras, forced=True)
        extras = dataclasses.replace(extras, adapters=len(predictors) > 1)
        lanes = []
        for shortest, shape in self._shapes:
            with sharding.on(self.mesh):
                decoder = decoders[few_rows.are_few(shape.slots * shape.beams)]
            lanes.append(Lane(base, decoder, shape, extras, shortest=shortest, together=together))
        return lanes


def _not_compiled(missing: Sequence[str]) -> Refusal:
    """Returns the refusal of options that no program has, given as fields of `Extras`."""
    if lists := [_LISTS[name] for name in missing if name in _LISTS]:
        message = f"{lists[0]} is longer than the list that this server was started for; give a shorter one, or none."
        return Refusal("invalid", message, param=lists[0])
    options = [EXTRA_OPTIONS[name] for name in missing]
    adds = f"--extra_options={','.join(missing)}, at its start, adds"
    message = f"this server has no {' and no '.join(options)}; {adds} {'it' if len(options) == 1 else 'them'}."
    return Refusal("invalid", message, param=options[0])


def able_tasks(path: str, predictor: Predictor, wanted: Sequence[str]) -> tuple[str, ...]:
    """Returns the tasks that a model is asked to do and can do."""
    wanted = wanted or predict.TASKS
    found = tuple(task for task in wanted if predictor.can(task))
    if not found:
        able = [task for task in predict.TASKS if predictor.can(task)]
        raise InputError(f"{path} can do {', '.join(able) or 'no task'}, and --tasks has {', '.join(wanted)}.")
    return found


def _make_mesh(config: MeshConfig | None) -> jax.sharding.Mesh | None:
    """Returns the mesh of a config, over the first devices where it names fewer than there are; None for one device."""
    if config is None:
        return None
    wanted = config.data * config.tensor
    mesh = sharding.make_mesh(config, jax.devices()[:wanted] if wanted > 0 else None)
    return mesh if mesh.size > 1 else None


def _up(count: int, multiple: int) -> int:
    """Returns the smallest multiple that is at least a count."""
    return -(-count // multiple) * multiple


def _limited(loaded: Loaded, tokens: int) -> Loaded:
    """Returns the model with another limit of an input's tokens, if it is lower; 0 changes nothing."""
    data = loaded.config.data
    if not 0 < tokens < data.seq_length:
        return loaded
    config = dataclasses.replace(loaded.config, data=dataclasses.replace(data, seq_length=tokens))
    return dataclasses.replace(loaded, config=config)
