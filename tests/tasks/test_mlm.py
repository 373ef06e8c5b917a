import dataclasses
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import models, tasks
from lm.config import Config
from lm.tasks import members
from lm.tasks.losses import mean_metrics, total_loss
from lm.tasks.masked_positions import max_masked
from lm.tasks.mlm import MaskedLM
from tests.training.conftest import changed


def batch_of(config, store, step=0):
    return members.batches(dataclasses.replace(config, seed=3), "", store, store.train)(step)


@pytest.fixture(scope="module")
def large(tiny_config) -> Config:
    return changed(tiny_config, data={"batch_size": 512})


@pytest.fixture(scope="module")
def masked(large, tiny_store):
    """A large batch of real text, and the same batch masked."""
    batch = batch_of(large, tiny_store)
    objective = tasks.create_objective(large, tiny_store.tokenizer)
    examples = jax.jit(objective.prepare)(batch, jax.random.key(1))
    return batch, jax.tree.map(np.asarray, examples), objective


def chosen_places(examples):
    """Flat row and column of every prediction."""
    row, slot = np.nonzero(examples["mlm_weights"])
    return row, examples["masked_positions"][row, slot], slot


def test_every_segment_masks_its_quota(masked):
    batch, examples, objective = masked
    row, column, _ = chosen_places(examples)
    for r in range(0, len(batch["tokens"]), 16):
        at = column[row == r]
        assert len(set(at)) == len(at)
        for segment in range(1, batch["segments"][r].max() + 1):
            size = int((batch["segments"][r] == segment).sum())
            assert (batch["segments"][r][at] == segment).sum() == max(1, round(objective.mask_rate * size))


def test_special_tokens_and_padding_are_never_masked(masked, tiny_store):
    batch, examples, _ = masked
    row, column, _ = chosen_places(examples)
    assert not np.isin(batch["tokens"][row, column], tiny_store.tokenizer.special_ids).any()
    assert (batch["segments"][row, column] > 0).all()
    untouched = np.ones(batch["tokens"].shape, bool)
    untouched[row, column] = False
    np.testing.assert_array_equal(examples["tokens"][untouched], batch["tokens"][untouched])


def test_labels_are_the_original_tokens(masked):
    batch, examples, _ = masked
    row, column, slot = chosen_places(examples)
    np.testing.assert_array_equal(examples["labels"][row, slot], batch["tokens"][row, column])


def test_rates_are_15_and_80_10_10_within_sampling_error(masked):
    batch, examples, objective = masked
    row, column, slot = chosen_places(examples)
    # Short segments round up to one token; what is expected follows from the lengths.
    sizes = np.stack([(batch["segments"] == s).sum(axis=1) for s in range(1, objective.max_segments + 1)])
    expected = np.where(sizes, np.maximum(1, np.round(objective.mask_rate * sizes)), 0).sum()
    assert len(row) == expected
    assert 0.14 < len(row) / (batch["segments"] > 0).sum() < 0.17

    shown, label = examples["tokens"][row, column], examples["labels"][row, slot]
    error = 4 * np.sqrt(0.25 / len(row))
    assert abs((shown == objective.mask_id).mean() - 0.8) < error
    chance = 1 / len(objective.ordinary_ids)
    assert abs((shown == label).mean() - (0.1 + 0.1 * chance)) < error
    is_random = (shown != label) & (shown != objective.mask_id)
    assert abs(is_random.mean() - 0.1 * (1 - chance)) < error
    assert np.isin(shown[is_random], objective.ordinary_ids).all()


def test_every_position_is_as_likely_as_another(large, tiny_store):
    """Over many keys, a token's chance to be masked does not depend on where it stands in its segment."""
    batch = batch_of(large, tiny_store)
    objective = MaskedLM.create(large, tiny_store.tokenizer)
    select = jax.jit(objective.select)
    L = batch["tokens"].shape[1]
    hits = np.zeros(batch["tokens"].shape)
    for key in jax.random.split(jax.random.key(0), 30):
        at = np.asarray(select(key, batch["tokens"], batch["segments"], batch["positions"]))
        row, slot = np.nonzero(at < L)
        hits[row, at[row, slot]] += 1
    ordinary = ~np.isin(batch["tokens"], tiny_store.tokenizer.special_ids)
    full = ordinary & ((batch["segments"] == 1).sum(axis=1) == L)[:, None]  # one segment fills the row
    rates = [hits[:, column][full[:, column]].mean() for column in range(L) if full[:, column].sum() > 40]
    assert len(rates) > L // 2
    assert np.std(rates) / np.mean(rates) < 0.15


def test_no_row_needs_more_than_the_static_count(tiny_config, tiny_store):
    """The bound M holds for the worst packing: many short segments."""
    for lengths in ([3] * 10, [5] * 6, [10, 10, 12], [4, 28], [32]):
        segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        segments = np.pad(segments, (0, 32 - len(segments)))[None].astype(np.int32)
        config = changed(tiny_config, data={"max_segments": len(lengths)})
        objective = tasks.create_objective(config, tiny_store.tokenizer)
        needed = sum(max(1, round(0.15 * n)) for n in lengths)
        assert needed <= objective.max_positions, lengths


def test_whole_words_are_masked_whole(large, tiny_store):
    config = changed(large, objective={"whole_word": True})
    batch = batch_of(config, tiny_store)
    objective = MaskedLM.create(config, tiny_store.tokenizer)
    # Pretend that odd ids continue a word, so that there are words of several pieces.
    starts = np.arange(tiny_store.tokenizer.vocab_size) % 2 == 0
    starts[tiny_store.tokenizer.special_ids] = True
    objective = dataclasses.replace(objective, starts_word_V=starts)
    arrays = [jnp.asarray(batch[name]) for name in ("tokens", "segments", "positions")]
    at = np.asarray(objective.select(jax.random.key(2), *arrays))
    special = np.isin(batch["tokens"], tiny_store.tokenizer.special_ids)
    masked_tokens = split_words = 0
    for r in range(len(at)):
        chosen = set(at[r][at[r] < at.shape[1] + 32].tolist()) & set(range(batch["tokens"].shape[1]))
        begins = starts[batch["tokens"][r]] | special[r] | np.roll(special[r], 1) | (batch["positions"][r] == 0)
        word = np.cumsum(begins)
        for w in {int(word[i]) for i in chosen}:
            members = {i for i in np.flatnonzero(word == w) if not special[r][i]}
            split_words += members != members & chosen
        masked_tokens += len(chosen)
    assert split_words == 0
    rate = masked_tokens / (batch["segments"] > 0).sum()
    assert 0.09 < rate <= 0.17


def chosen_words(tokens: list[int], rate: float, draws: int) -> np.ndarray:
    """Which tokens of a row are masked in each draw, bool [draws, L]; ids of 4 to 8 begin a word, 9 continues one."""
    length, ids = len(tokens), np.arange(10)
    objective = MaskedLM(
        mask_rate=rate,
        mask_token_rate=0.8,
        random_token_rate=0.1,
        whole_word=True,
        nsp=False,
        max_segments=1,
        max_positions=max_masked(length, 1, rate),
        mask_id=3,
        special_V=ids < 4,
        ordinary_ids=ids[4:],
        starts_word_V=ids != 9,
    )
    tokens_BL = jnp.tile(jnp.array(tokens), (draws, 1))
    positions_BL = jnp.tile(jnp.arange(length), (draws, 1))
    at_BM = np.asarray(objective.select(jax.random.key(0), tokens_BL, jnp.ones_like(tokens_BL), positions_BL))
    return (at_BM[:, :, None] == np.arange(length)).any(axis=1)


def test_a_word_that_does_not_fit_is_skipped_as_in_bert():
    """Of words of two pieces and one of a single piece, a quota of one always takes the latter."""
    masked = chosen_words([1, 4, 9, 5, 9, 6, 9, 7, 2], 0.15, draws=500)
    np.testing.assert_array_equal(masked, np.tile(np.arange(9) == 7, (500, 1)))


def test_a_long_word_does_not_end_the_choice():
    """A word of 30 pieces in a row of 128 never fits into 19; other words fill the quota."""
    masked = chosen_words([1, 4, *[9] * 29, *[5] * 96, 2], 0.15, draws=500)
    np.testing.assert_array_equal(masked.sum(axis=1), 19)


def test_words_are_chosen_as_bert_chooses_them():
    """As often as `create_masked_lm_predictions` of google-research/bert, written here word by word."""
    row = [1, 4, 9, 9, 5, 6, 9, 7, 4, 9, 9, 9, 5, 6, 9, 9, 7, 5, 4, 9, 2]
    starts = [i for i, token in enumerate(row) if 4 <= token <= 8]
    words = [[i for i in range(begin, end) if row[i] > 3] for begin, end in itertools.pairwise([*starts, len(row)])]
    draws, random_ = 4000, random.Random(0)
    expected = np.zeros(len(row))
    for _ in range(draws):
        quota, masked = max(1, round(0.3 * len(row))), []
        for word in random_.sample(words, len(words)):
            if len(masked) + len(word) <= quota:
                masked += word
        expected[masked] += 1 / draws
    found = chosen_words(row, 0.3, draws).mean(axis=0)
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(2 * 0.25 / draws))


def test_losses_are_means_over_predictions_and_pairs(tiny_config, tiny_store):
    """The sums and weights reproduce the papers' formulas, computed here position by position."""
    objective = tasks.create_objective(tiny_config, tiny_store.tokenizer)
    examples = objective.prepare(jax.tree.map(jnp.asarray, batch_of(tiny_config, tiny_store)), jax.random.key(5))
    model = models.build(tiny_config.model)
    encoder = model.merge(model.init(jax.random.key(0)))
    sums, weights = objective.sums(encoder, examples, None), objective.weights(examples)
    metrics = {name: float(value) for name, value in mean_metrics(sums, weights).items()}

    hidden = encoder(examples["tokens"], examples["segments"], examples["positions"], examples["token_types"])
    every = jnp.broadcast_to(jnp.arange(32)[None], examples["tokens"].shape)
    logits = np.asarray(encoder.mlm_logits(hidden, every), np.float64)
    losses = []
    for r, m in zip(*np.nonzero(np.asarray(examples["mlm_weights"])), strict=True):
        scores = logits[r, examples["masked_positions"][r, m]][: tiny_store.tokenizer.vocab_size]  # the rest pads
        losses.append(np.log(np.exp(scores).sum()) - scores[examples["labels"][r, m]])
    assert metrics["mlm_loss"] == pytest.approx(np.mean(losses), abs=1e-5)

    nsp_logits = np.asarray(encoder.nsp_logits(hidden, examples["cls_positions"]), np.float64)
    losses = []
    for r, p in zip(*np.nonzero(np.asarray(examples["nsp_labels"]) >= 0), strict=True):
        probability_random = 1 / (1 + np.exp(nsp_logits[r, p, 0] - nsp_logits[r, p, 1]))
        y = examples["nsp_labels"][r, p]
        losses.append(-(y * np.log(probability_random) + (1 - y) * np.log(1 - probability_random)))
    assert metrics["nsp_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    total = float(total_loss(sums, weights))
    assert total == pytest.approx(metrics["mlm_loss"] + metrics["nsp_loss"], abs=1e-6)
