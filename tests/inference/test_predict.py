"""Answers equal what the model computes for each request alone; bad requests do not stop the others."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import models
from lm.data.store import Store
from lm.errors import InputError
from lm.inference import prompts
from lm.inference.load import Loaded
from lm.inference.predict import Options, Pipeline, Predictor
from lm.inference.requests import READING, parse
from tests.inference.conftest import make_workdir
from tests.training.conftest import WORDS, changed, tiny_config  # noqa: F401
from tests.weights import random_params

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(tiny_config, tmp_path_factory) -> str:  # noqa: F811
    """An encoder, its weights random but for symmetries that would hide mistakes."""
    tokenizer = Store.open(tiny_config.data.store).tokenizer
    params = random_params(models.build(tiny_config.model))
    return make_workdir(tmp_path_factory.mktemp("encoder"), tiny_config, tokenizer, params)


@pytest.fixture(scope="module")
def predictor(workdir) -> Predictor:
    return lm.load(workdir)


def alone(predictor: Predictor, ids: list[int], types: list[int] | None = None):
    """The model, and the hidden states of the encoder on one unpadded row."""
    model = models.build(predictor.loaded.config.model)
    row = lambda values: jnp.asarray([values], jnp.int32)  # noqa: E731
    rows = row(ids), row([1] * len(ids)), row(range(len(ids))), row(types or [0] * len(ids))
    compute = jax.jit(lambda params, *rows: model.merge(params)(*rows))
    return model.merge(predictor.loaded.params), compute(predictor.loaded.params, *rows)


# ---- Encoders


def test_fill_mask_is_the_softmax_at_each_mask(predictor):
    text = "the [MASK] walks over the [MASK]."
    (answer,) = predictor.fill_mask([text], top=3)
    tokens = predictor.loaded.tokenizer
    ids = [tokens.special.cls, *tokens.encode_with_masks(text), tokens.special.sep]
    model, hidden = alone(predictor, ids)
    at = [i for i, token in enumerate(ids) if token == tokens.special.mask]
    logits = np.asarray(model.mlm_logits(hidden, jnp.asarray([at])), np.float64)[0, :, : tokens.vocab_size]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert len(answer["masks"]) == 2
    for candidates, expected in zip(answer["masks"], probabilities, strict=True):
        best = np.sort(expected)[::-1][:3]
        np.testing.assert_allclose([c["probability"] for c in candidates], best, rtol=1e-4)
        assert candidates[0]["token"] == tokens.id_to_piece(int(expected.argmax()))


def test_embeddings_do_not_depend_on_the_batch(predictor):
    texts = ["river.", "the old stone house over the water.", "你好 世界", *["tree " * n for n in (1, 2, 5, 14, 40)]]
    together = [answer["embedding"] for answer in predictor.embed(texts)]
    for text, vector in zip(texts, together, strict=True):
        special, tokenizer = predictor.loaded.tokenizer.special, predictor.loaded.tokenizer
        ids = [special.cls, *tokenizer.encode([text])[0], special.sep][:32]
        ids[-1] = special.sep
        _, hidden = alone(predictor, ids)
        np.testing.assert_allclose(vector, np.asarray(hidden[0]).mean(axis=0), atol=2e-5)


def test_cls_and_normalized_embeddings(predictor):
    (plain,), (unit,) = predictor.embed(["river"], pooling="cls"), predictor.embed(["river"], "cls", normalize=True)
    vector = np.array(plain["embedding"])
    np.testing.assert_allclose(unit["embedding"], vector / np.linalg.norm(vector), rtol=1e-5)


def test_next_sentence_is_the_heads_first_class(predictor):
    pair = {"text": "the river.", "text_pair": "old stone."}
    (answer,) = predictor.next_sentence([pair])
    special = predictor.loaded.tokenizer.special
    first, second = predictor.loaded.tokenizer.encode([pair["text"], pair["text_pair"]])
    ids = [special.cls, *first, special.sep, *second, special.sep]
    types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    model, hidden = alone(predictor, ids, types)
    logits = np.asarray(model.nsp_logits(hidden, jnp.zeros((1, 1), jnp.int32)))[0, 0]
    assert answer["is_next"] == pytest.approx(1 / (1 + np.exp(logits[1] - logits[0])), abs=1e-5)


def test_requests_that_share_rows_are_answered_as_alone(predictor):
    """Of every task, with texts of all lengths: short ones share rows with others."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 20, 30)]
    pairs = [{"text": text, "text_pair": other} for text, other in zip(texts, texts[::-1], strict=True)]
    masked = [f"{text} [MASK] {text[:9]}" + " [MASK]" * (n % 6) for n, text in enumerate(texts)]
    rows = predictor.pipeline("embed").prompt.row
    assert sum(len(rows(text).tokens) for text in texts) < 64 * len(texts) / 2  # so rows are shared
    for text, answer in zip(texts[::5], predictor.embed(texts)[::5], strict=True):
        np.testing.assert_allclose(answer["embedding"], predictor.embed([text])[0]["embedding"], atol=2e-5)
    for pair, answer in zip(pairs[::5], predictor.next_sentence(pairs)[::5], strict=True):
        assert answer["is_next"] == pytest.approx(predictor.next_sentence([pair])[0]["is_next"], abs=1e-5)
    for text, answer in zip(masked[::5], predictor.fill_mask(masked)[::5], strict=True):
        (expected,) = predictor.fill_mask([text])
        assert len(answer["masks"]) == len(expected["masks"]) == text.count("[MASK]")
        for found, candidates in zip(answer["masks"], expected["masks"], strict=True):
            probabilities = [candidate["probability"] for candidate in candidates]
            np.testing.assert_allclose([each["probability"] for each in found], probabilities, rtol=1e-4)


@pytest.mark.parametrize("position", ["rotary", "relative"])
def test_rows_are_shared_with_every_kind_of_position(tiny_config, position):  # noqa: F811
    """Windows and relative positions count columns of the row, not positions in the text."""
    model = {"position": position, "token_types": 0, "pooler": False}
    local = {"global_every": 2, "window": 2} if position == "rotary" else {}
    config = changed(tiny_config, model=model | local, objective={"nsp": False})
    params = random_params(models.build(config.model))
    predictor = Predictor(Loaded(config, params, Store.open(config.data.store).tokenizer))
    texts = ["river", "the old stone house over the water", "tree " * 12, "you and the river"]
    for text, answer in zip(texts, predictor.embed(texts), strict=True):
        np.testing.assert_allclose(answer["embedding"], predictor.embed([text])[0]["embedding"], atol=2e-5)


def test_a_bad_request_gets_an_error_and_the_rest_go_on(predictor):
    good = "the [MASK]."
    requests = [good, "no mask here", "", None, {"text": 3}, {"text": good, "text_pair": ["x"]}, good]
    answers = predictor.fill_mask(requests)
    assert ["error" in answer for answer in answers] == [False, True, True, True, True, True, False]
    assert answers[0]["masks"][0][0]["token"] == answers[-1]["masks"][0][0]["token"]
    best = [answer["masks"][0][0]["probability"] for answer in (answers[0], answers[-1])]
    assert best[0] == pytest.approx(best[1], rel=1e-5)


def test_an_output_that_is_not_finite_is_an_error_of_its_request(predictor):
    def compute(rows, numbers):
        return [np.full((1, 4), np.nan if number == 1 else 0.5, np.float32) for number in numbers]

    first, second, third = Pipeline(predictor.pipeline("embed").prompt, compute)(["a", "b", "c"])
    assert first == third == {"embedding": [0.5] * 4}
    assert second == {"error": "the model's output is nan; its weights or this input give no finite number."}


def test_long_input_is_cut_and_says_so(predictor):
    (answer,) = predictor.embed(["the river " * 100])
    assert answer["truncated"] is True
    (answer,) = predictor.fill_mask(["the river " * 100 + "[MASK]"])
    assert "32 tokens" in answer["error"]


# ---- Encoder-decoders and decoders

SHORT = {"max_length": 4}


@pytest.fixture(scope="module")
def writer(pairs_workdir) -> Predictor:
    return lm.load(pairs_workdir)


def alike(found, expected) -> bool:
    return found["text"] == expected["text"] and found["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_answers_are_in_order_and_a_bad_request_does_not_stop_the_others(writer):
    good = ["the old tree", {"text": "你好世界", "language": "zh_CN"}, "the river " * 30]
    bad = [None, {"text": 3}, " ", {"text": "tree", "language": "fr"}]
    answers = writer.translate([good[0], *bad, *good[1:]], **SHORT)
    assert ["error" in answer for answer in answers] == [False, True, True, True, True, False, False]
    assert answers[4]["error"] == "language is 'fr'; give one of de, zh_CN."
    assert [answer.get("truncated", False) for answer in answers] == [False] * 6 + [True]
    # The short ones come first in their batch; each equals what is written for it alone.
    found = [answer for answer in answers if "error" not in answer]
    assert len({answer["score"] for answer in found}) == 3
    for request, answer in zip(good[:2], found, strict=False):
        (alone,) = writer.translate([request], **SHORT)
        assert alike(alone, answer)


def test_a_worded_source_gives_the_same_answer(writer):
    answers = [
        *writer.translate(["the\told\n\ntree"], "zh_CN", **SHORT),
        *writer.answer([{"question": "what\n is  it?", "context": "\ta tree\u3000of stone"}], **SHORT),
        *writer.generate(["the\r\n old tree "], **SHORT),
    ]
    worded = ["translate to zh_CN: the old tree", "question: what is it? context: a tree of stone", "the old tree"]
    for source, answer in zip(worded, answers, strict=True):
        (expected,) = writer.generate([source], **SHORT)
        assert alike(answer, expected)
    assert {answer["error"] for answer in writer.answer(["no question", {"question": "what?"}])} == {
        'the request needs the string "question".',
        'the request needs the string "context".',
    }


def test_the_n_best_are_sorted_and_the_first_is_the_answer(writer):
    (answer,) = writer.generate(["the old tree"], num_beams=3, **SHORT)
    scores = [candidate["score"] for candidate in answer["candidates"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert answer["candidates"][0] == {name: value for name, value in answer.items() if name != "candidates"}


def test_a_request_is_sampled_by_its_number_and_the_seed_alone(writer):
    """Whatever it is computed with; an unreadable request counts too."""
    write = lambda requests, seed: writer.generate(requests, seed=seed, temperature=1.0, **SHORT)  # noqa: E731
    first, second, third, fourth = write(["house", "the old tree", "the old tree", "stone"], 1)
    assert alike(write([None, None, "the old tree"], 1)[2], third)
    assert not alike(second, third)
    assert not alike(write(["the old tree"], 2)[0], write(["the old tree"], 3)[0])
    assert "error" not in first
    assert "error" not in fourth


def test_a_decoder_continues_the_end_of_its_prompt(decoder_workdir):
    """Of a prompt that is too long its end is kept, and with a token to write 31 of 32 positions are left for it."""
    writer = lm.load(decoder_workdir)
    texts = ["the old tree", "the river " * 30 + "walks over the green stone"]
    short, long = writer.generate(texts, max_length=1)
    assert "truncated" not in short
    assert long["truncated"] is True
    tokenizer = writer.loaded.tokenizer
    prompt_T = tokenizer.encode([texts[1]])[0][-31:]

    @jax.jit
    def log_probabilities_V(params, given_1T):
        module = models.build(writer.loaded.config.model).merge(params)
        hidden_1TD = module(None, given_1T, jnp.ones_like(given_1T), jnp.arange(32)[None])
        return jax.nn.log_softmax(module.predict(hidden_1TD)[0, -1, : tokenizer.vocab_size])

    given_1T = np.array([[tokenizer.special.pad, *prompt_T]], np.int32)
    log_p_V = log_probabilities_V(writer.loaded.params, given_1T)
    assert long["text"] == prompts.written_text(tokenizer, np.array([log_p_V.argmax()]))
    assert long["score"] == pytest.approx(float(log_p_V.max()), abs=1e-4)


def test_no_requests_have_no_answers(writer, predictor):
    assert writer.generate([]) == []
    assert predictor.embed([]) == []


def test_half_a_character_is_replaced(writer):
    (answer,) = writer.generate(parse([b'{"text": "tree \\ud83d"}']), **SHORT)
    (expected,) = writer.generate(["tree ?"], **SHORT)
    assert alike(answer, expected)


# ---- Wrong input


def test_a_task_of_another_architecture_is_refused(writer, predictor, decoder_workdir):
    for task in (writer.embed, writer.fill_mask, writer.next_sentence):
        with pytest.raises(InputError, match="writes text; use generate, translate or answer"):
            task(["x"])
    for task in (predictor.generate, predictor.translate, predictor.answer):
        with pytest.raises(InputError, match="encoder, which cannot write; use fill-mask"):
            task(["x"])
    decoder = lm.load(decoder_workdir)
    with pytest.raises(InputError, match="translate needs an encoder-decoder"):
        decoder.translate(["tree"])
    with pytest.raises(InputError, match="answer needs an encoder-decoder"):
        decoder.answer([{"question": "what?", "context": "a tree"}])


@pytest.mark.parametrize("has_head", [False, True])
def test_a_model_without_a_trained_head_is_refused(predictor, has_head):
    loaded = predictor.loaded
    config = changed(loaded.config, model={"pooler": has_head}, objective={"nsp": False})
    other = Predictor(dataclasses.replace(loaded, config=config))
    with pytest.raises(InputError, match="no next-sentence head"):
        other.next_sentence(["x"])


def test_options_that_the_model_cannot_follow_are_refused(writer):
    with pytest.raises(InputError, match="language is 'fr'; give one of de, zh_CN"):
        writer.translate(["tree"], "fr")
    with pytest.raises(InputError, match="max_length is 2000; this model writes at most 1024"):
        writer.generate(["tree"], max_length=2000)
    with pytest.raises(InputError, match="num_beams is 0"):
        writer.generate(["tree"], num_beams=0)
    size = writer.loaded.config.model.vocab_size
    for name, value, said in (
        ("suppress_tokens", [5, size], f"has the id {size}"),
        ("begin_suppress_tokens", [size], f"has the id {size}"),
        ("bad_words_ids", [[5], [6, size]], f"has the id {size}"),
        ("forced_bos_token_id", size, f"is {size}"),
        ("forced_eos_token_id", size, f"is {size}"),
    ):
        with pytest.raises(InputError, match=f"{name} {said}; it must be from 0 to {size - 1}"):
            writer.generate(["tree"], **{name: value})


@pytest.mark.parametrize(
    ("task", "given", "taken"),
    [
        ("fill-mask", {"decoding": {"top_k": 3}}, "top_k has no effect on fill-mask, which takes top; leave it out."),
        ("next-sentence", {"top": 3}, "top has no effect on next-sentence, which takes no options; leave it out."),
        ("embed", {"seed": 1}, "seed has no effect on embed, which takes pooling, normalize, prompt, prompt_name;"),
        ("generate", {"language": "de"}, "language has no effect on generate, which takes seed, max_length,"),
        ("translate", {"prompt": "query"}, "prompt has no effect on translate, which takes language, seed, max_length"),
    ],
)
def test_an_option_without_an_effect_on_the_task_is_refused(writer, predictor, task, given, taken):
    model = predictor if task in READING else writer
    with pytest.raises(InputError, match=re.escape(taken)):
        model.pipeline(task, Options(**given))
    model.pipeline(task, Options(decoding={"top_k": None}))  # None is the default


def test_one_request_is_not_a_list_of_its_characters(predictor):
    for request in ("river", {"text": "river"}):
        with pytest.raises(InputError, match="give a list of them"):
            predictor.embed(request)


def test_the_task_must_be_known(predictor):
    with pytest.raises(InputError, match="the task is 'sing'; accepted: fill-mask, next-sentence, embed, generate"):
        predictor.pipeline("sing")


# ---- The script


def launch(workdir: str, *flags: str, lines: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch/predict.py"), f"--checkpoint={workdir}", *flags]
    return subprocess.run(command, input=lines, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_script_reads_a_file_and_writes_one(workdir, tmp_path):
    source, target = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_bytes(b"the [MASK].\n{broken\n" + b"\xff\xfe\n" + '{"text": "你好[MASK]"}'.encode())
    result = launch(workdir, "--task=fill-mask", f"--input={source}", f"--output={target}")
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert ["error" in answer for answer in answers] == [False, True, True, False]


def test_the_script_reads_lines_and_writes_lines(pairs_workdir):
    lines = 'the old tree\n{"text": "你好", "language": "zh_CN"}\n{"text": "tree", "language": "fr"}\n{broken\n'
    result = launch(pairs_workdir, "--task=translate", "--language=de", "--num_beams=2", "--max_length=3", lines=lines)
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert ["error" in answer for answer in answers] == [False, False, True, True]
    assert [len(answer.get("candidates", [])) for answer in answers] == [2, 2, 0, 0]


def test_the_script_answers_a_line_before_the_next_is_written(workdir):
    """As in `tail -f file | predict.py`."""
    command = [sys.executable, str(ROOT / "launch/predict.py"), f"--checkpoint={workdir}", "--task=embed"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line, field in ((b"the river\n", "embedding"), (b"{broken\n", "error"), (b"old stone\n", "embedding")):
            process.stdin.write(line)
            process.stdin.flush()
            assert field in json.loads(process.stdout.readline())
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--top_k=3", "--top_k has no effect with --task=fill-mask, which takes --top; leave it out."),
        ("--nonormalize", "--normalize has no effect with --task=fill-mask, but with --task=embed; leave it out."),
        ("--attention_layer=1", "--attention_layer has no effect without --attention; leave it out."),
    ],
)
def test_the_script_refuses_a_flag_without_an_effect_before_it_loads(flag, message):
    result = launch("no/such/run", "--task=fill-mask", flag)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"error: {message}\n")


def test_the_script_refuses_an_unknown_language_in_one_line(pairs_workdir):
    result = launch(pairs_workdir, "--task=translate", "--language=fr", lines="tree")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.endswith("error: language is 'fr'; give one of de, zh_CN.\n")
