"""The serving loop loads neither CuPy nor the driver, whatever of it runs on the simulated chip."""

import subprocess
import sys

PROBE = """
import sys
import lab.serving.engine, lab.serving.times, lab.serving.journal
from pkgutil import iter_modules
from importlib import import_module
for module in iter_modules(lab.serving.__path__):
    if module.name != "ray_replicas":  # needs the extra ray
        import_module(f"lab.serving.{module.name}")
of_a_gpu = ("cupy", "cuda", "torch", "lab.gpu")
print([name for name in sys.modules if name in of_a_gpu or name.startswith("lab.gpu.")])
"""


def test_serving_is_imported_without_a_gpu_library() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
