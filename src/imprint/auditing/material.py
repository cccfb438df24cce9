"""What an audit shows: its answers as the material of a report."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import torch

from imprint.answers import Findings, Scores, Verdict
from imprint.auditing.recipe import Recipe
from imprint.recording import Run
from imprint.recording.needs import Dynamics, Outputs, Target
from imprint.reporting import Comparison, Material
from imprint.tasks import Classification


def material_of(
    run: Run,
    scores: Scores,
    findings: Findings,
    verdict: Verdict | None,
    seconds: Mapping[str, float],
    recipe: Recipe | None,
    out: Path,
    notes: Sequence[str] = (),
) -> Material:
    """The material of the report on a run.

    Args:
        run: The recorded training.
        scores: Its scores; "confidence" and "variability" make the data map.
        findings: What is wrong.
        verdict: What retraining says, if it was asked.
        seconds: Stage -> seconds.
        recipe: What repeats the audit, if a recipe can.
        out: The audit's folder.
        notes: What to know beside the figures.
    """
    corpus = run.corpus
    input_columns = list(corpus.roles.inputs)
    return Material(
        name=corpus_name(recipe, out),
        examples=examples(run, scores),
        findings=findings.frame(),
        modality=corpus.modality,
        kinds=corpus.kinds,
        read=lambda ids: corpus.read(corpus.rows_of(ids), columns=input_columns),
        task=run.task.name,
        classes=getattr(run.task, "classes", ()) or getattr(run.task, "labels", ()),
        source=str(recipe.source) if recipe and recipe.source else "data in memory",
        splits=corpus.splits,
        fingerprint=corpus.fingerprint,
        roles=roles(corpus),
        notes=(*corpus.notes, *notes),
        set_aside=corpus.set_aside if len(corpus.set_aside) else None,
        curves=curves(run),
        duplicates=duplicates(findings),
        predictions=predictions(run),
        verdict=None if verdict is None else comparison(verdict),
        seconds=seconds,
        trainings=1 + int(findings.cost["trainings"]) + (int(verdict.cost["trainings"]) if verdict else 0),
        disk=sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        machine=machine(),
        command=f"imprint run {out / 'recipe.yaml'}" if recipe and recipe.source else "",
        recipe=yaml_text(recipe) if recipe else "",
        versions={**run.manifest.get("versions", {}), "python": platform.python_version()},
        seed=run.learner.seed,
        created=datetime.now(UTC),
    )


def corpus_name(recipe: Recipe | None, out: Path) -> str:
    """A heading: the name of the source without folder and endings, else of the audit's folder."""
    name = Path(recipe.source).name if recipe and recipe.source else out.resolve().name
    return name.split(".")[0] or name


def examples(run: Run, scores: Scores) -> pl.DataFrame:
    """id, position, split, label of every example; on training examples also the coordinates of the data map."""
    corpus = run.corpus
    table = pl.DataFrame(
        {"id": corpus.ids, "position": corpus.positions, "split": corpus.split_names, "label": corpus.target}
    )
    if not {"confidence", "variability"} <= set(scores.methods):
        return table
    map_columns = scores.frame().select("id", "confidence", "variability")
    correct = run.gather([Dynamics("correct")])["correct"].float().mean(0)
    map_columns = map_columns.with_columns(pl.Series("correctness", correct.numpy()))
    return table.join(map_columns, on="id", how="left", maintain_order="left")


def roles(corpus: Any) -> dict[str, Any]:
    """Role -> columns."""
    said = corpus.roles
    return {name: getattr(said, name) for name in ("inputs", "target", "id", "split", "group", "weight")}


def curves(run: Run) -> pl.DataFrame | None:
    """Learning curves with columns SPLIT_MEASURE: the loss where it is in the unit of the training loss, and the headline metric."""
    table = run.curves()
    if not len(table):
        return None
    columns = {"loss": "train_loss"}
    for split in run.corpus.splits:
        columns[f"{split}_{run.task.headline}"] = f"{split}_{run.task.headline}"
        if split != "train":
            columns[f"{split}_nll"] = f"{split}_loss"
    return table.select("epoch", *[pl.col(name).alias(said) for name, said in columns.items() if name in table.columns])


def duplicates(findings: Findings) -> pl.DataFrame | None:
    """group, id of duplicates and leaks, the largest harm first."""
    groups = findings.groups()
    if not len(groups):
        return None
    return groups.with_row_index("group").select("group", pl.col("ids").alias("id")).explode("id")


def predictions(run: Run) -> pl.DataFrame | None:
    """target, predicted, confidence on the test split of a classification."""
    if not isinstance(run.task, Classification) or "test" not in run.corpus.splits:
        return None
    said = run.gather([Outputs("probabilities", split="test"), Target(split="test")])
    confidence, predicted = said["probabilities"].max(1)
    return pl.DataFrame(
        {
            "target": run.task.decode(said["target"]),
            "predicted": run.task.decode(predicted),
            "confidence": confidence.numpy(),
        }
    )


def comparison(verdict: Verdict) -> Comparison:
    """A verdict as the report shows it."""
    return Comparison(
        metric=verdict.metric,
        effect=verdict.effect,
        interval=verdict.interval,
        before=verdict.before,
        after=verdict.after,
        controls=verdict.controls,
        level=verdict.level,
        seeds=verdict.seeds,
        edits=verdict.edits,
    )


def machine() -> str:
    """The machine in words."""
    processor = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{processor}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else f"{processor}, no GPU"


def yaml_text(recipe: Recipe) -> str:
    """The recipe as it stands in recipe.yaml."""
    import yaml

    return str(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
