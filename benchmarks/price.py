"""The price that was said beside the price that was paid: seconds, disk and memory of fits and audits.

    python benchmarks/price.py                  the bundled images and texts
    python benchmarks/price.py SOURCE TARGET    your own

Each job runs in a process of its own. `ratio` is paid / said; the aim is 0.75 to 1.33 for seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "data"
JOB = """
import json, sys, time
from pathlib import Path
import imprint
source, target, call, seeds, out = sys.argv[1:6]
learner, corpus = imprint.Learner(), imprint.open(source, target=target, store=Path(out) / "store")
said = imprint.price(call, learner, corpus, seeds=int(seeds))
began = time.perf_counter()
if call == "fit":
    imprint.fit(learner, corpus, Path(out) / "run", progress=False)
else:
    imprint.audit(corpus, learner=learner, out=Path(out) / "audit", seeds=int(seeds), progress=False)
seconds = time.perf_counter() - began
results = Path(out) / ("run" if call == "fit" else "audit")
disk = sum(file.stat().st_size for file in results.rglob("*") if file.is_file())
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "seconds": [said.seconds, seconds], "disk": [said.disk_bytes, disk],
    "memory": [said.memory_bytes, int(status["VmHWM"].split()[0]) * 1024],
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?")
    parser.add_argument("target", nargs="?")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    sources = (
        [(options.source, options.target)]
        if options.source
        else [(str(EXAMPLES / name), "label") for name in ("banking.csv", "notmnist.parquet")]
    )
    print(f"{'job':32} {'unit':8} {'said':>10} {'paid':>10} {'ratio':>6}")
    for source, target in sources:
        for call in ("fit", "audit"):
            with tempfile.TemporaryDirectory() as out:
                words = [sys.executable, "-c", JOB, source, target, call, str(options.seeds), out]
                done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            for unit, (said, paid) in json.loads(done.stdout.strip().splitlines()[-1]).items():
                scale = 1 if unit == "seconds" else 2**20
                job = f"{call} {Path(source).name}"
                name = unit if unit == "seconds" else f"{unit} MiB"
                print(f"{job:32} {name:11} {said / scale:8.1f} {paid / scale:9.1f} {paid / said:6.2f}")


if __name__ == "__main__":
    main()
