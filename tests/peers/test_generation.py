"""Greedy decoding and beam search equal transformers' `generate` on imported T5 and BART, in float32."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from lm import models
from lm.data.special_ids import SpecialIds
from lm.huggingface import import_folder
from lm.inference import decode
from lm.inference.decode import Decoded, Shape, TokenIds
from lm.inference.options import Decoding, row_options
from lm.models import Prompts, Sources
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
