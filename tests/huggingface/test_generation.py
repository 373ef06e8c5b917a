"""What a folder says about writing is read with transformers' meaning, and what is not followed is named."""

import pytest

from lm.config import GenerationConfig
from lm.errors import InputError
from lm.huggingface.generation import read_generation, write_generation

IDS: dict[str, object] = {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0}


def read(**settings):
    return read_generation({}, {**IDS, **settings})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Theirs count the start token and a forced first token, ours do not.
        ({"max_length": 20, "min_length": 5}, (19, 5)),
        ({"max_length": 20, "min_length": 5, "forced_bos_token_id": 0}, (18, 4)),
        ({"max_new_tokens": 20, "min_new_tokens": 5}, (20, 6)),
        ({"max_new_tokens": 20, "min_new_tokens": 5, "forced_bos_token_id": 0}, (19, 5)),
        ({"max_new_tokens": 7, "max_length": 20, "min_length": 0, "min_new_tokens": 0}, (7, 0)),
        ({}, (0, 0)),
    ],
)
def test_lengths_count_what_is_written(settings, expected):
    found = read(**settings).config
    assert (found.max_length, found.min_length) == expected


def test_every_option_is_read_and_written_back():
    settings = {
        **IDS,
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "max_length": 142,
        "min_length": 56,
        "num_beams": 4,
        "length_penalty": 2.0,
        "early_stopping": True,
        "no_repeat_ngram_size": 3,
        "repetition_penalty": 1.5,
        "bad_words_ids": [[5], [6, 7]],
        "suppress_tokens": [8],
        "begin_suppress_tokens": [9, 10],
    }
    found = read_generation({}, settings)
    assert (found.ends, found.not_done) == ((2,), ())
    assert found.config == GenerationConfig(
        decoder_start_token_id=2,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        max_length=140,
        min_length=55,
        num_beams=4,
        length_penalty=2.0,
        early_stopping="true",
        no_repeat_ngram_size=3,
        repetition_penalty=1.5,
        bad_words_ids=[[5], [6, 7]],
        suppress_tokens=[8],
        begin_suppress_tokens=[9, 10],
    )
    ids = {name: settings[name] for name in (*IDS, "forced_bos_token_id")}
    assert write_generation(found.config, ids, 0) == settings
    sampling = read(do_sample=True, temperature=0.7).config
    assert (sampling.do_sample, sampling.temperature, sampling.top_k, sampling.top_p) == (True, 0.7, 50, 1.0)
    assert read_generation({}, write_generation(sampling, IDS, 0)).config == sampling
    assert write_generation(GenerationConfig(), IDS, 30)["max_length"] == 31


def test_config_json_is_read_where_there_is_no_other_file():
    config = {"num_beams": 5, "d_model": 16, "force_bos_token_to_be_generated": True, "bos_token_id": 0}
    found = read_generation(config, None, start=2).config
    assert (found.num_beams, found.forced_bos_token_id, found.decoder_start_token_id) == (5, 0, 2)
    assert read_generation({"num_beams": 5}, {}, start=2).config.num_beams == 1


def test_what_is_not_followed_is_named():
    neutral = {"diversity_penalty": 0.0, "encoder_no_repeat_ngram_size": 0, "renormalize_logits": False, "min_p": None}
    assert read(**neutral, transformers_version="5.0", use_cache=True, _from_model_config=True).not_done == ()
    other = {"encoder_no_repeat_ngram_size": 3, "sequence_bias": [[[1], -1.0]], "lang_to_id": {"de": 4}}
    assert read(**other).not_done == (
        "encoder_no_repeat_ngram_size 3",
        "sequence_bias [[[1], -1.0]]",
        "lang_to_id {'de': 4}",
    )
    beams = read(do_sample=True, num_beams=2)
    assert (beams.config.do_sample, beams.not_done) == (False, ("do_sample true with num_beams",))
    config = {"task_specific_params": {"summarization": {"num_beams": 4}}}
    assert read_generation(config, IDS).not_done == ("task_specific_params summarization",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": "4"}, "generation_config.json: generation.num_beams is '4'"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"max_length": 1}, "max_length leaves no token to write"),
        ({"max_length": "20"}, "max_length is '20'; accepted: a number of tokens"),
        ({"early_stopping": "sometimes"}, "early_stopping is 'sometimes'; accepted: false, true, never"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"bad_words_ids": [5]}, r"bad_words_ids is \[5\]"),
        ({"bad_words_ids": [[]]}, r"bad_words_ids is \[\[\]\]"),
        ({"suppress_tokens": [-1]}, r"suppress_tokens is \[-1\]"),
        ({"no_repeat_ngram_size": 2**40}, "no_repeat_ngram_size is"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'; accepted: the id of a token"),
    ],
)
def test_impossible_values_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        read(**settings)
