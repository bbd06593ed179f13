"""Searches as Ray tasks, a GPU each: where tuning outgrows one GPU."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import ray

from experiments.running.jobs import Search
from experiments.running.tuning import Raced, raced
from lab.record import Record
from sim.errors import EnvironmentFailure, LabError


def on_ray(
    searches: Sequence[Search], address: str, race: Callable[[Search], list[dict[str, Any]]] = raced
) -> Iterator[Raced]:
    """Each search on some GPU of the cluster at an address, as they end; the lab is installed on all its machines.

    A task that dies is not begun again. Raises EnvironmentFailure where there is no such cluster.
    """
    try:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, ValueError) as error:
        raise EnvironmentFailure(f"no Ray cluster answers at {address}: {error}") from error
    task = ray.remote(num_gpus=1, max_retries=0)(race)
    running = {task.remote(search): search for search in searches}
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        search = running.pop(done)
        try:
            yield search, msgspec.convert(ray.get(done), list[Record])
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            yield search, cause if isinstance(cause, LabError) else EnvironmentFailure(f"its task failed: {cause!r}")
        except ray.exceptions.RayError as error:
            yield search, EnvironmentFailure(f"its task died: {type(error).__name__}")
