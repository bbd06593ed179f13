"""No path that a person without a GPU takes loads a GPU library."""

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("body", ["import lab.catalog; lab.catalog.kernels()", CHECK])
def test_listing_and_checking_load_no_gpu_library(body: str) -> None:
    out = subprocess.run([sys.executable, "-c", PROBE.format(body=body)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
