"""Every malformed input ends in a message that names the place and says what to do, or in a corpus without its bad rows."""

from __future__ import annotations

from pathlib import Path

import pytest

import imprint
from imprint.errors import ImprintError

from .generate import Case, cases

FEWEST = 200  # issue 2, "Done shows" 5


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return cases(tmp_path_factory.mktemp("malformed"))


def test_there_are_enough_and_they_differ(written: list[Case]) -> None:
    assert len(written) >= FEWEST
    assert len({case.name for case in written}) == len(written)


def test_no_pickle_was_opened(written: list[Case], tmp_path: Path) -> None:
    traps = [case for case in written if "pickle" in case.name or "object arrays" in case.name]
    assert len(traps) >= 6
    before = set(Path("/tmp").glob("imprint-pickle-was-opened-*"))
    for case in traps:
        with pytest.raises(ImprintError):
            imprint.open(case.path, store=tmp_path, **case.kwargs)
    assert set(Path("/tmp").glob("imprint-pickle-was-opened-*")) == before


def test_each_ends_well(written: list[Case], tmp_path: Path) -> None:
    """One test over all of them, so that all failures are seen at once."""
    wrong = [problem for case in written if (problem := verdict(case, tmp_path))]
    assert not wrong, "\n".join(wrong)
    leftovers = [path.name for path in (tmp_path / "corpora").iterdir() if path.suffix in (".tmp", ".old")]
    assert not leftovers, "a failed opening left a partial store behind"


def verdict(case: Case, store: Path) -> str | None:
    """What is wrong with how this input ended, or None."""
    try:
        corpus = imprint.open(case.path, store=store, **case.kwargs)
    except ImprintError as error:
        if case.expectation != "error":
            return f"{case.name}: {type(error).__name__}: {error}"
        if case.place not in str(error):
            return f"{case.name}: the message does not name {case.place!r}: {error}"
        return None if error.remedy and error.problem else f"{case.name}: no remedy: {error}"
    except BaseException as error:  # what must never reach a user
        return f"{case.name}: {type(error).__name__}: {error}"
    if case.expectation != "opens":
        return f"{case.name}: it opened: {corpus!r}"
    if case.aside is not None and len(corpus.set_aside) != case.aside:
        return f"{case.name}: {len(corpus.set_aside)} rows set aside instead of {case.aside}: {corpus.set_aside.rows()[:3]}"
    if corpus.set_aside["reason"].null_count() or len(corpus.frame()) != len(corpus):
        return f"{case.name}: a reason is missing or a row cannot be read back"
    return None
