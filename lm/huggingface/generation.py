"""How a folder says that its model writes: `generation_config.json`, or `config.json` in older folders.

Transformers' lengths count the decoder's start token and a forced first token. Ours do not.
"""

import dataclasses
from collections.abc import Mapping

from lm.config import EARLY_STOPPING, GenerationConfig
from lm.errors import InputError
from lm.huggingface.family import Fields, Settings

FILE = "generation_config.json"

# Keys that do not change what is written, or that other parts of the import read.
_WITHOUT_EFFECT = {
    *("pad_token_id", "bos_token_id", "eos_token_id", "transformers_version", "num_return_sequences", "use_cache"),
    *("return_dict_in_generate", "output_attentions", "output_hidden_states", "output_logits", "output_scores"),
    *("cache_implementation", "cache_config", "return_legacy_cache", "low_memory", "compile_config", "max_cache_len"),
    *("disable_compile", "prefill_chunk_size", "is_assistant", "num_assistant_tokens", "use_mtp", "speculation_type"),
    *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_ensemble_weight"),
}
# Keys that we do not follow, and the values with which they have no effect. None never has one.
_NOT_DONE: dict[str, tuple[object, ...]] = {
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "diversity_penalty": (0,),
    "num_beam_groups": (1,),
    "typical_p": (1,),
    "min_p": (0,),
    "top_h": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "sequence_bias": (),
    "exponential_decay_length_penalty": (),
    "stop_strings": (),
    "max_time": (),
    "watermarking_config": (),
}
# Keys whose meaning and name we share.
_SAME = (
    *("decoder_start_token_id", "forced_bos_token_id", "num_beams", "length_penalty", "no_repeat_ngram_size"),
    *("repetition_penalty", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "do_sample"),
)
_LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens")
_SAMPLING = ("temperature", "top_k", "top_p")
_READ = {*_SAME, *_LENGTHS, *_SAMPLING, "early_stopping", "forced_eos_token_id"}
_TOP_K = 50  # transformers' default, where tokens are sampled
_MOST_NAMED = 80  # characters of a value in a message


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a folder says.

    Attributes:
        config: the defaults of decoding.
        ends: the ids that end a text; empty where the folder does not say.
        not_done: the settings that we do not follow, each as `name value`.
    """

    config: GenerationConfig
    ends: tuple[int, ...]
    not_done: tuple[str, ...]


def read_generation(config: Settings, generation: Settings | None, start: int = -1) -> Generation:
    """Returns how a model writes.

    Args:
        config: the content of `config.json`.
        generation: the content of `generation_config.json`; None if there is none.
        start: the decoder's start token where the folder does not say.

    Raises:
        InputError: a setting has an impossible value.
    """
    own = config if generation is None else generation
    given = {name: value for name, value in own.items() if value is not None}
    if generation is None:  # it has the settings of the model too
        given = {name: value for name, value in given.items() if name in {*_READ, *_NOT_DONE, "eos_token_id"}}
        if config.get("force_bos_token_to_be_generated") and config.get("bos_token_id") is not None:
            given.setdefault("forced_bos_token_id", config["bos_token_id"])
    given.setdefault("decoder_start_token_id", config.get("decoder_start_token_id"))
    if given["decoder_start_token_id"] is None:
        given["decoder_start_token_id"] = start
    ignored = {
        name: value
        for name, value in given.items()
        if name not in _READ | _WITHOUT_EFFECT and not name.startswith("_") and value not in _NOT_DONE.get(name, ())
    }
    if tasks := config.get("task_specific_params"):
        ignored["task_specific_params"] = ", ".join(tasks) if isinstance(tasks, Mapping) else tasks
    fields: Fields = {name: given[name] for name in _SAME if name in given}
    ended = _ids(given, "eos_token_id")
    if forced := _ids(given, "forced_eos_token_id"):
        fields["forced_eos_token_id"] = forced[0]
    if isinstance(fields.get("bad_words_ids"), list):  # an end token on its own has no effect
        fields["bad_words_ids"] = [word for word in given["bad_words_ids"] if word not in [[end] for end in ended]]
    stopping = [name for name, value in EARLY_STOPPING.items() if value is given.get("early_stopping", False)]
    if given.get("early_stopping") == "never":
        stopping = ["never"]
    fields["early_stopping"] = stopping[0] if stopping else str(given["early_stopping"])
    fields |= _lengths(given)
    if given.get("do_sample") is True:
        if given.get("num_beams", 1) != 1:
            ignored["do_sample"] = "true with num_beams"
            fields["do_sample"] = False
        else:
            fields |= {"top_k": _TOP_K, **{name: given[name] for name in _SAMPLING if name in given}}
    found = dataclasses.replace(GenerationConfig(), **fields)
    try:
        found.validate()
    except InputError as error:
        raise InputError(f"{'config.json' if generation is None else FILE}: {error}") from None
    return Generation(found, ended, tuple(f"{name} {str(value)[:_MOST_NAMED]}" for name, value in ignored.items()))


def write_generation(config: GenerationConfig, ids: Fields, longest: int) -> Fields:
    """Returns the content of a `generation_config.json`, the inverse of `read_generation`.

    Args:
        config: the defaults of decoding.
        ids: `pad_token_id`, `bos_token_id`, `eos_token_id` (one id or a list), `decoder_start_token_id` and
            `forced_bos_token_id`, as far as the model has them.
        longest: the default of `max_length`, in our count; 0 leaves it to transformers.
    """
    counted = 1 + ("forced_bos_token_id" in ids)
    written: Fields = {**ids}
    for field in dataclasses.fields(GenerationConfig):
        value = getattr(config, field.name)
        if value != getattr(GenerationConfig(), field.name) and field.name not in ids:
            written[field.name] = value
    if config.early_stopping != "false":
        written["early_stopping"] = EARLY_STOPPING[config.early_stopping]
    if config.max_length or longest:
        written["max_length"] = (config.max_length or longest) + counted
    if config.min_length:
        written["min_length"] = config.min_length + counted - 1
    if config.do_sample:
        written |= {name: getattr(config, name) for name in _SAMPLING}
    return written


def described(config: GenerationConfig) -> str:
    """Returns the settings that differ from our defaults, for people to read."""
    changed = {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != getattr(GenerationConfig(), field.name)
        and field.name != "decoder_start_token_id"
    }
    return ", ".join(f"{name} {str(value)[:_MOST_NAMED]}" for name, value in changed.items())


def _lengths(given: Settings) -> Fields:
    """Returns our lengths. They count the tokens after the start token and a forced first token."""
    lengths = {name: given[name] for name in _LENGTHS if name in given}
    for name, value in lengths.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InputError(f"{name} is {value!r}; accepted: a number of tokens.")
    forced = "forced_bos_token_id" in given
    found: Fields = {}
    if "max_new_tokens" in lengths:
        found["max_length"] = lengths["max_new_tokens"] - forced
    elif "max_length" in lengths:
        found["max_length"] = lengths["max_length"] - 1 - forced
    if "min_new_tokens" in lengths:
        found["min_length"] = lengths["min_new_tokens"] and max(0, lengths["min_new_tokens"] + 1 - forced)
    elif "min_length" in lengths:
        found["min_length"] = max(0, lengths["min_length"] - forced)
    if found.get("max_length", 1) in (0, -1, -2):
        raise InputError("max_length leaves no token to write; raise it.")
    return found


def _ids(given: Settings, name: str) -> tuple[int, ...]:
    value = given.get(name, [])
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in values):
        raise InputError(f"{name} is {value!r}; accepted: the id of a token, or a list of ids.")
    return tuple(values)
