"""Files of requests become Parquet files with an answer for every request, once, whoever is killed in between.

python -m tests.faults.ray_work embed kills processes and nodes of Ray, by hand.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm import models, storage
from lm.data import ray_workers, workers
from lm.data.store import Store
from lm.errors import InputError
from lm.inference import dataset, parts
from lm.inference.dataset import Counts, Job
from lm.inference.parts import Columns, Part
from lm.inference.predict import Options
from lm.inference.requests import TASKS
from tests.data.test_ray_workers import Cluster, pool
from tests.inference.conftest import make_workdir
from tests.training.conftest import WORDS, tiny_config  # noqa: F401
from tests.weights import random_params

ROOT = Path(__file__).parents[2]
TEXTS = [f"the {WORDS[i % 19]} walks over {WORDS[i * 7 % 19]}" for i in range(70)]


@pytest.fixture(scope="module")
def workdir(tiny_config, tmp_path_factory) -> str:  # noqa: F811
    tokenizer = Store.open(tiny_config.data.store).tokenizer
    params = random_params(models.build(tiny_config.model))
    return make_workdir(tmp_path_factory.mktemp("encoder"), tiny_config, tokenizer, params)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_ROWS", 16)
    monkeypatch.setattr(parts, "_BYTES", 500)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Texts with ids in two files of Parquet, in row groups that are no parts; the last text is missing."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, rows in (("a", range(50)), ("b", range(50, 71))):
        columns = {
            "id": [1000 + i for i in rows],
            "content": [[*TEXTS, None][i] for i in rows],
            "more": [0.5] * len(rows),
        }
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=11)
    return str(folder)


def job(workdir: str, **options) -> Job:
    return Job(workdir, "embed", Options(**options), Columns(text="content"))


def answer(job: Job, source: str, out: Path, **more) -> Counts:
    return dataset.answer(job, source, str(out), progress=False, **more)


def written(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


# ---- Parts


@pytest.mark.parametrize("size", [1, 7, 64, 500, 1 << 20])
def test_every_line_is_in_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    lines = [b"one", b"", b'{"text": "two", "id": 7}', "三".encode(), b"{broken", b"x" * 100, rb'{"id": "b \ud800"}']
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "b.jsonl").write_bytes(b"last without an end")
    monkeypatch.setattr(parts, "_BYTES", size)
    found = parts.cut(str(tmp_path))
    assert (len(found) > 20) == (size < 64)
    read = [pair for part in found for pair in parts.read(part, Columns())]
    assert [request for _, request in read] == [
        *("one", "", {"text": "two", "id": 7}, "三", None, "x" * 100, {"id": "b \ud800"}, "last without an end")
    ]
    a, b = tmp_path / "a.txt", tmp_path / "b.jsonl"
    assert [own for own, _ in read] == [f"{a}:0", f"{a}:4", "7", f"{a}:30", f"{a}:34", f"{a}:42", "b ?", f"{b}:0"]


@pytest.mark.parametrize("rows", [1, 5, 16, 1000])
def test_every_row_is_in_one_part(source: str, monkeypatch: pytest.MonkeyPatch, rows: int):
    monkeypatch.setattr(parts, "_ROWS", rows)
    monkeypatch.setattr(parts, "_READ_TOGETHER", 4)
    read = [pair for part in parts.cut(source) for pair in parts.read(part, Columns(text="content"))]
    assert read == [(1000 + i, {"text": text}) for i, text in enumerate([*TEXTS, None])]
    unnamed = [own for part in parts.cut(source) for own, _ in parts.read(part, Columns("none", "content"))]
    assert unnamed == [f"{source}/{name}.parquet:{row}" for name, rows in (("a", 50), ("b", 21)) for row in range(rows)]


def test_a_text_that_is_not_utf8_is_one_bad_request(tmp_path: Path):
    column = pa.array([b"one", b"\xff\xfe", b"two"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    (part,) = parts.cut(str(tmp_path / "a.parquet"))
    assert [request for _, request in parts.read(part, Columns())] == [{"text": "one"}, {"text": None}, {"text": "two"}]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), "matches nothing; give a file, a glob, or a folder"),
        (("a.parquet", "b.txt"), "names .parquet and other files; give one kind"),
        (("a.txt.gz",), "is compressed, so no part can begin in its middle"),
        (("a.parquet",), "cannot be read as Parquet"),
    ],
)
def test_files_that_have_no_parts_are_refused(tmp_path: Path, names: tuple[str, ...], reason: str):
    for name in names:
        (tmp_path / name).write_bytes(b"text\n")
    with pytest.raises(InputError, match=reason):
        parts.cut(f"{tmp_path}/*")


# ---- Answers


@pytest.mark.usefixtures("small_parts")
def test_every_request_is_answered_under_its_id(workdir: str, source: str, tmp_path: Path):
    counts = answer(job(workdir), source, tmp_path / "out")
    table = pq.read_table(tmp_path / "out")  # all files of the folder
    assert table["id"].to_pylist() == list(range(1000, 1071))
    assert table["error"].to_pylist() == [None] * 70 + ['the request needs the string "text".']
    found = np.array(table["embedding"].to_pylist()[:70])
    model = dataset._model(f"{workdir}/checkpoints/0")
    expected = np.array([each["embedding"] for each in model.embed(TEXTS)])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert counts == Counts(71, 1, sum(len(ids) + 2 for ids in model.loaded.tokenizer.encode(TEXTS)))
    assert json.loads((tmp_path / "out/_summary.json").read_text()) == dataclasses.asdict(counts)
    assert [path.name for path in sorted((tmp_path / "out").glob("part*"))] == [
        f"part-0000{i}.parquet" for i in range(6)
    ]


class Killed(BaseException):
    """As kill -9: nothing is cleaned up by what catches exceptions."""


@pytest.mark.usefixtures("small_parts")
def test_a_killed_run_goes_on_where_it_was(workdir: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    counts = answer(job(workdir), source, unbroken)
    write_key = storage.write_key

    def write_or_die(path: str, name: str, value: bytes) -> None:
        if name == "part-00003.parquet":
            raise Killed
        write_key(path, name, value)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_key", write_or_die)
        with pytest.raises(Killed):
            answer(job(workdir), source, killed)
    before = written(killed)
    assert sorted(before) == ["_predict.json", *(f"part-0000{i}.parquet" for i in range(3))]
    answered = []
    answer_part = dataset._answer_part
    monkeypatch.setattr(dataset, "_answer_part", lambda *args: answered.append(args[2]) or answer_part(*args))
    assert answer(job(workdir), source, killed) == counts
    assert answered == [3, 4, 5]
    assert written(killed) == written(unbroken)
    assert answer(job(workdir), source, killed) == counts  # once more: nothing is left to do
    assert len(answered) == 3


@contextlib.contextmanager
def cluster_of_threads(patch: pytest.MonkeyPatch, cluster: Cluster) -> Iterator[None]:
    @contextlib.contextmanager
    def executor(runner: str, num_workers: int | None, *, for_models: bool) -> Iterator[ray_workers.Pool]:
        assert (runner, for_models) == ("ray", True)
        with pool(cluster, num_workers or 1) as workers:
            yield workers

    with patch.context() as context:
        context.setattr(ray_workers, "executor", executor)
        yield


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("after", [False, True], ids=["before they write", "after they wrote"])
def test_lost_workers_change_no_byte(
    workdir: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
):
    counts = answer(job(workdir), source, tmp_path / "local")
    cluster = Cluster(lost_calls=(0, 2, 3), after=after)
    with cluster_of_threads(monkeypatch, cluster):
        assert answer(job(workdir), source, tmp_path / "ray", runner="ray", num_workers=2) == counts
    assert cluster.started >= 4
    assert written(tmp_path / "ray") == written(tmp_path / "local")


def test_the_answers_of_another_command_are_refused(workdir: str, source: str, tmp_path: Path):
    out = tmp_path / "out"
    answer(job(workdir), source, out)
    before = written(out)
    with pytest.raises(InputError, match="another command: options differ"):
        answer(job(workdir, normalize=True), source, out)
    (Path(source) / "c.parquet").write_bytes((Path(source) / "b.parquet").read_bytes())
    with pytest.raises(InputError, match="another command: input, parts differ"):
        answer(job(workdir), source, out)
    assert written(out) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    with pytest.raises(InputError, match=r"holds other files, such as notes.txt"):
        answer(job(workdir), source, tmp_path / "full")


def test_an_output_that_a_node_does_not_see_is_named(workdir: str, source: str, tmp_path: Path):
    (part, *_) = parts.cut(source)
    with pytest.raises(InputError, match="every node has to see the output"):
        dataset._answer_part(job(workdir), str(tmp_path / "elsewhere"), 0, part)


# ---- Tasks and their columns


@pytest.mark.parametrize("task", TASKS)
def test_the_columns_hold_what_a_task_answers(task: str):
    written = {"text": "a b", "score": -1.5, "cut": True}
    texts = [written, {**written, "candidates": [written, {"text": "", "score": -2.0}]}]
    answers: list[dict] = {
        "fill-mask": [{"masks": [[{"token": "a", "probability": 0.25}], []]}],
        "next-sentence": [{"is_next": 0.125}],
        "embed": [{"embedding": [0.5, -1.0]}],
    }.get(task, texts)
    answers = [*answers, {**answers[0], "truncated": True}, {"error": "the text is empty."}]
    made = dataset._parquet(
        Job("run", task, Options()), Part("a.txt", 0, -1), list("abcd")[: len(answers)], answers, Counts(3)
    )
    rows = pq.read_table(pa.BufferReader(made)).to_pylist()

    def without_nulls(value):
        if isinstance(value, dict):
            return {name: without_nulls(each) for name, each in value.items() if each is not None}
        return [without_nulls(each) for each in value] if isinstance(value, list) else value

    assert [without_nulls(row) for row in rows] == [{"id": i} | each for i, each in zip("abcd", answers, strict=False)]


def test_a_task_without_columns_is_kept_as_json():
    made = dataset._parquet(Job("run", "new", Options()), Part("a.txt", 0, -1), ["a"], [{"x": [1, "é"]}], Counts(1))
    (row,) = pq.read_table(pa.BufferReader(made)).to_pylist()
    assert json.loads(row["answer"]) == {"x": [1, "é"]}


def test_a_part_has_random_numbers_of_its_own(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They depend on the seed and on the number of the part."""
    seeds = []

    def pipeline(task: str, options: Options) -> NoReturn:
        seeds.append(options.seed)
        raise Killed

    monkeypatch.setattr(dataset, "_model", lambda path: types.SimpleNamespace(pipeline=pipeline))
    storage.write_key(str(tmp_path), "_predict.json", b"{}")
    for seed, number in ((0, 0), (0, 1), (1, 0), (0, 0)):
        writing = Job("run", "generate", Options(seed=seed), Columns(text="content"))
        with pytest.raises(Killed):
            dataset._answer_part(writing, str(tmp_path), number, parts.cut(source)[0])
    assert len(set(seeds[:3])) == 3
    assert seeds[3] == seeds[0]


# ---- Wrong input


def test_flags_that_name_no_files_are_refused(workdir: str, source: str, tmp_path: Path):
    for files, out in (("-", str(tmp_path)), (source, "-")):
        with pytest.raises(InputError, match="give --input=FILE, a glob or a folder, and --output=FOLDER"):
            dataset.answer(job(workdir), files, out)
    with pytest.raises(InputError, match="--runner is 'spark'; accepted: local, ray or ray://HOST:PORT"):
        answer(job(workdir), source, tmp_path / "out", runner="spark")
    with pytest.raises(InputError, match=r"has no column text, text_pair.*; it has id, content, more. Name the column"):
        answer(Job(workdir, "embed", Options()), source, tmp_path / "out")


def test_what_takes_long_before_the_first_part_is_said(workdir: str, source: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(workers, "_ANNOUNCED_AFTER", 0.0)
    dataset.answer(job(workdir), source, str(tmp_path / "out"))
    loading, compiling, *_, last = capsys.readouterr().err.splitlines()
    assert loading == f"loading {workdir}/checkpoints/0"
    assert compiling == "compiling embed, then answering"
    assert "2 of 2 parts" in last


def test_the_script_names_a_missing_package_before_it_loads(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a tree")
    missing = """import runpy, sys; sys.path.insert(0, "launch"); sys.modules["{}"] = None
runpy.run_path("launch/predict.py", run_name="__main__")"""
    for package, runner, message in (
        ("pyarrow.parquet", "local", "an --output of Parquet needs pyarrow; pip install -e '.[parquet]'."),
        ("ray", "ray", "--runner=ray needs ray; pip install -e '.[ray]'."),
    ):
        flags = ["--checkpoint=no/such/run", "--task=embed", f"--runner={runner}", f"--input={tmp_path}/a.txt"]
        command = [sys.executable, "-c", missing.format(package), *flags, f"--output={tmp_path}/out"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


def test_ray_is_needed_for_its_runner_alone(workdir: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--runner=ray needs ray; pip install -e '.\[ray\]'"):
        answer(job(workdir), source, tmp_path / "out", runner="ray")


def test_a_field_of_json_lines_is_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "r0", "src": "a tree"}\nplain\n')
    (part,) = parts.cut(str(tmp_path / "a.jsonl"))
    (_, first), (_, second) = parts.read(part, parts.Columns(text="src"))
    assert (first, second) == ({"id": "r0", "src": "a tree", "text": "a tree"}, "plain")
