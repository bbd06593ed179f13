"""Chains of layers: what is none is refused before the device is touched."""

import pytest

from lab.gpu.chain import chain_of
from lab.problems import Linear
from sim.errors import InputError


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (Linear(1, 64, 128), "take \\[1, 128\\] in bf16 and give \\[1, 64\\] in bf16"),
        (Linear(1, 64, 64, "fp8", "fp8"), "take \\[1, 64\\] in fp8 and give \\[1, 64\\] in bf16"),
        (Linear(1, 128, 128, epilogue="swiglu"), "take \\[1, 128\\] in bf16 and give \\[1, 64\\] in bf16"),
    ],
)
def test_layers_must_take_what_they_give(layer: Linear, sentence: str) -> None:
    with pytest.raises(InputError, match=f"a chain's layers take what they give; these {sentence}"):
        chain_of(layer, 2)
