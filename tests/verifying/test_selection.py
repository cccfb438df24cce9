"""Comparing selections: a useless half is found, regimes are as long as they say, and nothing is chosen or trained twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import imprint
from imprint import methods
from imprint.answers import Comparison, load_answer
from imprint.errors import MethodError
from imprint.fitting.samplers import Repeated
from imprint.fleets import Member, share
from imprint.recording import Run
from imprint.recording.needs import HELD_OUT, Dynamics, Features, Subsets, Target
from imprint.selecting import Picks
from imprint.selecting.evidence import TARGET, Budget, Random
from imprint.verifying import choices, kept
from imprint.verifying.choices import Choice, Chooser, everything, of_selection, recorded_share
from imprint.verifying.following import Following, due
from imprint.verifying.judging import judged
from imprint.verifying.kept import Kept
from imprint.verifying.measures import BINS, calibration_error, groups_of, worst_group
from imprint.verifying.selection import Clock, compare

TRAIN, TEST, BATCH, EPOCHS = 320, 120, 32, 4


def corpus(store: Path, **columns: Any) -> imprint.Corpus:
    """Two clouds. Of every other training example the label is wrong in four of five cases, and its id says so: `useless-...`."""
    random = np.random.default_rng(0)
    total = TRAIN + TEST
    label = random.integers(0, 2, total)
    values = random.standard_normal((total, 4)) + 1.6 * label[:, None]
    useless = (np.arange(total) % 2 == 1) & (np.arange(total) < TRAIN)
    given_label = np.where(useless & (random.random(total) < 0.8), 1 - label, label)
    frame = pl.DataFrame({f"x{column}": values[:, column] for column in range(4)}).with_columns(
        id=pl.Series([f"{'useless' if bad else 'sound'}-{number:03d}" for number, bad in enumerate(useless)]),
        label=pl.Series([f"class {value}" for value in given_label]),
        split=pl.Series(["train"] * TRAIN + ["test"] * TEST),
        **columns,
    )
    roles = {"group": "person"} if "person" in columns else {}
    roles |= {"weight": "importance"} if "importance" in columns else {}
    return imprint.open(frame, target="label", id="id", split="split", store=store, **roles)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("selection")
    learner = imprint.Learner("linear", epochs=EPOCHS, batch_size=BATCH, learning_rate=0.05)
    return imprint.fit(learner, corpus(folder / "store"), folder / "run", progress=False)


@pytest.fixture(scope="module", autouse=True)
def oracle(run: Run) -> Iterator[None]:
    """Methods that know which examples are useless, and one that aims at a target."""
    sound = torch.from_numpy(run.ids.str.starts_with("sound").to_numpy().copy())
    places = torch.arange(len(sound))

    def first(value: torch.Tensor, budget: int) -> Picks:
        return Picks(value.argsort(descending=True, stable=True)[:budget])

    @methods.method("select", "oracle", higher="sound", needs=[Budget()], source="knows")
    def oracle(budget: int) -> Picks:
        return first(sound.float(), budget)

    @methods.method("select", "reversed", higher="useless", needs=[Budget()], source="knows")
    def reversed(budget: int) -> Picks:
        return first(1 - sound.float(), budget)

    @methods.method(
        "select", "weighted", higher="earlier", needs=[Budget(), Dynamics("loss", epochs=1)], source="two weights"
    )
    def weighted(budget: int, loss: torch.Tensor) -> Picks:
        weights = torch.where(places[:budget] % 2 == 0, 1.5, 0.5)
        return Picks(places[:budget], weights / weights.mean())

    @methods.method(
        "select",
        "aiming",
        higher="earlier",
        needs=[Budget(), Random(), Target(split=TARGET)],
        source="looks at a target",
    )
    def aiming(budget: int, generator: torch.Generator, target: torch.Tensor) -> Picks:
        return Picks(torch.randperm(len(places), generator=generator)[:budget], note=f"{len(target)} targets")

    yield
    for name in ("oracle", "reversed", "weighted", "aiming"):
        del methods._METHODS["select", name]


@pytest.fixture(scope="module")
def comparison(run: Run) -> Comparison:
    return compare(run, ["oracle", "reversed", "rs2"], [0.5, 0.1], seeds=5, progress=False)


def of(comparison: Comparison, method: str, budget: float, regime: str) -> dict[str, Any]:
    found = comparison.summary_frame().filter(method=method, budget=budget, regime=regime)
    return found.row(0, named=True)


def test_dropping_a_useless_half_leads_random_and_keeping_it_trails(comparison: Comparison) -> None:
    for regime in ("epochs", "steps"):
        right, wrong = of(comparison, "oracle", 0.5, regime), of(comparison, "reversed", 0.5, regime)
        assert right["over_random_low"] > 0
        assert wrong["over_random_high"] < 0
        assert right["over_random"] == pytest.approx(
            right["accuracy"] - of(comparison, "random", 0.5, regime)["accuracy"]
        )
        assert right["over_full"] == pytest.approx(right["accuracy"] - of(comparison, "full", 1.0, regime)["accuracy"])
    assert comparison.clear("steps", 0.5)[0][0] == "oracle"
    assert "reversed" in comparison.clear("steps", 0.5)[1]
    assert "oracle" in comparison.summary()
    rows = comparison.frame().filter(method="oracle", regime="steps", budget=0.5)
    assert rows["beyond_random"].mean() == pytest.approx(of(comparison, "oracle", 0.5, "steps")["over_random"])
    assert comparison.frame().filter(method="random")["beyond_random"].null_count() == 2 * 5 * 3


def test_every_regime_is_as_long_as_it_says(comparison: Comparison) -> None:
    full_steps = EPOCHS * TRAIN // BATCH
    assert comparison.full_steps == full_steps
    for method in ("random", "oracle", "rs2"):
        assert of(comparison, method, 0.5, "epochs")["steps"] == EPOCHS * TRAIN // 2 // BATCH
        assert of(comparison, method, 0.1, "epochs")["steps"] == EPOCHS * 1  # 32 examples are one batch
        for budget in (0.1, 0.5):
            assert of(comparison, method, budget, "steps")["steps"] == full_steps
            assert of(comparison, method, budget, "time")["steps"] <= full_steps
    assert set(comparison.frame().filter(method="full")["steps"]) == {full_steps}
    assert comparison.budgets == (0.1, 0.5)
    assert comparison.regimes == ("epochs", "steps", "time")


def test_all_of_the_data_by_any_name_is_the_same_training(run: Run, tmp_path: Path) -> None:
    found = compare(run, ["random", "oracle"], [1.0], 2, ["epochs", "steps"], path=tmp_path, progress=False)
    assert found.cost["trainings"] == 2  # one per seed: choosing everything is training on everything
    for name in ("random", "oracle"):
        assert (of(found, name, 1.0, "epochs")["over_full_low"], of(found, name, 1.0, "epochs")["over_full_high"]) == (
            0,
            0,
        )
    # ... and trained on its own it ends in the same outputs, to the last bit.
    shared = share(run)
    whole = everything(run)
    chosen = Chooser(run, None, 0.0).choose(methods.lookup("select", "random"), 1.0, 3)
    ends = [
        Kept(None, shared, shared.test, run.fingerprint).train([one.member(shared, 0, EPOCHS)])[0]
        for one in (whole, chosen)
    ]
    assert torch.equal(*ends)


def test_nothing_is_chosen_or_trained_twice(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    execute = kept.execute

    def counted(shared: Any, members: Any, **more: Any) -> Any:
        numbers = more.get("numbers")
        trained.extend(range(len(members)) if numbers is None else numbers)
        return execute(shared, members, **more)

    monkeypatch.setattr(kept, "execute", counted)
    asked = {"methods": ["weighted", "rs2"], "budgets": [0.3], "path": tmp_path, "progress": False}
    first = compare(run, seeds=2, **asked)
    assert len(trained) == first.cost["trainings"] > 4
    monkeypatch.setattr(choices, "select", None)
    trained.clear()
    again = compare(run, seeds=2, **asked)
    assert trained == []
    assert again.frame().equals(first.frame())
    assert again.intervals == first.intervals
    monkeypatch.undo()
    monkeypatch.setattr(kept, "execute", counted)
    more = compare(run, seeds=3, **asked)
    assert more.frame().filter(pl.col("seed") < 2).drop("beyond_random").equals(first.frame().drop("beyond_random"))
    assert len(trained) == more.cost["trainings"] - first.cost["trainings"]


def test_random_is_drawn_for_each_seed_and_others_are_not(run: Run) -> None:
    chooser = Chooser(run, None, 0.0)
    drawn = [chooser.choose(methods.lookup("select", "random"), 0.5, seed).rows for seed in (0, 1)]
    assert len(np.intersect1d(*drawn)) < 0.7 * TRAIN / 2  # two random halves share half of their examples
    assert choices.draws(methods.lookup("select", "random"))
    assert not choices.draws(methods.lookup("select", "oracle"))


def test_evidence_counts_for_every_method_that_reads_it(run: Run, tmp_path: Path) -> None:
    learner = imprint.Learner("linear", epochs=1, batch_size=BATCH)
    fresh = imprint.fit(learner, run.corpus, tmp_path / "run", progress=False)
    features, fleets = ([Features(), Budget()], [Subsets("margin", members=2), Budget()])
    for name, needs in (("near", features), ("far", features), ("costly", fleets)):
        methods.method("select", name, higher="nothing", needs=needs, source="nothing")(lambda **evidence: None)
    try:
        near, far, costly = (methods.lookup("select", name) for name in ("near", "far", "costly"))
        chooser = Chooser(fresh, tmp_path / "kept", training=5.0)
        took = chooser.collect(near)
        assert took > 0
        assert chooser.collect(far) == took  # although it was there
        trained = chooser.collect(costly)
        again = Chooser(fresh, tmp_path / "kept", training=5.0)
        assert (again.collect(far), again.collect(costly)) == (took, trained)
        other = Chooser(fresh, tmp_path / "other", training=5.0)
        assert other.collect(near) == 0.0  # nobody knows
        assert other.collect(costly) == 2 * 5.0  # two trainings at least
    finally:
        for name in ("near", "far", "costly"):
            del methods._METHODS["select", name]
    assert recorded_share(near, fresh) == 1.0
    assert recorded_share(costly, fresh) == 0.0


def test_a_choice_that_takes_longer_than_training_has_no_model(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = Chooser.collect
    monkeypatch.setattr(Chooser, "collect", lambda self, one: collect(self, one) + 60.0 * (one.name == "oracle"))
    found = compare(run, ["oracle"], [0.5], 2, path=tmp_path, curves=True, progress=False)
    late = found.frame().filter(method="oracle", regime="time")
    assert late["steps"].to_list() == [0, 0]
    assert (
        late.select("accuracy", "train_seconds", "worst_group", "nll", "ece", "beyond_random").null_count().row(0)
        == (2,) * 6
    )
    assert of(found, "oracle", 0.5, "time")["over_random"] is None
    (note,) = (note for note in found.notes if note.startswith("Selecting left no time"))
    assert "oracle at 50 % (60 s)" in note
    assert of(found, "oracle", 0.5, "steps")["select_seconds"] > 60
    assert not len(found.curves.filter(method="oracle", regime="time"))
    assert "oracle" not in found.summary().split("equal time")[-1] or found.regimes[0] != "time"
    found.plot()


def test_the_clock_of_equal_time(run: Run) -> None:
    clock = Clock(share(run), TRAIN, seconds=10.0)
    half = Choice("some", 0.5, TRAIN // 2, run.rows()[: TRAIN // 2], seconds=4.0, recorded=0.3)
    assert clock.full_steps == 40
    assert clock.epochs_of("time", half) == 4  # 24 steps are left, of 5 to an epoch
    assert replace(clock, recorded=True).epochs_of("time", half) == 2  # 30 % more of the time is spent: 12 steps
    assert clock.epochs_of("time", replace(half, seconds=9.0)) is None  # 4 steps are no epoch
    assert clock.epochs_of("time", replace(half, seconds=1e-6)) == clock.epochs_of("steps", half) == 8
    assert clock.epochs_of("epochs", half) == EPOCHS


@given(st.integers(1, TRAIN), st.floats(0, 20))
def test_equal_time_never_takes_longer(examples: int, seconds: float) -> None:
    class Tick(Clock):
        epochs, batch_size = EPOCHS, BATCH  # type: ignore[assignment]

    clock = Tick(None, TRAIN, seconds=10.0)  # type: ignore[arg-type]
    choice = Choice("some", examples / TRAIN, examples, np.arange(examples), seconds=seconds)
    epochs, each = clock.epochs_of("time", choice), choice.steps(BATCH)
    left = clock.full_steps * max(0.0, 1 - seconds / 10)
    assert (epochs or 0) * each <= left + 0.05 * each
    assert (epochs or 0) * each > left - each
    steps = (clock.epochs_of("steps", choice) or 0) * each
    assert abs(steps - clock.full_steps) <= each / 2


def test_verify_holds_a_selection_against_random_and_everything(run: Run, tmp_path: Path) -> None:
    selection = imprint.select(run, TRAIN // 4, "oracle", progress=False)
    found = imprint.verify(selection, seeds=2, regimes=["steps"], path=tmp_path, progress=False)
    assert isinstance(found, Comparison)
    assert found.frame()["method"].unique(maintain_order=True).to_list() == ["full", "oracle", "random"]
    assert of(found, "oracle", 0.25, "steps")["examples"] == TRAIN // 4
    assert found.frame().filter(method="oracle")["select_seconds"][0] == selection.seconds
    both = compare(run, ["oracle", selection], [0.25], 1, ["epochs"], path=tmp_path, progress=False)
    assert set(both.methods) == {"random", "oracle", "oracle (given)"}
    drawn = imprint.select(run, TRAIN // 4, "random", seed=7, progress=False)
    luck = imprint.verify(drawn, seeds=2, regimes=["steps"], path=tmp_path, progress=False)
    assert set(luck.methods) == {"random", "random (given)"}
    assert of(luck, "random", 0.25, "steps")["accuracy"] == of(found, "random", 0.25, "steps")["accuracy"]
    alone = imprint.select(run.corpus, TRAIN // 4, "random", seed=7, progress=False)
    with pytest.raises(MethodError, match="made from a corpus"):
        imprint.verify(alone)
    same = imprint.verify(alone, run, seeds=2, regimes=["steps"], path=tmp_path, progress=False)
    assert (
        of(same, "random (given)", 0.25, "steps")["accuracy"] == of(luck, "random (given)", 0.25, "steps")["accuracy"]
    )
    with pytest.raises(MethodError, match="is of the corpus"):
        imprint.verify(replace(selection, run={"path": str(run.path), "corpus": "0123"}), run)


def test_curves_end_where_the_training_ends(run: Run, tmp_path: Path) -> None:
    found = compare(run, ["rs2"], [0.5], 2, ["epochs", "steps"], path=tmp_path, curves=True, progress=False)
    curves = found.curves
    last = curves.group_by("method", "budget", "regime", "seed", maintain_order=True).last()
    told = last.join(found.frame(), on=["method", "budget", "regime", "seed"])
    assert len(told) == len(found.frame())
    assert told["accuracy"].to_list() == pytest.approx(told["accuracy_right"].to_list())
    assert told["step"].to_list() == told["steps"].to_list()
    assert (curves["seconds"].diff().filter(curves["epoch"] > 1) > 0).all()
    reached = found.time_to(0.0)
    assert (reached["reached"] == 1).all()
    assert (
        reached["step"].to_list()
        == curves.filter(epoch=1)
        .group_by("method", "budget", "regime", maintain_order=True)
        .agg(pl.col("step").mean())
        .join(reached, on=["method", "budget", "regime"], maintain_order="right")["step"]
        .to_list()
    )
    nobody = found.time_to(1.1)
    assert nobody["seconds"].null_count() == len(nobody)
    with pytest.raises(MethodError, match="curves=True"):
        replace(found, points={}).time_to(0.5)


def test_following_changes_nothing(run: Run) -> None:
    shared = share(run)
    member = Member(5, shared.data.rows, shared.data.target[shared.data.rows], settings={"epochs": 3})
    moving = replace(member, settings={"sampler": Repeated(0.5), "epochs": 3})
    for one in (member, moving):
        (followed,) = Following().run(shared, [one], [0], shared.test)
        (alone,) = Following(points=0).run(shared, [one], [0], shared.test)
        assert torch.equal(followed.outputs, alone.outputs)
        assert followed.curves[0][:, 0].tolist() == [1, 2, 3]
        assert alone.curves == [None]
    assert alone.steps == [3 * TRAIN // 2 // BATCH]


@given(st.integers(1, 300), st.integers(1, 80))
def test_points_are_spread_and_the_last_is_the_end(epochs: int, wanted: int) -> None:
    points = [epoch for epoch in range(1, epochs + 1) if due(epoch, epochs, wanted)]
    assert len(points) == min(epochs, wanted)
    assert points[-1] == epochs
    gaps = np.diff([0, *points])
    assert gaps.max() - gaps.min() <= 1


def test_test_examples_that_were_selected_for_are_not_measured_on(run: Run, tmp_path: Path) -> None:
    found = compare(run, ["aiming"], [0.5], 1, ["epochs"], path=tmp_path, progress=False)
    assert found.examples == TEST // 2  # without a validation split half of the test examples are the target
    assert any("60 of 120 test examples" in note for note in found.notes)
    shared, aiming = share(run), [methods.lookup("select", "aiming")]
    named = run.rows("test")[:20]
    basis = judged(run, shared, aiming, named)
    assert basis.test.tolist() == run.rows("test")[20:].tolist()
    assert basis.target is named
    selection = imprint.select(run, 10, "aiming", target=named, progress=False)
    found = imprint.verify(selection, seeds=1, regimes=["epochs"], path=tmp_path, progress=False)
    assert found.examples == TEST - 20
    # Methods that do not aim leave the test set alone, whatever target was named.
    assert len(judged(run, shared, [methods.lookup("select", "oracle")], named).test) == TEST


def test_a_target_of_all_test_examples_leaves_nothing_to_measure_on(run: Run) -> None:
    with pytest.raises(MethodError, match="0 test examples"):
        judged(run, share(run), [methods.lookup("select", "aiming")], "test")


def test_where_the_only_split_is_the_target_one_half_of_it_is(run: Run, tmp_path: Path) -> None:
    """Training and validation examples alone: methods aim at the validation split, and all are measured on it too."""
    splits = run.examples["split"].replace({"test": "valid"})
    own = imprint.open(
        run.corpus.frame().drop("split").with_columns(split=splits),
        target="label",
        id="id",
        split="split",
        store=tmp_path / "store",
    )
    learner = imprint.Learner("linear", epochs=1, batch_size=BATCH)
    other = imprint.fit(learner, own, tmp_path / "run", progress=False)
    basis = judged(other, share(other), [methods.lookup("select", "aiming")])
    assert len(basis.test) == len(basis.target) == TEST // 2
    assert not np.isin(basis.target, basis.test.numpy()).any()


def test_a_method_that_reads_what_all_are_measured_on_is_named(run: Run) -> None:
    @methods.method(
        "select", "peeking", higher="no", needs=[Budget(), Target("answers", split=HELD_OUT)], source="cheats"
    )
    def peeking(budget: int, answers: torch.Tensor) -> Picks:
        return Picks(torch.arange(budget))

    try:
        basis = judged(run, share(run), [methods.lookup("select", "peeking")])
    finally:
        del methods._METHODS["select", "peeking"]
    assert basis.notes[0].startswith("peeking: reads the labels")


def test_weights_reach_the_training_and_multiply_those_of_the_corpus(run: Run, tmp_path: Path) -> None:
    selection = imprint.select(run, 10, "weighted", progress=False)
    choice = of_selection(run, selection)
    assert choice.weight.tolist() == [1.5, 0.5] * 5
    shared = share(run)
    assert choice.member(shared, 0, EPOCHS).weight.tolist() == [1.5, 0.5] * 5
    doubled = replace(shared, data=replace(shared.data, weight=torch.full((TRAIN + TEST,), 2.0)))
    assert choice.member(doubled, 0, EPOCHS).weight.tolist() == [3.0, 1.0] * 5
    assert recorded_share(methods.lookup("select", "weighted"), run) == 1 / EPOCHS
    choice.save(tmp_path / "choice.safetensors")
    again = Choice.load(tmp_path / "choice.safetensors")
    assert again.weight.tolist() == choice.weight.tolist()
    assert np.array_equal(again.rows, choice.rows)
    assert (again.method, again.seconds, again.sampler) == (choice.method, choice.seconds, None)


def test_trainings_that_differ_are_kept_apart(run: Run, tmp_path: Path) -> None:
    shared = share(run)
    rows = shared.data.rows[:20]
    plain = Member(0, rows, shared.data.target[rows])
    others = [
        plain, replace(plain, seed=1), replace(plain, rows=rows + 1), replace(plain, weight=torch.ones(20)),
        replace(plain, weight=torch.linspace(1, 2, 20)), replace(plain, settings={"epochs": 3}), replace(plain, target=None),
        replace(plain, settings={"epochs": 4}), replace(plain, settings={"sampler": Repeated(0.5)}),
        replace(plain, settings={"sampler": Repeated(0.25)}),
    ]  # fmt: skip
    keep = Kept(tmp_path, shared, shared.test, run.fingerprint)
    assert len({keep.key(one) for one in others}) == len(others)

    class Own:
        def epoch(self, state: Any) -> Any:
            return torch.arange(4), None

    assert keep.key(replace(plain, settings={"sampler": Own()})) is None
    keep.train([replace(plain, settings={"sampler": Own(), "epochs": 1})])
    assert list(tmp_path.iterdir()) == []


def test_it_survives_the_disk(comparison: Comparison, tmp_path: Path) -> None:
    saved = load_answer(comparison.save(tmp_path / "answer"))
    assert isinstance(saved, Comparison)
    assert saved.summary_frame().equals(comparison.summary_frame())
    assert saved.frame().equals(comparison.frame())
    assert saved.summary() == comparison.summary()
    assert len(saved.plot().data) == 4 * 3  # a line per method and regime, random among them


def test_a_model_that_is_fitted_at_once_has_one_regime(run: Run, tmp_path: Path) -> None:
    ridge = imprint.fit(imprint.Learner("ridge"), run.corpus, tmp_path / "ridge", progress=False)
    found = compare(ridge, ["oracle", "rs2"], [0.5], 2, progress=False)
    assert found.regimes == ("epochs",)
    assert set(found.methods) == {"random", "oracle"}
    assert any("fitted at once" in note for note in found.notes)
    assert any("rs2 was left out" in note for note in found.notes)
    assert of(found, "oracle", 0.5, "epochs")["steps"] == 0


def test_a_quantity_has_r2_and_no_calibration(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal(160)
    frame = pl.DataFrame(
        {"x": x, "y": 2 * x + 0.1 * random.standard_normal(160), "split": ["train"] * 120 + ["test"] * 40}
    )
    own = imprint.open(frame, target="y", split="split", store=tmp_path / "store")
    learner = imprint.Learner("linear", epochs=3, batch_size=BATCH, learning_rate=0.05)
    quantity = imprint.fit(learner, own, tmp_path / "run", progress=False)
    found = compare(quantity, ["rs2"], [0.5], 2, progress=False)
    assert found.metric == "r2"
    assert found.worst == ""
    assert found.frame()["r2"].null_count() == 0
    assert found.frame()["ece"].null_count() == len(found.frame())
    rs2 = found.summary_frame().filter(method="rs2", regime="steps").row(0, named=True)
    assert rs2["anew"]
    assert rs2["over_random"] == pytest.approx(
        found.frame().filter(method="rs2", regime="steps")["beyond_random"].mean(), abs=1e-5
    )
    assert "Test r2" in found.summary()


def test_a_method_that_fails_is_left_out(run: Run, tmp_path: Path) -> None:
    @methods.method("select", "failing", higher="no", needs=[Budget()], source="fails")
    def failing(budget: int) -> Picks:
        return Picks(torch.zeros(budget, dtype=torch.int64))

    try:
        found = compare(run, ["failing", "oracle"], [0.5], 1, ["epochs"], path=tmp_path, progress=False)
    finally:
        del methods._METHODS["select", "failing"]
    assert set(found.methods) == {"random", "oracle"}
    assert any(note.startswith("failing was left out: ") for note in found.notes)


def test_what_cannot_be_asked_says_why(run: Run) -> None:
    for arguments, problem in (
        ({"regimes": ["epoch"]}, "No regime 'epoch'"),
        ({"regimes": []}, "No regime"),
        ({"methods": ["orcale"]}, "No method 'orcale'"),
        ({"budgets": []}, "0 budgets"),
        ({"seeds": 0}, "0 seeds"),
        ({"budgets": [1.5]}, "budget=1.5"),
    ):
        with pytest.raises(MethodError, match=problem):
            compare(run, **{"methods": ["oracle"], "seeds": 1, "progress": False, **arguments})


# ------------------------------------------------------------------------------------------------------------------- measures


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_that_of_its_definition(cases: list[tuple[float, bool]]) -> None:
    first = torch.tensor([value for value, _ in cases], dtype=torch.float64)
    probabilities, target = torch.stack([first, 1 - first], 1), torch.tensor([int(one) for _, one in cases])
    confidence, right = probabilities.max(1).values.numpy(), (probabilities.argmax(1) == target).numpy()
    expected = 0.0
    for number in range(BINS):
        within = np.floor(np.round(confidence * BINS, 9)).clip(max=BINS - 1) == number
        if within.any():
            expected += within.mean() * abs(right[within].mean() - confidence[within].mean())
    assert calibration_error(probabilities, target) == pytest.approx(expected, abs=1e-6)


def test_the_weakest_group_is_that_of_the_role_or_of_the_class(tmp_path: Path) -> None:
    people = pl.Series(["a"] * TRAIN + ["b"] * 70 + ["c"] * 45 + ["d"] * 5)
    own = corpus(tmp_path / "store", person=people)
    learner = imprint.Learner("linear", epochs=1, batch_size=BATCH)
    run = imprint.fit(learner, own, tmp_path / "run", progress=False)
    test = torch.from_numpy(run.rows("test"))
    name, codes = groups_of(run, test)
    assert name == "group"
    assert torch.bincount(codes[codes >= 0]).tolist()[-2:] == [70, 45]
    assert int((codes < 0).sum()) == 5  # too few to speak of
    credit = torch.cat([torch.ones(70), torch.ones(30), torch.zeros(15), torch.zeros(5)])
    assert worst_group(credit, codes) == pytest.approx(30 / 45)


def test_without_groups_it_is_the_class(run: Run) -> None:
    test = torch.from_numpy(run.rows("test"))
    name, codes = groups_of(run, test)
    assert name == "class"
    right = run.target("test") == 0
    assert worst_group(right.float(), codes) == 0.0
