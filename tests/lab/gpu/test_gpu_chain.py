"""Chains of layers: what is none is refused before the device is touched."""

import pytest

from lab.gpu.chain import chain_of
from lab.problems import Linear
from sim.errors import InputError


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (Linear(1, 64, 128), "have 128 inputs in bf16 and 64 outputs in bf16"),
        (Linear(1, 64, 64, "fp8", "fp8"), "have 64 inputs in fp8 and 64 outputs in bf16"),
        (Linear(1, 128, 128, epilogue="swiglu"), "have 128 inputs in bf16 and 64 outputs in bf16"),
    ],
)
def test_layers_must_take_what_they_give(layer: Linear, sentence: str) -> None:
    with pytest.raises(InputError, match=f"a chain's layers take what they give; these {sentence}"):
        chain_of(layer, 2)
