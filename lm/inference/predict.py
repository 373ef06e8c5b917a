"""A trained model with its tasks as methods: `lm.load(path)` returns a `Predictor`."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import jax
import numpy as np

from lm import tasks
from lm.errors import InputError
from lm.inference import packed, prompts
from lm.inference.languages import Translate
from lm.inference.load import Loaded
from lm.inference.options import Decoding, is_whole, with_defaults
from lm.inference.packed import Packed, Row
from lm.inference.prompts import Prompt, Written
from lm.inference.requests import READING, TASKS, TOGETHER, Answer, Request, RequestError, finite, has_effect
from lm.inference.runner import Runner
from lm.models import Params, Prompts, Sources
from lm.tasks import heads

_WRITTEN_TOGETHER = 16  # rows of a batch in decoding
# Tokens of a packed row for each place; see `packed`. A place of fill-mask costs a vocabulary projection.
_TOKENS_A_TEXT, _TOKENS_A_MASK = 8, 16

Result = TypeVar("Result")
Requests = Iterable[Request]


@dataclasses.dataclass(frozen=True)
class Pipeline(Generic[Result]):
    """One task of one model: turns requests into answers.

    Attributes:
        prompt: turns a request into a row, and a result into an answer.
        compute: (rows, the number of each among all requests) -> their results in the same order.
    """

    prompt: Prompt[Result]
    compute: Callable[[Sequence[Row], Sequence[int]], Sequence[Result]]

    def __call__(self, requests: Requests, first: int = 0) -> list[Answer]:
        """Returns the answers in the order of the requests. Requests are numbered from `first` on."""
        numbered = enumerate(requests, first)
        answers: list[Answer] = []
        while chunk := list(itertools.islice(numbered, TOGETHER)):
            answers += self._answers(chunk)
        return answers

    def _answers(self, chunk: Sequence[tuple[int, Request]]) -> Iterator[Answer]:
        found: dict[int, Answer] = {}
        read: dict[int, Row] = {}
        for number, request in chunk:
            try:
                read[number] = self.prompt.row(request)
            except RequestError as error:
                found[number] = {"error": str(error)}
        results = self.compute(list(read.values()), list(read))
        for (number, row), result in zip(read.items(), results, strict=True):
            found[number] = answer(self.prompt, row, result)
        return (found[number] for number, _ in chunk)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What answers one task of an encoder.

    Attributes:
        name: of the program.
        prompt: turns a request into a row, and the outputs at its places into an answer.
        program: computes the outputs at the places of packed rows.
        tokens_a_place: see `packed.pack`.
    """

    name: str
    prompt: Prompt[np.ndarray]
    program: Callable[[Packed], jax.Array]
    tokens_a_place: int


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of all tasks. A task refuses those of other tasks, if they are not at their default.

    Attributes:
        top: the number of candidates for each mask.
        pooling, normalize: one of `POOLINGS`, and whether vectors are scaled to length one. None: as the imported
            sentence encoder does, or else a plain mean.
        prompt, prompt_name: the text to put before every text, or the name that the sentence encoder has for one.
            None: its default.
        language: the language to translate into, for requests that name none.
        seed: the seed of sampling.
        decoding: fields of `Decoding` by name. None is the default of the model, see `Config.generation`.
    """

    top: int = 5
    pooling: str | None = None
    normalize: bool | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    language: str = ""
    seed: int = 0
    decoding: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_whole(self.seed) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed!r}; it must be a whole number between 0 and {2**63 - 1}.")

    def check(self, task: str) -> None:
        """Refuses options that do nothing in a task.

        Raises:
            InputError: names the first one, and the options that the task takes.
        """
        defaults = {each.name: each.default for each in dataclasses.fields(self) if each.name != "decoding"}
        given = [name for name, default in defaults.items() if getattr(self, name) != default]
        given += [name for name, value in self.decoding.items() if value is not None]
        if unused := [name for name in given if not has_effect(name, task)]:
            known = (*defaults, *(each.name for each in dataclasses.fields(Decoding)))
            taken = ", ".join(name for name in known if has_effect(name, task)) or "no options"
            raise InputError(f"{unused[0]} has no effect on {task}, which takes {taken}; leave it out.")


class Predictor:
    """Answers requests with one model.

    Every task takes a list of requests and returns a list with one answer for each. A request is a string, or a mapping
    with the fields of the task. If it cannot be answered, its answer is `{"error": ...}`. If it was too long, its
    answer has `"truncated": true`. A task that the model cannot do raises `InputError`.
    """

    def __init__(self, loaded: Loaded, runner: Runner | None = None):
        self.loaded = loaded
        self.runner = runner or Runner(loaded)

    def with_params(self, params: Params, step: int) -> "Predictor":
        """Returns a predictor with another step's weights of the same shapes. The two share their compiled programs."""
        loaded = dataclasses.replace(self.loaded, params=params, step=step)
        return Predictor(loaded, self.runner.with_params(params))

    # ---- Tasks ------------------------------------------------------------------------------

    def fill_mask(self, requests: Requests, top: int = 5) -> list[Answer]:
        """Returns `{"masks": [[{"token", "probability"}, ...], ...]}`: for each [MASK] the `top` best tokens."""
        return self.pipeline("fill-mask", Options(top=top))(_several(requests))

    def next_sentence(self, requests: Requests) -> list[Answer]:
        """Returns `{"is_next": ...}`: the probability that `text_pair` follows `text`."""
        return self.pipeline("next-sentence")(_several(requests))

    def embed(
        self,
        requests: Requests,
        pooling: str | None = None,
        normalize: bool | None = None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> list[Answer]:
        """Returns `{"embedding": [...]}`: one vector for each text; for the options see `Options`."""
        options = Options(pooling=pooling, normalize=normalize, prompt=prompt, prompt_name=prompt_name)
        return self.pipeline("embed", options)(_several(requests))

    def generate(self, requests: Requests, *, seed: int = 0, **decoding: object) -> list[Answer]:
        """Returns `{"text", "score"}`: what the model writes for `text`; with several beams also `candidates`.

        Args:
            requests: texts.
            seed: the seed of sampling. A request's random numbers depend on it and on the request's index alone.
            decoding: fields of `Decoding`, such as `num_beams=4`; None is the model's default.
        """
        return self.pipeline("generate", Options(seed=seed, decoding=decoding))(_several(requests))

    def translate(
        self, requests: Requests, language: str = "", *, seed: int = 0, **decoding: float | None
    ) -> list[Answer]:
        """Returns translations of `text`, as `generate` does.

        The language is the `language` of the request, or else of this call, or else the first one of the run. An
        imported model whose folder names no language needs one, see `Translate`.
        """
        return self.pipeline("translate", Options(language=language, seed=seed, decoding=decoding))(_several(requests))

    def answer(self, requests: Requests, *, seed: int = 0, **decoding: object) -> list[Answer]:
        """Returns answers to `question` from the passage `context`, as `generate` does."""
        return self.pipeline("answer", Options(seed=seed, decoding=decoding))(_several(requests))

    def pipeline(self, task: str, options: Options | None = None) -> Pipeline:
        """Returns the pipeline of one of `TASKS`.

        Raises:
            InputError: the model cannot do the task, or not with these options.
        """
        options = options or Options()
        if task not in TASKS:
            raise InputError(f"the task is {task!r}; accepted: {', '.join(TASKS)}.")
        if task in READING:
            reading = self.reading(task, options)
            return Pipeline(reading.prompt, functools.partial(self._read, reading))
        prompt, _ = self.writing(task, options)
        return Pipeline(prompt, functools.partial(self._write, options=options, key=jax.random.key(options.seed)))

    def can(self, task: str) -> bool:
        """Returns whether the model can do one of `TASKS`."""
        try:
            self.pipeline(task)
        except InputError:
            return False
        return True

    def reading(self, task: str, options: Options) -> Reading:
        """Returns what answers a task of an encoder, one of `READING`.

        Raises:
            InputError: the model cannot do the task, or not with these options.
        """
        if not self.loaded.is_encoder:
            raise InputError(f"{task} needs an encoder, but this model writes text; use generate, translate or answer.")
        options.check(task)
        heads.require_trained(task, self.loaded.untrained)
        config, tokenizer, runner = self.loaded.config, self.loaded.tokenizer, self.runner
        longest = config.data.seq_length
        if task == "fill-mask":
            fill = prompts.FillMask(tokenizer, longest, options.top)
            return Reading("mask logits", fill, runner.mask_logits, _TOKENS_A_MASK)
        if task == "next-sentence":
            if not config.model.pooler or task not in tasks.of_run(config).answers(config):
                raise InputError("this model has no next-sentence head; use one trained with objective.nsp=True.")
            follows = prompts.NextSentence(tokenizer, longest)
            return Reading("next probability", follows, runner.next_probability, _TOKENS_A_TEXT)
        encoder = self.loaded.sentence_encoder.changed(options.pooling, options.normalize)
        embed = prompts.Embed(tokenizer, longest, encoder, encoder.prompt(options.prompt, options.prompt_name))
        pooled = functools.partial(runner.pooled, poolings=encoder.pooling)
        return Reading(f"pooled by {', '.join(encoder.pooling)}", embed, pooled, _TOKENS_A_TEXT)

    def writing(self, task: str, options: Options) -> tuple[prompts.Writing, Decoding]:
        """Returns the prompt of a task that writes, and how its text is decoded.

        Raises:
            InputError: the model cannot do the task, or not with these options.
        """
        options.check(task)
        config, tokenizer = self.loaded.config, self.loaded.tokenizer
        decoding = self.decoding(options.decoding)
        forced = decoding.forced_bos_token_id
        if task == "generate":
            return prompts.Generate(config, tokenizer, decoding.max_length, forced), decoding
        if task == "translate":
            return Translate(config, tokenizer, decoding.max_length, options.language, forced), decoding
        return prompts.AnswerQuestion(config, tokenizer, decoding.max_length, forced), decoding

    # ---- Rows to results --------------------------------------------------------------------

    def _read(self, reading: Reading, rows: Sequence[Row], numbers: Sequence[int]) -> list[np.ndarray]:
        """Returns the outputs at the places of each row."""
        del numbers
        batches = packed.pack(
            rows,
            budget=self.runner.budget,
            tokens_a_place=reading.tokens_a_place,
            pad_id=self.loaded.tokenizer.special.pad,
            multiple=self.runner.multiple,
        )
        found: dict[int, np.ndarray] = {}
        for batch in batches:
            outputs = np.asarray(reading.program(batch))
            found |= {i: outputs[place] for i, place in batch.where}
        return [found[i] for i in range(len(rows))]

    def decoding(self, given: Mapping[str, object]) -> Decoding:
        """Returns the options of a request: those given by name, and for the rest the model's defaults.

        Raises:
            InputError: an option has no such value.
        """
        config = self.loaded.config
        longest = prompts.longest_output(config)
        generation = dataclasses.replace(
            config.generation,
            max_length=min(config.generation.max_length, longest),
            min_length=min(config.generation.min_length, longest),
        )
        found = with_defaults(generation, prompts.default_length(config), given)
        found.check_tokens(config.model.vocab_size - 1)
        return found

    def decoding_of(self, row: Row, options: Options) -> Decoding:
        """Returns how a row is written.

        What an imported model's decoder is given after its start token, such as the code of a language, counts as a
        forced token in its lengths, as in transformers.
        """
        given = options.decoding
        if self.loaded.config.generation.decoder_start_token_id >= 0 and len(row.prompt):
            given = {**given, "forced_bos_token_id": int(row.prompt[0])}
        return self.decoding(given)

    def _write(self, read: Sequence[Row], numbers: Sequence[int], *, options: Options, key: jax.Array) -> list[Written]:
        """Returns tokens [N, T] and scores [N] for each row. Rows of similar length are decoded together."""
        config, special = self.loaded.config, self.loaded.tokenizer.special
        found: dict[int, Written] = {}
        order = sorted(range(len(read)), key=lambda i: len(read[i].tokens))
        for start in range(0, len(order), _WRITTEN_TOGETHER):
            together = order[start : start + _WRITTEN_TOGETHER]
            tokens, segments = packed.pad(
                [read[i] for i in together], config.data.seq_length, special.pad, self.runner.multiple
            )
            count = len(tokens)
            if config.model.architecture == "encoder-decoder":
                sources = Sources(tokens, segments)
                begin = [read[i].prompt for i in together] + [read[together[0]].prompt] * (count - len(together))
                lengths = np.array([len(each) for each in begin], np.int32)
                width = int(lengths.max())
                padded = np.array([np.pad(each, (0, width - len(each))) for each in begin], np.int32)
                given = Prompts(padded.reshape(count, width), lengths)
            else:
                sources, given = None, Prompts(tokens, segments.sum(axis=1, dtype=np.int32))
            # A request's random numbers depend on its own number, not on the rows beside it.
            numbered = np.array([numbers[i] for i in together] + [0] * (count - len(together)), np.uint32)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbered)
            decodings = [self.decoding_of(read[i], options) for i in together]
            decodings += decodings[:1] * (count - len(together))
            written = jax.device_get(self.runner.generate(sources, given, decodings, keys))
            found |= dict(zip(together, zip(written.tokens_BNT, written.scores_BN, strict=True), strict=False))
        return [found[i] for i in range(len(read))]


def answer(prompt: Prompt[Result], row: Row, result: Result) -> Answer:
    """Returns the answer to a request: what the prompt makes of the result, and whether the text was cut."""
    return finite(prompt.answer(row, result) | ({"truncated": True} if row.truncated else {}))


def _several(requests: Requests) -> Requests:
    """Returns the requests, and refuses a single one: a string would be read as a list of characters.

    Raises:
        InputError: it is a string or a mapping.
    """
    if isinstance(requests, str | Mapping):
        raise InputError(f"the requests are one {type(requests).__name__}; give a list of them.")
    return requests
