"""What a table on forgetting says in plain words. Each sentence has two forms, and the numbers decide which is said.

A comparison that could not have shown anything says so instead: where models that know the examples are not told apart from models that
never saw them, nothing was there to forget, and an attack that finds nothing in models that know the examples proves nothing of others.
Each sentence names its method, so that it can be quoted alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from imprint.answers import ROUNDING, Forgetfulness

SETS = {"forget": "the forgotten examples", "retain": "retained examples", "held-out": "held-out examples"}
ATTACKS = {"lira": "likelihood-ratio", "rmia": "RMIA"}
FALSE_ALARMS = {"1": 0.01, "0.1": 0.001}
WORDS = {
    "klom": "KLoM", "distance": "their outputs", "lira-auroc": "a likelihood-ratio attack", "rmia-auroc": "an RMIA attack",
    "relearn": "how soon they are learned again", "r2": "R2", "f1": "F1",
}  # fmt: skip
# Epochs after which it is no longer waited for (`imprint.verifying.relearning.relearn`).
CAP = 20
# Features this much alike are the same.
SAME = 0.99


def concluded(found: Forgetfulness) -> tuple[str, ...]:
    """The sentences: on what can be seen at all, then on each method."""
    return (*_power(found), *(line for arm in found.methods for line in _of(found, arm)))


def _power(found: Forgetfulness) -> Iterator[str]:
    """Whether the comparison can see the forgotten examples in models that know them."""
    by = found.told_apart("nothing")
    own, oracle = (_row(found, arm, found.main) for arm in ("nothing", "oracle"))
    numbers = (
        f"largest difference of outputs {own['value']:.2g}"
        if found.main == "distance"
        else f"mean KLoM {_said(own)} against {_said(oracle)} between the oracles"
    )
    if by:
        yield (
            f"These examples left a trace: models that know them are told from models that never saw them by {_listed(by)} ({numbers})."
        )
    else:
        yield (
            "These examples left no trace that shows here: models that know them are not told from models that never saw them "
            f"({numbers}), and so nothing below shows that a method removed one."
        )
    for attack in _attacks(found):
        own, none = (_row(found, arm, f"{attack}-auroc") for arm in ("nothing", "oracle"))
        if found.near("nothing", f"{attack}-auroc"):
            yield (
                f"{_attack(attack)} finds nothing even in models that were trained on these examples (area under the curve {_said(own)}, "
                f"in models that never saw them {_said(none)}): what it says of others is no evidence."
            )
        if not none["low"] <= 0.5 <= none["high"]:
            yield (
                f"The forgotten examples differ from the held-out ones by themselves: {_attack(attack, 'a')} on models that never saw "
                f"any of them has an area under the curve of {_said(none)}, where 0.5 is chance; so others are held against the oracles."
            )
    missing = [
        name
        for name in FALSE_ALARMS
        if _attacks(found) and not found.row("nothing", f"{_attacks(found)[0]}-tpr-{name}")
    ]
    if missing:
        least = " and ".join(f"{round(1 / FALSE_ALARMS[name]):,} for {name} %" for name in missing)
        yield (
            f"The set is too small for what an attack finds at {' % and '.join(missing)} % false alarms: that takes as many forgotten and "
            f"held-out examples that are alike, {least}."
        )


def _of(found: Forgetfulness, arm: str) -> Iterator[str]:
    yield from _refit(found, arm) if found.main == "distance" else _told_apart(found, arm)
    yield from _use(found, arm)
    yield from _attacked(found, arm)
    yield from _relearned(found, arm)
    yield from _represented(found, arm)
    yield from _repaired(found, arm)


def _told_apart(found: Forgetfulness, arm: str) -> Iterator[str]:
    by = found.told_apart(arm)
    others = [name for name in found.telling() if name not in by]
    if by:
        rest = f"; not by {_listed(others)}" if others else ""
        yield f"On the forgotten examples {arm} is told apart from models that never saw them, by {_listed(by)}{rest}."
    else:
        yield f"On the forgotten examples {arm} is not told apart from models that never saw them: not by {_listed(others)}."
    nearer, farther = found.nearer(arm), found.farther(arm)
    parts = [
        f"{word} by {_listed(names)}"
        for word, names in (("nearer to the oracles", nearer), ("farther from them", farther))
        if names
    ]
    if parts:
        yield f"On the forgotten examples {arm} is {' but '.join(parts)} than doing nothing."
    else:
        yield f"On the forgotten examples {arm} is no nearer to the oracles than doing nothing, by any measure."
    row, nothing, oracle = (_row(found, one, "klom") for one in (arm, "nothing", "oracle"))
    upper = [_row(found, one, "klom-95")["value"] for one in (arm, "nothing", "oracle")]
    yield (
        f"Mean KLoM of {arm} on the forgotten examples is {_said(row)}, of doing nothing {_said(nothing)}, between the oracles "
        f"{_said(oracle)}; "
        f"the 95th percentile {upper[0]:.3g}, {upper[1]:.3g}, {upper[2]:.3g}."
    )
    for name in ("retain", "held-out"):
        if other := found.row(arm, "klom", name):
            near = "not " if found.near(arm, "klom", name) else ""
            yield (
                f"On {SETS[name]} {arm} is {near}told apart from the oracles: mean KLoM {_said(other)} against "
                f"{_said(_row(found, 'oracle', 'klom', name))}."
            )


def _refit(found: Forgetfulness, arm: str) -> Iterator[str]:
    row, nothing = _row(found, arm, "distance"), _row(found, "nothing", "distance")
    largest = max(one["value"] for name in SETS if (one := found.row(arm, "distance", name)))
    if largest <= ROUNDING:
        yield f"{arm} is the refit without these examples, up to rounding: the largest difference of any output is {largest:.2g}."
        return
    share = f", {row['value'] / nothing['value']:.3g} times that" if nothing["value"] > 0 else ""
    yield (
        f"{arm} is not the refit without these examples: outputs on them differ by up to {row['value']:.3g}, those of doing nothing by "
        f"up to {nothing['value']:.3g}{share}."
    )


def _use(found: Forgetfulness, arm: str) -> Iterator[str]:
    """What it costs: the headline metric on retained and held-out examples; and the metric on forgotten ones beside the oracles'."""
    headline = next((name for name in ("accuracy", "r2", "f1") if found.row("nothing", name, "retain")), None)
    if headline is None:
        return
    metric = WORDS.get(headline, headline.capitalize())
    for name in ("retain", "held-out"):
        row = found.row(arm, headline, name)
        if row is not None:
            word = "lost" if row["change_high"] < 0 else "gained" if row["change_low"] > 0 else "not clearly lost"
            yield (
                f"{metric} on {SETS[name]} is {word} by {arm}: {_said(row, 'change', '+.3g')} against doing nothing, {row['value']:.3g} "
                "in all."
            )
    row = found.row(arm, headline)
    if row is not None:
        near = "" if found.near(arm, headline) else "not "
        yield (
            f"{metric} of {arm} on the forgotten examples is {near}that of models that never saw them: {_said(row)} against "
            f"{_said(_row(found, 'oracle', headline))}."
        )


def _attacked(found: Forgetfulness, arm: str) -> Iterator[str]:
    for attack in _attacks(found):
        row, nothing, oracle = (_row(found, one, f"{attack}-auroc") for one in (arm, "nothing", "oracle"))
        near = found.near(arm, f"{attack}-auroc")
        side = "no more" if near else "more" if row["gap"] > 0 else "less, which gives them away as well,"
        yield (
            f"{_attack(attack)} knows the forgotten examples {side} in {arm} than in models that never saw them: area under the curve "
            f"{_said(row)} against {_said(oracle)} of the oracles and {_said(nothing)} of doing nothing."
        )
        for percent in FALSE_ALARMS:
            share, none, know = (found.row(one, f"{attack}-tpr-{percent}") for one in (arm, "oracle", "nothing"))
            if share is not None and none is not None and know is not None:
                more = "no more" if found.near(arm, f"{attack}-tpr-{percent}") else "more"
                yield (
                    f"{_attack(attack)} at {percent} % false alarms finds {more} of them in {arm} than in models that never saw them: a "
                    f"share of {_said(share)} against {_said(none)} of the oracles and {_said(know)} of doing nothing."
                )


def _relearned(found: Forgetfulness, arm: str) -> Iterator[str]:
    row, oracle = found.row(arm, "relearn"), found.row("oracle", "relearn")
    if row is None or oracle is None:
        return
    word = "as soon as" if found.near(arm, "relearn") else "sooner than" if row["gap"] < 0 else "later than"
    yield (
        f"Trained on them again, {arm} knows them as the parent did {word} models that never saw them: after {_epochs(row)} epochs against "
        f"{_epochs(oracle)}."
    )


def _represented(found: Forgetfulness, arm: str) -> Iterator[str]:
    row, oracle, own = (
        found.row(*which, "held-out") for which in ((arm, "cka-oracle"), ("oracle", "cka-oracle"), (arm, "cka-parent"))
    )
    if row is None or oracle is None or own is None:
        return
    like = "as like the oracles' as" if found.near(arm, "cka-oracle", "held-out") else "less like the oracles' than"
    parents = "the same as" if own["high"] >= SAME else "other than"
    yield (
        f"Features of {arm} are {like} these are like each other (CKA {_said(row)} against {_said(oracle)}), and {parents} those it "
        f"started with ({_said(own)})."
    )
    probe = found.row(arm, "probe", "held-out")
    if probe is not None:
        word = "less" if probe["change_high"] < 0 else "no less"
        yield (
            f"To a linear probe features of {arm} are worth {word} than before: {_said(probe)}, {_said(probe, 'change', '+.3g')} against "
            "doing nothing."
        )


def _repaired(found: Forgetfulness, arm: str) -> Iterator[str]:
    row = found.row(arm, "recovery")
    if row is not None:
        near = "" if found.near(arm, "recovery") else "not "
        yield (
            f"What the bad data displaced is {near}back in {arm}: {_said(row)} on the forgotten examples with their right targets, against "
            f"{_said(_row(found, 'oracle', 'recovery'))} of models that never saw the wrong ones."
        )
    row = found.row(arm, "cue", "held-out")
    if row is not None:
        word = "no longer works" if found.near(arm, "cue", "held-out") else "still works"
        oracle, nothing = (_row(found, one, "cue", "held-out") for one in ("oracle", "nothing"))
        yield (
            f"The cue {word} in {arm}: it gives its target on a share of {_said(row)} of other examples, on {_said(oracle)} in models "
            f"that never saw it and on {_said(nothing)} in models that know it."
        )


# --------------------------------------------------------------------------------------------------------------------- words


def _row(found: Forgetfulness, arm: str, measure: str, name: str = "forget") -> dict[str, Any]:
    row = found.row(arm, measure, name)
    assert row is not None, (arm, measure, name)
    return row


def _attacks(found: Forgetfulness) -> list[str]:
    """The attacks that were made."""
    return [name for name in ATTACKS if found.row("nothing", f"{name}-auroc")]


def _attack(name: str, article: str = "A") -> str:
    """An attack with its article."""
    return f"{article}{'n' if name == 'rmia' else ''} {ATTACKS[name]} attack"


def _listed(measures: list[str]) -> str:
    """Measures as a sentence names them."""
    return ", ".join(WORDS.get(name, name) for name in measures)


def _epochs(row: dict[str, Any]) -> str:
    return f"{CAP} or more" if row["value"] >= CAP else _said(row)


def _said(row: dict[str, Any], name: str = "value", digits: str = ".3g") -> str:
    """A value and its interval.

    >>> _said({"value": 0.1234, "low": 0.1, "high": 0.15})
    '0.123 [0.1, 0.15]'
    """
    low, high = (row["low"], row["high"]) if name == "value" else (row[f"{name}_low"], row[f"{name}_high"])
    return f"{row[name]:{digits}} [{low:{digits}}, {high:{digits}}]"
