"""Audit labelled text, and read the labels that the model kept refusing: python examples/audit_text.py [FILE] [TARGET]"""

import sys
from pathlib import Path

import imprint

FILE = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "data/banking.csv"
TARGET = sys.argv[2] if len(sys.argv) > 2 else "label"

if __name__ == "__main__":
    result = imprint.audit(FILE, target=TARGET, out="out/text", seeds=2)
    findings = result.findings.frame()
    suspects = findings.filter(findings["kind"] == "label").sort("severity", descending=True).head(10)
    texts = result.corpus.frame(result.corpus.rows_of(suspects["id"].to_list()))
    for finding, row in zip(suspects.iter_rows(named=True), texts.iter_rows(named=True), strict=True):
        words = " ".join(str(row[name]) for name in result.corpus.roles.inputs)
        print(f"{finding['severity']:.2f}  {row[TARGET]} -> {finding['suggested_value'] or '?'}: {words[:90]}")
    print(result.verdict)
    print(f"Open {result.report}")
