"""Projected gradients of a GPT-2 of about 10 million parameters, beside one epoch of its training, bergson and dattri-llm.

The model: 4 layers of 384, 8,192 words, positions up to 256, head tied to the embedding (10.3 million parameters, random weights, no
dropout). Documents: 256 words of film reviews, the 8,192 most frequent words apart, the rest one word. Each job runs in a process of its
own, `--repeats` times in turn:

- epoch: one epoch of AdamW (fused), the mean loss of the next word;
- record: `imprint.gradients.project` to `--size` float16 numbers per document on disk, all layers (embedding, head and norms too);
- record half: the same of half of the documents, whose peak memory must be the same;
- bergson, dattri-llm: their factored projections to the same size, of the 16 linear layers of the blocks alone (bergson does not read
  the tied embedding, dattri-llm's factored projection no norms), float32 as they keep it, written by their own collectors.

Seconds are of the job alone after one batch to warm up, on the wall and of the processor (the second says more where others compute).
Peak memory is above what the process held before the job: model, documents and libraries are not counted. Ratios are to the epoch of the
same turn; the aim is at most 1.6.

An epoch of 2,000 documents and their recording take minutes each. `--ours-only` records 250, 500, 1,000 and 2,000 documents (an eighth of
`--documents`, and so on), each in a process of its own, for what time and peak memory owe to their number; and trains `--steps` of the
epoch's steps, evenly drawn, before and after the largest recording. An epoch's seconds are then the mean step's times the number of steps.

    python benchmarks/gpt_gradients.py --documents 64
    python benchmarks/gpt_gradients.py --documents 2000 --ours-only                                   about 8 minutes on 2 cores
    python -m venv /tmp/bergson && /tmp/bergson/bin/pip install bergson           # peers: each in an environment of its own
    python benchmarks/gpt_gradients.py --bergson /tmp/bergson/bin/python --dattri /tmp/dattri/bin/python
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

REVIEWS = Path(__file__).parents[2] / "shared/data/text/imdb10k/imdb10k.jsonl.xz"
WORDS, POSITIONS, WIDTH, LAYERS = 8192, 256, 384, 4
LINEAR = 4 * LAYERS


def documents(count: int) -> np.ndarray:
    """`[document, 256]` codes of words; 0 is every rare one. More than the reviews hold are taken from their start again."""
    with lzma.open(REVIEWS, "rt", encoding="utf-8") as lines:
        words = [word for line in lines for word in re.findall(r"[a-z']+|[.,!?]", json.loads(line)["text"].lower())]
    codes = {word: code for code, (word, _) in enumerate(Counter(words).most_common(WORDS - 1), start=1)}
    return np.resize(np.array([codes.get(word, 0) for word in words]), (count, POSITIONS))


def gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS, n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=6,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


# Each job prepares itself and returns what is timed: (batches of `[document, 256]`, folder) -> seconds of each step, if it times them.
Job = Callable[[list[torch.Tensor], Path], list[float] | None]


def epoch(model: torch.nn.Module, size: int) -> Job:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run(batches: list[torch.Tensor], _: Path) -> list[float]:
        model.train()
        ends = [time.perf_counter()]
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            following = F.pad(batch[:, 1:], (0, 1), value=-100)
            F.cross_entropy(model(batch, use_cache=False).logits.flatten(0, 1), following.flatten()).backward()
            optimizer.step()
            ends.append(time.perf_counter())
        return np.diff(ends).tolist()

    return run


def record(model: torch.nn.Module, size: int) -> Job:
    from imprint.gradients import project

    def run(batches: list[torch.Tensor], folder: Path) -> None:
        project(model, ({"input_ids": batch} for batch in batches), size=size, path=folder / "gradients.lance")

    return run


def bergson(model: torch.nn.Module, size: int) -> Job:
    from bergson import DataConfig, GradientProcessor, IndexConfig, collect_gradients
    from datasets import Dataset

    side = round((size / LINEAR) ** 0.5)

    def run(batches: list[torch.Tensor], folder: Path) -> None:
        rows = [row for batch in batches for row in batch.tolist()]
        data = Dataset.from_dict({"input_ids": rows, "length": [POSITIONS] * len(rows)})
        config = IndexConfig(run_path=str(folder / "bergson"), data=DataConfig(), projection_dim=side)
        config.partial_run_path.mkdir(parents=True, exist_ok=True)
        ends = np.cumsum([len(batch) for batch in batches]).tolist()
        indices = [list(range(end - len(batch), end)) for end, batch in zip(ends, batches, strict=True)]
        collect_gradients(model, data, GradientProcessor(projection_dim=side), config, batches=indices)

    return run


def dattri(model: torch.nn.Module, size: int) -> Job:
    from dattri_llm import GradientStorageManager, HookManager, HookManagerConfig, OffloadCallback

    side = round((size / LINEAR) ** 0.5)

    def run(batches: list[torch.Tensor], folder: Path) -> None:
        config = HookManagerConfig(
            linear_io=[r"transformer\.h\.\d+\.(attn|mlp)\."],
            capture_style="materialized",
            projection_kwargs={
                "__default__": {"style": "logra", "proj_dim": side, "proj_max_batch_size": 8, "proj_type": "rademacher"}
            },
        )
        store = GradientStorageManager(str(folder / "dattri"))
        hooks = HookManager(model, config=config, callbacks=[OffloadCallback(16, store)])
        with hooks.collect(deregister_on_exit=True):
            for batch in batches:
                following = F.pad(batch[:, 1:], (0, 1), value=-100)
                logits = model(batch, use_cache=False).logits
                F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum").backward()
                model.zero_grad(set_to_none=True)

    return run


JOBS = {"epoch": epoch, "record": record, "record half": record, "bergson": bergson, "dattri-llm": dattri}


def one(options: argparse.Namespace) -> None:
    """A job in this process; prints what it took as the last line."""
    torch.set_num_threads(options.threads)
    codes = torch.from_numpy(np.load(options.codes))
    codes = codes[: len(codes) // 2] if options.job == "record half" else codes[: options.first]
    batches = list(codes.split(options.batch))
    if options.steps:
        batches = [batches[place] for place in np.linspace(0, len(batches) - 1, options.steps).round().astype(int)]
    run = JOBS[options.job](gpt2(), options.size)
    with tempfile.TemporaryDirectory() as warm:
        run(batches[:1], Path(warm))
    with tempfile.TemporaryDirectory() as folder:
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        wall, processor = time.perf_counter(), time.process_time()
        steps = run(batches, Path(folder))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    found = {"documents": sum(map(len, batches)), "wall": wall, "processor": processor, "disk": disk, "steps": steps}
    print(json.dumps({**found, "peak": status("VmHWM") - before}))


def status(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    return int(dict(line.split(":", 1) for line in open("/proc/self/status"))[name].split()[0]) * 1024


def job(name: str, python: str, codes: Path, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """What a job took in a process of its own."""
    words = [python, __file__, "--job", name, "--codes", str(codes), "--size", str(options.size)]
    words += ["--batch", str(options.batch), "--threads", str(options.threads), *more]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peers(codes: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All jobs in turn."""
    pythons = {"epoch": sys.executable, "record": sys.executable, "record half": sys.executable}
    pythons |= {"bergson": options.bergson} if options.bergson else {}
    pythons |= {"dattri-llm": options.dattri} if options.dattri else {}
    took: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
    for _ in range(options.repeats):
        for name, python in pythons.items():
            took[name].append(job(name, python, codes, options))
    print(
        f"{'job':12} {'documents':>9}  {'wall s':22} {'processor s':22} {'documents/s':>11} {'peak MiB':>8} {'disk MiB / 1k':>13}"
    )
    for name, each in took.items():
        count = each[0]["documents"]
        rate, peak = count / np.median([one["wall"] for one in each]), max(one["peak"] for one in each) / 2**20
        disk = each[0]["disk"] / count * 1000 / 2**20
        wall, processor = (_spread([one[kind] for one in each]) for kind in ("wall", "processor"))
        print(f"{name:12} {count:9}  {wall:22} {processor:22} {rate:11.2f} {peak:8.0f} {disk:13.2f}")
    for kind in ("wall", "processor"):
        ratios = [two[kind] / first[kind] for first, two in zip(took["epoch"], took["record"], strict=True)]
        print(f"record / epoch, {kind}: {_spread(ratios)}")
    return [{"job": name, "runs": each} for name, each in took.items()]


def alone(codes: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Recording of an eighth to all of the documents, and the epoch from some of its steps before and after."""
    total = -(-options.documents // options.batch)
    steps = min(max(2, options.steps), total)
    counts = [options.documents // part for part in (8, 4, 2, 1)]
    print(
        f"{'job':20} {'documents':>9} {'wall s':>8} {'processor s':>11} {'documents/s':>11} {'peak MiB':>8} {'disk MiB / 1k':>13}"
    )

    def shown(name: str, one: dict[str, Any]) -> dict[str, Any]:
        count, disk = one["documents"], one["disk"] / one["documents"] * 1000 / 2**20
        print(
            f"{name:20} {count:9} {one['wall']:8.1f} {one['processor']:11.1f} {count / one['wall']:11.2f} {one['peak'] / 2**20:8.0f} "
            f"{disk:13.2f}",
            flush=True,
        )
        return one

    def sampled(name: str) -> dict[str, Any]:
        return shown(f"{steps} steps {name}", job("epoch", sys.executable, codes, options, "--steps", str(steps)))

    def recorded(count: int) -> dict[str, Any]:
        return shown("record", job("record", sys.executable, codes, options, "--first", str(count)))

    records = [recorded(count) for count in counts[:-1]]
    samples = [sampled("before")]
    records.append(recorded(counts[-1]))
    samples.append(sampled("after"))
    for name, one in zip(("before", "after"), samples, strict=True):
        mean, error = np.mean(one["steps"]), np.std(one["steps"], ddof=1) / len(one["steps"]) ** 0.5
        least, ratio, most = (records[-1]["wall"] / total / (mean + sign * 2 * error) for sign in (1, 0, -1))
        processor = records[-1]["processor"] / total / (one["processor"] / steps)
        print(
            f"record / epoch by {steps} of {total} steps {name}: wall {ratio:.2f} ({least:.2f} to {most:.2f} by two standard errors of the "
            f"mean step), processor {processor:.2f}; a step takes {_spread(one['steps'])} s"
        )
    peaks = [one["peak"] / 2**20 for one in records]
    rates = [one["documents"] / one["wall"] for one in records]
    print(
        f"{counts[-1] // counts[0]} times the documents: {peaks[-1] / peaks[0]:.2f} times the peak memory "
        f"({peaks[0]:.0f} to {peaks[-1]:.0f} MiB), {rates[0] / rates[-1]:.2f} times the seconds of each"
    )
    return [{"job": "record", "runs": records}, {"job": "epoch", "runs": samples}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--size", type=int, default=1024, help="numbers per document")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bergson", help="python of an environment with bergson")
    parser.add_argument("--dattri", help="python of an environment with dattri-llm")
    parser.add_argument(
        "--ours-only", action="store_true", help="one recording of each of four sizes, some steps of the epoch"
    )
    parser.add_argument("--steps", type=int, help="of the epoch that --ours-only trains; 48 unless told")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--job", choices=list(JOBS), help=argparse.SUPPRESS)
    parser.add_argument("--codes", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        return one(options)
    options.steps = options.steps or 48
    parameters = sum(each.numel() for each in gpt2().parameters())
    times = "once" if options.ours_only else f"{options.repeats} repeats: median (least to most)"
    print(
        f"{parameters / 1e6:.1f} million parameters, {options.documents} documents of {POSITIONS} words in batches of {options.batch}, "
        f"{options.size} numbers each, {options.threads} threads, {times}"
    )
    with tempfile.TemporaryDirectory() as folder:
        codes = Path(folder) / "codes.npy"
        np.save(codes, documents(options.documents))
        found = (alone if options.ours_only else peers)(codes, options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


def _spread(values: list[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
