"""Every family writes with its folder's own settings, greedily and with four beams, what transformers writes."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

import lm
from lm import models
from lm.huggingface import import_folder, import_workdir
from lm.huggingface.generation import _LENGTHS, _SAME
from lm.huggingface.tokenizer import read_tokenizer
from lm.inference import decode
from lm.inference.decode_state import Shape, TokenIds
from lm.inference.options import row_options, with_defaults
from lm.models import Prompts, Sources
from tests.peers import ragged, tokenizer_folders
from tests.peers.test_families import BART, MARIAN, T5

pytestmark = pytest.mark.peers

ROWS, LONGEST, BEAMS = 12, 8, 4
CODE = 7  # of a language
# The bias of the end token: some texts end before their longest length.
ENDS = {"bart": 16, "marian": 9, "pegasus": 2}
# Set for all families: the ids and the beams. Sampled tokens are random, so `do_sample` is tested elsewhere.
BESIDE = {"decoder_start_token_id", "num_beams", "do_sample"}

# Prefix of the class, config.json, and generation_config.json beside the ids. Every option of a folder is in one.
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "t5": ("T5", T5, {"max_new_tokens": 9, "no_repeat_ngram_size": 2, "min_length": 5, "length_penalty": 2.0}),
    "t5-1.1": (
        "T5",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"max_length": 10, "repetition_penalty": 1.5, "early_stopping": True},
    ),
    "mt5": (
        "MT5",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"max_length": 9, "bad_words_ids": [[40], [66, 66], [1]], "forced_eos_token_id": 1, "no_repeat_ngram_size": 3},
    ),
    "umt5": (
        "UMT5",
        {**T5, "feed_forward_proj": "gated-gelu"},
        {
            **{"max_new_tokens": 8, "repetition_penalty": 1.5, "begin_suppress_tokens": [55, 66], "min_new_tokens": 3},
            "eos_token_id": [1, 66, 82],
        },
    ),
    # As facebook/bart-large-cnn, with shorter texts.
    "bart": (
        "Bart",
        BART,
        {
            **{"forced_bos_token_id": 0, "forced_eos_token_id": 2, "no_repeat_ngram_size": 3, "min_length": 6},
            **{"max_length": 11, "early_stopping": True, "length_penalty": 2.0},
        },
    ),
    # As facebook/mbart-large-en-ro, whose decoder starts with the code.
    "mbart": (
        "MBart",
        {**BART, "scale_embedding": True, "decoder_start_token_id": CODE},
        {"max_length": 10, "forced_eos_token_id": 2, "early_stopping": "never", "no_repeat_ngram_size": 1},
    ),
    # As Helsinki-NLP's.
    "marian": (
        "Marian",
        {**MARIAN, "activation_function": "swish", "eos_token_id": 0},
        {"max_length": 10, "bad_words_ids": [[89]], "forced_eos_token_id": 0, "repetition_penalty": 1.3},
    ),
    # As google/pegasus-xsum.
    "pegasus": (
        "Pegasus",
        {**BART, "scale_embedding": True, "activation_function": "relu", "pad_token_id": 0, "eos_token_id": 1},
        {"max_length": 10, "forced_eos_token_id": 1, "length_penalty": 0.6, "suppress_tokens": [37, 40]},
    ),
    # As facebook/m2m100_418M and facebook/nllb-200, with a language.
    "m2m_100": (
        "M2M100",
        {**BART, "decoder_start_token_id": 2},
        {"max_length": 10, "forced_bos_token_id": CODE, "early_stopping": True, "repetition_penalty": 1.2},
    ),
}


def make_lively(prefix: str, settings: dict[str, Any]) -> Any:
    """A random model that does not write the same for all sources, and whose choices do not hang on rounding."""
    config = getattr(transformers, f"{prefix}Config")(**settings)
    suffix = "MTModel" if prefix == "Marian" else "ForConditionalGeneration"
    model: Any = getattr(transformers, prefix + suffix)(config).eval()
    ragged.randomise(model, 0.4)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "create_weight"):  # positions that are not trained
                module.weight.data = module.create_weight()
        decoder, signs = model.get_decoder(), torch.Generator().manual_seed(1)
        norms = [module for name, module in decoder.named_modules() if "norm" in name and "embedding" not in name]
        for parameter in (
            each for name, each in decoder.named_parameters() if "EncDec" in name or "encoder_attn" in name
        ):
            parameter *= 2
        # Where the embedding is the output too a token would score itself highest and be repeated for ever.
        norms[-1].weight.normal_(generator=signs)
        norms[-1].weight *= {"T5": 3, "MT5": 2, "UMT5": 6}.get(prefix, 3)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias[0, config.eos_token_id] = ENDS.get(config.model_type, 8)
    return model


class Folder:
    """A random model of a family with settings of generation, and a ragged batch of sources."""

    def __init__(self, family: str, folder: Path):
        transformers.logging.set_verbosity_error()
        prefix, settings, generation = PUBLISHED[family]
        self.theirs = make_lively(prefix, settings)
        config = self.theirs.config
        start = settings.get("decoder_start_token_id", config.pad_token_id if prefix == "Pegasus" else 2)
        ids = {
            "eos_token_id": config.eos_token_id,
            "pad_token_id": config.pad_token_id,
            "decoder_start_token_id": start,
            **generation,
        }
        self.pad, ends = config.pad_token_id, ids["eos_token_id"]
        self.ends = tuple(ends) if isinstance(ends, list) else (ends,)
        self.theirs.generation_config = transformers.GenerationConfig()
        self.theirs.save_pretrained(folder)
        (folder / "generation_config.json").write_text(json.dumps({**ids, "num_beams": BEAMS}))
        self.folder, self.imported = folder, import_folder(folder)
        rng = np.random.default_rng(0)
        lengths = rng.integers(3, LONGEST + 1, ROWS)
        self.segments = (np.arange(LONGEST)[None] < lengths[:, None]).astype(np.int32)
        self.tokens = np.where(self.segments > 0, rng.integers(8, 80, (ROWS, LONGEST)), self.pad).astype(np.int32)

    def ours(self, **given: int) -> tuple[np.ndarray, np.ndarray]:
        """Sequences [B, N, T] and scores [B, N], written as the folder says where nothing is given."""
        says = self.imported.generation
        assert says is not None
        assert (says.not_done, says.ends) == ((), self.ends)
        decoding = with_defaults(says.config, 1, given)
        forced = decoding.forced_bos_token_id
        prompt = np.full((ROWS, int(forced >= 0)), forced, np.int32)
        model = self.imported.config
        end, *others = self.ends
        ids = TokenIds(says.config.decoder_start_token_id, end, self.pad, model.vocab_size, tuple(others))
        shape = Shape(decoding.num_beams, decoding.max_length, prompt.shape[1], LONGEST)
        options = row_options([decoding] * ROWS, jax.random.split(jax.random.key(0), ROWS))
        generate = jax.jit(functools.partial(decode.generate, models.build(model), ids, shape))
        prompts = Prompts(prompt, np.full(ROWS, prompt.shape[1], np.int32))
        found = generate(self.imported.params, Sources(self.tokens, self.segments), prompts, options)
        return jax.device_get(found)

    def generate(self, longest: int, **given: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Theirs, without the start and a forced first token, padded as ours."""
        self.theirs.generation_config = transformers.GenerationConfig.from_pretrained(self.folder)
        with torch.no_grad():
            found = self.theirs.generate(
                torch.from_numpy(self.tokens).long(),
                attention_mask=torch.from_numpy(self.segments).long(),
                return_dict_in_generate=True,
                output_scores=True,
                **given,
            )
        begin = 1 + (self.theirs.generation_config.forced_bos_token_id is not None)
        sequences = found.sequences.numpy()[:, begin:]
        sequences = np.pad(sequences, ((0, 0), (0, longest - sequences.shape[1])), constant_values=self.pad)
        is_end = np.isin(sequences, self.ends)
        sequences = np.where(is_end.cumsum(axis=1) - is_end > 0, self.pad, sequences)
        scores = found.sequences_scores.numpy().reshape(ROWS, -1) if "sequences_scores" in found else None
        return sequences.reshape(ROWS, -1, longest), scores


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_family_writes_what_transformers_writes(family: str, tmp_path: Path) -> None:
    folder = Folder(family, tmp_path)
    ours, scores = folder.ours()
    theirs, their_scores = folder.generate(ours.shape[2], num_return_sequences=BEAMS)
    np.testing.assert_array_equal(ours, theirs)
    assert their_scores is not None
    np.testing.assert_allclose(scores, their_scores, atol=1e-4, rtol=1e-4)
    greedy, _ = folder.ours(num_beams=1)
    their_greedy, _ = folder.generate(ours.shape[2], num_beams=1)
    np.testing.assert_array_equal(greedy, their_greedy)
    assert len(np.unique(greedy, axis=0)) > ROWS / 3  # the sources are read
    if family in ENDS or len(folder.ends) > 1:
        assert 0 < np.isin(greedy[:, 0, :-1], folder.ends[-1]).any(axis=1).sum() < ROWS


def test_every_option_of_a_folder_is_in_a_family() -> None:
    named = {name for _, _, generation in PUBLISHED.values() for name in generation}
    assert named >= {*_SAME, *_LENGTHS, "early_stopping", "forced_eos_token_id"} - BESIDE


# ---- A language that the request names ------------------------------------------------------------

# Family of the tokenizer's folder: prefix of the class, and the code of the language to write.
MULTILINGUAL = {"mbart50": ("MBart", "ro_RO"), "m2m_100": ("M2M100", "fr"), "nllb": ("M2M100", "fra_Latn")}


@pytest.mark.parametrize("family", MULTILINGUAL)
def test_the_code_of_a_language_counts_as_a_forced_token(family: str, tmp_path: Path) -> None:
    prefix, code = MULTILINGUAL[family]
    transformers.logging.set_verbosity_error()
    folder, workdir = tmp_path / "folder", tmp_path / "workdir"
    tokenizer_folders.write(
        folder, tokenizer_folders.vocabularies()[family], family, next(tokenizer_folders.folders(family))[1]
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    size = read_tokenizer(folder).vocab_size
    theirs = make_lively(prefix, {**BART, "vocab_size": size, "decoder_start_token_id": 2})
    theirs.generation_config = transformers.GenerationConfig()
    theirs.save_pretrained(folder)
    ids = {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0}
    settings = {**ids, "max_length": 9, "min_length": 6, "num_beams": BEAMS, "early_stopping": True}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    import_workdir(folder, workdir)
    texts = [" ".join(line.split()[:2]) for line in tokenizer_folders.LINES[:6]]
    model = lm.load(str(workdir))
    assert "no language is given to translate into; accepted: " in model.translate(texts[:1])[0]["error"]
    answers = model.translate(texts, code)

    theirs.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    with torch.no_grad():
        found = theirs.generate(
            **tokenizer(texts, return_tensors="pt", padding=True),
            forced_bos_token_id=tokenizer.convert_tokens_to_ids(code if family != "m2m_100" else f"__{code}__"),
            num_return_sequences=BEAMS,
            return_dict_in_generate=True,
            output_scores=True,
        )
    scores = [[each["score"] for each in answer["candidates"]] for answer in answers]
    np.testing.assert_allclose(scores, found.sequences_scores.reshape(-1, BEAMS), atol=1e-4, rtol=1e-4)
    written = [each["text"] for answer in answers for each in answer["candidates"]]
    if family != "m2m_100":  # there transformers writes the code of the language before the text
        assert written == tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
    assert len(set(written)) > len(written) / 2
