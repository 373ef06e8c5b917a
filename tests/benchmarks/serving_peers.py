"""The servers that `serving.py` compares ours with. Each runs alone, with the Python of the environment that has it.

    python tests/benchmarks/serving_peers.py KIND FOLDER BATCH

It imports nothing of lm, and prints `serving on http://127.0.0.1:PORT` when it is ready. `sentence-transformers` and
`transformers` hold a lock, as an inference server without batching does. `onnxruntime` and `ctranslate2` compute
whatever waits when they are free, in batches of at most BATCH; onnxruntime sorts what waits by length first. Its
threads spin while they wait for one another, or do not, which is faster beside other work.
"""

import asyncio
import base64
import functools
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Handler = Callable[[Request], Any]
_WAITING = 64  # requests that are sorted at once
END = 1  # the token after a source


class Batches:
    """Computes whatever waits in a thread, batch by batch."""

    def __init__(self, compute: Callable[[Sequence[Any], dict[str, Any]], Sequence[Any]], most: int, *, sort: bool):
        self._compute, self._most, self._sort = compute, most, sort
        self._waiting: asyncio.Queue[tuple[Any, dict[str, Any], asyncio.Future[Any]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, given: Any, options: dict[str, Any]) -> Any:
        self._task = self._task or asyncio.create_task(self._run())
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((given, options, answer))
        return await answer

    async def _run(self) -> None:
        while True:
            taken = [await self._waiting.get()]
            while not self._waiting.empty() and len(taken) < (_WAITING if self._sort else self._most):
                taken.append(self._waiting.get_nowait())
            if self._sort:
                taken.sort(key=lambda each: len(each[0]))
            for start in range(0, len(taken), self._most):
                part = taken[start : start + self._most]
                given = [each[0] for each in part]
                for (_, _, answer), found in zip(
                    part, await asyncio.to_thread(self._compute, given, part[0][1]), strict=True
                ):
                    if not answer.cancelled():
                        answer.set_result(found)


# ---- Embeddings ---------------------------------------------------------------------------------


def embedding(vector_D: np.ndarray) -> Response:
    data = base64.b64encode(vector_D.astype("<f4").tobytes()).decode()
    return JSONResponse({"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": data}]})


def onnxruntime(folder: str, batch: int, *, spins: bool = True) -> Handler:
    import onnxruntime as runtime
    from tokenizers import Tokenizer

    options = runtime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    session = runtime.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)

    def compute(texts: Sequence[Sequence[int]], options: dict[str, Any]) -> Sequence[np.ndarray]:
        del options
        ids_BL = np.zeros((len(texts), max(map(len, texts))), np.int64)
        mask_BL = np.zeros_like(ids_BL)
        for row, ids in enumerate(texts):
            ids_BL[row, : len(ids)], mask_BL[row, : len(ids)] = ids, 1
        given = {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": np.zeros_like(ids_BL)}
        (hidden_BLD, *_) = session.run(None, {name: given[name] for name in names})
        mean_BD = (hidden_BLD * mask_BL[:, :, None]).sum(axis=1) / mask_BL.sum(axis=1, keepdims=True)
        return list(mean_BD / np.linalg.norm(mean_BD, axis=1, keepdims=True))

    batches = Batches(compute, batch, sort=True)

    async def embed(request: Request) -> Response:
        body = await request.json()
        return embedding(await batches.ask(tokenizer.encode(body["input"]).ids, {}))

    return embed


def sentence_transformers(folder: str, batch: int) -> Handler:
    del batch
    from sentence_transformers import SentenceTransformer

    model, lock = SentenceTransformer(folder, device="cpu"), asyncio.Lock()

    async def embed(request: Request) -> Response:
        text = (await request.json())["input"]
        async with lock:
            (vector_D,) = await asyncio.to_thread(model.encode, [text], show_progress_bar=False)
        return embedding(vector_D)

    return embed


# ---- Writing ------------------------------------------------------------------------------------


def pieces(folder: str) -> Any:
    """The sentencepiece model of our workdir, whose tokens have the same ids in the folder of Hugging Face."""
    import sentencepiece

    (path,) = Path(folder).glob("*.model")
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def transformers(folder: str, batch: int) -> Handler:
    del batch
    import torch
    from transformers import AutoModelForSeq2SeqLM
    from transformers.generation.streamers import BaseStreamer

    model, lock, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), asyncio.Lock(), pieces(folder)

    async def generate(request: Request) -> Response:
        body = await request.json()
        source = torch.tensor([[*tokenizer.encode(body["inputs"][0]), END]])
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue()

        class Streamer(BaseStreamer):
            def put(self, value: Any) -> None:
                loop.call_soon_threadsafe(tokens.put_nowait, int(value.reshape(-1)[0]))

            def end(self) -> None:
                pass

        async def events() -> AsyncIterator[str]:
            async with lock:
                limits = {"max_new_tokens": body["max_length"], "min_new_tokens": body["min_length"]}

                def run() -> None:
                    try:
                        model.generate(source, streamer=Streamer(), do_sample=False, **limits)
                    finally:
                        loop.call_soon_threadsafe(tokens.put_nowait, None)

                writing = asyncio.create_task(asyncio.to_thread(run))
                is_start = True
                while (token := await tokens.get()) is not None:
                    if not is_start:
                        yield f"data: {json.dumps({'index': 0, 'text': f' t{token}'})}\n\n"
                    is_start = False
                await writing

        return StreamingResponse(events(), media_type="text/event-stream")

    return generate


def name_tokens(folder: str) -> None:
    """Writes a vocabulary of names, which CTranslate2 asks for."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    size = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    names = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"t{index}": index for index in range(3, size)}
    found = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token="<unk>"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=found, **special).save_pretrained(folder)


def ctranslate2(folder: str, batch: int) -> Handler:
    import ctranslate2 as engine

    tokenizer, converted = pieces(folder), Path(folder) / "ctranslate2"
    if not converted.exists():
        name_tokens(folder)
        engine.converters.TransformersConverter(folder).convert(str(converted))
    translator = engine.Translator(
        str(converted), device="cpu", compute_type="float32", intra_threads=2, inter_threads=1
    )

    def compute(sources: Sequence[Sequence[str]], options: dict[str, Any]) -> Sequence[str]:
        found = translator.translate_batch(
            list(sources),
            beam_size=1,
            max_decoding_length=options["max_length"],
            min_decoding_length=options["min_length"],
            max_batch_size=0,
        )
        return [" ".join(each.hypotheses[0]) for each in found]

    batches = Batches(compute, batch, sort=False)

    async def generate(request: Request) -> Response:
        body = await request.json()
        source = [f"t{index}" for index in tokenizer.encode(body["inputs"][0])] + ["</s>"]
        text = await batches.ask(source, body)
        return Response(f"data: {json.dumps({'index': 0, 'text': text})}\n\n", media_type="text/event-stream")

    return generate


# ---- The server ---------------------------------------------------------------------------------

KINDS = {
    "onnxruntime": ("/v1/embeddings", onnxruntime),
    "onnxruntime-without-spinning": ("/v1/embeddings", functools.partial(onnxruntime, spins=False)),
    "sentence-transformers": ("/v1/embeddings", sentence_transformers),
    "transformers": ("/tasks/generate", transformers),
    "ctranslate2": ("/tasks/generate", ctranslate2),
}


async def serve(path: str, handler: Handler) -> None:
    app = Starlette(routes=[Route(path, handler, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(f"serving on http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", flush=True)
    await task


if __name__ == "__main__":
    route, make = KINDS[sys.argv[1]]
    asyncio.run(serve(route, make(sys.argv[2], int(sys.argv[3]))))
