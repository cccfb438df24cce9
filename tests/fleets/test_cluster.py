"""Members trained as Ray tasks: the same answers, whatever happens to a worker, a node, the shared data or the driver."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
import torch
from torch import nn

import imprint
from imprint.engine.connection import connected
from imprint.errors import EvidenceError, LearnerError, MissingExtra, ResourceError
from imprint.fleets import Finished, Member, Sequential, Shared, execute, share, subsets
from imprint.fleets.batched import Batched
from imprint.fleets.cluster import Cluster, Pace

ray = pytest.importorskip("ray")
# A dead node is known as dead after two seconds, not after half a minute.
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
# Of each node.
ROOM = {"object_store_memory": 100 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 120)
    values = random.normal(size=(120, 3)) + 2 * label[:, None]
    frame = pl.DataFrame({"a": values[:, 0], "b": values[:, 1], "c": values[:, 2], "y": label})
    corpus = imprint.open(frame, target="y", store=tmp_path_factory.mktemp("store"))
    return share(imprint.Learner("mlp", epochs=2, seed=4, batch_size=16), corpus)


@pytest.fixture(scope="module")
def members(shared: Shared) -> list[Member]:
    """In an MLP with dropout: seeds, subsets, weights, other targets, settings."""
    rows = shared.data.rows
    return [
        Member(seed=1),
        Member(seed=2, rows=rows[::2].numpy()),
        Member(weight=torch.linspace(0, 2, len(rows))),
        Member(rows=rows, target=1 - shared.data.target[rows]),
        Member(seed=3, settings={"learning_rate": 0.01, "epochs": 3}),
        Member(seed=5, rows=rows[5:70]),
    ]


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Any]:
    """Nodes on this machine: a head, on which nothing is trained, and two with one CPU each."""
    from ray.cluster_utils import Cluster as Nodes

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short, as the paths of sockets must be
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        head = {"num_cpus": 0, "temp_dir": folder, "_system_config": SOON, **ROOM}
        cluster = Nodes(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1, **ROOM)
        yield cluster
        ray.shutdown()
        cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes(three_nodes: Any) -> Any:
    """The nodes, with a connection that the tests share, so that workers are started once."""
    if not ray.is_initialized():
        ray.init(address=three_nodes.address, log_to_driver=False, logging_level="ERROR")
    return three_nodes


@pytest.fixture
def no_connection() -> None:
    """Nothing that a test of connections could use."""
    ray.shutdown()


def outputs(found: list[Finished]) -> dict[int, torch.Tensor]:
    return {number: said for one in found for number, said in zip(one.numbers, one.outputs, strict=True)}


def agree(found: dict[int, torch.Tensor], wanted: dict[int, torch.Tensor]) -> None:
    assert sorted(found) == sorted(wanted)
    for number, said in wanted.items():
        torch.testing.assert_close(found[number], said, rtol=0, atol=1e-4)


def test_all_executors_say_the_same(shared: Shared, members: list[Member], nodes: Any) -> None:
    queries = torch.arange(0, 120, 3)
    alone = outputs(list(execute(shared, members, queries=queries, executor="sequential")))
    assert len({tuple(said.flatten().tolist()) for said in alone.values()}) == len(members)
    for executor in (
        Batched(),
        Sequential(processes=2),
        Cluster(nodes.address, inner="sequential", chunk=2),
        Cluster(nodes.address, inner="batched"),
        Cluster(nodes.address),
    ):
        agree(outputs(list(execute(shared, members, queries=queries, executor=executor))), alone)
    assert ray.is_initialized()  # a connection that was there stays


def test_parameters_and_some_of_the_numbers(shared: Shared, members: list[Member], nodes: Any) -> None:
    told: list[tuple[str, int, int]] = []
    found = list(
        execute(
            shared,
            members,
            queries=torch.arange(4),
            executor=Cluster(nodes.address, chunk=1),
            numbers=[4, 1],
            parameters=True,
            progress=lambda label, done, total, facts=None: told.append((label, done, total)),
        )
    )
    assert sorted(number for one in found for number in one.numbers) == [1, 4]
    assert told == [("members", 1, 2), ("members", 2, 2)]
    for one in found:
        assert one.parameters is not None
        mine = next(Sequential().run(shared, members, one.numbers, torch.arange(4), parameters=True)).parameters
        assert mine is not None
        for name, value in mine[0].items():
            torch.testing.assert_close(one.parameters[0][name], value, rtol=0, atol=1e-4)


def test_a_node_killed_during_the_job_loses_nothing(
    shared: Shared, nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imprint.fleets import cluster

    go_on, lost = cluster._must_go_on, Counter[int]()
    monkeypatch.setattr(
        cluster, "_must_go_on", lambda tried, chunk, *rest: lost.update(chunk) or go_on(tried, chunk, *rest)
    )

    def net(shape: tuple[int, ...], width: int) -> nn.Module:
        import ray

        training = tmp_path / "training"
        if (tmp_path / ray.get_runtime_context().get_node_id()).exists():
            training.touch()
            time.sleep(600)  # whoever is trained on this node is so when it dies
        while not training.exists():  # nor do the others take all members before it has one
            time.sleep(0.05)
        return nn.Linear(*shape, width)

    own = replace(shared, learner=replace(shared.learner, model=net))
    some = [Member(seed=seed) for seed in range(12)]
    queries = torch.arange(40)
    victim = nodes.add_node(num_cpus=1, **ROOM)
    (tmp_path / victim.node_id).touch()
    found = []
    for one in execute(own, some, queries=queries, executor=Cluster(nodes.address, inner="sequential", chunk=1)):
        if not found:
            nodes.remove_node(victim, allow_graceful=False)
        found.append(one)
    assert lost
    assert sorted(number for one in found for number in one.numbers) == list(range(12))
    agree(outputs(found), outputs(list(execute(own, some, queries=queries, executor="sequential"))))


def test_shared_data_that_are_lost_are_put_again(
    shared: Shared, members: list[Member], nodes: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first task finds that a node died with what it was to read, as Ray would tell it."""
    from imprint.fleets import cluster

    put, train, flag = ray.put, cluster.train_chunk, tmp_path / "lost"
    kept: list[Any] = []

    def losing(*arguments: Any) -> Any:
        if not flag.exists():
            flag.touch()
            raise ray.exceptions.ObjectLostError("00", None, "")
        return train(*arguments)

    monkeypatch.setattr(ray, "put", lambda value: kept.append(put(value)) or kept[-1])
    monkeypatch.setattr(cluster, "train_chunk", losing)
    executor = Cluster(nodes.address, chunk=1)
    found = outputs(list(execute(shared, members, queries=torch.arange(4), executor=executor)))
    once = len(shared.data.splits) + 4  # inputs, target, keys and the job; these examples have no weights
    assert len(kept) == 2 * once
    agree(found, outputs(list(execute(shared, members, queries=torch.arange(4), executor="sequential"))))


def test_errors_of_a_member_are_those_of_this_process(shared: Shared, nodes: Any) -> None:
    bad = Member(weight=-torch.ones(len(shared.data.rows)))
    with pytest.raises(LearnerError, match="weights hold negative values") as caught:
        list(execute(shared, [bad], queries=torch.arange(2), executor=Cluster(nodes.address, inner="sequential")))
    assert caught.value.remedy.startswith("Give weights from 0")


def test_a_member_that_kills_its_worker_is_named(shared: Shared, nodes: Any) -> None:
    """The others, which were in the same task, are trained; the model is a lambda around a class of this function."""

    class Deadly(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.training and inputs.shape[0] == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(inputs)

    own = replace(shared, learner=replace(shared.learner, model=lambda shape, width: Deadly(*shape, width)))
    some = [Member(seed=1), Member(settings={"batch_size": 7}), Member(seed=2)]
    executor = Cluster(nodes.address, inner="sequential", chunk=3, retries=1)
    arrived = []
    with pytest.raises(ResourceError, match=r"Member 1 could not be trained: the worker was lost 2 times"):
        arrived.extend(list(execute(own, some, queries=torch.arange(2), executor=executor)))


@pytest.mark.usefixtures("no_connection")
def test_a_cluster_of_our_own_leaves_nothing(shared: Shared, members: list[Member], tmp_path: Path) -> None:
    """It listens on the loopback interface only, and asks for a token that is not written to the user's home."""
    home = Path.home() / ".ray"
    before, had = dict(os.environ), home.exists()
    folders = set(Path(tempfile.gettempdir()).glob("imprint-ray-*"))
    mine = {one.pid for one in psutil.Process().children(recursive=True)}
    with connected(None, 0, cpus=1):
        processes = [one for one in psutil.Process().children(recursive=True) if one.pid not in mine]
        listening = {
            connection.laddr.ip
            for one in processes
            for connection in one.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        assert len(list(execute(shared, members, queries=torch.arange(2), executor="cluster"))) >= 1
        with pytest.raises(EvidenceError, match=r"not to 127\.0\.0\.1:9"):
            next(execute(shared, members, queries=torch.arange(2), executor=Cluster("127.0.0.1:9")))
    assert not ray.is_initialized()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    assert set(Path(tempfile.gettempdir()).glob("imprint-ray-*")) == folders
    assert home.exists() == had
    changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
    assert {name for name in changed if "AUTH" in name or "OMP" in name} == set()


DRIVER = """
import sys
import imprint
from imprint.fleets import subsets
from imprint.fleets.cluster import Cluster
corpus = imprint.Corpus.load(sys.argv[1])
learner = imprint.Learner("mlp", epochs=40, batch_size=8, seed=1)
imprint.fleet(learner, corpus, subsets(12, 0.5), sys.argv[2], executor=Cluster(inner="sequential", chunk=1), progress=False)
"""


@pytest.mark.usefixtures("no_connection")
def test_a_killed_driver_resumes_with_what_is_missing(shared: Shared, tmp_path: Path) -> None:
    """Its cluster dies with it; the fleet keeps the members that had arrived, and ends as one that was never interrupted."""
    values = np.random.default_rng(1).normal(size=(80, 3))
    frame = pl.DataFrame({"a": values[:, 0], "b": values[:, 1], "y": (values[:, 2] > 0).astype(int)})
    corpus = imprint.open(frame, target="y", store=tmp_path / "store")
    corpus.save(tmp_path / "corpus")
    learner = imprint.Learner("mlp", epochs=40, batch_size=8, seed=1)
    outcomes = tmp_path / "fleet" / "outcomes"
    with subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path / "corpus", tmp_path / "fleet"]) as driver:
        while driver.poll() is None and len(list(outcomes.glob("[0-9]*"))) < 2:
            time.sleep(0.02)
        processes = psutil.Process(driver.pid).children(recursive=True)
        # Ray's agents see at once that their node died, and try for a minute to tell a server that died as well.
        agents = [one for one in processes if "Agent" in " ".join(one.cmdline())]
        driver.kill()
    assert driver.returncode == -signal.SIGKILL
    others = [one for one in processes if one not in agents]
    assert len(others) > 2
    assert not psutil.wait_procs(others, timeout=30)[1]
    for one in agents:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()

    before = {path.name: path.stat().st_mtime_ns for path in outcomes.glob("[0-9]*")}
    assert 2 <= len(before) < 12
    resumed = imprint.fleet(
        learner, corpus, subsets(12, 0.5), tmp_path / "fleet", executor=Cluster(inner="sequential", chunk=1)
    )
    assert resumed.done.all()
    assert [sitting["missing"] for sitting in resumed.manifest["sittings"]] == [12, 12 - len(before)]
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in outcomes.glob("[0-9]*")}.items()
    whole = imprint.fleet(learner, corpus, subsets(12, 0.5), tmp_path / "whole", executor="sequential")
    torch.testing.assert_close(resumed.outcomes("logits"), whole.outcomes("logits"), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("no_connection")
def test_addresses_that_nobody_answers_at(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address, said in (
        ("127.0.0.1:1", "No Ray cluster answers at 127.0.0.1:1"),
        ("elsewhere", "is not the address of a Ray cluster"),
        ("ray://127.0.0.1:10001", "is not the address of a Ray cluster"),
    ):
        with pytest.raises(EvidenceError, match=said):
            next(execute(shared, [Member()], queries=torch.arange(2), executor=Cluster(address)))


def test_without_ray_the_extra_is_named(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'imprint\[ray\]'"):
        next(execute(shared, [Member()], queries=torch.arange(2), executor="cluster"))


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(LearnerError, match="Did you mean 'batched'"):
        Cluster(inner="bached")
    with pytest.raises(LearnerError, match="chunk=0 is less than 1"):
        Cluster(chunk=0)


class Cpus:
    """A Ray of four CPUs."""

    @staticmethod
    def cluster_resources() -> dict[str, float]:
        return {"CPU": 4.0}


def test_a_task_takes_some_seconds(shared: Shared) -> None:
    pace = Pace(Cluster(inner="sequential"), shared, queries=10)
    assert pace.most(Cpus) == 8  # two for each CPU
    assert pace.take(deque(range(1000)), Counter(), Cpus) == [0]  # the first finds out what a member costs
    pace.learn([0.5])
    assert len(pace.take(deque(range(1000)), Counter(), Cpus)) == 4  # 8 would take 4 seconds; growth is by 4 at most
    assert len(pace.take(deque(range(1000)), Counter(), Cpus)) == 8
    assert len(pace.take(deque(range(10)), Counter(), Cpus)) == 3  # at the end every CPU gets a part
    assert pace.take(deque([5, 6, 7]), Counter([5, 6]), Cpus) == [5]  # whose worker was lost goes alone
    waiting = deque([5, 6, 7])
    assert pace.take(waiting, Counter([6]), Cpus) == [5]
    assert waiting == deque([6, 7])
    wide = Pace(Cluster(inner="sequential"), shared, queries=2**22)  # 32 MiB of outputs from each member
    wide.learn([0.01])
    assert len(wide.take(deque(range(1000)), Counter(), Cpus)) == 2
    assert len(Pace(Cluster(chunk=7), shared, 10).take(deque(range(1000)), Counter(), Cpus)) == 7
