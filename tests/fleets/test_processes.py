"""Members trained in processes of their own: the same answers, whatever happens to a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
import torch
from torch import nn

import imprint
from imprint.engine.failure import Failure
from imprint.errors import EvidenceError, LearnerError, ResourceError
from imprint.fleets import Finished, Member, Sequential, Shared, execute, share
from imprint.fleets.processes import Mapped
from imprint.fleets.sending import packed

LEARNER = imprint.Learner("mlp", epochs=2, seed=4, batch_size=16)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return share(LEARNER, corpus_in(tmp_path_factory.mktemp("store")))


@pytest.fixture
def one_thread() -> object:
    """Two processes share one thread in one each, so that this process must have one for the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def corpus_in(store: Path) -> imprint.corpus.Corpus:
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 120)
    values = random.normal(size=(120, 3)) + 2 * label[:, None]
    frame = pl.DataFrame({"a": values[:, 0], "b": values[:, 1], "c": values[:, 2], "y": label})
    return imprint.open(frame, target="y", store=store)


def members_of(shared: Shared) -> list[Member]:
    """A seed, a subset, weights, other targets, settings: everything in which members differ."""
    rows = shared.data.rows
    return [
        Member(seed=1),
        Member(seed=2, rows=rows[::2].numpy()),
        Member(weight=torch.linspace(0, 2, 2 * len(rows))[::2]),  # a view: it must not take its base along
        Member(rows=rows, target=1 - shared.data.target[rows]),
        Member(seed=3, settings={"learning_rate": 0.01, "epochs": 3}),
    ]


def outputs(found: list[Finished]) -> dict[int, torch.Tensor]:
    return {number: said for one in found for number, said in zip(one.numbers, one.outputs, strict=True)}


@pytest.mark.usefixtures("one_thread")
def test_the_same_bits_as_in_this_process(shared: Shared) -> None:
    members, queries = members_of(shared), torch.arange(0, 120, 3)
    told: list[tuple[int, int]] = []
    alone = outputs(list(execute(shared, members, queries=queries, executor=Sequential())))
    several = list(
        execute(
            shared,
            members,
            queries=queries,
            executor=Sequential(processes=2),
            numbers=[4, 0, 3, 1],
            parameters=True,
            progress=lambda label, done, total, facts=None: told.append((done, total)),
        )
    )
    assert sorted(outputs(several)) == [0, 1, 3, 4]
    for number, said in outputs(several).items():
        assert torch.equal(said, alone[number])
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    trained = next(one.parameters for one in several if one.numbers == [1])
    assert trained is not None
    mine = next(iter(Sequential().run(shared, members, [1], queries, parameters=True))).parameters
    assert mine is not None
    assert trained[0].keys() == mine[0].keys()
    assert all(torch.equal(trained[0][name], mine[0][name]) for name in mine[0])


def test_a_model_without_a_name_travels(shared: Shared) -> None:
    """A lambda, and a class of this function: what a notebook holds."""

    class Net(nn.Sequential):
        pass

    from dataclasses import replace

    own = replace(shared, learner=replace(shared.learner, model=lambda shape, width: Net(nn.Linear(*shape, width))))
    queries = torch.arange(10)
    several = outputs(list(execute(own, [Member(), Member(1)], queries=queries, executor=Sequential(processes=2))))
    alone = outputs(list(execute(own, [Member(), Member(1)], queries=queries, executor="sequential")))
    for number in alone:
        torch.testing.assert_close(several[number], alone[number], rtol=0, atol=1e-4)


def test_a_model_that_cannot_travel_is_refused_before_anything_starts(shared: Shared) -> None:
    from dataclasses import replace

    held = threading.Lock()

    def net(shape: tuple[int, ...], width: int) -> nn.Module:
        with held:
            return nn.Linear(*shape, width)

    own = replace(shared, learner=replace(shared.learner, model=net))
    with pytest.raises(EvidenceError, match=r"cannot be sent to another process.*processes=1"):
        next(execute(own, [Member()], queries=torch.arange(2), executor=Sequential(processes=2)))


def test_errors_of_a_member_are_those_of_this_process(shared: Shared) -> None:
    from dataclasses import replace

    bad = Member(weight=-torch.ones(len(shared.data.rows)))
    with pytest.raises(LearnerError, match="weights hold negative values") as caught:
        list(execute(shared, [bad, bad], queries=torch.arange(2), executor=Sequential(processes=2)))
    assert caught.value.remedy.startswith("Give weights from 0")

    class Broken(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise ZeroDivisionError("the module of the user")
            return super().forward(inputs)

    own = replace(shared, learner=replace(shared.learner, model=lambda shape, width: Broken(*shape, width)))
    with pytest.raises(RuntimeError, match="ZeroDivisionError: the module of the user") as raised:
        list(execute(own, [Member(), Member()], queries=torch.arange(2), executor=Sequential(processes=2)))
    assert "Traceback" in raised.value.__notes__[0]


def test_an_error_that_needs_two_words_travels() -> None:
    """`MissingExtra` cannot be made from its message, which is how exceptions are pickled."""
    import cloudpickle

    error = imprint.errors.MissingExtra("image", "Reading images")
    same = cloudpickle.loads(cloudpickle.dumps(Failure.of(error))).error()
    assert type(same) is imprint.errors.MissingExtra
    assert str(same) == str(error)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_process_loses_nothing(shared: Shared) -> None:
    members = [Member(seed=seed, settings={"epochs": 30}) for seed in range(6)]
    queries = torch.arange(20)
    running = execute(shared, members, queries=queries, executor=Sequential(processes=2))
    found = [next(running)]
    victim = psutil.Process().children()[0]
    victim.send_signal(signal.SIGKILL)
    found += list(running)
    assert sorted(number for one in found for number in one.numbers) == list(range(6))
    alone = outputs(list(execute(shared, members, queries=queries, executor="sequential")))
    assert all(torch.equal(said, alone[number]) for number, said in outputs(found).items())
    assert victim.pid not in {child.pid for child in psutil.Process().children()}


def test_a_member_that_kills_its_process_is_named(shared: Shared) -> None:
    from dataclasses import replace

    class Deadly(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.training:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(inputs)

    own = replace(shared, learner=replace(shared.learner, model=lambda shape, width: Deadly(*shape, width)))
    with pytest.raises(ResourceError, match=r"Member 0 could not be trained: .* signal 9, 3 times"):
        list(execute(own, [Member()], queries=torch.arange(2), executor=Sequential(processes=2)))
    assert not psutil.Process().children()


def test_who_stops_listening_leaves_no_process(shared: Shared) -> None:
    members = [Member(seed=seed, settings={"epochs": 2000}) for seed in range(1, 3)]
    running = execute(shared, [Member(), *members], queries=torch.arange(2), executor=Sequential(processes=2))
    next(running)
    assert len(psutil.Process().children()) == 2
    running.close()
    assert not psutil.Process().children()


SCRIPT = """
import sys, torch, polars as pl
import imprint
from imprint.fleets import Member, Sequential, execute, share
def net(shape, width):
    return torch.nn.Linear(*shape, width)
frame = pl.DataFrame({"a": [float(i % 7) for i in range(60)], "y": [i % 2 for i in range(60)]})
shared = share(imprint.Learner(net, epochs=1), imprint.open(frame, target="y", store=sys.argv[1]))
members = [Member(seed=0)] + [Member(seed=i, settings={"epochs": 100000}) for i in (1, 2)]
for one in execute(shared, members, queries=torch.arange(3), executor=Sequential(processes=2)):
    print(one.numbers, flush=True)
"""


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Also when it is killed; and a script needs no guard of its own, though its model is defined in it."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, script, tmp_path / "store"], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline().strip() == b"[0]"
        workers = psutil.Process(driver.pid).children()
        assert len(workers) == 2
        driver.kill()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_a_tensor_in_a_file_is_not_written_again(tmp_path: Path) -> None:
    tensor = torch.arange(12).view(3, 4)
    first = Mapped.of(tensor, tmp_path / "first")
    mapped = first.open()
    assert torch.equal(mapped, tensor)
    assert Mapped.of(mapped, tmp_path / "again") == first
    assert torch.equal(Mapped.of(mapped[1:], tmp_path / "part").open(), tensor[1:])
    assert Mapped.of(torch.empty(0, 5), tmp_path / "none").open().shape == (0, 5)


def test_a_member_takes_its_own_part_along_only() -> None:
    weights = torch.ones(1000, 10)
    sent = packed(Member(weight=weights[3], rows=torch.arange(10)))
    assert sent.weight is not None
    assert sent.weight.untyped_storage().nbytes() == 10 * 4


def test_no_process_is_no_number_of_processes() -> None:
    with pytest.raises(LearnerError, match="processes=0"):
        Sequential(processes=0)
