"""Scores of words: they add up to the exact product, belong to the right words, and the transformer serves every trace method."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import imprint
from imprint.errors import IdError, MethodError
from imprint.fleets import subsets
from imprint.gradients.capture import log_odds
from imprint.methods import registered
from imprint.recording import Run, load
from imprint.tasks import Batch
from imprint.tracing import tokens

COUNT = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`good` and `bad` decide; the rest of a text is chance. One training text is missing and one query is empty."""
    folder = tmp_path_factory.mktemp("words")
    random = np.random.default_rng(0)
    fill = ["the", "film", "was", "an", "Evening", "play"]
    said: list[str | None] = []
    for row in range(COUNT):
        words = list(random.choice(fill, random.integers(2, 7)))
        words.insert(int(random.integers(0, len(words))), ("good", "bad")[row % 2])
        said.append("  " + " ".join(words) + ".")
    said[1], said[4] = None, ""
    frame = pl.DataFrame({
        "id": [f"t{row}" for row in range(COUNT)], "text": said, "label": [("up", "down")[row % 2] for row in range(COUNT)],
        "split": ["test" if row % 4 == 0 else "train" for row in range(COUNT)],
    })  # fmt: skip
    corpus = imprint.open(frame, target="label", id="id", split="split", store=folder / "store")
    learner = imprint.Learner("transformer", epochs=12, batch_size=16)
    return imprint.fit(learner, corpus, folder / "run", progress=False)


def naive(run: Run, split: str) -> torch.Tensor:
    """`[example, parameter]`: one backward pass per example."""
    module = run.model().module
    found = []
    for row, label in zip(run.rows(split), run.target(split), strict=True):
        codes = run.encoder.encode(run.corpus.read([row]))
        loss = run.task.loss(module(codes), Batch(codes, label[None]))[0]
        found.append(torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(module.parameters()))]))
    return torch.stack(found)


def test_the_product_that_words_share_is_gradient_dot(run: Run) -> None:
    found = imprint.trace(run, "test", "gradient-dot", progress=False)
    torch.testing.assert_close(found.matrix(), naive(run, "test") @ naive(run, "train").T, rtol=1e-4, atol=1e-5)


def moved(run: Run, query: str, example: str, size: float) -> float:
    """r . (outputs after a small step of the weights less those before), by finite differences: the quantity that words share.

    `size` scales the embeddings of the example's words; r is of the example as it is.
    """
    module = run.model().module.double()
    pairs = [
        (run.encoder.encode(run.corpus.read(run.corpus.rows_of([id]))), run.target(None)[run.corpus.rows_of([id])])
        for id in (query, example)
    ]
    (asked, label), (codes, target) = pairs
    loss = run.task.loss(module(asked), Batch(asked, label))[0]
    gradient = torch.autograd.grad(loss, list(module.parameters()))
    outputs = module(codes).detach().requires_grad_()
    (error,) = torch.autograd.grad(run.task.loss(outputs, Batch(codes, target))[0], outputs)
    module.tokens.register_forward_hook(lambda layer, given, output: size * output)
    step, said = 1e-4 / max(float(one.abs().max()) for one in gradient), []
    with torch.no_grad():
        for side in (-1, 2):  # from 0 to -1, and on to 1
            for one, along in zip(module.parameters(), gradient, strict=True):
                one += side * step * along
            said.append(module(codes))
        return float((error * (said[1] - said[0])).sum() / (2 * step))


@pytest.mark.parametrize(("query", "example"), [("t0", "t3"), ("t4", "t2"), ("t8", "t6")])
def test_scores_of_words_add_up_to_the_product_less_that_of_blank_words(run: Run, query: str, example: str) -> None:
    whole, without = moved(run, query, example, 1.0), moved(run, query, example, 0.0)
    exact = imprint.trace(run, [query], "gradient-dot", k=len(run), progress=False).frame()
    assert whole == pytest.approx(exact.filter(pl.col("id") == example)["score"][0], rel=1e-3)
    scores = tokens(run, query, example)["score"]
    assert float(scores.sum()) == pytest.approx(whole - without, abs=0.01 * float(scores.abs().sum()) + 1e-6)


def test_scores_stand_beside_the_words_of_the_text(run: Run) -> None:
    for id in ("t2", "t8"):
        table = tokens(run, "t0", id)
        text = run.corpus.read(run.corpus.rows_of([id]))["text"][0]
        assert table.columns == ["word", "start", "end", "score"]
        assert [text[start:end] for _, start, end, _ in table.iter_rows()] == table["word"].to_list()
        assert table["word"].to_list() == text.replace(".", " .").split()[: len(table)]
    assert tokens(run, "t0", "t1").select("word", "start", "end").rows() == [("", 0, 0)]  # a missing text has no word
    assert tokens(run, "t4").select("word", "start", "end").rows() == [("", 0, 0)]


def test_scores_of_a_querys_own_words_add_up_to_what_they_do_for_its_margin(run: Run) -> None:
    module = run.model().module
    codes = run.encoder.encode(run.corpus.read(run.corpus.rows_of(["t8"])))
    batch = Batch(codes, run.target(None)[run.corpus.rows_of(["t8"])])
    with torch.no_grad():
        whole = float(log_odds(run.task, module(codes), batch))
        module.tokens.weight.zero_()
        without = float(log_odds(run.task, module(codes), batch))
    scores = tokens(run, "t8")["score"]
    assert float(scores.sum()) == pytest.approx(whole - without, abs=0.01 * float(scores.abs().sum()))


def test_the_words_that_decide_have_the_largest_scores(run: Run) -> None:
    for query, word in (("t8", "good"), ("t12", "good")):
        assert tokens(run, query).sort("score")["word"][-1] == word
    # Of examples in most: of five words or so, one drawn at random would be the one that decides in a fifth of them.
    shown = run.ids.to_list()[1:17]
    most = [tokens(run, "t8", example).sort(pl.col("score").abs())["word"][-1] for example in shown]
    assert sum(word in ("good", "bad") for word in most) > len(shown) / 2


def test_what_reads_no_words_and_who_is_unknown_is_said(run: Run) -> None:
    with pytest.raises(IdError, match="nobody"):
        tokens(run, "nobody")
    with pytest.raises(IdError, match="nobody"):
        tokens(run, "t0", "nobody")


def test_a_run_on_word_vectors_has_no_scores_of_words(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("bag")
    other = imprint.fit(imprint.Learner("tfidf/linear", epochs=1), run.corpus, folder / "run", progress=False)
    with pytest.raises(MethodError, match="reads no words"):
        tokens(other, "t0", "t2")


# Arnoldi's iteration takes hundreds of passes by default, 14 s here; what it reads of a model is what influence-cg reads.
@pytest.mark.parametrize("name", [one.name for one in registered("trace") if one.name != "influence-arnoldi"])
def test_every_trace_method_serves_it(run: Run, name: str) -> None:
    one = imprint.methods.lookup("trace", name)
    if not one.serves(run):
        assert name in ("columns", "pixels")
        return
    found = imprint.trace(run, ["t0", "t8"], name, k=2, members=4 if one.members else None, progress=False)
    assert found.frame()["score"].is_finite().all()
    assert len(found.frame()) == 8


def test_a_fleet_of_transformers_is_the_same_stacked_and_one_by_one(
    run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fleets")
    fleets = {
        executor: imprint.fleet(run, plan=subsets(3, 0.5), path=folder / executor, executor=executor, progress=False)
        for executor in ("batched", "sequential")
    }
    both = [fleets[executor].outcomes("logits") for executor in ("batched", "sequential")]
    assert both[0].shape[:2] == (3, COUNT)
    torch.testing.assert_close(both[0], both[1], rtol=1e-4, atol=1e-4)


def test_a_loaded_run_says_the_same(run: Run) -> None:
    loaded = load(run.path)
    assert loaded.manifest["learner"]["model"] == "tokens/transformer"
    assert tokens(loaded, "t8", "t2").equals(tokens(run, "t8", "t2"))
    frame = run.corpus.read(run.rows("test"))
    assert loaded.model().predict(frame).to_list() == run.model().predict(frame).to_list()
