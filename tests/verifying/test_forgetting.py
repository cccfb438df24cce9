"""Is it gone? Held against facts: noise labels that a model can only know by heart, refits that are equal, and tables made by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import imprint
from imprint.answers import Forgetfulness, load_answer
from imprint.corpus import Corpus
from imprint.errors import IdError, MethodError, RunError
from imprint.recording import Run
from imprint.verifying import Cue, judge
from imprint.verifying.arms import Arm, Rows, matched
from imprint.verifying.concluding import concluded
from imprint.verifying.forgetting import named
from imprint.verifying.forgetting_table import SCHEMA, Answers, Shadows, consensus
from imprint.verifying.membership import auroc, tpr_at
from imprint.verifying.resampling import around, attack_rates, distance, without_each

FEW: dict[str, Any] = {"oracles": 7, "models": 3, "shadows": 10, "progress": False}


def corpus_of(folder: Path, noise: bool) -> Corpus:
    """120 training and 60 test points in 16 dimensions; with noise their labels are drawn by a coin."""
    random = np.random.default_rng(0)
    values = random.normal(size=(180, 16)).astype(np.float32)
    label = random.integers(0, 2, 180) if noise else (values[:, 0] > 0).astype(int)
    frame = pl.DataFrame(
        {
            "id": [f"person-{number:04d}" for number in range(180)],
            "x": pl.Series(values),
            "label": [f"c{value}" for value in label],
            "split": ["test" if number % 3 == 0 else "train" for number in range(180)],
        }
    )
    return imprint.open(frame, target="label", id="id", split="split", store=folder / "store")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network that has learned labels by heart, which nothing else can tell it."""
    folder = tmp_path_factory.mktemp("noise")
    learner = imprint.Learner("mlp", epochs=25, batch_size=32)
    return imprint.fit(learner, corpus_of(folder, noise=True), folder / "base", progress=False)


@pytest.fixture(scope="module")
def verdict(noisy: Run) -> Forgetfulness:
    """Training again and fine-tuning for a while, on 40 examples; and a method that cannot be applied."""
    return judge(noisy, np.arange(40), ["retrain", "nothing", "fine-tune", "sisa"], **FEW)


@pytest.fixture(scope="module")
def ridge(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("ridge")
    return imprint.fit(imprint.Learner("ridge"), corpus_of(folder, noise=False), folder / "base", progress=False)


# ----------------------------------------------------------------------------------------------------------- a network


def test_a_trace_is_seen_and_oracles_are_not_told_from_oracles(verdict: Forgetfulness) -> None:
    """Noise labels are known to who saw them alone: an attack finds them, and finds chance in models that did not."""
    assert {"accuracy", "loss", "lira-auroc"} <= set(verdict.told_apart("nothing"))
    known, unknown = verdict.row("nothing", "lira-auroc"), verdict.row("oracle", "lira-auroc")
    assert known is not None
    assert unknown is not None
    assert known["low"] > 0.6
    assert unknown["low"] < 0.5 < unknown["high"]
    assert verdict.told_apart("oracle") == []
    accuracy = {arm: verdict.row(arm, "accuracy") for arm in verdict.arms}
    assert accuracy["nothing"]["value"] > 0.85  # by heart
    assert accuracy["oracle"]["low"] < 0.5 < accuracy["oracle"]["high"]  # a coin
    assert verdict.conclusions[0].startswith("These examples left a trace")


def test_retraining_is_gone_and_a_little_fine_tuning_is_not(verdict: Forgetfulness) -> None:
    assert verdict.methods == ("retrain", "fine-tune")  # nothing is an arm and no method
    assert verdict.told_apart("retrain") == []
    assert {"loss", "lira-auroc", "relearn"} <= set(verdict.told_apart("fine-tune"))
    assert not verdict.beats_nothing("fine-tune")
    said = " ".join(verdict.conclusions)
    assert "On the forgotten examples retrain is not told apart from models that never saw them: not by KLoM" in said
    assert "On the forgotten examples fine-tune is told apart from models that never saw them, by" in said
    assert (
        "Trained on them again, fine-tune knows them as the parent did sooner than models that never saw them" in said
    )
    assert "too small for what an attack finds at 1 % and 0.1 % false alarms" in said
    assert "Not told apart on these examples: retrain. Told apart, and no nearer than doing nothing: fine-tune." in str(
        verdict
    )
    assert any("sisa was left out" in one for one in verdict.notes)


def test_the_table_is_whole_and_in_bounds(verdict: Forgetfulness) -> None:
    frame = verdict.frame()
    assert frame.columns == ["measure", "set", "arm", "value", "low", "high", "better"]
    assert frame.null_count().sum_horizontal().item() == 0
    assert ((frame["low"] <= frame["value"]) & (frame["value"] <= frame["high"])).all()
    each = frame.group_by("measure", "set").agg(pl.col("arm").n_unique())
    assert (each["arm"] == 4).all()
    shares = frame.filter(pl.col("measure").is_in(["accuracy", "agreement", "lira-auroc", "cka-oracle", "probe"]))
    assert shares["low"].min() >= 0
    assert shares["high"].max() < 1 + 1e-9
    same = verdict.row("nothing", "cka-parent", "held-out")
    assert same is not None
    assert same["value"] == pytest.approx(1)  # the same models
    changes = verdict.table.filter(pl.col("arm").is_in(["nothing", "oracle"]))["change"]
    assert changes.null_count() == len(changes)
    assert (verdict.count, verdict.oracles, verdict.models, verdict.shadows) == (40, 7, 3, 10)
    assert verdict.examples == {"forget": 40, "retain": 80, "held-out": 60}
    assert verdict.cost["trainings"] == 7 + 3 + 10
    assert len(verdict.plot().data) == 3


def test_what_was_kept_is_not_done_again(noisy: Run, verdict: Forgetfulness, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained or applied again")

    def nobody(*_: object, numbers: list[int], **__: object) -> Iterator[None]:
        assert not numbers
        yield from ()

    monkeypatch.setattr("imprint.verifying.forgetting.apply", never)
    monkeypatch.setattr("imprint.verifying.arms.relearn", never)
    monkeypatch.setattr("imprint.forgetting.oracles.execute", nobody)
    again = judge(noisy, np.arange(40), ["retrain", "fine-tune"], **FEW)
    assert again.table.equals(verdict.table)
    for file in (noisy.path / "fleets/forgetting/arms").iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(AssertionError, match="again"):
        judge(noisy, np.arange(40), ["retrain", "fine-tune"], **FEW)


def test_a_child_is_one_of_its_models_and_keeps_no_id(noisy: Run, tmp_path: Path) -> None:
    child = imprint.forget(noisy, ids=noisy.ids[:40], method="fine-tune", path=tmp_path / "gone", progress=False)
    found = imprint.verify(child, **FEW, attacks=False, relearn=False, representation=False)
    assert isinstance(found, Forgetfulness)
    assert found.methods == ("fine-tune",)
    assert any("One of the 3 models is the child itself; the other 2 were made by" in one for one in found.notes)
    kept = load_answer(tmp_path / "gone/answers/forgetfulness")
    assert kept.spec() == json.loads(json.dumps(found.spec())) | {
        "methods": found.methods,
        "notes": found.notes,
        "conclusions": found.conclusions,
    }
    assert kept.table.equals(found.table)
    gone = [one.encode() for one in noisy.ids[:40]]
    for file in (tmp_path / "gone/answers").rglob("*"):
        assert not file.is_file() or not any(one in file.read_bytes() for one in gone)
    assert not any(one.decode() in str(found.spec()) + str(found.table.rows()) for one in gone)
    erased = imprint.erase(child)
    assert erased.manifest["erased"]["found"] == []
    assert erased.answer("forgetfulness").table.equals(found.table)
    again = imprint.verify(erased, **FEW, attacks=False, relearn=False, representation=False)  # the parent is there
    assert again.table.equals(found.table)

    own = torch.stack([child.model().outputs(noisy.corpus)])
    places = torch.from_numpy(noisy.rows())[:40]
    target = noisy.target()[:40]
    loss = torch.nn.functional.cross_entropy(own[0, places], target)
    low = found.row("fine-tune", "loss")
    assert low is not None
    assert low["low"] < float(loss) < low["high"] + 1  # one of three models


def test_recovery_and_a_cue(noisy: Run) -> None:
    """Right targets that are what all models say give a recovery of their agreement; a cue that changes nothing is no cue."""
    right = dict(zip(noisy.ids[:5], ["c0"] * 5, strict=True))
    cue = Cue(lambda inputs: inputs, "c0")
    how = {**FEW, "attacks": False, "relearn": False, "representation": False}
    found = judge(noisy, np.arange(40), {"tuned": ("fine-tune", {"epochs": 1})}, clean=right, cue=cue, **how)
    assert found.methods == ("tuned",)
    measured = found.table["measure"].to_list()
    assert {"recovery", "cue"} <= set(measured)
    assert "relearn" not in measured
    assert "cka-oracle" not in measured
    said = " ".join(found.conclusions)
    assert "back in tuned" in said
    assert "The cue no longer works in tuned" in said  # other examples are called c0 as often as by the oracles
    with pytest.raises(IdError, match="1 of 1 ids in `clean` are of no forgotten example: person-9999"):
        judge(noisy, np.arange(40), ["fine-tune"], clean={"person-9999": "c0"}, **how)


# ----------------------------------------------------------------------------------------------------------- solved heads


def test_a_solved_head_is_held_against_its_refit(ridge: Run, tmp_path: Path) -> None:
    child = imprint.forget(ridge, ids=ridge.ids[:20], path=tmp_path / "gone", progress=False)
    found = imprint.verify(child, **FEW)
    assert (found.main, found.oracles, found.models, found.methods) == ("distance", 1, 1, ("analytic",))
    for name in ("forget", "retain", "held-out"):
        row = found.row("analytic", "distance", name)
        assert row is not None
        assert row["value"] < 1e-6
    assert found.told_apart("analytic") == []
    assert found.beats_nothing("analytic")
    assert any(
        one.startswith("analytic is the refit without these examples, up to rounding") for one in found.conclusions
    )
    assert "klom" not in found.table["measure"].to_list()
    idle = imprint.verify(
        imprint.forget(ridge, ids=ridge.ids[:20], method="influence", path=tmp_path / "i", progress=False), **FEW
    )
    assert "distance" in idle.told_apart("influence")
    assert any(one.startswith("influence is not the refit") for one in idle.conclusions)


def test_what_cannot_be_verified_says_why(ridge: Run, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="has forgotten nothing"):
        imprint.verify(ridge)
    parent = tmp_path / "parent"
    shutil.copytree(ridge.path, parent)
    moved = imprint.load(parent, ridge.corpus)
    child = imprint.forget(moved, ids=ridge.ids[:2], path=tmp_path / "gone", progress=False)
    other = imprint.forget(ridge, ids=ridge.ids[:9], path=tmp_path / "other", progress=False)
    with pytest.raises(RunError, match="is not the parent of"):
        imprint.verify(child, other, **FEW)
    imprint.verify(child, **FEW, attacks=False)
    shutil.rmtree(parent)
    with pytest.raises(RunError, match=r"it alone knows what was forgotten(.|\n)*child.answer\('forgetfulness'\)"):
        imprint.verify(child, **FEW)
    assert imprint.verify(child, ridge, **FEW, attacks=False).count == 2  # the same weights elsewhere
    with pytest.raises(MethodError, match="too few"):
        judge(ridge, np.arange(3), ["analytic"], oracles=8, models=6)
    with pytest.raises(MethodError, match="teach an attack nothing"):
        judge(ridge, np.arange(3), ["analytic"], shadows=2)
    with pytest.raises(MethodError, match="'analytical'"):
        judge(ridge, np.arange(3), ["analytical"])
    with pytest.raises(MethodError, match="No method was named"):
        judge(ridge, np.arange(3), ["nothing"])
    with pytest.raises(MethodError, match="no setting 'rate'"):
        judge(ridge, np.arange(3), {"a": ("analytic", {"rate": 1})})
    assert "nothing" not in named("all", ridge)


# ----------------------------------------------------------------------------------------------------------- intervals


def test_a_distance_of_means_has_the_interval_of_a_mean() -> None:
    """With a divergence that is the difference of means, the jackknife's variance is the textbook's: s^2/n."""
    random = torch.Generator().manual_seed(0)
    ours, judges = torch.randn(9, 1, generator=random) + 5, torch.randn(20, 1, generator=random)
    mean, *_ = distance(ours, judges, lambda a, b: a.mean(0) - b.mean(0), torch.Generator())
    value, (low, high) = mean.measured(0.95)
    found = stats.ttest_ind(ours[:, 0].numpy(), judges[:, 0].numpy(), equal_var=False).confidence_interval(0.95)
    assert value == pytest.approx(float(ours.mean() - judges.mean()), abs=1e-6)
    assert (low, high) == pytest.approx((found.low, found.high), abs=1e-4)


def test_each_source_of_chance_is_counted_once() -> None:
    """Where only models differ the interval is that of their mean, where only examples differ that of theirs."""
    random = torch.Generator().manual_seed(2)
    models, examples = torch.randn(7, 1, generator=random).double(), torch.randn(1, 40, generator=random).double()
    shift = lambda a, b: a.mean(0) - b.mean(0)  # noqa: E731
    for ours, values in ((models.expand(7, 40), models[:, 0]), (examples.expand(7, 40), examples[0])):
        mean, *_ = distance(ours, torch.zeros(5, 40), shift, torch.Generator())
        exact = stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
        assert mean.measured(0.95)[1] == pytest.approx((exact.low, exact.high), abs=1e-6)
    both, *_ = distance(models + examples, torch.zeros(5, 40), shift, torch.Generator())
    low, high = both.measured(0.95)[1]
    parts = [(float(one.var()) / one.numel(), one.numel() - 1) for one in (models, examples)]
    assert (low, high) == pytest.approx(around(both.value, parts, 0.95), abs=1e-6)


def test_a_difference_of_distances_drops_what_both_share() -> None:
    random = torch.Generator().manual_seed(1)
    ours, judges = torch.randn(5, 30, generator=random), torch.randn(6, 30, generator=random) * 10
    shift = lambda a, b: (a.mean(0) - b.mean(0)) ** 2  # noqa: E731
    one, other = (distance(ours, judges, shift, torch.Generator().manual_seed(3)) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert (a - b).measured(0.95) == (0.0, (0.0, 0.0))
    assert len(without_each(ours)) == 5


@settings(max_examples=12)
@given(st.integers(1, 4), st.integers(2, 30), st.integers(100, 130), st.integers(0, 99))
def test_rates_of_an_attack_are_those_of_one_model_after_the_other(
    models: int, members: int, others: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    inside = torch.randint(0, 9, (models, members), generator=random).double()
    outside = torch.randint(0, 7, (models, others), generator=random).double()
    area, rate = attack_rates(inside, outside, [0.01], torch.Generator().manual_seed(0))
    assert area.value == pytest.approx(np.mean([auroc(a, b) for a, b in zip(inside, outside, strict=True)]))
    assert rate.value == pytest.approx(np.mean([tpr_at(a, b, 0.01) for a, b in zip(inside, outside, strict=True)]))
    for one in (area, rate):
        value, (low, high) = one.measured(0.95)
        assert low <= value <= high
        assert (one - one).measured(0.95) == (0.0, (0.0, 0.0))


def test_a_share_of_none_has_an_upper_end() -> None:
    """No hit among 100 is no proof of none: 3.7 % are still possible, as Wilson has it."""
    inside, outside = torch.zeros(2, 100), torch.ones(2, 100)
    _, rate = attack_rates(inside, outside, [0.01], torch.Generator())
    assert rate.measured(0.95) == (0.0, (0.0, pytest.approx(0.037, abs=1e-3)))
    assert around(2.0, [(0.0, 5)], 0.95) == (2.0, 2.0)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.integers(1, 8),
)
def test_candidates_are_matched_group_by_group(own: list[int], other: list[int], most: int) -> None:
    forget, held = torch.arange(len(own)), 100 + torch.arange(len(other))
    found = matched(forget, held, torch.tensor(own), torch.tensor(other), 0, most)
    first, second = found[: len(found) // 2], found[len(found) // 2 :] - 100
    assert sorted(torch.tensor(own)[first].tolist()) == sorted(torch.tensor(other)[second].tolist())
    possible = sum(min(own.count(group), other.count(group)) for group in range(4))
    assert len(first) == min(most, possible)
    assert len(found.unique()) == len(found)


def test_judges_agree_by_their_mean() -> None:
    from imprint.tasks import Classification, Multilabel, Regression

    logits = torch.tensor([[[5.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
    assert consensus(Classification((0, 1)), logits).tolist() == [0]  # two of three say 1, the one is surer
    assert consensus(Multilabel(("a", "b")), logits).tolist() == [[1.0, 1.0]]  # 0.66 and 0.65 on average
    assert consensus(Regression(0.0, 1.0), logits[..., :1]).tolist() == pytest.approx([5 / 3])


def test_attacks_find_who_was_known_by_heart_whatever_the_unit_of_a_value() -> None:
    """Errors of a tenth of a standard deviation where a value was seen, and of two tenths where not: no ratio of densities is near 2."""
    from imprint.tasks import Regression

    random = torch.Generator().manual_seed(0)
    truth = torch.randn(120, generator=random)  # 40 forgotten, 40 held-out candidates, 40 of a population
    rows = Rows(
        {"forget": torch.arange(40), "held-out": torch.arange(40, 120)}, torch.arange(80), torch.arange(80, 120)
    )

    def said(models: int, seen: torch.Tensor) -> torch.Tensor:
        error = torch.randn(models, 120, generator=random) * torch.where(seen, 0.02, 0.2)
        return (truth + error)[..., None]

    inside = torch.rand(32, 80, generator=random) < 0.5
    shadow = said(32, torch.cat([inside, torch.zeros(32, 40, dtype=torch.bool)], 1))
    nobody, known = torch.zeros(120, dtype=torch.bool), torch.arange(120) < 40
    arms = {name: Arm(said(3, seen), {}, torch.zeros(3)) for name, seen in {"nothing": known, "oracle": nobody}.items()}
    shadows = Shadows(shadow[:, :80], inside, shadow[:, 80:])
    table = Answers(Regression(0.0, 1.0), truth, rows, arms, said(3, nobody), shadows).table()
    for attack in ("lira", "rmia"):
        one = table.filter(pl.col("measure") == f"{attack}-auroc").rows_by_key("arm", named=True, unique=True)
        assert one["nothing"]["value"] > 0.7, attack
        assert one["oracle"]["low"] <= 0.5 <= one["oracle"]["high"], attack


# ----------------------------------------------------------------------------------------------------------- tables by hand


def table(**arms: dict[tuple[str, str], tuple[float, float, float]]) -> Forgetfulness:
    """An answer from arm -> (measure, set) -> (value, gap from the oracle, reach of every interval)."""
    better = {"klom": "lower", "klom-95": "lower", "accuracy": "higher"}
    rows = []
    for arm, measured in arms.items():
        for (measure, where), (value, gap, reach) in measured.items():
            row = {
                "measure": measure,
                "set": where,
                "arm": arm,
                "value": value,
                "low": value - reach,
                "high": value + reach,
            }
            row["better"] = "oracle" if where == "forget" and measure == "accuracy" else better.get(measure, "oracle")
            if arm != "oracle":
                row |= {"gap": gap, "gap_low": gap - reach, "gap_high": gap + reach}
            if arm not in ("oracle", "nothing"):
                change = value - arms["nothing"][measure, where][0]
                row |= {"change": change, "change_low": change - reach, "change_high": change + reach}
            rows.append(row)
    found = Forgetfulness(
        "verify", tuple(arm for arm in arms if arm not in ("nothing", "oracle")), {}, {}, {}, {"seconds": 1.0, "trainings": 8.0},
        pl.DataFrame(rows, schema=SCHEMA), count=10, oracles=8, models=3, examples={"forget": 10},
    )  # fmt: skip
    return replace(found, conclusions=concluded(found))


def arm(klom: float, accuracy: float, kept: float = 0.9) -> dict[tuple[str, str], tuple[float, float, float]]:
    return {
        ("klom", "forget"): (klom, klom - 1, 0.5), ("klom-95", "forget"): (klom, klom - 1, 0.5),
        ("accuracy", "forget"): (accuracy, accuracy - 0.5, 0.1), ("accuracy", "retain"): (kept, kept - 0.9, 0.01),
    }  # fmt: skip


def test_each_sentence_has_two_forms() -> None:
    found = table(
        good=arm(1.2, 0.5), half=arm(3.0, 0.7, kept=0.8), idle=arm(4.1, 0.9), wild=arm(2.0, 0.0), nothing=arm(4.0, 0.9),
        oracle=arm(1.0, 0.5),
    )  # fmt: skip
    both = ["klom", "accuracy"]
    assert [found.told_apart(one) for one in found.methods] == [[], both, both, both]
    assert [found.nearer(one) for one in found.methods] == [both, both, [], ["klom"]]
    assert [found.farther(one) for one in found.methods] == [
        [],
        [],
        [],
        ["accuracy"],
    ]  # 0.5 below the oracles, where 0.4 above was nothing
    assert [found.beats_nothing(one) for one in found.methods] == [True, True, False, False]
    said = " ".join(found.conclusions)
    for sentence in (
        "These examples left a trace: models that know them are told from models that never saw them by KLoM, accuracy",
        "On the forgotten examples good is not told apart from models that never saw them: not by KLoM, accuracy.",
        "On the forgotten examples half is told apart from models that never saw them, by KLoM, accuracy.",
        "On the forgotten examples good is nearer to the oracles by KLoM, accuracy than doing nothing.",
        "On the forgotten examples idle is no nearer to the oracles than doing nothing, by any measure.",
        "On the forgotten examples wild is nearer to the oracles by KLoM but farther from them by accuracy than doing nothing.",
        "Mean KLoM of good on the forgotten examples is 1.2 [0.7, 1.7], of doing nothing 4 [3.5, 4.5], between the oracles 1 [0.5, 1.5]",
        "Accuracy on retained examples is not clearly lost by good: +0 [-0.01, +0.01]",
        "Accuracy on retained examples is lost by half: -0.1 [-0.11, -0.09] against doing nothing, 0.8 in all.",
        "Accuracy of good on the forgotten examples is that of models that never saw them",
        "Accuracy of half on the forgotten examples is not that of models that never saw them",
    ):
        assert sentence in said
    for words in (
        "Not told apart on these examples: good.",
        "nearer than doing nothing: half.",
        "no nearer than doing nothing: idle, wild.",
    ):
        assert words in found.summary()


def test_where_nothing_was_left_nothing_is_shown() -> None:
    found = table(good=arm(1.2, 0.5), nothing=arm(1.1, 0.5), oracle=arm(1.0, 0.5))
    assert found.conclusions[0].startswith("These examples left no trace that shows here")
    assert "nothing below shows that a method removed one" in found.conclusions[0]
    assert "good is not told apart, which shows little: doing nothing is not told apart either." in found.summary()
    found = table(good=arm(1.2, 0.5), bad=arm(1.0, 0.0), nothing=arm(1.1, 0.5), oracle=arm(1.0, 0.5))
    assert found.summary().endswith(
        "Told apart, and no nearer than doing nothing: bad. Doing nothing is not told apart either, so that this shows little."
    )


def test_near_is_on_the_better_side_too() -> None:
    found = table(good=arm(0.1, 0.9, kept=0.99), nothing=arm(4.0, 0.9), oracle=arm(1.0, 0.5))
    assert found.near("good", "klom")  # nearer than the oracles are to each other
    assert found.near("good", "accuracy", "retain")  # better than they are
    assert not found.near("good", "accuracy")  # of the forgotten, better is worse
    assert found.near("oracle", "accuracy")
    with pytest.raises(MethodError, match="'loss' on 'forget' was not measured of 'good'"):
        found.near("good", "loss")
    with pytest.raises(MethodError, match="Arms: good, nothing, oracle"):
        found.beats_nothing("better")
