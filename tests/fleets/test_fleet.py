"""A fleet on disk: what it says, what it survives, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import imprint
from imprint.corpus import Corpus
from imprint.errors import EvidenceError, PlanError, RunError, RunLocked
from imprint.fleets import (
    Finished,
    Fleet,
    Plan,
    Sequential,
    grid,
    leave_out,
    seeds,
    share,
    sizes,
    subsets,
    train_member,
)
from imprint.fleets import fleet as fleets_fleet
from imprint.recording.evidence import derive_field
from imprint.recording.lock import writing
from imprint.recording.needs import FIELDS

LEARNER = imprint.Learner("linear", epochs=2, batch_size=16, seed=3)
PLAN = subsets(6, 0.5)


def frame(kind: str = "classification", rows: int = 100) -> pl.DataFrame:
    random = np.random.default_rng(0)
    label = random.integers(0, 3, rows)
    values = random.normal(size=(rows, 4)) + 2 * label[:, None]
    target: Any = {
        "classification": [f"class {one}" for one in label],
        "regression": values.sum(1) + random.normal(size=rows),
        "multilabel": [list("abc"[:one]) for one in label],
    }[kind]
    split = ["test" if row % 5 == 0 else "train" for row in range(rows)]
    return pl.DataFrame({f"x{column}": values[:, column] for column in range(4)}).with_columns(
        y=pl.Series(target), split=pl.Series(split)
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return imprint.open(frame(), target="y", store=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A complete fleet, never interrupted."""
    return train(corpus, tmp_path_factory.mktemp("whole") / "fleet")


def train(corpus: Corpus, path: Path, plan: Plan | str = PLAN, **options: Any) -> Fleet:
    return imprint.fleet(LEARNER, corpus, plan, path, **{"executor": "sequential", "progress": False, **options})


@dataclass(frozen=True)
class Counting:
    """Trains in groups, tells which, and dies after some."""

    trained: list[int]
    dies_after: int = 10**9
    together: int = 1
    name: str = "counting"

    def why_not(self, shared: Any) -> str | None:
        return None

    def run(
        self, shared: Any, members: Any, numbers: Sequence[int], queries: Any, **options: Any
    ) -> Iterator[Finished]:
        for begin in range(0, len(numbers), self.together):
            if len(self.trained) >= self.dies_after:
                raise KeyboardInterrupt
            group = numbers[begin : begin + self.together]
            each = list(Sequential().run(shared, members, group, queries, **options))
            self.trained.extend(group)
            parameters = [weights for one in each for weights in one.parameters or ()] or None
            # Not in the order of their numbers, as an executor may yield them.
            each = each[::-1]
            yield Finished(
                [one.numbers[0] for one in each],
                torch.cat([one.outputs for one in each]),
                [one.seconds[0] for one in each],
                parameters and parameters[::-1],
            )


def same(first: Fleet, second: Fleet) -> bool:
    return torch.equal(first.outcomes("logits"), second.outcomes("logits"))


# ------------------------------------------------------------------------------------------------------------------- what it says


def test_a_fleet_says_what_its_members_say(whole: Fleet, corpus: Corpus) -> None:
    shared = share(LEARNER, corpus)
    members = PLAN.bind(shared, corpus)
    alone = [train_member(shared, member, outputs_of=corpus.rows()) for member in members]
    logits = torch.stack([one.outputs for one in alone if one.outputs is not None])
    assert torch.equal(whole.outcomes("logits"), logits)
    assert whole.task == shared.task
    assert whole.plan == PLAN
    assert np.array_equal(whole.rows, corpus.rows("train"))
    assert np.array_equal(whole.queries, corpus.rows())
    assert whole.members.equals(members.table)
    assert torch.equal(whole.weights.dense(), members.weights.dense())
    assert whole.done.all()
    for field in FIELDS:
        assert torch.equal(whole.outcomes(field), derive_field(shared.task, field, logits, shared.data.target))
    table = whole.metrics()
    assert table["member"].to_list() == list(range(6))
    assert [
        {name: row[name] for name in one.metrics} for row, one in zip(table.iter_rows(named=True), alone, strict=True)
    ] == [one.metrics for one in alone]
    assert (table["seconds"] > 0).all()
    assert whole.manifest["executor"] == {"name": "sequential", "why": "asked for"}


def test_members_and_rows_are_read_in_the_order_asked_for(whole: Fleet) -> None:
    everything = whole.outcomes("probabilities")
    for members, rows in (([4, 1], [7, 3, 50]), ([5], [9]), ([2, 2, 0], [10, 11, 12]), (range(6), [99, 0])):
        found = whole.outcomes("probabilities", list(members), rows)
        assert torch.equal(found, everything[list(members)][:, rows])
    assert torch.equal(whole.outcomes(rows=np.array([3, 1])), whole.outcomes()[:, [3, 1]])
    with pytest.raises(EvidenceError, match="Row 100 is not among the 100 queries"):
        whole.outcomes(rows=[100])
    with pytest.raises(EvidenceError, match="No member was asked for"):
        whole.outcomes(members=[])
    with pytest.raises(EvidenceError, match="no member 6"):
        whole.outcomes(members=[6])
    with pytest.raises(EvidenceError, match="no field 'logit'"):
        whole.outcomes("logit")


def test_a_stream_is_the_whole_in_parts(whole: Fleet) -> None:
    blocks = list(whole.stream("loss", rows=[5, 2], size=4))
    assert [numbers.tolist() for numbers, _ in blocks] == [[0, 1, 2, 3], [4, 5]]
    assert torch.equal(torch.cat([values for _, values in blocks]), whole.outcomes("loss", rows=[5, 2]))


def test_members_that_were_trained_together_lie_together(whole: Fleet, corpus: Corpus, tmp_path: Path) -> None:
    counting = Counting([], together=4)
    together = train(corpus, tmp_path / "fleet", executor=counting, parameters=True)
    assert [one.name for one in sorted((tmp_path / "fleet/outcomes").iterdir())] == [
        "00000000.safetensors",
        "00000004.safetensors",
    ]
    assert same(together, whole)
    assert torch.equal(together.outcomes("logits", [5, 1, 3, 1]), whole.outcomes("logits", [5, 1, 3, 1]))
    assert together.metrics().drop("seconds").equals(whole.metrics().drop("seconds"))
    shared = share(LEARNER, corpus)
    for number in (0, 5):
        [finished] = Sequential().run(shared, PLAN.bind(shared), [number], shared.test, parameters=True)
        assert finished.parameters is not None
        kept = together.parameters(number)
        assert all(torch.equal(kept[name], value) for name, value in finished.parameters[0].items())
    with pytest.raises(EvidenceError, match="parameters=True"):
        whole.parameters(0)


@pytest.mark.parametrize("kind", ["classification", "regression", "multilabel"])
def test_a_summary_says_the_same_of_what_it_keeps(kind: str, tmp_path: Path) -> None:
    corpus = imprint.open(frame(kind), target="y", store=tmp_path / "store")
    logits = train(corpus, tmp_path / "logits", sizes([20, 80]), keep="logits")
    summary = train(corpus, tmp_path / "summary", sizes([20, 80]), keep="summary", queries="test")
    test = corpus.rows("test")
    for field in ("margin", "loss", "confidence", "correct"):
        assert torch.equal(summary.outcomes(field), logits.outcomes(field, rows=test))
        assert torch.equal(summary.outcomes(field, [1], test[[3, 0]]), logits.outcomes(field, [1], test[[3, 0]]))
    assert summary.metrics().drop("seconds").equals(logits.metrics().drop("seconds"))
    with pytest.raises(EvidenceError, match="keep='logits'"):
        summary.outcomes("probabilities")


def test_queries_are_rows_a_split_or_all(corpus: Corpus, tmp_path: Path, whole: Fleet) -> None:
    rows = [40, 3, 17]
    some = train(corpus, tmp_path / "some", queries=rows)
    assert some.queries.tolist() == rows
    assert torch.equal(some.outcomes(), whole.outcomes(rows=rows))
    assert torch.equal(some.outcomes(rows=[17, 40]), whole.outcomes(rows=[17, 40]))
    assert some.metrics().columns == ["member", "seconds"]  # not all test rows are among them
    for wrong, said in (([100], "Row 100"), ([], "no queries"), ([1, 1], "twice")):
        with pytest.raises(EvidenceError, match=said):
            train(corpus, tmp_path / "wrong", queries=wrong)
    assert not (tmp_path / "wrong/manifest.json").exists()


def test_a_run_or_its_path_is_a_source(corpus: Corpus, tmp_path: Path, whole: Fleet) -> None:
    run = imprint.fit(LEARNER, corpus, tmp_path / "run", progress=False)
    fleet = imprint.fleet(run, plan=PLAN, path=tmp_path / "fleet", executor="sequential", progress=False)
    assert same(fleet, whole)
    again = imprint.fleet(str(run.path), plan=str(PLAN), path=tmp_path / "fleet", executor="sequential", progress=False)
    assert same(again, whole)
    assert isinstance(imprint.Fleet.load(tmp_path / "fleet"), Fleet)


def test_all_settings_and_seeds_reach_their_members(corpus: Corpus, tmp_path: Path) -> None:
    fleet = train(corpus, tmp_path / "fleet", grid(epochs=[1, 3]) * seeds([0, 1]))
    whole_run = imprint.fit(
        imprint.Learner("linear", epochs=3, batch_size=16, seed=1), corpus, tmp_path / "run", progress=False
    )
    assert fleet.members.row(3, named=True) == {"member": 3, "seed": 1, "epochs": 3}
    shared = share(whole_run)
    [expected] = Sequential().run(shared, seeds([1]).bind(shared), [0], shared.test)
    # One cycle of the learning rate over other epochs is another training: members with 3 epochs are those of a run with 3.
    assert torch.equal(fleet.outcomes("logits", [3], corpus.rows("test")), expected.outputs)


# --------------------------------------------------------------------------------------------------------------- what it survives


def test_a_complete_fleet_is_returned_without_any_work(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(corpus, tmp_path / "fleet")
    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "fleet").rglob("*")
        if path.is_file() and path.name != "lock"
    }

    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("encoded again")

    monkeypatch.setattr(sys.modules[fleets_fleet.__module__], "share", never)
    counting = Counting([])
    assert same(train(corpus, tmp_path / "fleet", executor=counting), first)
    assert counting.trained == []
    after = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "fleet").rglob("*")
        if path.is_file() and path.name != "lock"
    }
    assert before == after
    monkeypatch.undo()
    train(corpus, tmp_path / "fleet", executor=counting, resume=False)
    assert counting.trained == list(range(6))


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_interrupted_fleet_goes_on_with_what_is_missing(
    after: int, corpus: Corpus, tmp_path: Path, whole: Fleet
) -> None:
    path = tmp_path / "fleet"
    with pytest.raises(KeyboardInterrupt):
        train(corpus, path, executor=Counting([], dies_after=after))
    half = Fleet.load(path)
    assert half.done.tolist() == [number < after for number in range(6)]
    assert len(half.metrics()) == after
    with pytest.raises(RunError, match=f"{6 - after} of these 6 members are not trained yet"):
        half.outcomes()
    if after:
        assert torch.equal(half.outcomes("logits", [0]), whole.outcomes("logits", [0]))
    counting = Counting([])
    assert same(train(corpus, path, executor=counting), whole)
    assert counting.trained == list(range(after, 6))
    assert [one["missing"] for one in Fleet.load(path).manifest["sittings"]] == [6, 6 - after]


CHILD = """
import sys, imprint
from pathlib import Path
from imprint.corpus import Corpus
corpus = Corpus.load(Path(sys.argv[1]))
learner = imprint.Learner("linear", epochs=2, batch_size=16, seed=3)
imprint.fleet(learner, corpus, "subsets(3000, 0.5)", sys.argv[2], executor="sequential", progress=False, queries="test")
"""


def test_a_killed_driver_loses_nothing_that_was_yielded(corpus: Corpus, tmp_path: Path) -> None:
    """`kill -9` while members are being trained: what is on disk is whole, and the rest comes out the same."""
    saved, path = corpus.save(tmp_path / "corpus"), tmp_path / "fleet"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(saved), str(path)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while len(list((path / "outcomes").glob("0*.safetensors"))) < 5:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    half = Fleet.load(path)
    done = np.flatnonzero(half.done)
    assert 5 <= len(done) < 3000
    shared = share(LEARNER, corpus)
    members = half.plan.bind(shared, corpus)
    queries = torch.from_numpy(half.queries)
    some = [int(done[0]), int(done[-1])]
    for finished in Sequential().run(shared, members, some, queries):
        assert torch.equal(half.outcomes("logits", finished.numbers), finished.outputs)
    # Another sitting begins with the first that is missing.
    counting = Counting([], dies_after=2)
    with pytest.raises(KeyboardInterrupt):
        imprint.fleet(LEARNER, Corpus.load(saved), half.plan, path, executor=counting, progress=False, queries="test")
    assert counting.trained == np.flatnonzero(~half.done)[:2].tolist()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_file_is_set_aside_and_its_members_trained_again(
    damage: str, corpus: Corpus, tmp_path: Path, whole: Fleet
) -> None:
    path = tmp_path / "fleet"
    train(corpus, path, executor=Counting([], together=2))
    victim = path / "outcomes/00000002.safetensors"
    content = victim.read_bytes()
    changed = {
        "truncated": content[:-10],
        "flipped": content[:-10] + bytes([content[-10] ^ 1]) + content[-9:],
        "empty": b"",
        "text": b"not a tensor",
    }[damage]
    victim.write_bytes(changed)
    left = path / "outcomes/.00000004.safetensors.1.tmp"  # by a writer that was killed
    left.touch()
    counting = Counting([])
    with pytest.warns(UserWarning, match=r"damaged.*set aside as damaged-00000002"):
        fleet = train(corpus, path, executor=counting)
    assert counting.trained == [2, 3]
    assert same(fleet, whole)
    assert (path / "outcomes/damaged-00000002.safetensors").read_bytes() == changed
    assert not left.exists()


def test_lost_parameters_are_trained_again(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "fleet"
    train(corpus, path, parameters=True)
    (path / "parameters/00000004.safetensors").unlink()
    counting = Counting([])
    with pytest.warns(UserWarning, match="00000004"):
        fleet = train(corpus, path, parameters=True, executor=counting)
    assert counting.trained == [4]
    assert fleet.parameters(4)


def test_progress_is_told_of_members(corpus: Corpus, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    train(corpus, tmp_path / "fleet", progress=lambda label, done, total, facts=None: told.append((label, done, total)))
    assert [one for one in told if one[0] == "members"] == [("members", done, 6) for done in range(1, 7)]


# ---------------------------------------------------------------------------------------------------------------- what it refuses


def test_another_fleet_is_not_written_over(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "fleet"
    with pytest.raises(KeyboardInterrupt):
        train(corpus, path, executor=Counting([], dies_after=1))
    other = corpus.drop(corpus.ids[:1].to_list())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"plan": subsets(6, 0.4)}, r"the plan is subsets\(6, 0\.5\) there, subsets\(6, 0\.4\) here"),
        ({"learner": imprint.Learner("linear", epochs=3, batch_size=16, seed=3)}, "epochs=2 there, 3 here"),
        ({"corpus": other}, "the corpus is"),
        ({"queries": "test"}, "the queries are 100 rows there, 20"),
        ({"keep": "summary"}, "keep='logits' there"),
        ({"parameters": True}, "parameters were not kept"),
    ]
    for options, said in cases:
        learner, plan = options.pop("learner", LEARNER), options.pop("plan", PLAN)
        with pytest.raises(RunError, match=said) as caught:
            imprint.fleet(
                learner, options.pop("corpus", corpus), plan, path, executor="sequential", progress=False, **options
            )
        assert "resume=False" in caught.value.remedy
    replaced = train(corpus, path, seeds(2), resume=False)
    assert replaced.done.tolist() == [True, True]


def test_a_folder_of_something_else_is_left_alone(corpus: Corpus, tmp_path: Path) -> None:
    run = imprint.fit(LEARNER, corpus, tmp_path / "run", progress=False)
    (tmp_path / "mine/weights").mkdir(parents=True)
    (tmp_path / "file").touch()
    for resume in (True, False):
        with pytest.raises(RunError, match="holds no fleet"):
            train(corpus, run.path, resume=resume)
        with pytest.raises(RunError, match="holds weights, but no fleet"):
            train(corpus, tmp_path / "mine", resume=resume)
    assert imprint.load(run.path).status == "complete"
    assert (tmp_path / "mine/weights").is_dir()
    with pytest.raises(RunError, match="is a file"):
        train(corpus, tmp_path / "file")
    with pytest.raises(RunError, match="There is no fleet"):
        Fleet.load(tmp_path / "nothing")
    with pytest.raises(RunError, match="holds no fleet"):
        Fleet.load(run.path)


def test_members_that_would_be_drawn_otherwise_are_not_mixed(corpus: Corpus, tmp_path: Path) -> None:
    """What another version of a generator draws from the same plan is noticed by the digest of the weights."""
    path = tmp_path / "fleet"
    with pytest.raises(KeyboardInterrupt):
        train(corpus, path, executor=Counting([], dies_after=1))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "weights": "0" * 16}))
    with pytest.raises(RunError, match="drawn otherwise"):
        train(corpus, path)


def test_a_lost_manifest_is_noticed(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path / "fleet")
    (tmp_path / "fleet/manifest.json").unlink()
    with pytest.raises(RunError, match=r"manifest\.json is missing"):
        train(corpus, tmp_path / "fleet")
    assert train(corpus, tmp_path / "fleet", resume=False).done.all()


def test_one_writer_at_a_time(corpus: Corpus, tmp_path: Path) -> None:
    import threading

    found: list[BaseException] = []

    def second() -> None:
        try:
            train(corpus, tmp_path / "fleet")
        except RunLocked as error:
            found.append(error)

    with writing(tmp_path / "fleet"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(found) == 1


def test_what_is_missing_from_a_call_is_said(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="nothing to train on"):
        imprint.fleet(LEARNER, plan=PLAN, path=tmp_path / "fleet")
    with pytest.raises(PlanError, match="needs a plan and a path"):
        imprint.fleet(LEARNER, corpus)
    with pytest.raises(EvidenceError, match="keep='all'"):
        train(corpus, tmp_path / "fleet", keep="all")
    with pytest.raises(PlanError):
        train(corpus, tmp_path / "fleet", leave_out("group"))
    assert not (tmp_path / "fleet/manifest.json").exists()
    run = imprint.fit(LEARNER, corpus, tmp_path / "run", progress=False)
    with pytest.raises(RunError, match="was trained on the corpus"):
        imprint.fleet(run, corpus.drop(corpus.ids[:1].to_list()), PLAN, tmp_path / "fleet")
