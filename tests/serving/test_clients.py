"""Real clients of OpenAI and Hugging Face, and the contract of text-embeddings-inference field by field."""

import dataclasses
import importlib.metadata

import huggingface_hub
import jax
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient

import lm
from lm import models
from lm.inference import attention
from lm.inference.predict import Options
from lm.serving import completions, lanes
from lm.serving.scheduler import Scheduler
from lm.tokenizers.special_ids import decoder_start
from tests.serving.conftest import Running, limited, until

TEXTS = ["the tree sings", "stone walks under the old river"]


@pytest.fixture(scope="module")
def client(running: Running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
        yield client


# ---- OpenAI ---------------------------------------------------------------------------------------


def test_openai_embeddings(running: Running, client):
    """The client asks for base64 by default."""
    expected = [vector / np.linalg.norm(vector) for vector in map(np.array, running.post("/embed", {"inputs": TEXTS}))]
    found = client.embeddings.create(model="reader", input=TEXTS)
    np.testing.assert_allclose([each.embedding for each in found.data], expected, atol=1e-6)
    assert [each.index for each in found.data] == [0, 1]
    as_floats = client.embeddings.create(model="reader", input=TEXTS, encoding_format="float")
    np.testing.assert_allclose([each.embedding for each in as_floats.data], expected, atol=1e-6)
    tokens = [[each["id"] for each in ids] for ids in running.post("/tokenize", {"inputs": TEXTS})]
    from_ids = client.embeddings.create(model="reader", input=tokens)
    np.testing.assert_allclose([each.embedding for each in from_ids.data], expected, atol=1e-6)
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, tokens))
    short = client.embeddings.create(model="reader", input=TEXTS[0], dimensions=8).data[0].embedding
    np.testing.assert_allclose(short, expected[0][:8] / np.linalg.norm(expected[0][:8]), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"seed": 3, "temperature": 1.2, "top_p": 0.9, "n": 3},
        {"temperature": 0, "stop": ["o", "e"]},
        {"temperature": 0, "logprobs": 1},
        {"temperature": 1, "seed": 2, "logprobs": 3},
    ],
    ids=str,
)
def test_openai_completions_stream_what_they_answer(client, options):
    asked = {"model": "writer", "prompt": TEXTS, "max_tokens": 20, **options}
    whole = client.completions.create(**asked)
    texts, reasons, scores, usage = {}, {}, {}, None
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        assert chunk.id.startswith("cmpl-")
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert choice.index not in reasons  # nothing follows the end
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.logprobs:
                scores.setdefault(choice.index, []).extend(choice.logprobs.token_logprobs)
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert len(whole.choices) == 2 * options.get("n", 1)
    for choice in whole.choices:
        assert texts[choice.index] == choice.text
        assert reasons[choice.index] == choice.finish_reason
        assert not any(stop in choice.text for stop in options.get("stop", []))
        if choice.logprobs:
            np.testing.assert_allclose(scores[choice.index], choice.logprobs.token_logprobs, atol=1e-5)
            assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) == len(scores[choice.index])
            assert max(scores[choice.index]) <= 0
    assert usage is not None
    assert usage == whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    if "stop" not in options:
        assert usage.completion_tokens == 20 * len(whole.choices)


def test_a_seed_repeats_a_sample_and_another_does_not(client):
    def ask(seed: int) -> str:
        return client.completions.create(model="writer", prompt="the tree", seed=seed, max_tokens=12).choices[0].text

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(4)}) == 4


def test_openai_chat(client):
    messages = [
        {"role": "system", "content": "ignored"},
        {"role": "user", "content": "ignored"},
        {"role": "assistant", "content": "ignored"},
        {"role": "user", "content": [{"type": "text", "text": TEXTS[0]}]},
    ]
    asked = {"model": "writer", "messages": messages, "temperature": 0, "max_tokens": 10}
    whole = client.chat.completions.create(**asked)
    (choice,) = whole.choices
    expected = client.completions.create(model="writer", prompt=TEXTS[0], temperature=0, max_tokens=10)
    assert choice.message.content == expected.choices[0].text
    assert choice.message.role == "assistant"
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == choice.message.content
    assert chunks[0].delta.role == "assistant"
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == choice.finish_reason == "length"


def test_openai_top_logprobs_are_those_of_the_model(running: Running, client):
    predictor = running.service.engine.models["writer"].predictor
    tokenizer, config = predictor.loaded.tokenizer, predictor.loaded.config
    pieces = [tokenizer.id_to_piece(i).replace("▁", " ").replace("Ġ", " ") for i in range(tokenizer.vocab_size)]
    asked = {"model": "writer", "temperature": 1, "max_tokens": 8, "seed": 4}
    found = client.completions.create(prompt=TEXTS[0], logprobs=4, **asked).choices[0].logprobs
    row = predictor.writing("generate", Options())[0].row(TEXTS[0])
    written = [pieces.index(piece) for piece in found.tokens]

    @jax.jit
    def log_probabilities_TV(params):
        module = models.build(config.model).merge(params)
        given = np.array([decoder_start(config, tokenizer.special), *row.prompt, *written[:-1]], np.int32)
        hidden_1TD = module(module.encode(*attention._alone(row.tokens)), *attention._alone(given))
        return jax.nn.log_softmax(module.predict(hidden_1TD)[0, len(row.prompt) :, : tokenizer.vocab_size])

    log_p_TV = np.asarray(log_probabilities_TV(predictor.loaded.params))
    for place, (token, log_p_V) in enumerate(zip(written, log_p_TV, strict=True)):
        best = np.argsort(-log_p_V)[:4]
        expected = {pieces[i]: log_p_V[i] for i in (*best, token)}
        assert found.top_logprobs[place] == pytest.approx(expected, abs=1e-4)
        assert found.token_logprobs[place] == pytest.approx(log_p_V[token], abs=1e-4)
    messages = [{"role": "user", "content": TEXTS[0]}]
    chat = client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=4, **asked)
    for place, told in enumerate(chat.choices[0].logprobs.content):
        assert [each.token for each in told.top_logprobs] == list(found.top_logprobs[place])[:4]
    for wrong in ({"top_logprobs": 2}, {"top_logprobs": 6, "logprobs": True}):
        with pytest.raises(openai.BadRequestError, match="top_logprobs"):
            client.chat.completions.create(messages=messages, **asked, **wrong)


@pytest.mark.parametrize("is_word", [False, True])
def test_beams_that_end_say_so(running: Running, client, monkeypatch, is_word):
    """An end is counted, and belongs to the text if it is an ordinary token, as where beams are not asked for."""
    weights, take_steps = running.service.engine.models["writer"].weights, lanes._take_steps
    tokenizer = weights.predictor.loaded.tokenizer
    (text,) = tokenizer.encode(["the tree"])
    end = int(text[-1]) if is_word else tokenizer.special.sep
    written = text if is_word else np.append(text, end)
    assert end not in written[:-1]

    def write(*args):
        state, step = take_steps(*args)
        tokens_BNT = np.full_like(step.decoded.tokens_BNT, tokenizer.special.pad)
        tokens_BNT[..., : len(written)] = written
        return state, step._replace(decoded=step.decoded._replace(tokens_BNT=tokens_BNT))

    (lane,) = [lane for lane in weights.lanes if lane.shape.beams == 2]
    monkeypatch.setattr(lanes, "_take_steps", write)
    monkeypatch.setattr(lane, "_ids", dataclasses.replace(lane._ids, end=end))
    monkeypatch.setattr(completions, "end_ids", lambda *_: (end,))
    for most, reason in ((12, "stop"), (len(written) - 1, "length")):
        asked = {"model": "writer", "prompt": "the tree", "max_tokens": most, "extra_body": {"num_beams": 2}}
        found = client.completions.create(**asked)
        assert (found.choices[0].finish_reason, found.usage.completion_tokens) == (reason, min(most, len(written)))
        assert (found.choices[0].text == "the tree") == (reason == "stop" or not is_word)


def test_logprobs_of_zero_are_those_of_the_written_tokens(client):
    asked = {"model": "writer", "prompt": "the tree", "temperature": 0, "max_tokens": 4}
    none, one = (client.completions.create(**asked, logprobs=count).choices[0].logprobs for count in (0, 1))
    assert (none.tokens, none.top_logprobs) == (one.tokens, None)
    assert none.token_logprobs == pytest.approx(one.token_logprobs)
    with pytest.raises(openai.BadRequestError, match="without beams"):
        client.completions.create(**asked, logprobs=0, extra_body={"num_beams": 2})


def test_openai_names_its_own_fields(running: Running, client, monkeypatch):
    monkeypatch.setattr(running.service, "settings", dataclasses.replace(running.service.settings, truncate=False))
    with pytest.raises(openai.BadRequestError, match="shorten it") as caught:
        client.embeddings.create(model="reader", input="tree " * 99)
    assert caught.value.param == "input"
    assert "truncate" not in str(caught.value)  # the route does not take it
    for create, name, field in (
        (client.embeddings.create, "reader", "input"),
        (client.completions.create, "writer", "prompt"),
    ):
        with pytest.raises(openai.BadRequestError, match="is no token id") as caught:
            create(model=name, **{field: [10**6]})
        assert caught.value.param == field


def test_openai_errors(client):
    for wrong in ({"max_tokens": 10**6}, {"logit_bias": {"1": 1}}, {"temperature": 3}, {"logprobs": 6}, {"best_of": 3}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="writer", prompt="a", **wrong)
        assert caught.value.type == "invalid_request_error"
        assert caught.value.param in wrong
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt="a")


def test_openai_retries_when_the_queue_is_full(running: Running, client, monkeypatch):
    monkeypatch.setattr(Scheduler, "_retry_after", staticmethod(lambda wait: 0.05))
    refusals = running.service.metrics.requests.labels("/v1/embeddings", "429")
    with limited(running.service, waiting_tokens=20):
        running.service.scheduler.tokens += 20  # what others wait for
        try:
            with pytest.raises(openai.RateLimitError) as caught:
                client.embeddings.create(model="reader", input="a")
        finally:
            running.service.scheduler.tokens -= 20
    assert caught.value.response.headers["retry-after-ms"] == "50"
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.code == "rate_limit_exceeded"
    assert refusals._value.get() == 3  # it asked three times
    assert client.embeddings.create(model="reader", input="a").data


# ---- Hugging Face -----------------------------------------------------------------------------------


def test_huggingface_hub(running: Running, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the server is on this machine
    client = InferenceClient(model=running.url, token="none")
    expected = running.post("/embed", {"inputs": TEXTS})
    np.testing.assert_allclose(np.array(client.feature_extraction(TEXTS[0])).reshape(-1), expected[0], atol=1e-6)
    similar = client.sentence_similarity(TEXTS[0], other_sentences=[*TEXTS])
    np.testing.assert_allclose(similar, np.array(expected) @ np.array(expected[0]), atol=1e-6)


def test_tei_embeds_as_its_contract_says(running: Running):
    post = running.post
    one, (first, second) = post("/embed", {"inputs": TEXTS[0]}), post("/embed", {"inputs": TEXTS})
    np.testing.assert_allclose(one, [first], atol=1e-6)  # a list of one, for a single input too
    np.testing.assert_allclose(np.linalg.norm([first, second], axis=1), 1, atol=1e-6)
    plain = post("/embed", {"inputs": TEXTS[0], "normalize": False})[0]
    assert np.linalg.norm(plain) > 1.5
    np.testing.assert_allclose(plain / np.linalg.norm(plain), first, atol=1e-6)
    ids = [each["id"] for each in post("/tokenize", {"inputs": TEXTS[0]})[0]]
    np.testing.assert_allclose(post("/embed", {"inputs": ids}), [first], atol=1e-6)
    np.testing.assert_allclose(post("/embed", {"inputs": [ids, ids]}), [first, first], atol=1e-6)
    (vectors,) = post("/embed_all", {"inputs": TEXTS[0]})
    assert len(vectors) == len(ids)
    np.testing.assert_allclose(np.mean(vectors, axis=0), plain, atol=1e-5)
    assert len(post("/embed", {"inputs": "a", "dimensions": 5})[0]) == 5
    long = " ".join(TEXTS * 10)
    left, right = (post("/embed", {"inputs": long, "truncation_direction": side})[0] for side in ("Left", "Right"))
    assert np.abs(np.array(left) - right).max() > 1e-3
    np.testing.assert_allclose(post("/invocations", {"inputs": TEXTS[0]}), [first], atol=1e-6)


def test_tei_tokens(running: Running):
    (found,) = running.post("/tokenize", {"inputs": "the tree"})
    assert all(each.keys() == {"id", "text", "special", "start", "stop"} for each in found)
    assert [each["special"] for each in found] == [True, False, False, True]
    (bare,) = running.post("/tokenize", {"inputs": "the tree", "add_special_tokens": False})
    assert bare == found[1:-1]
    assert running.post("/decode", {"ids": [each["id"] for each in found]}) == ["the tree"]
    assert running.post("/decode", {"ids": [[each["id"] for each in bare]] * 2}) == ["the tree"] * 2


def test_tei_describes_the_server(running: Running, monkeypatch):
    def absent(name: str) -> str:  # as in the serving image, which has the code alone
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert running.client.get("/openapi.json").json()["info"]["version"] == lm.__version__
    info = running.client.get("/info").json()
    fields = """model_id model_sha model_dtype served_model_name model_type max_concurrent_requests max_input_length
        max_batch_tokens max_batch_requests max_client_batch_size auto_truncate tokenization_workers version sha
        docker_label"""
    assert set(fields.split()) <= info.keys()
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["max_input_length"], info["version"]) == (32, lm.__version__)
    for path in ("/health", "/ping", "/"):
        assert running.client.get(path).status_code == 200


def test_tei_headers(running: Running):
    headers = running.client.post("/embed", json={"inputs": TEXTS}).headers
    tokens = sum(map(len, running.post("/tokenize", {"inputs": TEXTS})))
    assert headers["x-compute-type"] == "cpu"
    assert headers["x-compute-characters"] == str(sum(map(len, TEXTS)))
    assert headers["x-compute-tokens"] == str(tokens)
    for name in ("x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"):
        assert int(headers[name]) >= 0


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/embed", {"inputs": ""}, 400, "Empty"),
        ("/embed", {"inputs": " "}, 400, "Empty"),
        ("/embed", {"inputs": []}, 400, "Empty"),
        ("/embed", {"inputs": 5}, 422, "Validation"),
        ("/embed", {"inputs": [10**6]}, 422, "Validation"),
        ("/embed", {"inputs": "a", "prompt_name": "query"}, 422, "Validation"),
        ("/embed", {"inputs": "tree " * 99, "truncate": False}, 422, "Validation"),
        ("/embed", {"inputs": "a", "dimensions": 33}, 422, "Validation"),
        ("/decode", {"ids": [10**6]}, 422, "Validation"),
        ("/predict", {"inputs": [["a", "b"]]}, 424, "Backend"),
        ("/predict", {"inputs": 5}, 422, "Validation"),
        ("/rerank", {"query": "a", "texts": ["a"]}, 424, "Backend"),
    ],
    ids=str,
)
def test_tei_errors(running: Running, path, body, status, kind):
    response = running.refusal(path, body)
    assert response.status_code == status
    assert response.json().keys() == {"error", "error_type"}
    assert response.json()["error_type"] == kind


def test_tei_is_overloaded_with_its_own_words(running: Running):
    with limited(running.service, waiting_items=2):
        assert running.refusal("/embed", {"inputs": ["a"] * 3}).status_code == 413
        running.service.scheduler.items += 2
        response = running.refusal("/embed", {"inputs": "a"})
        unread = running.client.post("/embed", content=b"no JSON")
        other = running.refusal("/tokenize", {})  # needs no room in the queue
        running.service.scheduler.items -= 2
    assert (response.status_code, unread.status_code, other.status_code) == (429, 429, 422)
    assert response.json()["error_type"] == "Overloaded"
    until(lambda: running.client.get("/health").status_code == 200)
