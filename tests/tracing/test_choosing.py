"""method="auto": the method that is planted to be the best is picked, measured once, and within the budget."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import imprint
from imprint.engine import Engine
from imprint.errors import EvidenceError, MethodError
from imprint.methods import Method, lookup
from imprint.recording import Run
from imprint.recording.needs import Membership, Rows, Subsets
from imprint.tracing import Factors, choosing, judges
from imprint.tracing.choosing import Measured, best, choose, sample
from imprint.tracing.evidence import QUERIES

Scores = Callable[..., Factors]


@pytest.fixture(autouse=True)
def afresh(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test measures for itself, by few judges that the tests share."""
    monkeypatch.setattr(judges, "MEMBERS", 16)
    (run.path / "evidence" / "trace-methods.json").unlink(missing_ok=True)


def method(name: str, function: Scores) -> Method:
    return Method("trace", name, function, "helps", (Rows("query_rows", split=QUERIES), Rows()), "test")


def planted(run: Run, noise: float = 0.0, seconds: float = 0.0) -> Scores:
    """Scores that explain the judges exactly, but for noise."""
    truth = judges.held_out(run, 16, progress=False)
    seen = truth.weights.included().double()
    centred = seen - seen.mean(0)

    def scores(query_rows: torch.Tensor, rows: torch.Tensor) -> Factors:
        time.sleep(seconds)
        margin = truth.outcomes("margin", rows=query_rows.numpy()).double()
        exact = (torch.linalg.pinv(centred @ centred.T) @ (margin - margin.mean(0))).T
        spread = exact.std() * torch.randn(exact.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return Factors(exact + noise * spread, seen.T)

    return scores


def offer(monkeypatch: pytest.MonkeyPatch, *methods: Method) -> None:
    monkeypatch.setattr(choosing, "registered", lambda verb: list(methods))


def test_the_better_method_is_picked_and_the_notes_say_what_was_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(
        monkeypatch,
        method("good", planted(run)),
        method("noisy", planted(run, noise=3.0)),
        lookup("trace", "embedding"),
        method("random", planted(run)),  # of this name, nothing is a candidate
    )
    one, notes = choose(run, queries=40)
    assert one.name == "good"
    assert notes[0] == "auto: good has the highest score, of the methods that take no more than 600 s for 40 queries."
    assert "good +1.000 (+1.000 to +1.000)" in notes[1]
    assert notes[1].index("good") < notes[1].index("noisy")
    assert "embedding" in notes[1]
    assert "random" not in notes[1]


def test_the_measured_score_is_the_one_that_verify_gives(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, lookup("trace", "embedding-class"))
    choose(run, queries=40)
    kept = json.loads((run.path / "evidence" / "trace-methods.json").read_text())["measured"]["embedding-class"]
    ids = run.examples["id"].gather(sample(run)).to_list()
    trust = imprint.verify(imprint.trace(run, ids, "embedding-class", progress=False), run, members=16, progress=False)
    assert kept["lds"] == pytest.approx(trust.lds)


def test_of_equal_methods_the_cheaper_one_is_picked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, method("slow", planted(run, seconds=0.2)), method("quick", planted(run)))
    one, notes = choose(run, queries=40)
    assert one.name == "quick"
    assert len(notes) == 3


def test_what_was_measured_is_remembered(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, method("good", planted(run)), lookup("trace", "embedding"))
    first = choose(run, queries=40)

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(choosing, "measure", refuse)
    again = choose(run, queries=40)
    assert again[0].name == first[0].name
    assert again[1] == first[1][:-1]  # but for the seconds that measuring took
    # A method that was not there is measured.
    offer(monkeypatch, method("good", planted(run)), lookup("trace", "pixels"))
    with pytest.raises(AssertionError, match="measured again"):
        choose(run, queries=40)


def test_a_method_over_the_budget_is_left_out_until_more_may_be_spent(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, method("good", planted(run, seconds=0.6)), method("noisy", planted(run, noise=3.0)))
    one, notes = choose(run, queries=40, budget=0.5)
    assert one.name == "noisy"
    assert any("good: took longer than 0.5 s" in note for note in notes)
    one, notes = choose(run, queries=40, budget=0.5)
    assert any("good: takes too long" in note for note in notes)
    assert choose(run, queries=40, budget=60.0)[0].name == "good"


def test_trainings_that_do_not_fit_are_not_begun(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = (Subsets("margin", members=50_000_000, split=QUERIES), Membership(members=50_000_000))
    dear = Method("trace", "dear", lambda margin, membership: None, "helps", needs, "test")
    offer(monkeypatch, dear, lookup("trace", "embedding"))
    one, notes = choose(run, queries=40, budget=20.0)
    assert one.name == "embedding"
    assert any("dear: 50000000 trainings would take about" in note for note in notes)
    assert not (run.path / "fleets" / "subsets-50000000-0.5").exists()


def test_a_method_that_fails_is_left_out_with_its_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(query_rows: torch.Tensor, rows: torch.Tensor) -> Factors:
        raise EvidenceError("There is nothing to read.", "Look elsewhere.")

    offer(monkeypatch, method("broken", broken), lookup("trace", "embedding"))
    one, notes = choose(run, queries=40)
    assert one.name == "embedding"
    assert any("broken: There is nothing to read." in note for note in notes)


def test_a_budget_that_buys_nothing_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    judges.held_out(run, 16, progress=False)
    offer(monkeypatch, method("slow", planted(run, seconds=0.1)))
    choose(run, queries=40)
    for budget, problem in ((0.0, "buys nothing"), (0.01, "The cheapest, 'slow', takes about")):
        with pytest.raises(MethodError, match=problem):
            choose(run, queries=40, budget=budget)


def test_judges_that_do_not_fit_are_not_trained(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "MEMBERS", 12)
    monkeypatch.setattr(choosing, "priced", lambda *_: 1e6)
    with pytest.raises(MethodError, match="12 trainings, about 1e"):
        choose(run, queries=40)
    assert not judges.folder(run, 12).exists()


def test_an_attribution_says_which_method_it_is_by(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("embedding", "embedding-class", "pixels")
    offer(monkeypatch, *(lookup("trace", name) for name in names))
    found = imprint.trace(run, "test", "auto", progress=False, budget=30)
    assert found.method in names
    assert found.notes[0].startswith(f"auto: {found.method} ")
    assert found.frame().equals(imprint.trace(run, "test", found.method, progress=False).frame())
    assert imprint.Attribution.load(found.save(tmp_path / "a")).method == found.method
    with pytest.raises(MethodError, match="budget is for method='auto'"):
        imprint.trace(run, "test", "embedding", progress=False, budget=30)


def test_a_price_grows_with_the_queries() -> None:
    even = torch.zeros(2)
    known = {"by pass": Measured(0.5, even, 10.0, 0.0, 0), "by query": Measured(0.5, even, 0.0, 1.0, 0)}
    assert best(known, queries=5, budget=100) == "by query"
    assert best(known, queries=20, budget=100) == "by pass"


def test_what_is_measured_is_collected_by_the_engine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judges and what methods read, over one connection."""
    asked: list[object] = []
    original = choosing.gather
    there = Engine("ray")
    truth, one = judges.held_out(run, 16, progress=False), method("planted", planted(run))

    @contextmanager
    def held(engine: Engine, size: int) -> Iterator[None]:
        asked.append(("begin", engine, size >= 4 * len(run.examples)))
        yield
        asked.append("end")

    def gather(run: Run, needs: object, rows: object, told: object, engine: Engine) -> object:
        asked.append(engine)
        return original(run, needs, rows, told)  # type: ignore[arg-type]

    monkeypatch.setattr(choosing, "held", held)
    monkeypatch.setattr(choosing, "gather", gather)
    monkeypatch.setattr(judges, "held_out", lambda *_, engine, **more: asked.append(engine) or truth)
    monkeypatch.setattr(choosing, "candidates", lambda *_: [one])
    assert choose(run, 5, engine=there)[0].name == "planted"
    assert asked == [("begin", there, True), there, there, there, "end"]
