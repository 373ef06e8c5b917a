"""Options are checked, take the model's defaults, and become arrays only where a row uses them."""

import jax
import numpy as np
import pytest

from lm.config import GenerationConfig
from lm.errors import InputError
from lm.inference.options import NONE, Decoding, Extras, row_options, with_defaults
from lm.inference.predict import Options

LARGE = ("max_length", "top_k", "no_repeat_ngram_size", "forced_bos_token_id", "forced_eos_token_id")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1; it must be at least 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be above 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ({"early_stopping": "always"}, "early_stopping is 'always'; accepted: false, true, never"),
        ({"bad_words_ids": [[]]}, "bad_words_ids has an empty list"),
        ({"bad_words_ids": [[5], [6, -2]]}, "bad_words_ids has the id -2; it must be from 0 to"),
        ({"suppress_tokens": [-2]}, "suppress_tokens has the id -2; it must be from 0 to"),
        ({"num_beams": 2, "temperature": 0.5}, "num_beams is 2 and temperature is 0.5"),
        ({"top_k": 3}, "top_k is 3, but nothing is sampled at temperature 0"),
        ({"forced_bos_token_id": -2}, "forced_bos_token_id is -2; it must be at least -1"),
        *(
            ({name: 1 << 31, "temperature": 1.0}, f"{name} is 2147483648; it must be at most 2147483647")
            for name in LARGE
        ),
        ({"suppress_tokens": [1 << 31]}, "suppress_tokens has the id 2147483648; it must be from 0 to 2147483647"),
        ({"temperature": 1e9}, "temperature is 1000000000.0; it must be at most 1000"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Decoding(**options)


def test_a_request_takes_the_models_defaults_and_overrides_them():
    model = GenerationConfig(
        max_length=140, min_length=55, num_beams=4, early_stopping="true", forced_eos_token_id=2, bad_words_ids=[[5]]
    )
    assert with_defaults(model, 99, {"top_k": None}) == Decoding(
        140, 55, 4, early_stopping=True, forced_eos_token_id=2, bad_words_ids=[[5]]
    )
    cut = with_defaults(model, 99, {"max_length": 12})  # a limit of the caller cuts the text off
    assert (cut.max_length, cut.min_length, cut.forced_eos_token_id) == (12, 12, NONE)
    assert with_defaults(model, 99, {"max_length": 12, "forced_eos_token_id": 2}).forced_eos_token_id == 2
    sampled = with_defaults(model, 99, {"temperature": 0.5})
    assert (sampled.num_beams, sampled.temperature) == (1, 0.5)
    assert with_defaults(GenerationConfig(), 99, {}) == Decoding(99)
    assert with_defaults(GenerationConfig(min_length=150), 99, {}).max_length == 150
    with pytest.raises(InputError, match="num_beams is '4'; it must be a whole number"):
        with_defaults(model, 99, {"num_beams": "4"})


def test_a_model_that_samples_stops_sampling_where_beams_are_asked_for():
    model = GenerationConfig(do_sample=True, temperature=0.8, top_k=50, top_p=0.9)
    found = with_defaults(model, 9, {})
    assert (found.temperature, found.top_k, found.top_p) == (0.8, 50, 0.9)
    for given in ({"num_beams": 2}, {"temperature": 0}):
        found = with_defaults(model, 9, given)
        assert (found.temperature, found.top_k, found.top_p) == (0, 0, 1)
    with pytest.raises(InputError, match="the option 'beams' does not exist; accepted: max_length"):
        with_defaults(model, 9, {"beams": 2})


def test_an_option_that_no_row_uses_has_no_array():
    keys = jax.random.split(jax.random.key(0), 2)
    plain = row_options([Decoding(), Decoding(temperature=0.5)], keys)
    assert [array for array in plain[7:] if array is not None] == []
    assert not plain.reads_history
    rows = [Decoding(no_repeat_ngram_size=3, suppress_tokens=(4,)), Decoding(bad_words_ids=[[5], [6, 7, 8]])]
    found = row_options(rows, keys)
    assert found.reads_history
    assert found.repetition_penalty_B is found.early_stopping_B is found.forced_eos_B is None
    np.testing.assert_array_equal(found.no_repeat_ngram_size_B, [3, 0])
    np.testing.assert_array_equal(found.suppressed_BS, [[4], [NONE]])
    empty = [NONE] * 4
    np.testing.assert_array_equal(found.bad_words_BWL, [[empty, empty], [[*empty[:3], 5], [NONE, 6, 7, 8]]])


def test_a_program_takes_the_rows_that_its_arrays_cover():
    extras = Extras.of([Decoding(bad_words_ids=[[1, 2]] * 3, repetition_penalty=2.0)])
    assert extras.bad_words == (4, 2)
    assert extras.lacks(Decoding()) == []
    assert extras.lacks(Decoding(bad_words_ids=[[1]] * 4)) == []
    for row, missing in (
        (Decoding(bad_words_ids=[[1, 2, 3]]), ["bad_words"]),
        (Decoding(bad_words_ids=[[1]] * 5), ["bad_words"]),
        (Decoding(suppress_tokens=[1], forced_eos_token_id=2), ["forced_eos", "suppressed"]),
    ):
        assert extras.lacks(row) == missing
        with pytest.raises(ValueError, match="does not cover the options"):
            row_options([row], jax.random.split(jax.random.key(0), 1), extras)


@pytest.mark.parametrize("seed", [2**63, -1, "7", 1.0])
def test_a_seed_is_a_whole_number_that_jax_takes(seed):
    with pytest.raises(InputError, match="it must be a whole number between 0 and 9223372036854775807"):
        Options(seed=seed)


@pytest.mark.parametrize(("name", "value"), [("num_beams", 2.0), ("top_k", "4"), ("temperature", "hot")])
def test_an_option_of_another_type_is_named(name, value):
    with pytest.raises(InputError, match=f"{name} is {value!r}; it must be a "):
        Decoding(**{name: value})
