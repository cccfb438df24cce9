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
# Ten intents about transfers. They are easily taken for each other, by the model and by those who wrote the labels.
INTENTS = (
    "balance_not_updated_after_bank_transfer", "beneficiary_not_allowed", "cancel_transfer", "declined_transfer",
    "failed_transfer", "pending_transfer", "transfer_fee_charged", "transfer_into_account",
    "transfer_not_received_by_recipient", "transfer_timing",
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
