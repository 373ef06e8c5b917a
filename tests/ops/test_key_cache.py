"""Keys and values from the cache give the same scores as plain ones, at whatever columns the rows are written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops import key_cache
from tests.ops.plain import normals

ROWS, HEADS, WIDTH = 3, 2, 4


def read(stored, queries):
    """Scores and values of stored keys and values, [B, H, N, S] and [B, S, H, K]."""
    key, value_BHSK = stored
    return key_cache.scores(queries, key), value_BHSK.swapaxes(1, 2)


@pytest.mark.parametrize(("keys", "hypotheses", "blocks"), [(24, 1, 1), (128, 4, 2), (24, 4, 1)])
def test_scores_of_stored_keys(keys, hypotheses, blocks):
    block = key_cache.memory_block(keys, hypotheses)
    assert keys // block == blocks
    query, key, value = normals(*[(ROWS, size, HEADS, WIDTH) for size in (hypotheses, keys, keys)])
    scores, values = read(key_cache.store(key, value, block), query)
    np.testing.assert_allclose(scores, key_cache.scores_plain(query, key), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(values, value)


@pytest.mark.parametrize("one_by_one", [True, False])  # a write for each row, or one for all
@pytest.mark.parametrize(("positions", "hypotheses"), [(10, 1), (40, 3)])
def test_every_row_writes_at_its_own_column(positions, hypotheses, one_by_one, monkeypatch):
    monkeypatch.setattr(key_cache, "_MOST_WRITES", ROWS if one_by_one else 0)
    in_block = key_cache.positions_in_block(positions, hypotheses)
    positions = -(-positions // in_block) * in_block
    query, new_key, new_value = normals(*[(ROWS, hypotheses, HEADS, WIDTH)] * 3)
    old = jnp.zeros((ROWS, positions * hypotheses, HEADS, WIDTH))
    columns = hypotheses * jnp.array([0, positions - 1, in_block - 1])

    @jax.jit
    def written(new_key, new_value, columns):
        stored = key_cache.store(old, old, in_block * hypotheses)
        return read(key_cache.write(stored, new_key, new_value, columns), query)

    scores, values = written(new_key, new_value, columns)
    expected_key, expected_value = (key_cache.write_plain(old, new, columns) for new in (new_key, new_value))
    np.testing.assert_allclose(scores, key_cache.scores_plain(query, expected_key), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(values, expected_value)
