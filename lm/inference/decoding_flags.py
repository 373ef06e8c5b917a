"""The flags of decoding: one for each field of `lm.inference.options.Decoding`."""

import json
from collections.abc import Callable, Iterable

from absl import flags

from lm import cli
from lm.config import EARLY_STOPPING
from lm.errors import InputError
from lm.inference.requests import has_effect, owner_of

flags.disclaim_key_flags()  # --help of a script lists these flags with its own


def define_decoding() -> Callable[[], dict[str, object]]:
    """Defines a flag for each field of `lm.inference.options.Decoding`.

    Returns:
        A function to call in `main`; it returns the options by name, None for those that are not given.
    """
    holders = {
        "num_beams": flags.DEFINE_integer("num_beams", None, "Beams of beam search; 1 is greedy."),
        "max_length": flags.DEFINE_integer(
            "max_length", None, "Most tokens to write, as max_new_tokens; default: that of the model."
        ),
        "min_length": flags.DEFINE_integer("min_length", None, "Fewest tokens to write."),
        "length_penalty": flags.DEFINE_float("length_penalty", None, "Divide scores by length to this power."),
        "early_stopping": flags.DEFINE_enum("early_stopping", None, list(EARLY_STOPPING), "When beam search ends."),
        "temperature": flags.DEFINE_float("temperature", None, "Above 0: sample from softmax(logits / temperature)."),
        "top_k": flags.DEFINE_integer("top_k", None, "Sample from the K most probable tokens."),
        "top_p": flags.DEFINE_float("top_p", None, "Sample from the fewest tokens with this probability together."),
        "no_repeat_ngram_size": flags.DEFINE_integer("no_repeat_ngram_size", None, "No n-gram of this size twice."),
        "repetition_penalty": flags.DEFINE_float("repetition_penalty", None, "Above 1: repeat tokens less."),
        "forced_bos_token_id": flags.DEFINE_integer("forced_bos_token_id", None, "First token; -1: none."),
        "forced_eos_token_id": flags.DEFINE_integer("forced_eos_token_id", None, "Token at max_length; -1: none."),
        "bad_words_ids": flags.DEFINE_string("bad_words_ids", None, "Token sequences never to write: [[5], [6, 7]]."),
        "suppress_tokens": flags.DEFINE_list("suppress_tokens", None, "Tokens never to write: 5,6."),
        "begin_suppress_tokens": flags.DEFINE_list("begin_suppress_tokens", None, "Tokens never to begin with: 5,6."),
    }

    def given() -> dict[str, object]:
        found: dict[str, object] = {name: holder.value for name, holder in holders.items()}
        if (stopping := holders["early_stopping"].value) is not None:
            found["early_stopping"] = EARLY_STOPPING[stopping]
        for name in ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"):
            if (value := holders[name].value) is not None:
                found[name] = _token_ids(name, value if isinstance(value, str) else f"[{','.join(value)}]")
        return found

    return given


def refuse_without_effect(task: str, options: Iterable[str]) -> None:
    """Refuses flags of options that the command line gives though the task does not use them.

    Raises:
        InputError: names the flag, and those that the task takes.
    """
    options = tuple(options)
    for name in options:
        if (owner := owner_of(name)) and owner != task:
            cli.refuse_given([name], f"with --task={task}, but with --task={owner}")
    taken = ", ".join(f"--{name}" for name in options if has_effect(name, task)) or "none of these flags"
    unused = (name for name in options if not has_effect(name, task))
    cli.refuse_given(unused, f"with --task={task}, which takes {taken}")


def _token_ids(name: str, text: str) -> object:
    try:
        ids = json.loads(text)
        lists = ids if name == "bad_words_ids" else [ids]
        if all(type(each) is list and all(type(token) is int for token in each) for each in lists):
            return ids
    except (ValueError, TypeError, RecursionError):
        pass
    accepted = "lists of token ids, such as [[5], [6, 7]]" if name == "bad_words_ids" else "token ids, such as 5,6"
    raise InputError(f"--{name} is {text}; accepted: {accepted}.")
