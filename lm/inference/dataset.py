"""Answers the requests of files as Parquet files, part by part, here or on Ray.

    OUT/_predict.json         what decides the answers: another command is refused
    OUT/part-00017.parquet    the answers of part 17, in the order of its requests
    OUT/_summary.json         how many there are; written last

A part is written whole or not at all, so a killed run goes on with the parts that are missing, and a part that two
workers answer is there once.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import operator
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

from lm import checkpoint, lease, storage
from lm.data import ray_workers, records, workers
from lm.errors import InputError
from lm.inference import languages, parts
from lm.inference.load import load
from lm.inference.packed import Row
from lm.inference.parts import Columns, Part
from lm.inference.predict import Options, Pipeline, Predictor
from lm.inference.requests import WRITING, Answer

_SETTINGS, _SUMMARY = "_predict.json", "_summary.json"  # readers of Parquet folders skip names with _
_SHARE = "every node has to see the output: give gs://..., s3://... or a folder that the nodes share."
_SECONDS_BETWEEN_LINES = 10.0
_COUNTED_TOGETHER = 16  # parts of an earlier run whose counts are read at a time


@dataclasses.dataclass(frozen=True)
class Job:
    """What is asked of each part.

    Attributes:
        checkpoint: as for `lm.load`.
        task: one of `requests.TASKS`.
        options: of the task. Each part has a seed of its own that follows from theirs.
        columns: of the requests' files.
    """

    checkpoint: str
    task: str
    options: Options
    columns: Columns = dataclasses.field(default_factory=Columns)


@dataclasses.dataclass(frozen=True)
class Counts:
    """What was answered.

    Attributes:
        requests: how many there are.
        errors: how many of them were answered with an error.
        tokens: how many were read.
        truncated: how many texts were cut to what the model reads.
    """

    requests: int = 0
    errors: int = 0
    tokens: int = 0
    truncated: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))

    def __str__(self) -> str:
        texts = f", {self.truncated:,} of texts that were cut" if self.truncated else ""
        return f"{self.requests:,} answers, {self.errors:,} of them errors{texts}; {self.tokens:,} tokens"


def answer(
    job: Job, source: str, out: str, runner: str = "local", num_workers: int | None = None, progress: bool = True
) -> Counts:
    """Answers every request of some files; the same call goes on after a kill.

    Args:
        job: what is asked.
        source: the files with requests; see `parts.cut`.
        out: the folder of the answers, local, gs://... or s3://....
        runner: `local`, this process; or as for `ray_workers.executor`: a worker for each model on Ray.
        num_workers: workers on Ray; by default one for each GPU of the cluster, or without GPUs one for each node.
        progress: say on stderr what is being done, and how far it is.

    Returns:
        The counts of all answers.

    Raises:
        InputError: the model cannot do the task, a file cannot be read, or `out` holds other answers.
    """
    ray_workers.check(runner)
    records.import_arrow("an --output of Parquet")
    if "-" in (source, out):
        raise InputError("answers in Parquet need files: give --input=FILE, a glob or a folder, and --output=FOLDER.")
    workdir, step = checkpoint.locate(job.checkpoint)
    if progress and job.task == "translate":
        languages.say_default(checkpoint.read_config(workdir), job.options.language)
    folder = storage.absolute(workdir)
    job = dataclasses.replace(job, checkpoint=f"{folder}/checkpoints/{step}")
    found = parts.cut(source)
    with lease.hold(out):
        present = set(storage.list_keys(out))
        _claim(out, job, found, present)
        names = [_name(number) for number in range(len(found))]
        missing = [number for number, name in enumerate(names) if name not in present]
        with _parallel_map(runner, num_workers, progress) as parallel_map:
            what = f"loading {job.checkpoint} on Ray, then compiling {job.task} and answering"
            if runner == "local" and missing:
                with workers.announced(f"loading {job.checkpoint}", progress):
                    _model(job.checkpoint)
                what = f"compiling {job.task}, then answering"
            todo = [found[number] for number in missing]
            answered = parallel_map(functools.partial(_answer_part, job, out), missing, todo)
            done = _watched(answered, len(found), len(missing), what, progress)
        before = _counts(out, [name for name in names if name in present])
        _check_complete(out, names)
        storage.write_key(out, _SUMMARY, json.dumps(dataclasses.asdict(before + done)).encode())
    return before + done


def _name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _claim(out: str, job: Job, found: Sequence[Part], present: set[str]) -> None:
    """Writes what decides the answers, or refuses the answers of something else."""
    inputs = json.dumps([dataclasses.astuple(part) for part in found]).encode()
    settings = dataclasses.asdict(job) | {"input": hashlib.sha256(inputs).hexdigest(), "parts": len(found)}
    (content,) = storage.read_keys(out, [_SETTINGS])
    if content is None:
        if others := sorted(name for name in present if name != lease.NAME):
            raise InputError(f"--output={out!r} holds other files, such as {others[0]}; give an empty or a new folder.")
        storage.write_key(out, _SETTINGS, json.dumps(settings, ensure_ascii=False).encode())
        return
    wanted, there = json.loads(json.dumps(settings)), json.loads(content)
    if differ := [name for name in wanted if wanted[name] != there.get(name)]:
        raise InputError(
            f"--output={out!r} holds the answers of another command: {', '.join(differ)} differ; give that command "
            "again, or another folder."
        )


@contextlib.contextmanager
def _parallel_map(runner: str, num_workers: int | None, progress: bool) -> Iterator[Callable[..., Iterator[Counts]]]:
    if runner == "local":
        yield map
        return
    with contextlib.ExitStack() as stack:
        with workers.announced("connecting to Ray", progress):
            executor = stack.enter_context(ray_workers.executor(runner, num_workers, for_models=True))
        yield executor.map


def _watched(answered: Iterator[Counts], total: int, missing: int, what: str, progress: bool) -> Counts:
    """Adds up the counts of the parts as they are answered, and says how fast that goes; before the first, `what`."""
    begun = said = time.monotonic()
    done = Counts()
    with workers.announced(what, progress):
        first = list(itertools.islice(answered, 1))
    for number, counts in enumerate(itertools.chain(first, answered), 1):
        done += counts
        if progress and (number == missing or time.monotonic() - said > _SECONDS_BETWEEN_LINES):
            said = time.monotonic()
            rate = done.tokens / (said - begun)
            print(
                f"{total - missing + number:,} of {total:,} parts; in {said - begun:.0f} s {done.requests:,} requests, "
                f"{rate:,.0f} tokens a second",
                file=sys.stderr,
                flush=True,
            )
    return done


def _counts(out: str, names: Sequence[str]) -> Counts:
    """Returns the counts of parts that an earlier run answered."""
    arrow = records.import_arrow("an --output of Parquet")

    def read(name: str) -> Counts:
        with records.reading(arrow, f"{out}/{name}"), storage.open_file(f"{out}/{name}") as raw:
            return Counts(**json.loads(arrow.parquet.read_metadata(raw).metadata[b"counts"]))

    with concurrent.futures.ThreadPoolExecutor(_COUNTED_TOGETHER) as executor:
        return sum(executor.map(read, names), Counts())


def _check_complete(out: str, names: Sequence[str]) -> None:
    if lost := set(names) - set(storage.list_keys(out)):
        raise InputError(f"{out}/{min(lost)} was written, and is not there; {_SHARE}")


# --- one part


def _answer_part(job: Job, out: str, number: int, part: Part) -> Counts:
    """Answers one part and writes it; runs on a worker."""
    if storage.read_keys(out, [_SETTINGS]) == [None]:
        raise InputError(f"{out} is not seen on {socket.gethostname()}; {_SHARE}")
    options = job.options
    if job.task in WRITING:
        seed = hashlib.sha256(f"{options.seed} {number}".encode()).digest()
        options = dataclasses.replace(options, seed=int.from_bytes(seed[:4], "big"))
    pipeline = _model(job.checkpoint).pipeline(job.task, options)
    tokens = 0

    def compute(rows: Sequence[Row], numbers: Sequence[int]):
        nonlocal tokens
        tokens += sum(len(row.tokens) for row in rows)
        return pipeline.compute(rows, numbers)

    ids, requests = [], []
    for own, request in parts.read(part, job.columns):
        ids.append(own)
        requests.append(request)
    answers = Pipeline(pipeline.prompt, compute)(requests)
    errors, truncated = (sum(name in answer for answer in answers) for name in ("error", "truncated"))
    counts = Counts(len(answers), errors, tokens, truncated)
    storage.write_key(out, _name(number), _parquet(job, part, ids, answers, counts))
    return counts


@functools.lru_cache(maxsize=1)
def _model(path: str) -> Predictor:
    return Predictor(load(path))


def _parquet(job: Job, part: Part, ids: Sequence[object], answers: Sequence[Answer], counts: Counts) -> bytes:
    """Returns a Parquet file of answers: `id`, `error`, `truncated` and the fields of the task."""
    arrow = records.import_arrow("an --output of Parquet")
    of_task = _fields(arrow, job.task)
    named = {"id": parts.id_type(part, job.columns), "error": arrow.string(), "truncated": arrow.bool_()}
    schema = arrow.schema(named | (of_task or {"answer": arrow.string()}))
    if not of_task:
        answers = [each | {"answer": json.dumps(each, ensure_ascii=False)} for each in answers]
    rows = [{"id": own} | each for own, each in zip(ids, answers, strict=True)]
    table = arrow.Table.from_pylist(rows, schema.with_metadata({"counts": json.dumps(dataclasses.asdict(counts))}))
    file = io.BytesIO()
    arrow.parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def _fields(arrow: ModuleType, task: str) -> dict[str, object]:
    """Returns the types of a task's fields; none where the whole answer is kept as JSON."""
    text, number = arrow.string(), arrow.float64()
    if task in WRITING:
        written = {"text": text, "score": number, "cut": arrow.bool_()}
        return written | {"candidates": arrow.list_(arrow.struct(written))}
    return {
        "fill-mask": {"masks": arrow.list_(arrow.list_(arrow.struct({"token": text, "probability": number})))},
        "next-sentence": {"is_next": number},
        "embed": {"embedding": arrow.list_(arrow.float32())},
    }.get(task, {})
