"""What a deletion report says: the facts of a child of `imprint.forget`, for someone who was not there and has to believe them.

Everything is read from the child's folder: its manifest, its lineage and its answers. No fact names an example: a request is its number,
the way in which it was put, and the salted hashes of its ids, of which `check` says how to hold an id against them. The word "certified"
is used of one thing alone: a bound on the distance to the model without the examples that has been proved and computed (`newton`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from imprint.answers import Forgetfulness
from imprint.errors import ImprintError
from imprint.forgetting.lineage import check_child, origin_of, parent_of, weights_of
from imprint.forgetting.many import checked
from imprint.forgetting.names import ERASED, Names, telling
from imprint.forgetting.patterns import LEAST, Patterns
from imprint.forgetting.request import gone
from imprint.methods import lookup
from imprint.recording import Run

FORMAT = 1
# Methods whose bound is a proof, and the figure that it is.
PROVED = {"newton": "bound"}
# What an auditor runs, with Python alone, to see whether an id was in a request.
CHECK = (
    'python3 -c "import hashlib, json, sys; r = json.load(open(sys.argv[1])){where}; '
    "print(hashlib.blake2b(sys.argv[2].encode(), digest_size=16, salt=bytes.fromhex(r['salt'])).hexdigest() in r['hashes'])\" {file} ID"
)


@dataclass(frozen=True)
class Step:
    """One request of the stream that led to the child.

    Attributes:
        number: From 1, the earliest first.
        when: When it was served; empty where an older version did not say.
        words: How its examples were named.
        condition: Salted hash of the exact text of a condition, if there was one.
        count: How many were forgotten.
        retained: How many stayed.
        corrective: Whether they were only the known part of bad data.
        method: The method.
        settings: Its settings.
        seed: Of its randomness.
        search: How the settings were chosen on other examples, with all trials; None: they were not.
        trained: Optimizer steps.
        seconds: What it took.
        exact: Whether it gives what a training without them gives.
        bound: A proved bound on the distance of the weights to it; None: there is none.
        guarantee: What is promised, in the method's words.
        measured: Figures of the guarantee.
        notes: What else the method says.
        encoder: "fitted again", "kept", or "unknown".
        drift: Distance of the outputs from the parent's on retained examples: outputs, examples, agreement.
        drift_from_first: The same from the first ancestor.
        weights: Fingerprint of the weights that came of it.
        request: Algorithm, salt and salted hashes of the ids.
    """

    number: int
    when: str
    words: str
    condition: str | None
    count: int
    retained: int
    corrective: bool
    method: str
    settings: dict[str, Any]
    seed: int
    search: Any
    trained: int
    seconds: float
    exact: bool
    bound: float | None
    guarantee: str
    measured: dict[str, float]
    notes: tuple[str, ...]
    encoder: str
    drift: dict[str, float] | None
    drift_from_first: dict[str, float] | None
    weights: str
    request: dict[str, Any]

    @property
    def kind(self) -> str:
        """What the method promises: "exact", "certified", "control" or "approximate"."""
        if self.exact:
            return "exact"
        return "certified" if self.bound is not None else "control" if self.method == "nothing" else "approximate"


@dataclass(frozen=True)
class Deletion:
    """The facts of a deletion.

    Attributes:
        child: Path, fingerprint of weights and corpus, training examples, task and model.
        parent: The same of the run that it was made from.
        origin: The same of the first ancestor; None where it is not known.
        steps: All requests of the stream; the last one is the child's own.
        left_out: What the promise does not cover, a sentence each.
        erasures: What was rewritten and searched, each time that `imprint.erase` was called.
        verdict: The `Forgetfulness` answer as facts; None if the child was not verified.
        check: Commands that hold an id against the request, for each step.
        repeat: What to run to do it again: (why, command).
        versions: Python and packages with which the child was made.
        machine: Where.
        made: When the report was made.
    """

    child: dict[str, Any]
    parent: dict[str, Any]
    origin: dict[str, Any] | None
    steps: tuple[Step, ...]
    left_out: tuple[str, ...]
    erasures: tuple[dict[str, Any], ...]
    verdict: dict[str, Any] | None
    check: tuple[str, ...]
    repeat: tuple[tuple[str, str], ...]
    versions: dict[str, str]
    machine: dict[str, Any]
    made: str

    @property
    def own(self) -> Step:
        """The child's own request."""
        return self.steps[-1]

    @property
    def stream_exact(self) -> bool:
        """Whether the child is what a training without all that was ever forgotten gives: exact since the last training from scratch."""
        for step in reversed(self.steps):
            if not step.exact:
                return False
            if step.method == "retrain":
                return True
        return True

    def document(self) -> dict[str, Any]:
        """As JSON."""
        facts = asdict(self)
        steps = facts.pop("steps")
        for step, one in zip(steps, self.steps, strict=True):
            step["kind"] = one.kind
        own = steps[-1]
        return {
            "format": FORMAT, "made": facts.pop("made"), "kind": own["kind"], "exact": self.own.exact, "stream_exact": self.stream_exact,
            "request": own["request"], "steps": steps, **facts,
        }  # fmt: skip


def facts(child: Run, file: str = "deletion.json") -> Deletion:
    """The facts of a child of `imprint.forget`.

    Args:
        child: The child, complete.
        file: Name of the JSON file that the commands of `check` read.

    Raises:
        RunError: The run has forgotten nothing, or is not complete.
    """
    check_child(child, "and there is no deletion to report")
    manifest = child.manifest
    steps = tuple(
        _step(number, one) for number, one in enumerate([*manifest.get("lineage", []), manifest["forgot"]], start=1)
    )
    about = manifest["corpus"]
    judged = verdict(child)
    found = Deletion(
        child={
            "path": str(child.path.resolve()), "weights": steps[-1].weights or weights_of(child), "corpus": child.fingerprint,
            "examples": len(child), "task": child.task.name, "model": str(manifest["learner"].get("model")),
        },
        parent={**{name: manifest["parent"][name] for name in ("path", "weights", "corpus")}, "corpus_parent": about.get("parent")},
        origin=manifest.get("origin"),
        steps=steps,
        left_out=tuple(left_out(child, steps)),
        erasures=tuple(manifest.get("erasures") or ([manifest["erased"]] if "erased" in manifest else [])),
        verdict=judged,
        check=tuple(
            CHECK.format(file=shlex.quote(file), where="['request']" if one is steps[-1] else f"['steps'][{one.number - 1}]['request']")
            for one in steps
        ),
        repeat=tuple(repeat(child, steps[-1], judged)),
        versions={**manifest["versions"], "imprint that made this report": _installed()},
        machine=dict(manifest["machine"]),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    return _without(found, forgotten_ids(child))


def _step(number: int, done: dict[str, Any]) -> Step:
    said = done.get("told") or {}
    bound = done.get("measured", {}).get(PROVED.get(done["method"], ""))
    return Step(
        number=number, when=done.get("when", ""), words=said.get("words", "examples that were named in a way that was not kept"),
        condition=said.get("hash"), count=done["count"], retained=done["retained"], corrective=bool(done.get("corrective")),
        method=done["method"], settings=dict(done.get("settings", {})), seed=done.get("seed", 0), search=done.get("search"),
        trained=done.get("trained", 0), seconds=done["seconds"], exact=bool(done["exact"]), bound=bound,
        guarantee=done["guarantee"], measured=dict(done.get("measured", {})), notes=tuple(done.get("notes", ())),
        encoder=done.get("encoder", "unknown"), drift=done.get("drift"), drift_from_first=done.get("drift_from_first"),
        weights=done.get("weights", ""), request=done["request"],
    )  # fmt: skip


def left_out(child: Run, steps: tuple[Step, ...]) -> list[str]:
    """What the promise does not cover, in sentences."""
    own = steps[-1]
    said = []
    if own.encoder == "fitted again":
        said.append(
            "The encoder was fitted again without the examples, so that scales, vocabularies and categories do not tell of them."
        )
    elif child.encoder is not None:
        said.append(
            "The encoder is the parent's, which was fitted with the forgotten examples among its rows: scales, vocabularies and "
            "categories may still tell of them, and so may the list of classes. Retraining fits it again."
        )
    said.append(
        "Choices that people made with the whole data in view (settings, features, which model) stay as they were made."
    )
    said.append(
        "Salted hashes hide an id that nobody can guess. Whoever can list all possible ids (numbers, addresses) can try them one by one; "
        "the same is true of the hash of a condition."
    )
    ancestors = len(steps)
    copies = "the parent run" if ancestors == 1 else "the parent run and the runs before it"
    said.append(
        f"Copies elsewhere are as they were: {copies}, their fleets of models, the store of the corpus, the source that it was "
        "read from, backups, and whatever was made of them. Delete them yourself when nothing needs them."
    )
    if not child.manifest.get("erased"):
        said.append("The record of the child was not erased: its folder may hold, or lean on, the forgotten rows.")
    if own.corrective:
        said.append("The request named only the known part of the bad data; what is not known was not deleted.")
    return said


def verdict(child: Run) -> dict[str, Any] | None:
    """What `imprint verify` found, as facts; None if it was not asked."""
    if Forgetfulness.name not in child.answers():
        return None
    try:
        found = child.answer(Forgetfulness.name)
    except ImprintError:  # an answer of a later version is no verdict that this one can read
        return None
    if not isinstance(found, Forgetfulness):
        return None
    names = ("count", "oracles", "models", "shadows", "level", "examples", "seconds", "cost", "methods")
    return {
        **{one: getattr(found, one) for one in names},
        "conclusions": list(found.conclusions),
        "notes": list(found.notes),
        "summary": found.summary(),
        "main": found.main,
        "apart": {one: list(found.told_apart(one)) for one in dict.fromkeys((*found.methods, "nothing"))},
        "rows": found.frame().to_dicts(),
    }


def repeat(child: Run, own: Step, judged: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What to run in order to do it again."""
    here = shlex.quote(str(child.path.resolve()))
    again = shlex.quote(f"{child.path.resolve()}-again")
    words = [
        "imprint",
        "forget",
        shlex.quote(child.manifest["parent"]["path"]),
        "--ids",
        "ids.txt",
        "--method",
        own.method,
    ]
    usual = _defaults(own.method)
    for name, value in own.settings.items():
        if value is None and usual.get(name, 0) is None:
            continue
        words += ["--set", shlex.quote(f"{name}={_json(value)}")]
    words += ["--seed", str(own.seed), *(["--known"] if own.corrective else []), "--out", again]
    compare = (
        "python3 -c \"import sys, imprint; print(imprint.load(sys.argv[1]).manifest['forgot']['weights'])\" " + again
    )
    same = own.weights or "that of the child"
    fleet = ""
    if judged is not None:
        fleet = f" --oracles {judged['oracles']} --models {judged['models']}"
        fleet += f" --shadows {judged['shadows']}" if judged["shadows"] else " --no-attacks"
    return [
        ("Do it again from the parent, with the ids of the request, one a line, in ids.txt", " ".join(words)),
        (f"Compare the weights; on the same machine with as many threads their fingerprint is {same}", compare),
        ("Hold the child against models that never saw the examples, and write this report anew", f"imprint verify {here}{fleet} --report"),
        ("Erase the record of the child, and search its files again", f"imprint erase {here}"),
    ]  # fmt: skip


def _defaults(method: str) -> dict[str, Any]:
    """Settings of a method and their defaults; none of one that this version does not know."""
    try:
        return checked(lookup("forget", method), {})
    except ImprintError:
        return {}


def forgotten_ids(child: Run) -> list[str]:
    """Ids of all requests of the stream, as far as ancestors that know them are at hand."""
    known = [one.ids.to_list() for one in (origin_of(child), parent_of(child)) if one is not None]
    ids = list(dict.fromkeys(one for several in known for one in several))
    return [one for one, is_gone in zip(ids, gone(child, ids), strict=True) if is_gone]


def _without(found: Deletion, ids: list[str]) -> Deletion:
    """The facts with `(erased)` for every id that stands in them, such as in a path that was named after a person.

    A number of a few digits stands in many texts and names nobody in them; other short ids, and long numbers, are taken out where they
    are words of their own, and all others wherever they stand.
    """
    said: list[str] = []

    def heard(text: str) -> str:
        said.append(text)
        return text

    _rewritten(found, heard)
    everywhere = [one for one in ids if len(one.encode()) >= LEAST and not one.isdigit()]
    there = Patterns([one.encode() for one in everywhere]).found(["\0".join(said).encode(errors="replace")])
    named = sorted((everywhere[number] for number in there), key=len, reverse=True)
    words = Names(one for one in ids if telling(one))

    def clean(text: str) -> str:
        for one in named:
            text = text.replace(one, ERASED)
        return words.sub(text)

    return _rewritten(found, clean)


def _rewritten(found: Deletion, change: Callable[[str], str]) -> Deletion:
    """The facts with each text that people or their data may have put into them changed."""
    step = ("words", "settings", "search", "guarantee", "notes")
    whole = ("child", "parent", "origin", "left_out", "erasures", "verdict", "check", "repeat")
    steps = tuple(replace(one, **{name: _mapped(getattr(one, name), change) for name in step}) for one in found.steps)
    return replace(found, steps=steps, **{name: _mapped(getattr(found, name), change) for name in whole})


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(name)): _mapped(one, change) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(one, change) for one in value)
    return value


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _installed() -> str:
    try:
        return version("imprint")
    except PackageNotFoundError:
        return "unknown"


__all__ = ["FORMAT", "Deletion", "Step", "facts"]
