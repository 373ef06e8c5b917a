"""Greedy decoding and beam search equal transformers' `generate` on imported T5 and BART, in float32."""

import functools
import itertools
import json
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from lm import models
from lm.huggingface import generation, import_folder
from lm.inference import decode
from lm.inference.decode_state import Decoded, Shape, TokenIds
from lm.inference.options import Decoding, Extras, row_options, with_defaults
from lm.models import Prompts, Sources
from lm.tokenizers.special_ids import SpecialIds
from tests.peers import ragged
from tests.peers.test_seq2seq import BART_IDS, T5_IDS, make_theirs

pytestmark = pytest.mark.peers

FAMILIES = pytest.mark.parametrize("family", ["t5-1.0", "t5-1.1", "bart"])
ROWS, LONGEST = 32, 20


def make_talkative(family: str) -> torch.nn.Module:
    """A random model whose sequences differ, some ending early and some not at all.

    Its attention is soft and its logits are far apart: weights changed by a millionth give the same sequences, so
    that no choice hangs on rounding.
    """
    model: Any = make_theirs(family)
    std, embedding, end = {"t5-1.0": (0.2, 0.6, 2.0), "t5-1.1": (0.2, 0.4, 1.5), "bart": (0.4, 0.5, 3.0)}[family]
    ragged.randomise(model, std)
    with torch.no_grad():
        decoder = model.get_decoder()
        # Where the embedding is the output too a token would score itself highest and be repeated for ever.
        signs = torch.Generator().manual_seed(1)
        if family == "t5-1.0":
            decoder.final_layer_norm.weight.normal_(generator=signs)
        elif family == "bart":
            decoder.layers[-1].final_layer_norm.weight.normal_(generator=signs)
        for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            table *= embedding / std
        if family != "bart":
            model.lm_head.weight[T5_IDS.sep] *= end
            return model
        for name, parameter in model.named_parameters():
            for part, scale in (("bias", 0.15), ("out_proj.weight", 3), ("fc2.weight", 3), ("embed_positions", 5)):
                parameter *= scale if part in name else 1
        model.final_logits_bias[0, BART_IDS.sep] = end
    return model


class Peers:
    """One random model here and in transformers, and 32 inputs of 3 to 20 tokens."""

    def __init__(self, family: str, folder):
        self.special: SpecialIds = BART_IDS if family == "bart" else T5_IDS
        self.theirs: Any = make_talkative(family)
        self.theirs.save_pretrained(folder)
        imported = import_folder(folder)
        self.params, self.model = imported.params, models.build(imported.config)
        self.vocab_size = imported.config.vocab_size
        # BART writes <s> first. Theirs may force that as the first token generated; as part of the prompt it is
        # forced here and there and counts in no length.
        self.prompt = [0] if family == "bart" else []
        self.start = self.special.sep if family == "bart" else self.special.pad
        rng = np.random.default_rng(0)
        lengths = rng.integers(3, LONGEST + 1, ROWS)
        self.segments = (np.arange(LONGEST)[None] < lengths[:, None]).astype(np.int32)
        tokens = rng.integers(5, self.vocab_size, (ROWS, LONGEST))
        self.tokens = np.where(self.segments > 0, tokens, self.special.pad).astype(np.int32)

    def ours(self, **given) -> Decoded:
        decoding = Decoding(**given)
        ids = TokenIds(self.start, self.special.sep, self.special.pad, self.vocab_size)
        shape = Shape(decoding.num_beams, decoding.max_length, len(self.prompt), LONGEST)
        generate = jax.jit(functools.partial(decode.generate, self.model, ids, shape))
        prompt = np.tile(np.array(self.prompt, np.int32), (ROWS, 1))
        prompts = Prompts(prompt, np.full(ROWS, len(self.prompt), np.int32))
        options = row_options([decoding] * ROWS, jax.random.split(jax.random.key(0), ROWS))
        return jax.device_get(generate(self.params, Sources(self.tokens, self.segments), prompts, options))

    def generate(self, **options) -> tuple[np.ndarray, np.ndarray | None]:
        """Theirs: sequences [B, N, T] without the prompt, padded as ours, and scores [B, N] of beam search."""
        config = transformers.GenerationConfig(
            do_sample=False,
            early_stopping=False,
            return_dict_in_generate=True,
            output_scores=True,
            pad_token_id=self.special.pad,
            eos_token_id=self.special.sep,
            decoder_start_token_id=self.start,
            **options,
        )
        self.theirs.generation_config = transformers.GenerationConfig()  # BART's own forces the end at max_length
        prompt = torch.tensor([[self.start, *self.prompt]]).repeat(ROWS, 1)
        with torch.no_grad():
            found = self.theirs.generate(
                torch.from_numpy(self.tokens).long(),
                attention_mask=torch.from_numpy(self.segments).long(),
                decoder_input_ids=prompt,
                generation_config=config,
            )
        sequences = found.sequences.numpy()[:, prompt.shape[1] :]
        wanted = options["max_new_tokens"] - sequences.shape[1]
        sequences = np.pad(sequences, ((0, 0), (0, wanted)), constant_values=self.special.pad)
        # Beam search takes padding of id 0 for none, and fills up with the end.
        ended = (sequences == self.special.sep).cumsum(axis=1) - (sequences == self.special.sep) > 0
        sequences = np.where(ended, self.special.pad, sequences)
        scores = found.sequences_scores.numpy().reshape(ROWS, -1) if options.get("num_beams", 1) > 1 else None
        return sequences.reshape(ROWS, -1, options["max_new_tokens"]), scores


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    return functools.cache(lambda family: Peers(family, tmp_path_factory.mktemp(family)))


@FAMILIES
def test_greedy_tokens_are_identical(peers, family):
    pair = peers(family)
    tokens, _ = pair.generate(max_new_tokens=16)
    np.testing.assert_array_equal(pair.ours(max_length=16).tokens_BNT, tokens)
    ended_early = (tokens[:, 0, :-1] == pair.special.sep).any(axis=1).sum()
    assert 4 <= ended_early <= ROWS - 4
    assert len(np.unique(tokens[:, 0], axis=0)) > 20


# How the settings correspond. Our max_length counts the tokens generated, the end included, prompt and start not: it
# is their max_new_tokens. Our min_length counts the same way; their min_new_tokens is how many tokens must come
# before the end may, so one less. (Their max_length and min_length count start and prompt too.) The length that a
# score is divided by is that of ours in both, and so is early_stopping=False; their "never" and True we have not.
@FAMILIES
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"max_length": 12}, {"max_new_tokens": 12}),
        (
            {"max_length": 9, "min_length": 6, "length_penalty": 0.7},
            {"max_new_tokens": 9, "min_new_tokens": 5, "length_penalty": 0.7},
        ),
    ],
    ids=["mean", "bounded"],
)
def test_the_four_best_of_four_beams_are_identical(peers, family, ours, theirs):
    pair = peers(family)
    found = pair.ours(num_beams=4, **ours)
    tokens, scores = pair.generate(num_beams=4, num_return_sequences=4, **theirs)
    np.testing.assert_array_equal(found.tokens_BNT, tokens)
    np.testing.assert_allclose(found.scores_BN, scores, atol=1e-4, rtol=0)
    shortest = np.where(tokens == pair.special.sep, np.arange(tokens.shape[-1]) + 1, np.inf).min()
    assert shortest == ours["min_length"] if "min_length" in ours else shortest < 6  # the bound is felt


# ---- Generation as the folder says --------------------------------------------------------------

MOST = 12  # tokens written, the most of all cases
EVERY = Extras(True, True, True, True, True, bad_words=(4, 2), suppressed=2, begin_suppressed=2)
START = 7  # the decoder's first token: neither the end nor padding


class Following:
    """A folder's settings, followed here and there. All settings of a search run in one program."""

    def __init__(self, pair: Peers, folder):
        self.pair, self.folder = pair, folder
        ids = TokenIds(START, pair.special.sep, pair.special.pad, pair.vocab_size)
        self.program = functools.cache(
            lambda beams: jax.jit(functools.partial(decode.generate, pair.model, ids, Shape(beams, MOST, 1, LONGEST)))
        )

    def ours(self, settings: dict) -> Decoded:
        """Reads the settings as an import does."""
        found = generation.read_generation({"eos_token_id": self.pair.special.sep}, settings)
        assert not found.not_done
        config = found.config
        assert config.decoder_start_token_id == START
        decoding = with_defaults(config, MOST, {})
        forced = decoding.forced_bos_token_id
        prompts = Prompts(np.full((ROWS, 1), max(forced, 0), np.int32), np.full(ROWS, int(forced >= 0), np.int32))
        options = row_options([decoding] * ROWS, jax.random.split(jax.random.key(0), ROWS), EVERY)
        sources = Sources(self.pair.tokens, self.pair.segments)
        return jax.device_get(self.program(decoding.num_beams)(self.pair.params, sources, prompts, options))

    def theirs(self, settings: dict) -> tuple[np.ndarray, np.ndarray | None]:
        """Sequences [B, N, T] without the start and a forced first token, padded as ours, and scores [B, N]."""
        (self.folder / "generation_config.json").write_text(json.dumps(settings))
        pair, beams = self.pair, settings.get("num_beams", 1)
        pair.theirs.generation_config = transformers.GenerationConfig.from_pretrained(self.folder)
        with torch.no_grad():
            found = pair.theirs.generate(
                torch.from_numpy(pair.tokens).long(),
                attention_mask=torch.from_numpy(pair.segments).long(),
                num_return_sequences=beams,
                return_dict_in_generate=True,
                output_scores=True,
            )
        sequences = found.sequences.numpy()[:, 1 + ("forced_bos_token_id" in settings) :]
        sequences = np.pad(sequences, ((0, 0), (0, MOST - sequences.shape[1])), constant_values=pair.special.pad)
        is_end = sequences == pair.special.sep
        sequences = np.where(is_end.cumsum(axis=1) - is_end > 0, pair.special.pad, sequences)
        scores = found.sequences_scores.numpy().reshape(ROWS, beams) if beams > 1 else None
        return sequences.reshape(ROWS, beams, MOST), scores


@pytest.fixture(scope="module")
def following(peers, tmp_path_factory):
    return Following(peers("bart"), tmp_path_factory.mktemp("settings"))


@pytest.fixture(scope="module")
def plain(following) -> np.ndarray:
    """What is written without any option, [B, T]."""
    return following.ours({"decoder_start_token_id": START, "max_new_tokens": MOST, "eos_token_id": 2}).tokens_BNT[:, 0]


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram_size": 2, "max_new_tokens": 12},
        {"no_repeat_ngram_size": 1, "forced_bos_token_id": 0, "forced_eos_token_id": 2, "max_length": 11},
        {"repetition_penalty": 1.8, "forced_bos_token_id": 0, "max_new_tokens": 12, "length_penalty": 2.0},
        {"repetition_penalty": 0.8, "min_length": 6, "max_length": 10, "forced_eos_token_id": 2},
        {"bad_words_ids": "frequent", "max_new_tokens": 12},
        {"suppress_tokens": "frequent", "begin_suppress_tokens": "first", "forced_bos_token_id": 0, "max_length": 12},
        {"begin_suppress_tokens": "first", "min_new_tokens": 4, "max_new_tokens": 12, "early_stopping": True},
        {"early_stopping": True, "length_penalty": 1.5, "forced_bos_token_id": 0, "max_new_tokens": 12},
        {"early_stopping": "never", "length_penalty": 1.5, "max_new_tokens": 12},
        {"early_stopping": "never", "length_penalty": -0.5, "max_new_tokens": 12},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_a_folders_settings_are_followed(following, plain, settings, beams):
    written = plain[plain > 2]
    common = np.bincount(written).argsort()[::-1].tolist()
    pairs = {(a, b) for row in plain.tolist() for a, b in itertools.pairwise(row) if min(a, b) > 2}
    tokens = {
        "bad_words_ids": [[common[0]], *map(list, sorted(pairs)[:2]), [2]],
        "suppress_tokens": common[:2],
        "begin_suppress_tokens": np.bincount(plain[:, 0]).argsort()[::-1][:2].tolist(),
    }
    settings = {name: tokens[name] if isinstance(value, str) and name in tokens else value
                for name, value in settings.items()}  # fmt: skip
    settings = {"decoder_start_token_id": START, "eos_token_id": 2, "pad_token_id": 1, "num_beams": beams, **settings}
    found = following.ours(settings)
    expected, scores = following.theirs(settings)
    np.testing.assert_array_equal(found.tokens_BNT, expected)
    if beams > 1:
        np.testing.assert_allclose(found.scores_BN, scores, atol=1e-4, rtol=1e-4)
    elif "early_stopping" not in settings:  # the option is felt
        assert (found.tokens_BNT[:, 0] != plain).any(axis=1).sum() > ROWS / 8
