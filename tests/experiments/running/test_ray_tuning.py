"""Searches as Ray tasks on a local cluster of GPUs that there are not: one GPU each, what dies loses itself alone."""

import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

ray = pytest.importorskip("ray", reason="tuning on a cluster needs the extra `ray`")

from experiments.running.jobs import Search  # noqa: E402
from experiments.running.ray_tuning import on_ray  # noqa: E402
from lab.problems import Linear  # noqa: E402
from lab.record import provenance  # noqa: E402
from sim.errors import EnvironmentFailure, KernelError  # noqa: E402

pytestmark = pytest.mark.deep  # a Ray of its own takes half a minute and a gigabyte


def test_no_cluster_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(**_: Any) -> None:
        raise ConnectionError("timed out")

    monkeypatch.setattr(ray, "init", nobody)
    with pytest.raises(EnvironmentFailure, match="no Ray cluster answers at 127"):
        next(iter(on_ray([], "127.0.0.1:9")))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    found = ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield found.address_info["address"]
    finally:
        ray.shutdown()


def test_each_search_has_a_gpu_and_loses_itself_alone(address: str) -> None:
    def race(search: Search) -> list[dict[str, Any]]:  # in here, so that it travels whole
        if search.problem["m"] == 2:
            os._exit(1)
        if search.problem["m"] == 3:
            raise KernelError("it spills")
        metrics = {"gpus": ",".join(map(str, ray.get_gpu_ids()))}
        record = {**provenance(), "on": "gpu", "machine": "h200", "problem": search.problem, "metrics": metrics}
        return [msgspec.to_builtins(record)]

    searches = [Search(problem=Linear(m, 64, 64).as_dict()) for m in (1, 2, 3, 4)]
    found = {search.problem["m"]: result for search, result in on_ray(searches, address, race)}
    assert sorted(found) == [1, 2, 3, 4]
    assert isinstance(found[2], EnvironmentFailure)
    assert isinstance(found[3], KernelError)
    for m in (1, 4):
        (record,) = found[m]
        assert record.problem["m"] == m
        assert record.metrics["gpus"] in ("0", "1")
