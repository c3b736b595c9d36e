"""Of which models a training pass can be checked as it goes by."""

import pytest
from torch import nn

from learners.reference_check import leaves_to_chance


def attention(dropout: float) -> nn.Module:
    module = nn.Module()
    module.attention_dropout = dropout
    module.scaling = 0.5
    return module


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(2, 2), False),
        (nn.Dropout(0.0), False),
        (nn.Dropout(0.1), True),
        (attention(0.0), False),
        (attention(0.1), True),
        (nn.Sequential(nn.LayerNorm(2), nn.Sequential(nn.Dropout(0.1))), True),
    ],
)
def test_dropout_is_found_wherever_it_is(module, expected):
    assert leaves_to_chance(module.modules()) is expected
