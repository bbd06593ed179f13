"""mma.sp against NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.emulator.ptx import EmulatorError
from tests.emulator.sparse import FORMS, Drawn, Form, draw, emulate


@pytest.mark.parametrize("form", FORMS, ids=str)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_each_nonzero_multiplies_the_row_of_its_place(form: Form, seed: int, data: st.DataObject) -> None:
    selector = data.draw(st.integers(0, form.selectors - 1))
    ordered = data.draw(st.booleans())
    drawn = draw(form, seed, ordered)
    check = emulate(form, drawn.registers(selector), selector, drawn.expected, ordered)
    assert check.passed, check


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_wrong_place_is_a_wrong_result(form: Form) -> None:
    drawn = draw(form, 0)
    moved = Drawn(form, drawn.packed, np.roll(drawn.where, 1, axis=0), drawn.b)  # each row has that of the one before
    check = emulate(form, moved.registers(0), 0, drawn.expected)
    assert check.differences["d"].mismatches > 0
    assert not check.hazards


@pytest.mark.parametrize("form", [f for f in FORMS if f.selectors > 1], ids=str)
def test_metadata_of_lanes_that_are_not_selected_is_not_read(form: Form) -> None:
    registers = draw(form, 0).registers(0)  # lanes of other selectors hold ones, which mean nothing
    (found,) = emulate(form, registers, 1).hazards
    assert found.kind == "uninitialised output"


def test_places_in_falling_order_mean_nothing_where_they_are_promised_to_rise() -> None:
    form = FORMS[0]
    drawn = draw(form, 0)
    falling = Drawn(form, drawn.packed, drawn.where[:, :, ::-1], drawn.b)
    assert emulate(form, falling.registers(0), 0, falling.expected, ordered=False).passed
    assert [h.kind for h in emulate(form, falling.registers(0), 0).hazards] == ["uninitialised output"]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_selector_of_lanes_that_are_not_there_is_refused(form: Form) -> None:
    with pytest.raises(EmulatorError, match=f"sparsity selector that is no number below {form.selectors}"):
        emulate(form, draw(form, 0).registers(0), form.selectors)
