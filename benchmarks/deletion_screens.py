"""Look at the deletion report: a stream of requests on real texts, verified and erased, in headless Chromium; and what erasing costs.

    python benchmarks/deletion_screens.py --out /tmp/screens [--data examples/data/banking.csv] [--oracles 12] [--models 4]

For each request: seconds of forgetting, of erasing and of the search in it, values and bytes searched, what was found, and seconds to write
the report; then the report in light, dark and at 390 px, its console errors, requests beyond the file, and what sticks out of the page.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

import imprint
from imprint.reporting import write_deletion

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "reporting"))
from browser import Browser
from report_screens import STICKS_OUT, VIEWS


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path("/tmp/screens"))
    arguments.add_argument(
        "--data", type=Path, default=Path(__file__).resolve().parents[1] / "examples/data/banking.csv"
    )
    arguments.add_argument("--oracles", type=int, default=12)
    arguments.add_argument("--models", type=int, default=4)
    chosen = arguments.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="imprint-deletion-"))
    corpus = imprint.open(chosen.data, target="label", store=folder / "store")
    run = imprint.fit(imprint.Learner("mlp"), corpus, folder / "base", progress=False)
    run.evidence("features")
    requests = (
        ("ids", {"ids": run.ids[:40].to_list()}, "ssd"),
        ("condition", {"where": "length(text) > 120"}, "fine-tune"),
        ("class", {"classes": [run.task.classes[0]]}, "retrain"),
    )
    rows = []
    for name, asked, method in requests:
        began = time.perf_counter()
        run = imprint.forget(run, method=method, path=folder / name, progress=False, **asked)
        forgot = time.perf_counter()
        verdict = imprint.verify(run, oracles=chosen.oracles, models=chosen.models, attacks=False, progress=False)
        judged = time.perf_counter()
        run = imprint.erase(run)
        erased = time.perf_counter()
        report = write_deletion(run, chosen.out / f"deletion-{name}.html")
        about = run.manifest["erased"]
        rows.append({
            "request": name, "method": method, "examples": run.manifest["forgot"]["count"], "forget s": forgot - began,
            "verify s": judged - forgot, "erase s": erased - judged, "search s": about["searched"]["seconds"],
            "values": about["searched"]["values"], "MB": about["searched"]["bytes"] / 1e6, "found": len(about["found"]),
            "report s": time.perf_counter() - erased, "told apart": ", ".join(verdict.told_apart(method)) or "no",
        })  # fmt: skip
        for view, (width, height, dark) in VIEWS.items():
            with Browser(width, height, dark) as browser:
                browser.open(report)
                browser.screenshot(chosen.out / f"deletion-{name}-{view}.png")
                for problem in (*browser.errors, *browser.requests[1:], *browser.evaluate(STICKS_OUT)):
                    print(f"{name} {view}: {problem}")
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_width_chars=180, float_precision=2):
        print(pl.DataFrame(rows))


if __name__ == "__main__":
    main()
