"""The record from end to end: an erased child answers every verb, and a kill (SIGKILL) harms neither parent nor child."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import polars as pl
import pytest
import torch

import imprint
from imprint.cli.verify import as_findings
from imprint.corpus import Corpus
from imprint.errors import IdError, ImprintError, TargetError
from imprint.recording import Run
from imprint.reporting import write_deletion

from .test_forget import digest


@pytest.fixture(scope="module")
def erased(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A child of a child, erased, and read from its folder alone."""
    folder = tmp_path_factory.mktemp("record")
    first = imprint.forget(run, run.ids[:5], method="nothing", path=folder / "first", progress=False)
    child = imprint.forget(first, first.ids[:4], method="fine-tune", epochs=1, path=folder / "child", progress=False)
    imprint.erase(child)
    return imprint.load(child.path)


def test_an_erased_child_answers_every_verb(erased: Run, run: Run, tmp_path: Path) -> None:
    assert erased.manifest["erased"]["found"] == []
    assert erased.manifest["erased"]["searched"]["rows"] == 9  # of both requests
    left = len(run) - 9
    assert len(imprint.score(erased, progress=False).frame()) == left
    found = imprint.clean(erased)
    assert set(found.frame()["id"].drop_nulls()) <= set(erased.corpus.ids)
    queries = erased.corpus.ids.gather(erased.rows("test")[:2]).to_list()
    traced = imprint.trace(erased, queries, method="gradient-dot", progress=False)
    assert set(traced.frame()["id"]) <= set(erased.ids)
    assert len(imprint.select(erased, 0.5, "random", progress=False).ids) == round(left / 2)
    edits = pl.DataFrame({"id": erased.ids[:3], "suggestion": "drop"})
    verdict = imprint.verify(as_findings(edits, erased), erased, seeds=2, progress=False)
    assert verdict.edits["drop"] == 3
    again = imprint.forget(erased, erased.ids[:2], method="retrain", path=tmp_path / "again", progress=False)
    assert len(again) == left - 2
    assert write_deletion(again, tmp_path / "report.html").exists()
    assert [one["count"] for one in again.manifest["lineage"]] == [5, 4]
    assert imprint.erase(again).manifest["erased"]["found"] == []


def test_an_erased_child_refuses_as_its_parent_does(erased: Run, run: Run, tmp_path: Path) -> None:
    refused: tuple[tuple[dict[str, object], type[ImprintError], str], ...] = (
        ({"ids": [run.ids[0]]}, IdError, "forgotten before"),
        ({"ids": [run.ids[6]]}, IdError, "forgotten before"),
        ({"ids": ["u-1", "u-2"]}, IdError, "another corpus"),
        ({"ids": erased.ids}, IdError, "nothing would be left"),
        ({"classes": ["class 0", "class 1", "class 2"]}, IdError, "nothing would be left"),
        ({"classes": "class 9"}, TargetError, "no class 'class 9'"),
    )
    for asked, kind, says in refused:
        with pytest.raises(kind, match=says):
            imprint.forget(erased, path=tmp_path / "never", progress=False, **asked)  # type: ignore[arg-type]
    assert not (tmp_path / "never").exists()


def killed(script: str, *words: object) -> None:
    """Run a script that kills its own process with SIGKILL, wherever it is then."""
    head = "import os, signal, sys, imprint\ndie = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
    command = [sys.executable, "-c", head + textwrap.dedent(script), *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_kill_while_weights_are_changed(run: Run, tmp_path: Path) -> None:
    """An approximate method has nothing to go on from: the same call begins again, and ends where an undisturbed one does."""
    before, ids = digest(run.path), run.ids[:6].to_list()
    killed(
        """
        from torch.optim import AdamW
        steps, step = [], AdamW.step
        def counted(self, *a, **k):
            steps.append(1)
            return die() if len(steps) == 3 else step(self, *a, **k)
        AdamW.step = counted
        imprint.forget(imprint.load(sys.argv[1]), sys.argv[3].split(","), method="fine-tune", path=sys.argv[2], progress=False)
        """,
        run.path, tmp_path / "gone", ",".join(ids),
    )  # fmt: skip
    assert digest(run.path) == before
    assert (tmp_path / "gone" / "request.json").exists()
    assert not (tmp_path / "gone" / "manifest.json").exists()
    child = imprint.forget(run, ids, method="fine-tune", path=tmp_path / "gone", progress=False)
    alone = imprint.forget(run, ids, method="fine-tune", path=tmp_path / "alone", progress=False)
    ours, theirs = (one.model().module.state_dict() for one in (child, alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert digest(run.path) == before


@pytest.mark.parametrize("moment", ["corpus", "search"])
def test_a_kill_while_erasing(run: Run, corpus: Corpus, tmp_path: Path, moment: str) -> None:
    """The child opens, and erasing again ends what was begun."""
    child = imprint.forget(run, run.ids[:3], method="nothing", path=tmp_path / "gone", progress=False)
    child.save_answer(imprint.score(run, "knn-shapley", progress=False), "of-the-parent")
    before = digest(run.path), digest(corpus.stores[0].folder)
    killed(
        """
        from imprint.forgetting import erasing
        place = {"corpus": "update_manifest", "search": "searched"}[sys.argv[2]]
        setattr(erasing, place, die)
        imprint.erase(imprint.load(sys.argv[1]))
        """,
        child.path, moment,
    )  # fmt: skip
    opened = imprint.load(child.path)
    assert opened.status == "complete"
    assert opened.corpus.fingerprint == child.fingerprint
    done = imprint.erase(opened).manifest["erased"]
    assert done["found"] == []
    assert len(imprint.load(child.path).answer("of-the-parent").frame()) == len(run) - 3
    assert (digest(run.path), digest(corpus.stores[0].folder)) == before
