"""Fleets as evidence of a run: trained once, kept apart by what they are, and read as the definitions say."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import imprint
from imprint.errors import EvidenceError
from imprint.fleets import Member, evidence, permutations, share, train_member
from imprint.recording import Run
from imprint.recording.held_out import held_out
from imprint.recording.needs import BagCounts, Bags, Membership, Need, Permutations, Subsets, Target, Utility

FLEET = importlib.import_module("imprint.fleets.fleet")  # the module; the name in the package is the function
MEMBERS = 6
FAR = 4.5  # standard errors: one comparison in 150,000 is farther off by chance


def table(rows: int = 90, seed: int = 0) -> pl.DataFrame:
    """Two clouds; a sixth of the rows is for validation and a sixth for testing."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, rows)
    values = random.normal(size=(rows, 2)) + 1.5 * label[:, None]
    split = np.where(np.arange(rows) % 6 == 0, "test", np.where(np.arange(rows) % 6 == 1, "valid", "train"))
    return pl.DataFrame({"a": values[:, 0], "b": values[:, 1], "y": np.array(["no", "yes"])[label], "split": split})


def fitted(frame: pl.DataFrame, folder: Path, model: Any = "mlp", **settings: Any) -> Run:
    corpus = imprint.open(frame, target="y", split="split", store=folder / "store")
    return imprint.fit(imprint.Learner(model, **settings), corpus, folder / "run", progress=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fitted(table(), tmp_path_factory.mktemp("run"), epochs=2, seed=4)


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fleets of a few tiny members: to measure which executor is the fastest would take longer than all of them."""
    monkeypatch.setattr(evidence, "executor_on", lambda engine: "sequential")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any further training is an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was trained")

    monkeypatch.setattr(FLEET, "share", refuse)
    monkeypatch.setattr(permutations, "share", refuse)


def fleets(run: Run) -> set[str]:
    return {path.name for path in (run.path / "fleets").iterdir()} if (run.path / "fleets").exists() else set()


def test_what_members_say_is_what_their_models_say(run: Run) -> None:
    """Each member trained again by hand: on its examples, from its seed."""
    needs: list[Need] = [
        Subsets("logits", members=MEMBERS), Membership(members=MEMBERS), Utility(members=MEMBERS), Target()
    ]  # fmt: skip
    found = run.gather(needs)
    members = imprint.fleets.Fleet.load(run.path / "fleets" / f"subsets-{MEMBERS}-0.5").members
    shared, rows, judged = share(run), run.rows(), run.rows("valid")
    assert found["membership"].shape == (MEMBERS, len(rows))
    for number in range(MEMBERS):
        member = Member(members["seed"][number], rows[found["membership"][number].numpy()])
        said = train_member(shared, member, outputs_of=np.concatenate([rows, judged])).outputs
        assert said is not None
        torch.testing.assert_close(found["logits"][number], said[: len(rows)], atol=1e-4, rtol=1e-4)
        accuracy = (said[len(rows) :].argmax(1) == run.target("valid")).double().mean()
        assert float(found["utility"][number]) == float(accuracy)


def test_blocks_are_parts_of_the_whole(run: Run) -> None:
    needs: list[Need] = [
        Subsets("confidence", members=MEMBERS), Membership(members=MEMBERS), Bags("credit", members=MEMBERS),
        BagCounts(members=MEMBERS), Utility(members=MEMBERS),
    ]  # fmt: skip
    whole, part = run.gather(needs), run.gather(needs, slice(10, 25))
    for name in ("confidence", "membership", "credit", "counts"):
        assert torch.equal(part[name], whole[name][:, 10:25])
    assert torch.equal(part["utility"], whole["utility"])
    test = run.gather([Subsets("margin", members=MEMBERS, split="test")])["margin"]
    assert test.shape == (MEMBERS, len(run.rows("test")))


def test_one_fleet_serves_every_method_that_asks_it(run: Run, request: pytest.FixtureRequest) -> None:
    first = imprint.score(run, "memorisation", members=MEMBERS, progress=False)
    assert first.cost["trainings"] == MEMBERS
    before = fleets(run)
    request.getfixturevalue("untrained")
    scores = imprint.score(run, ["memorisation", "banzhaf"], members=MEMBERS, progress=False)
    assert scores.cost["trainings"] == MEMBERS
    assert scores.notes[0].startswith(f"subsets-{MEMBERS}-0.5: {MEMBERS} models")
    assert fleets(run) == before
    assert scores.frame()["memorisation"].equals(first.frame()["memorisation"])
    again = imprint.score(imprint.load(run.path, run.corpus), "memorisation", members=MEMBERS, progress=False)
    assert again.frame().equals(first.frame())


def test_fleets_are_kept_apart_by_what_they_are(run: Run) -> None:
    needs = [Membership(members=3), Membership(members=4), Membership(members=3, fraction=0.8), BagCounts(members=3)]
    assert [need.store for need in run.missing(needs)] == ["subsets-3-0.5", "subsets-4-0.5", "subsets-3-0.8", "bags-3"]
    run.collect(needs)
    assert {"subsets-3-0.5", "subsets-4-0.5", "subsets-3-0.8", "bags-3"} <= fleets(run)
    assert not run.missing(needs)
    found = [run.gather([need])[need.name] for need in needs]
    assert [len(one) for one in found] == [3, 4, 3, 3]
    assert 0.6 < float(found[2].double().mean()) < 1


def test_members_that_are_missing_are_trained_when_they_are_asked_for(run: Run) -> None:
    need = Subsets("margin", members=5)
    whole = run.gather([need])["margin"]
    lost = sorted((run.path / "fleets" / "subsets-5-0.5" / "outcomes").iterdir())[2]
    others = {path: path.stat().st_mtime_ns for path in lost.parent.iterdir() if path != lost}
    lost.unlink()
    assert not run.has(need)
    assert torch.equal(run.gather([need])["margin"], whole)
    assert run.has(need)
    assert {path: path.stat().st_mtime_ns for path in others} == others  # the rest was left alone


def test_examples_are_in_a_subset_by_coins_of_their_own(tmp_path: Path) -> None:
    run = fitted(table(900), tmp_path, "linear", epochs=1)
    membership = run.gather([Membership(members=40)])["membership"].double()
    count = membership.shape[1]
    assert count == 600
    assert abs(float(membership.mean()) - 0.5) < FAR * 0.5 / (40 * count) ** 0.5
    # The size of a subset varies as the number of heads does: variance n / 4, itself known to a factor 1 -+ sqrt(2 / 39).
    spread = float(membership.sum(1).var()) / (count / 4)
    assert abs(spread - 1) < FAR * (2 / 39) ** 0.5
    assert spread > 0.2


def test_bags_are_drawn_with_replacement(run: Run) -> None:
    found = run.gather([BagCounts(members=MEMBERS), Bags("credit", members=MEMBERS), Bags("correct", members=MEMBERS)])
    counts = found["counts"]
    assert counts.dtype == torch.int64
    assert (counts.sum(1) == len(run)).all()
    assert counts.max() > 1
    assert torch.equal(found["credit"], found["correct"].double())


def test_a_summary_gives_the_same_values(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many rows only margin and loss are kept; every method reads the same from them."""
    methods = ["memorisation", "banzhaf", "data-oob"]
    whole = imprint.score(run, methods, members=MEMBERS, progress=False).frame()
    monkeypatch.setattr(FLEET, "LOGITS_BYTES", 0)
    again = fitted(table(), tmp_path, epochs=2, seed=4)
    short = imprint.score(again, methods, members=MEMBERS, progress=False).frame()
    for name in methods:
        np.testing.assert_allclose(short[name], whole[name], atol=1e-5)


def test_memorisation_of_a_trained_nearest_neighbour(tmp_path: Path) -> None:
    """1 less the chance that the nearest other example in the subset has the same label."""
    count, members = 24, 400
    random = np.random.default_rng(1)
    places = np.sort(random.uniform(0, 10, count))
    labels = (places > 5).astype(int)
    labels[[4, 17]] = 1 - labels[[4, 17]]
    frame = pl.DataFrame({"x": places, "y": labels, "split": ["train"] * count})
    held = pl.DataFrame({"x": np.linspace(0, 10, 20), "y": np.arange(20) // 10, "split": ["test"] * 20})
    run = fitted(pl.concat([frame, held]), tmp_path, KNeighborsClassifier(1))
    scores = imprint.score(run, ["memorisation", "banzhaf"], members=members, progress=False).frame()
    encoded = share(run).data.inputs[: len(run), 0].double().numpy()
    distance = np.abs(encoded[:, None] - encoded)
    same = (labels == labels[:, None])[np.arange(count)[:, None], distance.argsort(1)[:, 1:]]
    out = (same * 0.5 ** np.arange(1, count)).sum(1)
    error = np.sqrt(out * (1 - out) / (0.4 * members))
    assert (np.abs(scores["memorisation"].to_numpy() - (1 - out)) <= FAR * error + 2 / members).all()
    worst = scores["memorisation"].arg_sort(descending=True)[:2]
    assert set(worst.to_list()) == {4, 17}
    assert (scores["banzhaf"].to_numpy()[[4, 17]] < scores["banzhaf"].median()).all()  # wrong labels are worth less


def test_the_metric_is_that_of_the_validation_split_if_there_is_one(run: Run, tmp_path: Path) -> None:
    assert held_out(run)[0] == "valid"
    frame = table().filter(pl.col("split") != "valid")
    assert held_out(fitted(frame, tmp_path / "without", "linear", epochs=1))[0] == "test"
    alone = frame.filter(pl.col("split") == "train")
    untested = fitted(alone, tmp_path / "alone", "linear", epochs=1)
    for method in ("banzhaf", "shapley"):
        with pytest.raises(EvidenceError, match=r"has no held-out examples[\s\S]*data-oob"):
            imprint.score(untested, method, members=4, progress=False)
    assert not fleets(untested)  # nothing was trained for it
    imprint.score(untested, ["memorisation", "data-oob"], members=4, progress=False)


def test_quantities_and_labels_have_values_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(120, 2))
    quantity = table(120).with_columns(a=values[:, 0], b=values[:, 1], y=values @ [1.0, 2.0] + 5)
    run = fitted(quantity, tmp_path / "quantity", "linear", epochs=10)
    scores = imprint.score(run, ["banzhaf", "data-oob"], members=MEMBERS, progress=False).frame()
    found = run.gather([Bags("logits", members=MEMBERS), Bags("credit", members=MEMBERS), Target()])
    squared = (found["logits"].squeeze(2) - found["target"]).double().square()
    torch.testing.assert_close(found["credit"].double(), 1 - squared, atol=1e-5, rtol=1e-5)
    utility = run.gather([Utility(members=MEMBERS)])["utility"]
    said = run.gather([Subsets("logits", members=MEMBERS, split="valid"), Target(split="valid")])
    torch.testing.assert_close(
        utility, torch.tensor([run.task.metrics(one, said["target"])["r2"] for one in said["logits"]]).double()
    )
    assert scores["banzhaf"].is_finite().all()
    assert scores["data-oob"].is_finite().all()

    several = table(120).with_columns(
        y=pl.Series([[name for name, value in zip("pq", row, strict=True) if value > 0] for row in values])
    )
    run = fitted(several, tmp_path / "labels", "linear", epochs=5)
    scores = imprint.score(run, ["memorisation", "banzhaf", "data-oob"], members=MEMBERS, progress=False).frame()
    assert scores["memorisation"].abs().max() <= 1
    assert scores["data-oob"].is_between(0, 1).all()


def test_a_run_begun_anew_keeps_no_fleet(tmp_path: Path) -> None:
    run = fitted(table(), tmp_path, "linear", epochs=1)
    run.collect([Membership(members=3)])
    assert fleets(run)
    assert fleets(imprint.fit(run.learner, run.corpus, run.path, progress=False)) == fleets(run)
    assert not fleets(imprint.fit(run.learner, run.corpus, run.path, resume=False, progress=False))


# ------------------------------------------------------------------------------------------------------------------------- Shapley


@pytest.fixture
def small(tmp_path: Path) -> Run:
    """Six training examples and a classifier of their neighbours."""
    frame = table(60)
    few = frame.with_row_index().filter((pl.col("split") != "train") | (pl.col("index") < 10)).drop("index")
    return fitted(few, tmp_path, LogisticRegression())


def test_shapley_is_the_mean_of_what_examples_add(small: Run) -> None:
    """The metric of every set by hand, and what each example adds along the same orders."""
    assert len(small) == 6
    scores = imprint.score(small, "shapley", members=20, progress=False)
    shared, rows, judged = share(small), small.rows(), small.rows("valid")
    target, known = small.target("valid"), {}

    def metric(examples: frozenset[int]) -> float:
        if examples not in known:
            labels = small.target()[sorted(examples)]
            if not examples:
                known[examples] = int(target.bincount().max()) / len(target)
            elif len(labels.unique()) == 1:
                known[examples] = float((target == labels[0]).double().mean())
            else:
                said = train_member(shared, Member(rows=rows[sorted(examples)]), outputs_of=judged).outputs
                known[examples] = float((said.argmax(1) == target).double().mean())
        return known[examples]

    expected = np.zeros(6)
    orders = permutations.draw(6, 20, small.learner.seed)
    for order in orders.tolist():
        for place, example in enumerate(order):
            expected[example] += metric(frozenset(order[: place + 1])) - metric(frozenset(order[:place]))
    np.testing.assert_allclose(scores.frame()["shapley"], expected / 20, atol=1e-12)
    everything = metric(frozenset(range(6))) - metric(frozenset())
    assert scores.frame()["shapley"].sum() == pytest.approx(everything)
    assert 6 < scores.cost["trainings"] <= 2**6
    assert "standard error" in scores.notes[0]


def test_a_killed_walk_goes_on(small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = imprint.score(small, "shapley", members=8, progress=False)
    again = imprint.fit(small.learner, small.corpus, tmp_path / "again", progress=False)
    train, calls = permutations.Trained.__call__, []

    def stops(self: Any, sets: np.ndarray) -> np.ndarray:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(sets.shape[1])
        return train(self, sets)

    monkeypatch.setattr(permutations.Trained, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        imprint.score(again, "shapley", members=8, progress=False)
    assert calls == [6, 1, 2, 3]  # all examples first
    assert not again.has(Permutations(members=8))

    def goes_on(self: Any, sets: np.ndarray) -> np.ndarray:
        calls.append(sets.shape[1])
        return train(self, sets)

    monkeypatch.setattr(permutations.Trained, "__call__", goes_on)
    scores = imprint.score(again, "shapley", members=8, progress=False)
    assert calls == [6, 1, 2, 3, 4, 5]
    assert scores.frame()["shapley"].equals(whole.frame()["shapley"])
    assert scores.cost["trainings"] == whole.cost["trainings"]


def test_a_large_set_is_refused_before_it_is_paid_for(tmp_path: Path) -> None:
    run = fitted(table(1600), tmp_path, "linear", epochs=1)
    with pytest.raises(EvidenceError, match=r"1066 examples along 32 random orders take up to 34,112[\s\S]*banzhaf"):
        imprint.score(run, "shapley", progress=False)
    assert not fleets(run)
