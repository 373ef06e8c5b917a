"""Files of requests on object storage become Parquet there; a killed run goes on. The model is a stub."""

import io
import types
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lm import storage
from lm.inference import dataset, parts
from lm.inference.dataset import Counts, Job
from lm.inference.packed import Row
from lm.inference.predict import Options, Pipeline
from lm.inference.requests import Answer, Request, field


class Lengths:
    """Embeds a text as its number of characters."""

    def row(self, request: Request) -> Row:
        tokens = np.zeros(len(field(request, "text")), np.int32)
        return Row(tokens, tokens, tokens[:1], truncated=False)

    def answer(self, row: Row, result: np.ndarray) -> Answer:
        return {"embedding": result.tolist()}


def lengths(rows: Sequence[Row], numbers: Sequence[int]) -> list[np.ndarray]:
    return [np.array([len(row.tokens)], np.float32) for row in rows]


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    model = types.SimpleNamespace(pipeline=lambda task, options: Pipeline(Lengths(), lengths))
    monkeypatch.setattr(dataset, "_model", lambda path: model)
    monkeypatch.setattr(dataset.checkpoint, "locate", lambda path: (path, 0))
    monkeypatch.setattr(parts, "_ROWS", 4)


def test_parquet_becomes_parquet(url: str):
    file = io.BytesIO()
    pq.write_table(pa.table({"id": range(10), "text": ["x" * (1 + i) for i in range(10)]}), file, row_group_size=3)
    storage.write_key(f"{url}/in", "a.parquet", file.getvalue())
    job = Job("run", "embed", Options())
    for lost in ((), ("_summary.json", "part-00001.parquet")):  # the second time as after a kill
        for name in lost:
            storage.write_version(f"{url}/out", name, None, storage.read_version(f"{url}/out", name)[1])
        counts = dataset.answer(job, f"{url}/in/*.parquet", f"{url}/out", progress=False)
        assert counts == Counts(10, 0, sum(range(1, 11)))
        names = [f"part-0000{number}.parquet" for number in range(3)]
        assert storage.list_keys(f"{url}/out") == ["_predict.json", "_summary.json", *names]
        found = [pq.read_table(pa.BufferReader(content)) for content in storage.read_keys(f"{url}/out", names)]
        table = pa.concat_tables(found)
        assert table["id"].to_pylist() == list(range(10))
        assert table["embedding"].to_pylist() == [[1.0 + i] for i in range(10)]


def test_lines_become_parquet(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts, "_BYTES", 5)
    storage.write_key(f"{url}/in", "a.txt", b"one\ntwo words\n\nthree\n")
    counts = dataset.answer(Job("run", "embed", Options()), f"{url}/in", f"{url}/out", progress=False)
    assert counts == Counts(4, 1, 3 + 9 + 5)
    names = [name for name in storage.list_keys(f"{url}/out") if name.startswith("part")]
    found = [pq.read_table(pa.BufferReader(content)) for content in storage.read_keys(f"{url}/out", names)]
    ids = pa.concat_tables(found)["id"].to_pylist()
    assert ids == [f"{url}/in/a.txt:{offset}" for offset in (0, 4, 14, 15)]
