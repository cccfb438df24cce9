"""Recipes: what is written is what is read; what is misspelt is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imprint.auditing.recipe import LARGEST, LearnerRecipe, Recipe
from imprint.errors import RecipeError
from imprint.fitting import Dice, Focal, Learner

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
RECIPES = st.builds(
    Recipe,
    source=st.just("/data/a.csv"),
    target=st.none() | NAMES | st.lists(NAMES, min_size=1, max_size=3),
    inputs=st.none() | st.lists(NAMES, max_size=3),
    split=st.none() | NAMES | st.just({"train": 0.7, "valid": 0.1, "test": 0.2}),
    task=st.sampled_from(["auto", "classification", "multilabel", "regression"]),
    methods=st.just("auto") | st.lists(NAMES, max_size=3),
    seeds=st.integers(1, 50),
    folds=st.sampled_from([0, 2, 5]),
    verify=st.booleans(),
    learner=st.builds(
        LearnerRecipe,
        epochs=st.none() | st.integers(1, 99),
        learning_rate=st.none() | st.floats(1e-9, 10),
        seed=st.integers(0, 2**31),
    ),
    out=st.just("/results"),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(recipe=RECIPES)
def test_what_is_saved_is_loaded(tmp_path: Path, recipe: Recipe) -> None:
    assert Recipe.load(recipe.save(tmp_path / "recipe.yaml")) == recipe


def test_learner_settings_are_those_of_the_learner() -> None:
    defaults = vars(Learner())
    assert set(LearnerRecipe.model_fields) == set(defaults) - {"task", "sampler"}
    assert LearnerRecipe().model_dump() == {name: defaults[name] for name in LearnerRecipe.model_fields}


def test_of_takes_the_arguments_of_an_audit() -> None:
    recipe = Recipe.of(source=Path("a.csv"), inputs="x", learner=Learner(epochs=3, task="regression"), out=Path("o"))
    assert (recipe.source, recipe.inputs, recipe.learner.epochs, recipe.task) == ("a.csv", ["x"], 3, "regression")
    assert Recipe.of(source=object()).source is None


@pytest.mark.parametrize("loss", ["focal", Focal(gamma=1.0), Dice(square=False)])
def test_a_loss_is_written_down_with_its_numbers(tmp_path: Path, loss: str | Focal | Dice) -> None:
    recipe = Recipe.load(Recipe.of(source="a.csv", learner=Learner(loss=loss)).save(tmp_path / "recipe.yaml"))
    assert Learner(**recipe.learner.model_dump()).loss == loss


def test_a_model_of_code_cannot_be_written_down() -> None:
    with pytest.raises(RecipeError, match="Python code"):
        Recipe.of(source="a.csv", learner=Learner(model=lambda shape, width: None))


def test_relative_paths_move_with_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    written = Recipe(source="data.csv", out="audit").save(tmp_path / "here" / "audit" / "recipe.yaml")
    assert yaml.safe_load(written.read_text())["source"] == os.path.join("..", "data.csv")
    monkeypatch.chdir("/")
    (tmp_path / "here").rename(tmp_path / "there")
    loaded = Recipe.load(tmp_path / "there" / "audit" / "recipe.yaml")
    assert loaded.source == str(tmp_path / "there" / "data.csv")
    assert loaded.out == str(tmp_path / "there" / "audit")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sorce: a.csv", ["Unknown key 'sorce'", "'source'"]),
        ("learner: {epoch: 3}", ["Unknown key 'learner.epoch'", "'epochs'"]),
        ("seeds: 0", ["'seeds'", "greater than or equal to 1"]),
        ("seeds: many", ["'seeds'", "'many'"]),
        ("folds: 1", ["'folds'", "at least 2"]),
        ("split: {train: 0.5, test: 0.2}", ["'split'", "sum to 0.7"]),
        ("task: classify", ["'task'", "'classification'"]),
        ("learner: {learning_rate: .inf}", ["learner.learning_rate", "finite"]),
        ("version: 2", ["'version'"]),
        ("- a\n- b", ["list, not a mapping"]),
        ("", ["NoneType, not a mapping"]),
        ("a: [1", ["not YAML", "line 1"]),
        ("a: 1\nb: {", ["not YAML"]),
        ("a: &x [1, 2]\nb: *x", ["aliases"]),
        ("!!python/object/apply:os.system ['true']", ["not YAML"]),
        ("2024-99-99: x", ["not YAML"]),
        ("1: x", ["Unknown key '1'"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.remedy


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe at"):
        Recipe.load(tmp_path / "recipe.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        Recipe.load(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (LARGEST + 1))
    with pytest.raises(RecipeError, match="larger than 1 MiB"):
        Recipe.load(tmp_path / "large.yaml")
    Recipe().save(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        Recipe.load(tmp_path)


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("seeds=3", "seeds", 3),
        ("methods=[el2n, aum]", "methods", ["el2n", "aum"]),
        ("split={train: .5, test: .5}", "split", {"train": 0.5, "test": 0.5}),
        ("verify=false", "verify", False),
        ("target=a=b", "target", "a=b"),
    ],
)
def test_override(setting: str, key: str, value: Any) -> None:
    assert getattr(Recipe().override([setting]), key) == value


@pytest.mark.parametrize(
    "setting", ["seeds", "sees=3", "learner.epoch=3", "seeds.x=3", "learner=3", "seeds=[", "=3", ".=3"]
)
def test_override_mistakes(setting: str) -> None:
    with pytest.raises(RecipeError):
        Recipe().override([setting])


def test_training_differences_ignore_what_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = Recipe(source="a.csv", target="y", seeds=5)
    assert one.training_differences(Recipe(source=str(tmp_path / "a.csv"), target="y", seeds=9, methods=["aum"])) == []
    assert one.training_differences(Recipe(source="b.csv", target="z")) == ["source", "target"]
