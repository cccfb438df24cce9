"""Plans are values that are written down and read back; bound to a training set they say exactly who sees what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import imprint
from imprint.corpus import Corpus
from imprint.errors import ImprintError, PlanError
from imprint.fitting import Data, derive
from imprint.fleets import (
    Plan,
    Shared,
    assign,
    bootstrap,
    folds,
    grid,
    leave_out,
    mixtures,
    seeds,
    share,
    sizes,
    subsets,
)
from imprint.tasks import Classification, Multilabel, Regression, Task

# ------------------------------------------------------------------------------------------------------------------- plans as values

counted = st.integers(1, 9)
sized = st.lists(st.integers(1, 20) | st.floats(0.05, 1.0), min_size=1, max_size=4)
names = st.text(max_size=4)
weights = st.floats(0, 5, allow_nan=False) | st.integers(0, 3)
plans = st.one_of(
    st.builds(folds, st.integers(2, 9)),
    st.builds(subsets, counted, st.floats(0.01, 1.0), stratify=st.booleans()),
    st.builds(subsets, counted, sizes=sized, independent=st.booleans()),
    st.builds(bootstrap, counted),
    st.builds(leave_out, st.sampled_from(["example", "group", "target"])),
    st.builds(leave_out, st.lists(st.lists(names, max_size=3), min_size=1, max_size=3)),
    st.builds(sizes, sized),
    st.builds(
        mixtures,
        st.lists(
            st.dictionaries(names | st.integers(), weights, min_size=1, max_size=3).filter(lambda one: any(one.values())),
            min_size=1,
            max_size=3,
        ),
        st.sampled_from(["target", "group"]),
    ),
    st.builds(
        lambda epochs, ema: grid(epochs=epochs, ema=ema),
        st.lists(st.integers(1, 9), min_size=1, max_size=3),
        st.lists(st.none() | st.floats(0.1, 0.9), min_size=1, max_size=3),
    ),
    st.builds(seeds, counted | st.lists(st.integers(-5, 5), min_size=1, max_size=4, unique=True)),
)  # fmt: skip


@given(plans)
def test_a_plan_is_read_back_from_text_and_from_json(plan: Plan) -> None:
    assert Plan.parse(str(plan)) == plan
    assert Plan.from_spec(json.loads(json.dumps(plan.spec()))) == plan
    assert hash(Plan.parse(str(plan))) == hash(plan)


@given(st.integers(2, 5), counted, counted)
def test_products_are_associative_and_their_sizes_multiply(k: int, members: int, again: int) -> None:
    a, b, c = folds(k), subsets(members), seeds(again)
    assert (a * b) * c == a * (b * c) == Plan.parse(f"{a} * ({b} * {c})")
    assert len(a * b * c) == k * members * again
    assert a * b != b * a


def test_one_example_is_not_all_of_them() -> None:
    assert sizes([1]) != sizes([1.0])
    assert subsets(3, 1) == subsets(3, 1.0)


def test_numbers_of_numpy_are_numbers() -> None:
    assert sizes(np.array([3, 5])) == sizes([3, 5])
    assert subsets(np.int64(3), np.float64(0.25)) == subsets(3, 0.25)
    assert seeds(np.arange(3)) == seeds([0, 1, 2]) == seeds(range(3))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("subset(3)", "Did you mean 'subsets'"),
        ("subsets(3) + seeds(2)", "no plan"),
        ("subsets(members)", "not a literal"),
        ("subsets(__import__('os').getpid())", "not a literal"),
        ("seeds", "has no arguments"),
        ("sizes.__class__(3)", "no plan"),
        ("subsets(3) * 2", "no plan"),
        ("subsets(3, **{'fraction': 0.5})", r"\*\* is not allowed"),
        ("subsets(3, part=0.5)", "unexpected keyword argument 'part'"),
        ("subsets(", "no plan"),
        ("", "no plan"),
        ("(" * 5000, "no plan|nested"),
    ],
)
def test_what_is_no_plan_is_said_so(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Plan.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "folds(1)", "folds(2.5)", "subsets(0)", "subsets(3, 0)", "subsets(3, 1.2)", "subsets(3, '0.5')", "subsets(True)",
        "subsets(3, 0.3, sizes=[2])", "subsets(3, sizes=[])", "subsets(3, stratify=True, independent=True)", "bootstrap(-1)",
        "leave_out('row')", "leave_out([])", "leave_out(['a', 'b'])", "leave_out(3)", "sizes([])", "sizes([0])", "sizes([1.5])",
        "sizes(5)", "sizes([True])", "mixtures([])", "mixtures([{'a': -1}])", "mixtures([{'a': 0}])", "mixtures(['a'])",
        "mixtures([{'a': 1}], by='colour')", "mixtures({'a': 1})", "grid()", "grid(learning_rates=[1])", "grid(seed=[1])",
        "grid(learning_rate=[-1.0])", "grid(learning_rate=[None])", "grid(epochs=[])", "grid(epochs=3)", "grid(task=['auto'])",
        "grid(schedule=['linear'])", "grid(epochs=['3'])", "seeds(0)", "seeds([])", "seeds([1, 1])", "seeds(['a'])",
        "seeds(2) * seeds(3)", "grid(epochs=[1]) * grid(epochs=[2])",
    ],
)  # fmt: skip
def test_impossible_plans_are_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse(text)
    assert caught.value.remedy


# ---------------------------------------------------------------------------------------------------------------------- plans bound


def shared_of(target: torch.Tensor, task: Task, *, seed: int = 0, weight: torch.Tensor | None = None) -> Shared:
    """All that binding reads: the odd rows are training rows."""
    rows = torch.arange(1, 2 * len(target), 2)
    whole = target.repeat_interleave(2, 0)
    whole_weight = None if weight is None else weight.repeat_interleave(2)
    data = Data(torch.zeros(len(whole), 1), whole, whole_weight, {"train": rows, "test": rows - 1})
    return Shared(imprint.Learner("linear", task="classification", epochs=1, seed=seed), task, None, data)


CLASSES = Classification(("ant", "bee", "cat"))
SHARED = shared_of(torch.tensor([0] * 30 + [1] * 20 + [2] * 10), CLASSES)
N = 60


@settings(max_examples=30)
@given(st.lists(st.sampled_from([
    "folds(3)", "subsets(4, 0.5)", "bootstrap(2)", "sizes([20, 40, 60])", "leave_out('target')",
    "mixtures([{'ant': 1, 'bee': 2, 'cat': 0.5}, {'ant': 3, 'bee': 1, 'cat': 0}])", "grid(epochs=[1, 2])",
]), min_size=2, max_size=2))  # fmt: skip
def test_weights_of_a_product_are_the_products_of_weights(pair: list[str]) -> None:
    if pair == ["grid(epochs=[1, 2])"] * 2:
        return
    a, b = (Plan.parse(one).bind(SHARED) for one in pair)
    try:
        both = Plan.parse(" * ".join(pair)).bind(SHARED)
    except PlanError as error:  # a fold without the only class that a mixture names, or the like
        assert "no training example left" in str(error)  # noqa: PT017
        return
    if pair[0].partition("(")[0] == pair[1].partition("(")[0]:
        # The same kind twice draws anew, so that two factors of random subsets are not the same subsets.
        assert len(both) == len(a) * len(b)
        return
    outer = (a.weights.dense()[:, None] * b.weights.dense()[None]).reshape(-1, N)
    assert torch.equal(both.weights.dense(), outer)
    assert both.table["member"].to_list() == list(range(len(a) * len(b)))
    for place in (0, len(both) - 1, -1):
        member = both[place]
        expected = outer[place].nonzero().squeeze(1)
        assert np.array_equal(member.rows, SHARED.data.rows[expected].numpy())
        given_ = outer[place][expected]
        assert (member.weight is None) == bool((given_ == given_[0]).all())
        if member.weight is not None:
            assert torch.equal(member.weight, given_)


def test_folds_are_those_of_assign_and_each_member_lacks_its_own() -> None:
    members = folds(5).bind(SHARED)
    target = SHARED.data.target[SHARED.data.rows]
    fold = assign(target, 5, SHARED.learner.seed)
    assert members.table.columns == ["member", "seed", "fold"]
    assert members.table["seed"].to_list() == [derive(0, "member", number) for number in range(5)]
    for number in range(5):
        assert np.array_equal(members[number].rows, SHARED.data.rows.numpy()[fold != number])
        assert members[number].weight is None


def test_subsets_have_exactly_their_size() -> None:
    members = subsets(40, 0.3).bind(SHARED)
    assert (members.weights.counts() == 18).all()
    assert len({member.rows.tobytes() for member in members}) == 40
    in_turn = subsets(5, sizes=[10, 0.5]).bind(SHARED)
    assert in_turn.weights.counts().tolist() == [10, 30, 10, 30, 10]
    # Fewer are the first of more.
    assert torch.equal(subsets(7, 0.3).bind(SHARED).weights.dense(), members.weights.dense(slice(7)))


def test_stratified_subsets_keep_class_shares() -> None:
    inside = subsets(20, 0.3, stratify=True).bind(SHARED).weights.included()
    target = SHARED.data.target[SHARED.data.rows]
    for code, count in enumerate((9, 6, 3)):
        assert (inside[:, target == code].sum(1) == count).all()


def test_bootstraps_draw_as_many_as_there_are() -> None:
    members = bootstrap(200).bind(SHARED)
    drawn = members.weights.dense()
    assert (drawn.sum(1) == N).all()
    # An example is left out with probability (1 - 1/60)^60 = 0.365; 200 x 60 draws: a standard deviation below 0.005.
    assert abs(float((drawn == 0).float().mean()) - (1 - 1 / N) ** N) < 0.025
    member = members[3]
    assert member.weight is not None
    assert torch.equal(member.weight, drawn[3][drawn[3] > 0])
    assert members.table["bootstrap"].to_list() == list(range(200))


def test_sizes_are_nested() -> None:
    members = sizes([30, 10, 0.5, 1.0]).bind(SHARED)
    inside = members.weights.included()
    assert inside.sum(1).tolist() == members.table["size"].to_list() == [30, 10, 30, 60]
    assert (inside[1] <= inside[0]).all()
    assert torch.equal(inside[0], inside[2])
    assert members.table["seed"].to_list() == [0] * 4


def test_a_class_is_left_out() -> None:
    members = leave_out("target").bind(SHARED)
    target = SHARED.data.target[SHARED.data.rows]
    assert members.table["left_out"].to_list() == ["ant", "bee", "cat"]
    for code in range(3):
        assert torch.equal(members.weights.included([code])[0], target != code)


def test_mixtures_weigh_classes() -> None:
    members = mixtures([{"cat": 0, "ant": 2, "bee": 0.5}, {"ant": 3, "bee": 3, "cat": 0}]).bind(SHARED)
    target = SHARED.data.target[SHARED.data.rows]
    assert torch.equal(members.weights.dense([0])[0], torch.tensor([2.0, 0.5, 0.0])[target])
    assert members[1].weight is None  # all equal
    assert len(members[1].rows) == 50


def test_grids_and_seeds_decide_settings_and_seeds() -> None:
    members = (grid(learning_rate=[0.1, 0.01], epochs=[3, 4]) * seeds([7, 5])).bind(SHARED)
    assert members.table.columns == ["member", "seed", "learning_rate", "epochs"]
    assert members.table.row(5, named=True) == {"member": 5, "seed": 5, "learning_rate": 0.01, "epochs": 3}
    assert members[5].settings == {"learning_rate": 0.01, "epochs": 3}
    learner = members[5].learner(SHARED.learner)
    assert (learner.seed, learner.learning_rate, learner.epochs) == (5, 0.01, 3)
    assert len(members[5].rows) == N


def test_members_that_differ_in_settings_alone_share_their_seed() -> None:
    members = (subsets(3) * grid(epochs=[1, 2])).bind(SHARED)
    assert members.table["seed"].to_list() == [derive(0, "member", number) for number in (0, 0, 1, 1, 2, 2)]
    decided = (subsets(3) * seeds(2)).bind(SHARED)
    assert decided.table["seed"].to_list() == [0, 1] * 3


def test_the_same_seed_draws_the_same_members_and_another_others() -> None:
    plan = subsets(4) * bootstrap(3)
    first, again = plan.bind(SHARED), plan.bind(SHARED)
    assert first.weights.digest() == again.weights.digest()
    other = plan.bind(shared_of(SHARED.data.target[SHARED.data.rows], CLASSES, seed=1))
    assert other.weights.digest() != first.weights.digest()
    twice = (subsets(4) * subsets(4)).bind(SHARED)
    assert twice.table.columns == ["member", "seed", "subset", "subset_2"]
    # Were the second draw the first one again, the member 0 x 0 would have all its 30 examples, and not about 15.
    assert int(twice.weights.counts()[0]) < 30


def test_weights_of_the_corpus_are_kept() -> None:
    own = torch.arange(1.0, N + 1)
    shared = shared_of(SHARED.data.target[SHARED.data.rows], CLASSES, weight=own)
    assert subsets(2).bind(shared)[0].weight is None  # the training takes those of the corpus
    member = mixtures([{"ant": 2, "bee": 1, "cat": 1}]).bind(shared)[0]
    assert member.weight is not None
    assert torch.equal(member.weight, own * torch.tensor([2.0] * 30 + [1.0] * 30))


def test_members_are_a_sequence() -> None:
    members = subsets(5).bind(SHARED)
    assert [one.seed for one in members[1:3]] == [members[1].seed, members[-3].seed]
    with pytest.raises(IndexError):
        members[5]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (sizes([61]), "61 examples, and there are 60"),
        (subsets(2, sizes=[100]), "100 examples"),
        (subsets(2, 0.001), "is 0 examples"),
        (folds(70), "60 examples cannot be divided into 70 folds"),
        (mixtures([{"ant": 1, "bee": 1, "cow": 1}]), "names 'cow'"),
        (mixtures([{"ant": 1, "bee": 1}]), "no weight to 'cat'"),
        (leave_out("example"), "needs the corpus"),
        (leave_out("group"), "needs the corpus"),
        (leave_out("target") * mixtures([{"ant": 1, "bee": 0, "cat": 0}]), "1 of 3 members .* left_out='ant'"),
        (sizes([1]) * folds(60) * seeds(3), "3 of 180 members"),
    ],
)
def test_plans_that_do_not_fit_are_refused(plan: Plan, said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        plan.bind(SHARED)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("task", "target"),
    [(Regression(0.0, 1.0), torch.randn(60)), (Multilabel(("a", "b")), torch.ones(60, 2))],
    ids=["regression", "multilabel"],
)
def test_tasks_without_classes_have_none_to_leave_out(task: Task, target: torch.Tensor) -> None:
    shared = shared_of(target, task)
    assert len(subsets(3).bind(shared)) == len(folds(3).bind(shared)) == 3
    for plan in (leave_out("target"), subsets(3, stratify=True), mixtures([{"a": 1}])):
        with pytest.raises(PlanError, match="one class for each example"):
            plan.bind(shared)


# ------------------------------------------------------------------------------------------------------------------------- a corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    frame = pl.DataFrame(
        {
            "key": [f"e{row}" for row in range(40)],
            "x": np.arange(40.0),
            "y": [row % 2 for row in range(40)],
            "person": [f"p{row // 4}" for row in range(40)],
            "split": ["test" if row >= 32 else "train" for row in range(40)],
        }
    )
    return imprint.open(
        frame, target="y", id="key", group="person", split="split", store=tmp_path_factory.mktemp("store")
    )


@pytest.fixture(scope="module")
def shared(corpus: Corpus) -> Shared:
    return share(imprint.Learner("linear", epochs=1), corpus)


def test_an_example_a_group_or_a_list_is_left_out(corpus: Corpus, shared: Shared) -> None:
    rows = corpus.rows("train")
    one = leave_out("example").bind(shared, corpus)
    assert one.table["left_out"].to_list() == corpus.ids.gather(rows).to_list()
    assert torch.equal(one.weights.dense(), 1 - torch.eye(32))
    with pytest.raises(PlanError, match="depends on the data"):
        len(leave_out("example"))
    group = leave_out("group").bind(shared, corpus)
    assert group.table["left_out"].to_list() == [f"p{number}" for number in range(8)]
    assert torch.equal(group.weights.included(), torch.arange(32) // 4 != torch.arange(8)[:, None])
    lists = leave_out([["e3", "e0", "e3"], []]).bind(shared, corpus)
    assert [sorted(set(rows) - set(member.rows)) for member in lists] == [[0, 3], []]


def test_groups_stay_in_one_fold_and_take_one_weight(corpus: Corpus, shared: Shared) -> None:
    inside = folds(4).bind(shared, corpus).weights.included()
    assert (inside.view(4, 8, 4).all(2) | ~inside.view(4, 8, 4).any(2)).all()
    weights = {f"p{number}": number for number in range(8)}
    mixed = mixtures([weights], by="group").bind(shared, corpus)
    assert torch.equal(mixed.weights.dense()[0], (torch.arange(32) // 4).float())


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (leave_out([["e1", "e99"]]), "1 of 2 ids are not training examples of this corpus: 'e99'"),
        (leave_out([["e39"]]), "'e39'"),  # a test example
        (leave_out([[f"e{row}" for row in range(32)]]), "no training example left"),
        (mixtures([{"p0": 1}], by="group"), "no weight to 'p1'"),
    ],
)
def test_what_is_not_in_the_corpus_is_named(plan: Plan, said: str, corpus: Corpus, shared: Shared) -> None:
    with pytest.raises(PlanError, match=said):
        plan.bind(shared, corpus)


def test_a_corpus_without_groups_has_none_to_leave_out(tmp_path: Path) -> None:
    plain = imprint.open(pl.DataFrame({"x": np.arange(20.0), "y": [0, 1] * 10}), target="y", store=tmp_path)
    with pytest.raises(ImprintError, match="needs groups"):
        leave_out("group").bind(share(imprint.Learner("linear", epochs=1), plain), plain)
