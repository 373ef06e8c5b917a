"""Parts of plain attention equal their formulas, values and gradients."""

import pytest

from lm.ops import attention
from tests.ops.plain import assert_same, normals


@pytest.mark.parametrize("queries", [1, 5])
def test_the_bias_of_scores(queries):
    assert_same(attention.add_bias, attention.add_bias_plain, *normals((3, 2, 5, 7), (2, queries, 7)))


@pytest.mark.parametrize("queries", [1, 5])
def test_the_weighted_sum_of_values(queries):
    assert_same(attention.mix, attention.mix_plain, *normals((3, 2, queries, 7), (3, 7, 2, 4)))
