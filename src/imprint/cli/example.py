"""Everything known of one example: its content and label, what the model said of it over time, scores, findings, when it was seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imprint.cli.output import bold, cell, clip, pairs, sparkline, table
from imprint.errors import IdError

LONGEST = 400  # characters of a text that are shown
SHADES = " ░▒▓█"
TALLEST, WIDEST = 16, 60  # of a drawn picture, in characters


def describe(folder: Path, id: str) -> tuple[dict[str, Any], list[str]]:
    """All that a run knows of the example called `id`, and the same as lines of text.

    Raises:
        IdError: The corpus of the run has no such id.
    """
    import numpy as np

    from imprint.recording import load

    run = load(folder)
    corpus = run.corpus
    try:
        row = int(corpus.rows_of([id])[0])
    except IdError as error:
        raise IdError(
            f"No example of this run has the id '{id}'.",
            f"The first ones are {', '.join(corpus.ids[:3])}; imprint clean and score list others.",
        ) from error
    frame = corpus.frame(np.array([row])).to_dicts()[0]
    split = corpus.split_names[row]
    document: dict[str, Any] = {
        "what": "example", "id": id, "position": corpus.positions[row], "split": split, "run": str(folder),
        "target": corpus.target[row], "content": content(corpus, frame), "predicted": predicted(run, row),
    }  # fmt: skip
    if split == "train":
        index = int(run.rows("train").searchsorted(row))
        document["trajectory"] = trajectory(run, index)
        document["seen"] = seen(run, id)
    else:
        document["trajectory"] = document["seen"] = None
    document["scores"], document["findings"] = answers(run, id)
    pictures = [drawing(frame[name]) for name, kind in corpus.kinds.items() if kind == "image" and frame[name]]
    return document, lines(document, pictures)


def content(corpus: Any, row: dict[str, Any]) -> dict[str, Any]:
    """The input columns; an image as its size, format and bytes."""
    return {name: about_picture(row[name]) if kind == "image" else row[name] for name, kind in corpus.kinds.items()}


def about_picture(data: bytes | None) -> str:
    if data is None:
        return "no image"
    import io

    try:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            return f"{image.width} x {image.height} {image.format} ({image.mode}), {len(data)} bytes"
    except Exception:  # a decoder may raise anything on damaged bytes, and a preview is never worth an error
        return f"{len(data)} bytes"


def drawing(data: bytes) -> list[str]:
    """A picture in shades of grey, drawn with blocks; nothing where it cannot be decoded."""
    import io

    try:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            across = max(1, min(WIDEST, round(2 * TALLEST * image.width / image.height)))
            down = max(1, round(across / 2 * image.height / image.width))
            pixels = list(image.convert("L").resize((across, down)).tobytes())
    except Exception:  # a decoder may raise anything on damaged bytes, and a preview is never worth an error
        return []
    rows = (pixels[start : start + across] for start in range(0, len(pixels), across))
    return ["".join(SHADES[value * len(SHADES) // 256] for value in row).rstrip() for row in rows]


def predicted(run: Any, row: int) -> dict[str, Any]:
    """What the final model says of the example, with the probability of its class in a classification."""
    import numpy as np

    outputs = run.model().outputs(run.corpus.read(np.array([row])))
    said: dict[str, Any] = {"value": run.task.decode(run.task.predict(outputs))[0]}
    if run.task.name == "classification":
        said["probability"] = float(run.task.probabilities(outputs)[0].max())
    return said


def trajectory(run: Any, index: int) -> dict[str, list[float]]:
    """Loss, margin and agreement of a training example in each recorded epoch."""
    from imprint.recording.needs import Dynamics

    fields = ("loss", "margin", "correct")
    found = run.gather([Dynamics(field) for field in fields], slice(index, index + 1))
    return {field: [float(value) for value in found[field][:, 0]] for field in fields}


def seen(run: Any, id: str) -> list[dict[str, int]]:
    """Epoch and optimizer step (both from 1) of every time that the example was trained on."""
    visits = run.evidence("order").steps([id])
    return [{"epoch": epoch, "step": step} for epoch, step in visits.select("epoch", "step").rows()]


def answers(run: Any, id: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Scores and findings of the example in the answers that are saved with the run."""
    import polars as pl

    scores: dict[str, float] = {}
    findings: list[dict[str, Any]] = []
    for name in run.answers():
        frame = run.answer(name).frame()
        if "id" not in frame.columns:
            continue
        own = frame.filter(pl.col("id") == id)
        if "kind" in frame.columns:
            findings += [one for one in own.to_dicts() if one not in findings]
        elif len(own):
            scores |= {
                key: value for key, value in own.row(0, named=True).items() if key not in ("id", "position", "split")
            }
    return scores, findings


def lines(document: dict[str, Any], pictures: list[list[str]]) -> list[str]:
    """The document as text, with pictures under the content."""
    facts = [("split", document["split"]), ("position", document["position"]), ("target", document["target"])]
    said = document["predicted"]
    if said:
        sure = f" (probability {said['probability']:.3f})" if said.get("probability") is not None else ""
        facts.append(("predicted", f"{cell(said['value'])}{sure}"))
    out = [bold(f"Example {document['id']}"), "", *pairs(facts), "", "Content:"]
    out += pairs([(name, clip(cell(value), LONGEST)) for name, value in document["content"].items()], indent=2)
    for picture in pictures:
        out += ["", *(f"  {line}" for line in picture)]
    if document["trajectory"]:
        out += ["", *trajectory_lines(document)]
    if document["scores"]:
        out += ["", "Scores:", *pairs(document["scores"].items(), indent=2)]
    out.append("")
    if document["findings"]:
        out.append("Findings:")
        rows = [
            [one["kind"], one["severity"], one["suggestion"], one["suggested_value"], one["method"]]
            for one in document["findings"]
        ]
        out += table(["kind", "severity", "suggestion", "value", "method"], rows, indent=2)
        out += pairs([(one["kind"], one["evidence"]) for one in document["findings"] if one.get("evidence")], indent=2)
    else:
        out.append("No finding is saved about it.")
    return out


def trajectory_lines(document: dict[str, Any]) -> list[str]:
    """Loss and margin over the epochs, how often the model agreed, and when the example was seen."""
    path = document["trajectory"]
    agrees = sum(path["correct"]) / max(1, len(path["correct"]))
    rows = []
    for name in ("loss", "margin"):
        values = path[name]
        step = max(1, -(-len(values) // 40))
        rows.append([name, sparkline(values[::step]), cell(values[0]), cell(values[-1])])
    out = [f"Over {len(path['loss'])} epochs (the model agrees in {agrees:.0%} of them):"]
    out += table(["", "", "first", "last"], rows, indent=2)
    steps = [one["step"] for one in document["seen"] or []]
    if steps:
        out.append(
            f"  seen {len(steps)} times, at the steps {', '.join(map(str, steps[:8]))}{', ...' if len(steps) > 8 else ''}"
        )
    return out
