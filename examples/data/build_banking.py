"""Build banking.csv: the questions of ten intents of banking77, as a small text set for the docs and the tests.

Run from the repository root, with the raw data beside it in ../shared/data:

    python examples/data/build_banking.py
"""

from __future__ import annotations

import csv
import json
import lzma
from pathlib import Path

RAW = Path(__file__).parents[3] / "shared/data/text/banking77/banking77.jsonl.xz"
OUT = Path(__file__).with_name("banking.csv")
# Ten intents about cards and cash; several are easily taken for each other, which is where labels go wrong.
INTENTS = (
    "card_arrival", "card_delivery_estimate", "card_linking", "card_not_working", "card_payment_not_recognised",
    "card_swallowed", "cash_withdrawal_charge", "compromised_card", "lost_or_stolen_card", "pending_cash_withdrawal",
)  # fmt: skip


def main() -> None:
    """Read the raw lines, keep the ten intents, and write one CSV."""
    with lzma.open(RAW, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["label"] in INTENTS]
    with OUT.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["split", "text", "label"])
        writer.writerows((row["split"], row["text"].strip(), row["label"]) for row in rows)
    print(f"{OUT}: {len(rows)} questions, {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
