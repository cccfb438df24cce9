"""Opening a CSV beside Polars' own read of it: seconds and peak memory, each in processes of their own.

    python benchmarks/open_csv.py --rows 1000000

Polars reads the file into a frame. Imprint reads it, gives every row an id and a content hash, splits it class by class, stores
the inputs, and computes the fingerprint; each time into a fresh store. The two take turns, so that a change in the machine's
load meets both. Targets: at most 4 times Polars' time, peak memory at most twice the size of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TIMES, MEMORY = 4.0, 2.0

# The peak is the kernel's VmHWM: getrusage's would start at the size of the process that started this one.
PRELUDE = """
import json, sys, time
def report(seconds):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(json.dumps({"seconds": seconds, "peak": int(status["VmHWM"].split()[0]) * 1024}))
"""
POLARS = """
import polars
begin = time.perf_counter()
frame = polars.read_csv(sys.argv[1])
report(time.perf_counter() - begin)
"""
IMPRINT = """
import lance, imprint.corpus
begin = time.perf_counter()
corpus = imprint.open(sys.argv[1], store=sys.argv[2])
report(time.perf_counter() - begin)
"""
IMPORTS = """
import lance, imprint.corpus
report(0.0)
"""


def write_csv(path: Path, rows: int, seed: int = 0) -> None:
    """20 columns: 8 fractions, 5 integers, 4 categories, 1 short text, 1 code with gaps, 1 label."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(seed)
    words = np.array([f"word{k}" for k in range(5000)])
    with path.open("wb") as file:
        for start in range(0, rows, 100_000):
            n = min(100_000, rows - start)
            columns: dict[str, object] = {f"fraction_{k}": rng.normal(size=n).round(6) for k in range(8)}
            columns |= {f"integer_{k}": rng.integers(0, 10 ** (k + 2), n) for k in range(5)}
            columns |= {f"category_{k}": words[rng.integers(0, 40 * (k + 1), n)] for k in range(4)}
            text = [words[rng.integers(0, 5000, n)] for _ in range(8)]
            columns["text"] = [" ".join(one) for one in zip(*text, strict=True)]
            code = rng.integers(0, 10**9, n)
            columns["code"] = pl.Series([f"c-{one}" if one % 10 else None for one in code.tolist()])
            columns["label"] = np.array(["no", "yes"])[rng.integers(0, 2, n)]
            pl.DataFrame(columns).write_csv(file, include_header=start == 0)


def measure(code: str, *arguments: str) -> dict[str, float]:
    """Seconds and peak bytes of a fresh process that runs `code`."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *arguments], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5, help="readings of each (the median counts)")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the CSV and the stores go; default: a temporary folder"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="imprint-open-csv-", dir=options.folder) as folder:
        path = Path(folder) / "table.csv"
        write_csv(path, options.rows)
        size = path.stat().st_size
        runs: dict[str, list[dict[str, float]]] = {"polars": [], "imprint": []}
        for k in range(options.repeats):
            runs["polars"].append(measure(POLARS, str(path)))
            runs["imprint"].append(measure(IMPRINT, str(path), str(Path(folder) / f"store-{k}")))
        again = measure(IMPRINT, str(path), str(Path(folder) / "store-0"))
        bare = measure(IMPORTS)
    result: dict[str, object] = {"rows": options.rows, "columns": 20, "file_bytes": size, "cpus": os.cpu_count()}
    for name, measured in runs.items():
        seconds, peaks = ([one[key] for one in measured] for key in ("seconds", "peak"))
        result[name] = {
            "seconds": statistics.median(seconds),
            "fastest": min(seconds),
            "slowest": max(seconds),
            "peak_bytes": max(peaks),
            "peak_over_file": max(peaks) / size,
        }
    ours, peer = (result[name] for name in ("imprint", "polars"))
    assert isinstance(ours, dict)
    assert isinstance(peer, dict)
    result |= {
        "ratio": ours["seconds"] / peer["seconds"],
        "second_opening_seconds": again["seconds"],
        "imports_peak_bytes": bare["peak"],
        "targets": {"ratio": TIMES, "peak_over_file": MEMORY},
    }
    result["met"] = bool(result["ratio"] <= TIMES and ours["peak_over_file"] <= MEMORY)  # type: ignore[operator]
    print(json.dumps(result, indent=1))
    print(f"\n{options.rows:,} rows x 20 columns, {size / 2**20:.0f} MiB, {os.cpu_count()} CPUs")
    print(f"{'':24}{'seconds (range)':>24}{'peak MiB':>12}{'peak / file':>14}")
    for name, one in (("polars.read_csv", peer), ("imprint.open", ours)):
        spread = f"{one['seconds']:.2f} ({one['fastest']:.2f} to {one['slowest']:.2f})"
        print(f"{name:24}{spread:>24}{one['peak_bytes'] / 2**20:>12.0f}{one['peak_over_file']:>14.2f}")
    print(
        f"{'imprint.open, again':24}{again['seconds']:>24.2f}{again['peak'] / 2**20:>12.0f}{again['peak'] / size:>14.2f}"
    )
    print(f"{'(imports alone)':24}{'':>24}{bare['peak'] / 2**20:>12.0f}{bare['peak'] / size:>14.2f}")
    print(
        f"time ratio {result['ratio']:.2f} (target at most {TIMES:g}); memory {ours['peak_over_file']:.2f} x the file (at most {MEMORY:g})"
    )


if __name__ == "__main__":
    main()
