"""Forgetting by switching off: nothing is trained, nothing that met the example is left, and the order of requests does not matter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import imprint
from imprint.corpus import Corpus
from imprint.corpus.hashing import hash_series
from imprint.errors import MethodError
from imprint.fitting import loop
from imprint.fitting.build import build
from imprint.fitting.sequenced import Sequencing, train_sequenced
from imprint.forgetting import automatic, prepare
from imprint.forgetting.s3t import s3t
from imprint.recording import Run

PLAN = "s3t(shards=2, slices=3, orders=3, rank=2)"


@pytest.fixture(scope="session")
def sequenced(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained in 2 shards of 3 slices, in 3 orders."""
    learner = imprint.Learner("mlp", epochs=4, batch_size=16, deletable=PLAN)
    return imprint.fit(learner, corpus, tmp_path_factory.mktemp("s3t") / "base", progress=False)


def parts(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Shard and slice of each training example, by the rule that the record states."""
    known = hash_series(run.ids) & np.uint64(2**62 - 1)
    return (known % 2).astype(int), (known // 2 % 3).astype(int)


def held(run: Run, shard: int, part: int, count: int = 1) -> list[str]:
    """Ids of some training examples of a slice."""
    shards, pieces = parts(run)
    return run.ids.gather(np.flatnonzero((shards == shard) & (pieces == part))[:count]).to_list()


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    one, two = left.state_dict(), right.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def record(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / "shards" / "order.json").read_text())
    return found


def test_nothing_is_trained(sequenced: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(loop, "train", never)
    assert automatic(sequenced) == "s3t"
    child = imprint.forget(sequenced, held(sequenced, 0, 1), path=tmp_path / "child", progress=False)
    done = child.manifest["forgot"]
    assert (done["method"], done["exact"], done["trained"]) == ("s3t", True, 0)
    # Of the rotations 012, 120, 201 the first loses 01, 012, the second all three, the third 201.
    assert done["measured"] == {"stages_off": 6, "stages_in_all": 18, "shards": 2, "capacity": 4}
    assert "serve 2, 3 of 3 slices" in done["notes"][0]


def test_no_parameter_that_is_left_ever_met_the_examples(sequenced: Run, tmp_path: Path) -> None:
    """The proof: from the ids, the stated rule and the recorded orders alone."""
    ids = [*held(sequenced, 0, 1, 2), *held(sequenced, 1, 0)]
    shards, pieces = parts(sequenced)
    forgotten = {(int(shards[n]), int(pieces[n])) for n in np.flatnonzero(sequenced.ids.is_in(ids).to_numpy())}
    assert forgotten == {(0, 1), (1, 0)}
    child = imprint.forget(sequenced, ids, path=tmp_path / "child", progress=False)
    before, after = record(sequenced)["parameters"], record(child)["parameters"]
    assert set(after) == {
        name for name, one in before.items() if not forgotten & {(one["shard"], part) for part in one["updated_with"]}
    }
    stored = {path.name for path in (child.path / "shards").iterdir()} - {"order.json"}
    assert stored == set(after)
    assert all(
        (child.path / "shards" / name).read_bytes() == (sequenced.path / "shards" / name).read_bytes()
        for name in stored
    )
    # What is served is made of these files and of nothing else.
    weights = child.model().module.state_dict()
    for k, files in enumerate(record(child)["served"]):
        assert set(files) <= stored
        for name, base in load_file(child.path / "shards" / files[0]).items():
            value = base.double()
            for one in (load_file(child.path / "shards" / file) for file in files[1:]):
                if name in one:
                    value = value + one[name].double()
                else:
                    value = value + 2**0.5 * one[f"{name}:up"].double() @ one[f"{name}:down"].double()
            torch.testing.assert_close(weights[f"members.{k}.{name}"].double(), value, rtol=1e-5, atol=1e-6)


def test_the_model_does_not_depend_on_what_the_examples_were(sequenced: Run, tmp_path: Path) -> None:
    """Trained with the forgotten examples' inputs replaced by garbage, the served weights are bitwise the same."""
    places = np.flatnonzero(sequenced.ids.is_in([*held(sequenced, 0, 2, 3), *held(sequenced, 1, 1)]).to_numpy())
    job = prepare(sequenced, places)
    spoilt = replace(job.data, inputs=job.data.inputs.index_fill(0, job.forget.rows, 1e3))
    module = build(sequenced.learner, sequenced.encoder, sequenced.task)
    train_sequenced(sequenced.learner, module, sequenced.task, spoilt, folder=tmp_path / "run" / "shards")
    assert not same(module, sequenced.model().module)

    class Other:
        """A run like the first, but for its stages."""

        path, encoder = tmp_path / "run", sequenced.encoder

    found = s3t(replace(job, run=Other()))  # type: ignore[arg-type]
    assert found.trained == 0
    assert same(found.module, s3t(job).module)


def test_any_order_of_requests_gives_the_same_model(sequenced: Run, tmp_path: Path) -> None:
    ids = [*held(sequenced, 0, 0, 2), *held(sequenced, 0, 2), *held(sequenced, 1, 1, 2)]
    once = imprint.forget(sequenced, ids, path=tmp_path / "once", progress=False)
    for name, requests in (("forth", [ids[:2], ids[2:]]), ("back", [ids[4:], ids[1:2], [ids[0], *ids[2:4]]])):
        run = sequenced
        for number, part in enumerate(requests):
            run = imprint.load(imprint.forget(run, part, path=tmp_path / f"{name}{number}", progress=False).path)
        assert same(run.model().module, once.model().module)
        assert record(run) == record(once)
    assert not same(once.model().module, sequenced.model().module)


def test_the_childs_folder_has_nothing_of_what_was_switched_off(sequenced: Run, tmp_path: Path) -> None:
    child = imprint.forget(sequenced, held(sequenced, 0, 1), path=tmp_path / "child", progress=False)
    off = set(record(sequenced)["parameters"]) - set(record(child)["parameters"])
    assert len(off) == 6
    needles = [load_file(sequenced.path / "shards" / name) for name in off]
    needles.append(
        {name: value for name, value in sequenced.model().module.state_dict().items() if "members.0" in name}
    )
    held_bytes = b"".join(path.read_bytes() for path in sorted(child.path.rglob("*")) if path.is_file())
    checked = 0
    for tensors in needles:
        for value in tensors.values():
            row = value.flatten(0, -2) if value.dim() > 1 else value[None]
            needle = row[0].numpy().tobytes()
            if len(needle) >= 16:
                assert needle not in held_bytes
                checked += 1
    assert checked > 30
    served = sequenced.model().module.state_dict()["members.1.1.weight"]  # the other shard is as it was
    assert served.numpy().tobytes() in held_bytes


def test_a_child_answers_every_verb(sequenced: Run, tmp_path: Path) -> None:
    imprint.forget(sequenced, held(sequenced, 1, 2, 3), path=tmp_path / "child", progress=False)
    child = imprint.load(tmp_path / "child")
    assert child.manifest["deletable"] == PLAN
    assert len(imprint.score(child, progress=False).frame()) == 137
    assert imprint.clean(child).methods
    assert imprint.select(child, 0.5, "random", progress=False).frame()["rank"].count() > 0
    queries = child.corpus.ids.gather(child.rows("test")[:2]).to_list()
    assert len(imprint.trace(child, queries, method="gradient-dot", progress=False).frame())
    assert imprint.erase(child).path == child.path


def test_spent_capacity_is_said_and_renewed(sequenced: Run, tmp_path: Path) -> None:
    """Every slice of both shards is hit: refused, and nothing is left behind; renewed, it is a training that never held them."""
    ids = [one for k in range(2) for part in range(3) for one in held(sequenced, k, part)]
    with pytest.raises(MethodError, match="renew=True"):
        imprint.forget(sequenced, ids, path=tmp_path / "child", progress=False)
    assert not (tmp_path / "child").exists()
    half = imprint.forget(sequenced, ids[:3], path=tmp_path / "half", progress=False)
    assert "shard 0" in half.manifest["forgot"]["notes"][1]
    assert half.model().module.present.tolist() == [0.0, 1.0]
    child = imprint.forget(half, ids[3:], path=tmp_path / "child", renew=True, progress=False)
    job = prepare(sequenced, np.flatnonzero(sequenced.ids.is_in(ids).to_numpy()))
    module = build(sequenced.learner, sequenced.encoder, sequenced.task)
    never = train_sequenced(sequenced.learner, module, sequenced.task, job.without)
    assert same(child.model().module, never.module)
    assert child.manifest["forgot"]["measured"]["stages_off"] == 0
    assert child.manifest["forgot"]["measured"]["capacity"] == 5


def test_only_what_is_off_is_trained_again(sequenced: Run, tmp_path: Path) -> None:
    child = imprint.forget(sequenced, held(sequenced, 0, 1), path=tmp_path / "child", renew=True, progress=False)
    assert "6 were trained again" in child.manifest["forgot"]["notes"][0]
    kept = [
        name
        for name, one in record(child)["parameters"].items()
        if (child.path / "shards" / name).read_bytes() == (sequenced.path / "shards" / name).read_bytes()
    ]
    assert len(kept) == 12 + 2  # and the bases


def test_an_interrupted_renewal_goes_on(sequenced: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = held(sequenced, 0, 1)
    whole = imprint.forget(sequenced, ids, path=tmp_path / "whole", renew=True, progress=False)
    calls: list[int] = []
    real = loop.train

    def dying(*rest: Any, **words: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*rest, **words)

    monkeypatch.setattr(loop, "train", dying)
    with pytest.raises(KeyboardInterrupt):
        imprint.forget(sequenced, ids, path=tmp_path / "cut", renew=True, progress=False)
    calls[:] = [1] * 4
    child = imprint.forget(sequenced, ids, path=tmp_path / "cut", renew=True, progress=False)
    assert len(calls) == 4 + 3  # of six stages, three had been trained
    assert same(child.model().module, whole.model().module)


def test_a_damaged_stage_is_as_if_switched_off(sequenced: Run, tmp_path: Path) -> None:
    """A stage whose file was changed is served by nobody: neither when it is cut nor when it is of other examples."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(sequenced.path, copy)
    name = "shard-000-slices-2.safetensors"
    save_file(load_file(copy / "shards" / name), copy / "shards" / name, {"stage": "another"})
    child = imprint.forget(imprint.load(copy), held(sequenced, 0, 1), path=tmp_path / "child", progress=False)
    assert name not in record(child)["parameters"]
    assert [len(files) for files in record(child)["served"]] == [2, 4]  # base and one stage; base and three


def test_another_seed_trains_what_is_clean(sequenced: Run) -> None:
    """A reference by another seed keeps no stages: it is trained as far as nothing is switched off."""
    places = np.flatnonzero(sequenced.ids.is_in(held(sequenced, 0, 0)).to_numpy())
    job = prepare(sequenced, places)
    found = s3t(replace(job, learner=replace(job.learner, seed=5)))
    assert found.trained > 0
    assert found.measured["stages_off"] == 6
    assert not same(found.module, s3t(job).module)


def test_runs_that_were_not_trained_for_it_are_refused(run: Run, sharded: Run, sequenced: Run, tmp_path: Path) -> None:
    for one, method in ((run, "s3t"), (sharded, "s3t"), (sequenced, "sisa")):
        with pytest.raises(MethodError, match="was not trained so") as error:
            imprint.forget(one, one.ids[:1], method=method, path=tmp_path / "child", progress=False)
        assert "deletable=" in error.value.remedy
    assert automatic(sharded) == "sisa"


def test_a_fleet_of_sequences_trains_sequences(sequenced: Run) -> None:
    from imprint.fleets.member import Member
    from imprint.fleets.sequential import train_module
    from imprint.fleets.shared import share

    assert same(train_module(share(sequenced), Member()), sequenced.model().module)
    assert Sequencing.read(PLAN).shards == len(sequenced.model().module.members)  # type: ignore[arg-type]
