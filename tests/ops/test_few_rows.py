"""Products of a few rows with blocked kernels equal plain products."""

import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops.few_rows import by_columns, by_columns_plain, in_columns
from tests.ops.plain import normals


@pytest.mark.parametrize("outputs", [64, 192, 100])  # the last does not divide into blocks
@pytest.mark.parametrize("leading", [(3,), (2, 2)])
def test_products_of_a_few_rows(outputs, leading):
    array, kernel = normals((*leading, 48), (48, outputs))
    blocks = in_columns(kernel)
    assert blocks.ndim == (2 if outputs % 64 else 3)
    np.testing.assert_allclose(by_columns(array, blocks, jnp.float32), by_columns_plain(array, kernel), rtol=2e-5)
