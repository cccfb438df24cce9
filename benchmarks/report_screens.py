"""Look at the report: build it from real data, open it in headless Chromium, take pictures, and list what went wrong.

    python benchmarks/report_screens.py --out /tmp/screens [--only image text table empty]

For each data set: seconds to write, bytes, seconds until it has drawn, console errors, requests beyond the file itself, elements that
stick out of the page; and screenshots in light, dark and at 390 px, of the whole page and of the findings.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "reporting"))
import materials
from browser import Browser

from imprint.reporting import Material, write_report

VIEWS = {
    "light": (1280, 900, False),
    "dark": (1280, 900, True),
    "phone": (390, 844, False),
    "phone-dark": (390, 844, True),
}
STICKS_OUT = """[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
  && !e.closest('.scroll, pre, svg, .bar nav')).slice(0, 5).map(e => e.outerHTML.slice(0, 90))"""


def nothing() -> Material:
    """An audit that found nothing and verified nothing."""
    full = materials.tiny()
    examples = full.examples.select("id", "position", "split", "label")
    return Material(name="A clean set", examples=examples, findings=full.findings.clear(), modality="table")


SETS = {"image": materials.images, "text": materials.texts, "table": materials.tables, "empty": nothing,
        "hostile": lambda: materials.tiny(materials.HOSTILE)}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path("/tmp/screens"))
    arguments.add_argument("--only", nargs="*", choices=SETS, default=list(SETS))
    chosen = arguments.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in chosen.only:
        material = SETS[name]()
        start = time.perf_counter()
        report = write_report(chosen.out / f"{name}.html", material)
        wrote = time.perf_counter() - start
        for view, (width, height, dark) in VIEWS.items():
            with Browser(width, height, dark) as browser:
                start = time.perf_counter()
                browser.open(report)
                opened = time.perf_counter() - start
                sticks_out = browser.evaluate(STICKS_OUT)
                browser.screenshot(chosen.out / f"{name}-{view}.png")
                browser.screenshot(chosen.out / f"{name}-{view}-findings.png", "#findings")
                rows.append(
                    {
                        "set": name, "view": view, "examples": material.examples.height, "findings": material.findings.height,
                        "MB": report.stat().st_size / 1e6, "write s": wrote, "open s": opened, "console errors": len(browser.errors),
                        "requests": len(browser.requests) - 1, "stick out": len(sticks_out),
                    }
                )  # fmt: skip
                for problem in (*browser.errors, *browser.requests[1:], *sticks_out):
                    print(f"{name} {view}: {problem}")
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_width_chars=160, float_precision=2):
        print(pl.DataFrame(rows))


if __name__ == "__main__":
    main()
