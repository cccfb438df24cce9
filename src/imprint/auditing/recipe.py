"""Recipe: everything needed to repeat an audit, as a YAML file that people can read and edit.

A relative path in a recipe file is relative to the folder that holds the file, so that a data set and its recipe can be moved
together. Unknown keys are refused by name, because a misspelt key that is silently ignored is a wrong result.
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from imprint.errors import RecipeError, nearest

# A recipe is a page of text; a larger file is something else.
LARGEST = 1 << 20
# Keys that decide what is trained. Two recipes that agree in them share a recorded run.
TRAINING_KEYS = ("source", "target", "inputs", "id", "split", "group", "weight", "task", "learner")

Fraction = Annotated[float, Field(gt=0, le=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class LearnerRecipe(Strict):
    """The settings of `imprint.Learner` that can be written down. None and "auto" are decided from the corpus."""

    model: str = "auto"
    epochs: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    optimizer: str = "adamw"
    learning_rate: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    schedule: str = "onecycle"
    augment: str | bool = "auto"
    ema: float | None = Field(default=None, gt=0, lt=1)
    precision: str = "auto"
    device: str = "auto"
    seed: int = Field(default=0, ge=0)
    record: str = "auto"
    loss: str | dict[str, str | bool | float | None] = "auto"
    deletable: str | None = None


class Recipe(Strict):
    """What an audit was asked to do.

    Attributes:
        version: Format of this file.
        source: Path of the data. None where the audit was of something in memory; give one before running.
        target, inputs, id, split, group, weight: Roles, as in `imprint.open`; None: inferred.
        task: "auto", "classification", "multilabel" or "regression".
        learner: What is trained.
        methods: "auto" or the names of the clean and score methods.
        seeds: Trainings before and after the edits in the verification.
        folds: 0: label issues from the recorded trajectory alone; k: also from k-fold out-of-fold predictions.
        verify: Whether to retrain before and after.
        out: Folder for the results.
        fingerprint: Of the corpus that was audited, to notice when the data is no longer the same.

    Example:
        >>> recipe = Recipe(source="data.csv", target="label", learner=LearnerRecipe(epochs=5))
        >>> recipe.override(["seeds=3", "learner.epochs=8"]).learner.epochs
        8
    """

    version: Literal[1] = 1
    source: str | None = None
    target: str | list[str] | None = None
    inputs: list[str] | None = None
    id: str | None = None
    split: str | dict[str, Fraction] | None = None
    group: str | None = None
    weight: str | None = None
    task: Literal["auto", "classification", "multilabel", "regression"] = "auto"
    learner: LearnerRecipe = Field(default_factory=LearnerRecipe)
    methods: Literal["auto"] | list[str] = "auto"
    seeds: int = Field(default=5, ge=1, le=1000)
    folds: int = Field(default=0, ge=0, le=1000)
    verify: bool = True
    out: str = "audit"
    fingerprint: str | None = None

    @field_validator("folds")
    @classmethod
    def more_than_one_fold(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("one fold leaves nothing to train on; use 0 (none) or at least 2")
        return folds

    @field_validator("split")
    @classmethod
    def whole(cls, split: str | dict[str, float] | None) -> str | dict[str, float] | None:
        if isinstance(split, dict) and abs(sum(split.values()) - 1) > 1e-6:
            raise ValueError(f"the fractions sum to {sum(split.values()):g}, not to 1")
        return split

    @classmethod
    def of(cls, *, learner: Any = None, **settings: Any) -> Recipe:
        """A recipe from the arguments of `imprint.audit`.

        Args:
            learner: An `imprint.Learner`, a mapping of its settings, or None.
            **settings: The other fields. A source that is neither a path nor text becomes None.

        Raises:
            RecipeError: A setting cannot be written down (a model given as Python code) or is impossible.
        """
        source = settings.pop("source", None)
        if isinstance(settings.get("inputs"), str):
            settings["inputs"] = [settings["inputs"]]
        fields = {} if learner is None else learner if isinstance(learner, Mapping) else vars(learner)
        # The task stands in the recipe itself; a sampler is code.
        learnt = {key: value for key, value in fields.items() if key in LearnerRecipe.model_fields}
        if hasattr(learnt.get("loss"), "spec"):
            learnt["loss"] = learnt["loss"].spec()
        if not isinstance(learnt.get("model", "auto"), str):
            raise RecipeError(
                f"The model {learnt['model']!r} is Python code, which a recipe cannot hold.",
                "Name a built-in model, or keep the Python script as the recipe.",
            )
        if settings.get("task", "auto") == "auto":
            settings["task"] = fields.get("task", "auto")
        settings |= {key: os.fspath(settings[key]) for key in ("out",) if key in settings}
        text = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        return parse({**settings, "source": text, "learner": learnt}, "the arguments")

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe file; relative paths in it become relative to its folder.

        Raises:
            RecipeError: The file is missing, is no YAML mapping, or has an unknown key or an impossible value.
        """
        path = Path(path)
        recipe = parse(read_mapping(path), str(path))
        updates = {
            key: os.path.normpath(path.parent / value)
            for key in ("source", "out")
            if (value := getattr(recipe, key)) is not None and "://" not in value
        }
        return recipe.model_copy(update=updates)

    def save(self, path: str | Path) -> Path:
        """Write the recipe, atomically; a relative path is written relative to the file's folder."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        updates = {key: portable(getattr(self, key), path.parent) for key in ("source", "out")}
        fields = self.model_copy(update=updates).model_dump(mode="json")
        text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=100)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(
            f"# An Imprint recipe. Repeat it with: imprint run {path.name}\n"
            f"# Relative paths are relative to this file's folder.\n{text}",
            encoding="utf-8",
        )
        temporary.replace(path)
        return path

    def override(self, settings: Iterable[str]) -> Recipe:
        """A copy with `key=value` settings applied; values are YAML, `learner.epochs=5` reaches inside.

        Raises:
            RecipeError: A setting has no '=', names no key, or gives an impossible value.
        """
        fields = self.model_dump()
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise RecipeError(
                    f"'{setting}' is not key=value.", "For example: --set seeds=3 --set learner.epochs=10"
                )
            place: dict[str, Any] = fields
            model: type[BaseModel] = type(self)
            known = ""
            *outer, last = key.strip().split(".")
            for name in outer:
                check_key(name, model, known)
                inner = submodel(model, name)
                if inner is None:
                    raise RecipeError(
                        f"'{name}' has no settings inside (in '{setting}').", nearest(key, paths(type(self)))
                    )
                place, model, known = place[name], inner, f"{known}{name}."
            check_key(last, model, known)
            try:
                place[last] = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise RecipeError(f"The value in '{setting}' is not YAML: {short(error)}.", "Quote it.") from error
        return parse(fields, "--set")

    def training_differences(self, other: Recipe) -> list[str]:
        """Names of the settings in which two recipes would train different models (paths are compared resolved)."""

        def value(recipe: Recipe, key: str) -> Any:
            setting = getattr(recipe, key)
            return os.path.realpath(setting) if key == "source" and setting is not None else setting

        return [key for key in TRAINING_KEYS if value(self, key) != value(other, key)]


def read_mapping(path: Path) -> dict[str, Any]:
    """The YAML mapping in a file, without aliases (a few of them can make a value of gigabytes)."""
    if path.is_dir() and (path / "recipe.yaml").is_file():
        raise RecipeError(f"{path} is a folder.", f"Name the recipe in it: {path / 'recipe.yaml'}")
    if not path.is_file():
        raise RecipeError(f"There is no recipe at {path}.", "An audit writes one: AUDIT/recipe.yaml")
    if path.stat().st_size > LARGEST:
        raise RecipeError(f"{path} is larger than 1 MiB, which no recipe is.", f"To audit data: imprint audit {path}")
    try:
        text = path.read_bytes().decode("utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise RecipeError(f"{path} uses YAML aliases (*name), which recipes do not.", "Write the value out.")
        fields = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path} is not UTF-8 text (byte {error.start}).", f"To audit data: imprint audit {path}"
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{path} is not YAML: {short(error)}.", "Correct the line.") from error
    if not isinstance(fields, dict):
        raise RecipeError(
            f"{path} holds a {type(fields).__name__}, not a mapping of settings.",
            "Write one 'key: value' per line, as in AUDIT/recipe.yaml.",
        )
    return fields


def parse(fields: Mapping[Any, Any], where: str) -> Recipe:
    """Validate; the first mistake becomes a `RecipeError` that names the key and, for an unknown one, the nearest."""
    try:
        return Recipe.model_validate(dict(fields))
    except ValidationError as invalid:
        mistakes = invalid.errors()
    first = next((m for m in mistakes if m["type"] == "extra_forbidden"), mistakes[0])
    names = [str(part) for part in first["loc"]]
    key, known = names[0] if names else "?", ""
    model: type[BaseModel] = Recipe
    for depth, name in enumerate(names):
        inner = submodel(model, name)
        if name not in model.model_fields or inner is None or depth == len(names) - 1:
            key = known + name
            check_key(name, model, known, where)
            break
        model, known = inner, f"{known}{name}."
    value = str(first["input"])
    message = first["msg"].removeprefix("Value error, ")
    more = f" ({len(mistakes) - 1} more)" if len(mistakes) > 1 and len({m["loc"][:1] for m in mistakes}) > 1 else ""
    raise RecipeError(
        f"'{key}' in {where} cannot be {value[:80]!r}: {message[:1].lower()}{message[1:]}{more}.", f"Correct '{key}'."
    )


def check_key(name: str, model: type[BaseModel], prefix: str = "", where: str = "the recipe") -> None:
    if name not in model.model_fields:
        raise RecipeError(f"Unknown key '{prefix}{name}' in {where}.", nearest(name, model.model_fields))


def submodel(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of a nested field, or None."""
    field = model.model_fields.get(name)
    found = field.annotation if field else None
    if get_origin(found) in (Union, types.UnionType):
        found = next((one for one in get_args(found) if isinstance(one, type) and issubclass(one, BaseModel)), None)
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys, nested ones with dots."""
    found = []
    for name in model.model_fields:
        inner = submodel(model, name)
        found += paths(inner, f"{prefix}{name}.") if inner else [prefix + name]
    return found


def portable(value: str | None, folder: Path) -> str | None:
    """A relative path seen from `folder`; absolute where the two have nothing in common but the root of the file system."""
    if value is None or "://" in value or os.path.isabs(value):
        return value
    here, there = os.path.abspath(folder), os.path.abspath(value)
    return there if os.path.commonpath([here, there]) == os.path.abspath(os.sep) else os.path.relpath(there, here)


def short(error: Exception) -> str:
    """First line of a YAML error, with its line number."""
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or str(error).split("\n")[0] or type(error).__name__
    return f"{text} (line {mark.line + 1})" if mark else text
