"""CUDA graphs: work captured once, launched by one call, updated in place where only its arrays moved."""

from collections.abc import Callable
from typing import Any
from weakref import finalize

from lab.gpu import driver


class CapturedGraph:
    """What `enqueue` does on the stream it is given, as a CUDA graph on one GPU; it may only launch."""

    def __init__(self, enqueue: Callable[[int], None], device: int) -> None:
        self._enqueue, self._device = enqueue, device
        with driver.current(device):
            self._stream = driver.call("cuStreamCreate", int(driver.api().CUstream_flags.CU_STREAM_NON_BLOCKING))
            captured = self._capture()
            self._executable = driver.call("cuGraphInstantiate", captured, 0)
            driver.call("cuGraphDestroy", captured)
        finalize(self, _release, driver.api(), self._executable, self._stream)

    def launch(self, stream: int) -> None:
        """Enqueue all of it; raises EnvironmentFailure where the driver refuses."""
        driver.call_on(self._device, "cuGraphLaunch", self._executable, stream)

    def update(self) -> None:
        """Let later launches be what `enqueue` does now: the same launches with other parameters."""
        with driver.current(self._device):
            captured = self._capture()
            driver.call("cuGraphExecUpdate", self._executable, captured)
            driver.call("cuGraphDestroy", captured)

    def _capture(self) -> Any:
        mode = driver.api().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        driver.call("cuStreamBeginCapture", self._stream, mode)
        try:
            self._enqueue(int(self._stream))
        finally:  # also after an error, or the stream could never be used again
            captured = driver.call("cuStreamEndCapture", self._stream)
        return captured


def _release(cuda: Any, executable: Any, stream: Any) -> None:
    """Give back what the driver holds; a launch that still runs ends first. At exit there may be no driver to ask."""
    cuda.cuGraphExecDestroy(executable)
    cuda.cuStreamDestroy(stream)
