"""Linear maps equal their formulas, values and gradients."""

import pytest

from lm.ops.linear import Linear, add_bias, add_bias_plain, linear, linear_plain
from tests.ops.plain import assert_same, normals


@pytest.mark.parametrize("leading", [(7,), (2, 5)])
@pytest.mark.parametrize("inputs", [(6,), (3, 4)])
@pytest.mark.parametrize("outputs", [(8,), (2, 5)])
def test_products(leading, inputs, outputs):
    how = Linear(inputs=len(inputs), scale=0.5)
    assert_same(
        lambda array, kernel: linear(how, array, kernel),
        lambda array, kernel: linear_plain(array, kernel, len(inputs), 0.5),
        *normals((*leading, *inputs), (*inputs, *outputs)),
    )


@pytest.mark.parametrize("outputs", [(8,), (2, 5)])
def test_biases(outputs):
    assert_same(add_bias, add_bias_plain, *normals((2, 5, *outputs), outputs))
