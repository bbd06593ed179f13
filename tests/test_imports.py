"""No path that a person without a GPU takes loads a GPU library."""

import subprocess
import sys
from types import ModuleType

import pytest

import lab
from lab import weights

PROBE = """
import sys
{body}
loaded = sorted(name for name in ("cupy", "cuda", "torch") if name in sys.modules)
print(",".join(loaded))
"""

CHECK = """
from lab import catalog
from lab.problems import Linear
from lab.verify import simulator, verify
from sim.machine import H100
kernel = catalog.get("gemv_vectorized")
problem = Linear(1, 16, 64)
assert verify(kernel, problem, kernel.best_guess(problem, H100), H100, simulator(kernel, H100)).passed
"""


SIMULATED = """
import numpy as np
import lab, lab.inference
from lab.execute import capture, plan
from lab.problems import Linear
from sim.machine import H100
x, w, y = (np.zeros(shape, np.uint16) for shape in ((1, 64), (16, 64), (1, 16)))
assert lab.linear(x, w).shape == (1, 16)
capture(plan(Linear(1, 16, 64), H100).bind({"x": x, "w": w, "y": y}, device=None)).replay()
"""


@pytest.mark.parametrize("body", ["import lab.catalog; lab.catalog.kernels()", CHECK, SIMULATED])
def test_listing_checking_and_simulating_load_no_gpu_library(body: str) -> None:
    out = subprocess.run([sys.executable, "-c", PROBE.format(body=body)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_operators_are_registered_where_pytorch_is_loaded_after_a_door(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str) -> ModuleType:
        asked.append(name)
        return weights if name == "lab.weights" else ModuleType(name)

    monkeypatch.setattr(lab, "import_module", load)
    monkeypatch.delitem(vars(lab), "pack", raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert lab.pack is weights.pack
    assert asked == ["lab.weights"]
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    assert lab.pack is lab.pack is weights.pack
    assert asked == ["lab.weights", "lab.weights", "lab.ops.torch_ops"]
