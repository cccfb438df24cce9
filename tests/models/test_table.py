"""Tables: standardisation in closed form, missing values, unseen categories, and what a stranger's file may not do."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import skops.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from imprint import models
from imprint.errors import LearnerError, RunError
from imprint.models import skops_files
from imprint.models.standardise import BOUND, NORMAL_IQR, Standardise

from . import fakes

NAN = float("nan")


def numbers(**columns: list[float | None]) -> fakes.FakeCorpus:
    return fakes.FakeCorpus(pl.DataFrame(columns, strict=False), dict.fromkeys(columns, "numeric"), "table")


def test_standardise_in_closed_form() -> None:
    values = np.array([[0.0], [1.0], [2.0], [3.0], [4.0]])
    # Median 2, quartiles 1 and 3.
    z = (values - 2) / (2 / NORMAL_IQR)
    expected = z / np.sqrt(1 + (z / BOUND) ** 2)
    assert torch.allclose(Standardise.fit(values)(values), torch.from_numpy(expected).float())


def test_missing_values_become_the_median_and_are_flagged() -> None:
    values = np.array([[1.0, 5.0], [NAN, 6.0], [3.0, 8.0], [2.0, 9.0]])
    fit = Standardise.fit(values)
    encoded = fit(values)
    assert fit.names(["a", "b"]) == ["a", "b", "a is missing"]
    assert encoded[:, 2].tolist() == [0, 1, 0, 0]
    assert encoded[1, 0] == 0  # the median's place
    # Missing where no value was missing in training: the median, without a flag of its own.
    assert fit(np.array([[1.0, NAN]]))[0, 1] == 0


def test_constant_and_empty_columns_are_dropped_and_two_valued_ones_become_0_and_1() -> None:
    values = np.array([[7.0, NAN, -3.0, 1.0], [7.0, NAN, 5.0, 2.0], [7.0, NAN, NAN, 3.0]])
    fit = Standardise.fit(values)
    assert fit.names(["constant", "empty", "two", "many"]) == ["two", "many", "two is missing"]
    assert fit(values)[:, 0].tolist() == [0, 1, 0.5]


@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(2, 12), st.integers(1, 4)),
        elements=st.floats(allow_nan=True, allow_infinity=True, width=64),
    )
)
@settings(max_examples=200, deadline=None)
def test_standardised_values_are_finite_bounded_and_keep_their_order(values: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        fit = Standardise.fit(values)
    encoded = fit(values)
    assert encoded.isfinite().all()
    assert (encoded.abs() <= BOUND).all()
    for place, column in enumerate(fit.kept.tolist()):
        given = ~np.isnan(values[:, column])
        order = np.argsort(values[given, column], kind="stable")
        assert (np.diff(encoded[:, place].numpy()[given][order]) >= 0).all()


def test_large_offsets_keep_their_differences() -> None:
    """Nanosecond time stamps differ by less than float32 can tell apart; centring comes first."""
    start = 1_600_000_000_000_000_000.0
    corpus = numbers(t=[start + 1e9 * i for i in range(100)])
    encoded = models.encoder_for(corpus).fit(corpus, np.arange(100)).encode(corpus.data)
    assert (encoded.flatten().diff() > 0).all()


def test_unseen_categories_and_missing_cells_have_a_place() -> None:
    corpus = fakes.table(200)
    encoder = models.encoder_for(corpus).fit(corpus, np.arange(200))
    cities = [i for i, name in enumerate(encoder.names) if name.startswith("city_")]
    assert [encoder.names[i] for i in cities] == ["city_Bern", "city_Lima", "city_Oslo", "city_None"]
    some = corpus.data[:3].with_columns(city=pl.Series(["Bern", "Atlantis", None]))
    assert encoder.encode(some)[:, cities].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    empty = pl.DataFrame({name: pl.Series([None] * 3, dtype=dtype) for name, dtype in corpus.data.schema.items()})
    assert encoder.encode(empty).isfinite().all()


def test_a_table_in_chunks_is_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = fakes.table(100)
    encoder = models.encoder_for(corpus).fit(corpus, np.arange(100))
    whole = encoder.encode(corpus.data)
    monkeypatch.setattr("imprint.models.table.CHUNK", 9)
    assert torch.equal(encoder.encode(corpus.data), whole)


def test_a_fit_reads_a_sample_of_a_large_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprint.models.table.MOST_FITTED_ROWS", 30)
    corpus = fakes.table(200)
    models.encoder_for(corpus, seed=1).fit(corpus, np.arange(200))
    assert len(corpus.seen) == 30
    other = fakes.table(200)
    models.encoder_for(other, seed=2).fit(other, np.arange(200))
    assert other.seen != corpus.seen


def test_inputs_without_information_are_refused() -> None:
    corpus = numbers(a=[1.0] * 5, b=[None] * 5)
    with pytest.raises(LearnerError, match="all 2 columns are constant or empty"):
        models.encoder_for(corpus).fit(corpus, np.arange(5))


def test_array_columns_are_flattened_among_others() -> None:
    data = pl.DataFrame({"a": [1.0, 2.0, 4.0], "v": pl.Series(np.arange(12.0).reshape(3, 2, 2) ** 2)})
    corpus = fakes.FakeCorpus(data, {"a": "numeric", "v": "array"}, "table")
    assert models.encoder_for(corpus).fit(corpus, np.arange(3)).names == ["a", "v[0]", "v[1]", "v[2]", "v[3]"]


# A stranger's skops file.


class Hostile:
    """Would run a command if it were unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/imprint-was-here",)


@pytest.mark.parametrize(
    "hostile",
    [
        Hostile(),
        FunctionTransformer(os.system),
        {"vectorizer": FunctionTransformer(np.testing.assert_equal)},
        LogisticRegression(class_weight=os.system),
    ],
    ids=["reduce", "function", "numpy.testing", "nested"],
)
def test_a_hostile_dump_is_refused(hostile: object, tmp_path: Path) -> None:
    corpus = fakes.table(60)
    models.encoder_for(corpus).fit(corpus, np.arange(60)).save(tmp_path)
    skops.io.dump(hostile, tmp_path / "vectorizer.skops")
    with pytest.raises(RunError, match="types that Imprint does not open"):
        models.load_encoder(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "skrub",
        "skrub._table_vectorizer",
        "skrub.datasets._fetching.fetch_employee_salaries",
        "skrub._data_ops._data_ops.eval_mode",
        "numpy.testing._private.utils.runstring",
        "numpy.f2py.compile",
        "numpy.load",
        "numpy.fromfile",
        "numpy.dtypes.os.system",
        "scipy.io.loadmat",
        "sklearn.datasets._base.load_files",
        "sklearn.utils._testing.check_skip_network",
        "sklearn.externals._arff.load",
        "sklearn.tree.evil.os.system",
        "sklearn.svm._base.warnings",
        "sklearn.ensemble._base.Parallel",
        "sklearn.metrics.tests.test_common.warnings",
        "polars.datatypes.classes.os.system",
        "polars.io.database.read_database",
        "x.sklearn.tree.Tree",
    ],
)
def test_the_allow_list_matches_no_door(name: str) -> None:
    assert not skops_files.trusted(name)


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(StandardScaler(), LogisticRegression()),
        RandomForestClassifier(5, random_state=0),
        HistGradientBoostingClassifier(max_iter=5),
    ],
    ids=lambda one: type(one).__name__,
)
def test_ordinary_estimators_go_there_and_back(estimator: object, tmp_path: Path, rng: np.random.Generator) -> None:
    inputs, target = rng.normal(size=(60, 3)), rng.integers(0, 2, 60)
    estimator.fit(inputs, target)
    skops_files.dump(estimator, tmp_path / "x.skops")
    assert np.array_equal(skops_files.load(tmp_path / "x.skops").predict_proba(inputs), estimator.predict_proba(inputs))
