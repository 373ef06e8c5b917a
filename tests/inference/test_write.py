"""Writing: answers in order whatever the batch, masks as in training, and one line for a user's mistake."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import models
from lm.config import Config
from lm.data.store import Store
from lm.data.tokenizer import load_tokenizer
from lm.errors import InputError
from lm.inference.decode import Decoding
from lm.inference.predict import Predictor
from lm.inference.requests import RequestError, parse
from lm.inference.write import Writer, encode_with_sentinels, with_defaults
from tests.huggingface.test_seq2seq import t5_tokenizer
from tests.training.conftest import changed

ROOT = Path(__file__).parents[2]
SHORT = Decoding(max_length=4)


@pytest.fixture(scope="module")
def writer(pairs_workdir) -> Writer:
    return Writer.load(pairs_workdir)


def alike(found, expected) -> bool:
    return found["text"] == expected["text"] and found["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_answers_are_in_order_and_a_bad_request_does_not_stop_the_others(writer):
    good = ["the old tree", {"text": "你好世界", "language": "zh_CN"}, "the river " * 30]
    bad = [None, {"text": 3}, " ", {"text": "tree", "language": "fr"}]
    answers = list(writer.translate([good[0], *bad, *good[1:]], decoding=SHORT))
    assert ["error" in answer for answer in answers] == [False, True, True, True, True, False, False]
    assert answers[4]["error"] == "language is 'fr'; this model was trained with: de, zh_CN."
    assert [answer.get("truncated", False) for answer in answers] == [False] * 6 + [True]
    # The short ones come first in their batch; each equals what is written for it alone.
    found = [answer for answer in answers if "error" not in answer]
    assert len({answer["score"] for answer in found}) == 3
    for request, answer in zip(good[:2], found, strict=False):
        (alone,) = writer.translate([request], decoding=SHORT)
        assert alike(alone, answer)


def test_every_task_words_its_source_as_in_training(writer):
    """White space is one space, whatever the request has; so a worded source gives the same answer."""
    long = {"question": "what\n is  it?", "context": "\ta tree\u3000of stone"}
    answers = [
        *writer.translate(["the\told\n\ntree"], "zh_CN", SHORT),
        *writer.answer([long], SHORT),
        *writer.generate(["the\r\n old tree "], SHORT),
    ]
    worded = ["translate to zh_CN: the old tree", "question: what is it? context: a tree of stone", "the old tree"]
    for source, answer in zip(worded, answers, strict=True):
        (expected,) = writer.write([source], SHORT)
        assert alike(answer, expected)
    assert {answer["error"] for answer in writer.answer(["no question", {"question": "what?"}])} == {
        'the request needs the string "question".',
        'the request needs the string "context".',
    }


def test_the_n_best_are_sorted_and_the_first_is_the_answer(writer):
    (answer,) = writer.generate(["the old tree"], dataclasses.replace(SHORT, num_beams=3))
    scores = [candidate["score"] for candidate in answer["candidates"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert answer["candidates"][0] == {"text": answer["text"], "score": answer["score"]}


def test_a_request_is_sampled_by_its_number_and_the_seed_alone(writer):
    """Whatever it is computed with; an unreadable request counts too."""
    sampled = dataclasses.replace(SHORT, temperature=1.0)
    write = lambda requests, seed: list(writer.generate(requests, sampled, seed))  # noqa: E731
    first, second, third, fourth = write(["house", "the old tree", "the old tree", "stone"], 1)
    assert alike(write([None, None, "the old tree"], 1)[2], third)
    assert not alike(second, third)
    assert not alike(write(["the old tree"], 2)[0], write(["the old tree"], 3)[0])
    assert "error" not in first
    assert "error" not in fourth


# ---- Masks


def test_a_tokenizer_without_a_mask_puts_sentinels_between_the_parts(tmp_path):
    t5_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    ids = encode_with_sentinels(tokenizer, "[MASK] old [MASK] sings under [MASK]")
    old, sings = tokenizer.encode(["old", "sings under"])
    first = tokenizer.special.first_sentinel
    assert ids.dtype == np.int32
    assert ids.tolist() == [first, *old, first - 1, *sings, first - 2]
    assert encode_with_sentinels(tokenizer, "old <extra_id_0>").min() < first - 100  # a sentinel's name is text
    assert len(encode_with_sentinels(tokenizer, "[MASK]" * 100)) == 100
    with pytest.raises(RequestError, match=r"101 \[MASK\]; the model knows 100"):
        encode_with_sentinels(tokenizer, "[MASK]" * 101)


def test_a_mask_is_what_the_objective_hides_text_behind(writer, tiny_seq2seq):
    tokenizer = Store.open(tiny_seq2seq.data.store).tokenizer
    special = tokenizer.special

    def read(text: str, config: Config) -> list[int]:
        return Writer(config, {}, tokenizer)._row(text, 4).tokens.tolist()

    the, river = (ids.tolist() for ids in tokenizer.encode(["the", "river"]))
    text = "the [MASK] river [MASK]"
    sentinel = special.first_sentinel
    assert read(text, tiny_seq2seq) == [*the, sentinel, *river, sentinel - 1, special.sep]
    infilling = changed(tiny_seq2seq, objective={"name": "infilling"})
    assert read(text, infilling) == [
        *the,
        special.mask,
        *river,
        special.mask,
        special.sep,
    ]
    assert read(text, writer.config) == [*tokenizer.encode([text])[0], special.sep]
    span = Writer(tiny_seq2seq, {}, tokenizer)
    (answer,) = span.generate(["[MASK]" * 101], SHORT)
    assert "100 sentinels" in answer["error"]


# ---- A decoder alone


def test_a_decoder_continues_the_end_of_its_prompt(decoder_workdir):
    """Of a prompt that is too long its end is kept, and with a token to write 31 of 32 positions are left for it."""
    writer = Writer.load(decoder_workdir)
    prompts = ["the old tree", "the river " * 30 + "walks over the green stone"]
    short, long = writer.generate(prompts, Decoding(max_length=1))
    assert "truncated" not in short
    assert long["truncated"] is True
    prompt_T = writer.tokenizer.encode([prompts[1]])[0][-31:]

    @jax.jit
    def log_probabilities_V(params, given_1T):
        module = models.build(writer.config.model).merge(params)
        hidden_1TD = module(None, given_1T, jnp.ones_like(given_1T), jnp.arange(32)[None])
        return jax.nn.log_softmax(module.predict(hidden_1TD)[0, -1, : writer.tokenizer.vocab_size])

    log_p_V = log_probabilities_V(writer._params, np.array([[writer.tokenizer.special.pad, *prompt_T]], np.int32))
    assert long["text"] == writer._text(np.array([log_p_V.argmax()]))
    assert long["score"] == pytest.approx(float(log_p_V.max()), abs=1e-4)


def test_a_decoder_has_no_source_to_translate_or_to_read_an_answer_in(decoder_workdir):
    writer = Writer.load(decoder_workdir)
    with pytest.raises(InputError, match="translate needs an encoder-decoder"):
        writer.translate(["tree"])
    with pytest.raises(InputError, match="answer needs an encoder-decoder"):
        writer.answer([{"question": "what?", "context": "a tree"}])


# ---- Wrong input


def test_a_task_of_another_architecture_is_refused(pairs_workdir, tiny_config):
    with pytest.raises(InputError, match="writes text; use generate, translate or answer"):
        Predictor.load(pairs_workdir)
    with pytest.raises(InputError, match="encoder, which cannot write; use fill-mask"):
        Writer(tiny_config, {}, Store.open(tiny_config.data.store).tokenizer)


def test_a_model_of_no_language_takes_none(writer):
    other = Writer(changed(writer.config, data={"languages": ""}), {}, writer.tokenizer)
    with pytest.raises(InputError, match="language is 'de'; this model was trained with: none, leave it out"):
        other.translate(["tree"], "de")
    (answer,) = other.translate([{"text": "tree", "language": "de"}])
    assert "language is 'de'" in answer["error"]


def test_the_default_length_is_one_that_the_model_can_write(tiny_seq2seq, writer):
    """A target of BART's begins with [CLS], which takes a position and is not written."""
    data = {"begin_with_cls": True, "seq_length": 16, "target_length": 16}
    config = changed(tiny_seq2seq, data=data, model={"position": "learned", "max_length": 16})
    other = Writer(config, {}, writer.tokenizer)
    assert other.default_length == 15
    assert list(other.write([], with_defaults(other))) == []
    assert list(other.write([])) == []
    with pytest.raises(InputError, match="max_length is 16; this model writes at most 15"):
        other.write([], Decoding(max_length=16))


def test_lines_that_are_no_request_are_none():
    lines = [b'\xef\xbb\xbf{"text": 1}\r\n', b"plain\r\n", b"{broken", b"\xff\xfe", b'{"a":' * 100_000]
    assert list(parse(lines)) == [{"text": 1}, "plain", None, None, None]


def test_half_a_character_is_replaced(writer):
    (answer,) = writer.generate(parse([b'{"text": "tree \\ud83d"}']), SHORT)
    (expected,) = writer.generate(["tree ?"], SHORT)
    assert alike(answer, expected)


# ---- The script


def launch(workdir: str, *flags: str, lines: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch/predict.py"), f"--checkpoint={workdir}", *flags]
    return subprocess.run(command, input=lines, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_script_reads_lines_and_writes_lines(pairs_workdir):
    lines = 'the old tree\n{"text": "你好", "language": "zh_CN"}\n{"text": "tree", "language": "fr"}\n{broken\n'
    result = launch(pairs_workdir, "--task=translate", "--language=de", "--num_beams=2", "--max_length=3", lines=lines)
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert ["error" in answer for answer in answers] == [False, False, True, True]
    assert [len(answer.get("candidates", [])) for answer in answers] == [2, 2, 0, 0]


def test_the_script_refuses_an_unknown_language_in_one_line(pairs_workdir):
    result = launch(pairs_workdir, "--task=translate", "--language=fr", lines="tree")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "error: language is 'fr'; this model was trained with: de, zh_CN.\n"
