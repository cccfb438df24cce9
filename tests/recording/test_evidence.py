"""Recorder and readers on their own: order of visits, blocks, compaction, and needs that cannot be met."""

from __future__ import annotations

from pathlib import Path

import lance
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imprint.errors import EvidenceError, RunError
from imprint.recording import tables
from imprint.recording.evidence import DynamicsReader, RowsReader
from imprint.recording.recorder import Recorder, _in_index_order
from imprint.tasks import Classification

TASK = Classification((0, 1))


def recorded(folder: Path, epochs: list[list[list[int]]], size: int = 6) -> DynamicsReader:
    """Record epochs of batches of indices; the logits of visit number k are (k, -k)."""
    recorder = Recorder(folder, TASK, torch.zeros(size, dtype=torch.int64))
    visit = step = 0
    for number, batches in enumerate(epochs, 1):
        for indices in batches:
            step += 1
            values = torch.arange(visit, visit + len(indices), dtype=torch.float32)
            visit += len(indices)
            recorder.on_batch(step, number, torch.tensor(indices), torch.stack([values, -values], 1), torch.zeros(1))
        recorder.write(number)
    return DynamicsReader(folder / "dynamics.lance", size)


def test_visits_are_put_in_index_order(tmp_path: Path) -> None:
    reader = recorded(tmp_path, [[[3, 1], [0, 2], [5, 4]], [[0, 1, 2, 3, 4, 5]]])
    logits = reader.read("logits")
    assert logits[0, :, 0].tolist() == [2, 1, 3, 0, 5, 4]
    assert logits[1, :, 0].tolist() == [6, 7, 8, 9, 10, 11]
    assert torch.equal(logits[..., 1], -logits[..., 0])


def test_what_an_epoch_left_out_is_missing_and_the_last_visit_counts(tmp_path: Path) -> None:
    logits = recorded(tmp_path, [[[3, 1, 3], [3, 0]]]).read("logits")[0, :, 0]
    assert logits[[0, 1, 3]].tolist() == [4, 1, 3]
    assert logits[[2, 4, 5]].isnan().all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_index_order_is_what_a_loop_gives(visits: list[int]) -> None:
    values = torch.arange(len(visits), dtype=torch.float16)[:, None]
    expected = [float("nan")] * 10
    for place, index in enumerate(visits):
        expected[index] = place
    ours = _in_index_order(torch.tensor(visits), values, 10)[:, 0].float()
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float32), equal_nan=True)


def test_blocks_are_cut_from_the_whole_also_after_compaction(tmp_path: Path) -> None:
    reader = recorded(tmp_path, [[[3, 1], [0, 2], [5, 4]], [[5, 4, 3, 2, 1, 0]], [[1, 0, 3, 2, 5, 4]]])
    whole = reader.read("logits")
    lance.dataset(str(tmp_path / "dynamics.lance")).optimize.compact_files()
    compacted = DynamicsReader(tmp_path / "dynamics.lance", 6)
    assert reader.aligned
    assert not compacted.aligned
    for one in (reader, compacted):
        for block in (slice(0, 2), slice(2, 6), slice(None), slice(4, 99)):
            assert torch.equal(one.read("logits", None, block), whole[:, block])


def test_what_float16_cannot_hold_is_its_largest_value(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, TASK, torch.zeros(1, dtype=torch.int64))
    recorder.on_batch(1, 1, torch.tensor([0]), torch.tensor([[1e9, -1e9]]), torch.zeros(1))
    recorder.write(1)
    assert DynamicsReader(tmp_path / "dynamics.lance", 1).read("logits").flatten().tolist() == [65504.0, -65504.0]


def test_epochs_can_be_forgotten_and_written_again(tmp_path: Path) -> None:
    recorded(tmp_path, [[[0, 1, 2, 3, 4, 5]]] * 3)
    recorder = Recorder(tmp_path, TASK, torch.zeros(6, dtype=torch.int64))
    recorder.cut(1)
    recorder.on_batch(2, 2, torch.arange(6), torch.full((6, 2), 9.0), torch.zeros(6))
    recorder.write(2)
    reader = DynamicsReader(tmp_path / "dynamics.lance", 6)
    assert reader.aligned
    assert reader.read("logits")[:, :, 0].tolist() == [[0, 1, 2, 3, 4, 5], [9] * 6]
    recorder.cut(0)
    assert not tables.exists(tmp_path / "dynamics.lance")


def test_an_unfinished_epoch_survives_in_a_checkpoint(tmp_path: Path) -> None:
    first, second = (Recorder(tmp_path / name, TASK, torch.zeros(4, dtype=torch.int64)) for name in "ab")
    first.on_batch(1, 1, torch.tensor([2, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2))
    second.restore(first.state())
    for recorder in (first, second):
        recorder.on_batch(2, 1, torch.tensor([1, 3]), torch.tensor([[5.0, 6.0], [7.0, 8.0]]), torch.zeros(2))
        recorder.write(1)
    ours, theirs = (DynamicsReader(tmp_path / name / "dynamics.lance", 4).read("logits") for name in "ab")
    assert torch.equal(ours, theirs)
    assert ours[0, :, 0].tolist() == [3, 5, 1, 7]


def test_rows_are_read_by_number(tmp_path: Path) -> None:
    from imprint.recording.collect import write_rows

    values = torch.arange(10.0)[:, None].repeat(1, 2)
    rows = torch.tensor([8, 2, 4, 0, 6])
    write_rows(tmp_path / "outputs.lance", rows, "logits", values[rows])
    reader = RowsReader(tmp_path / "outputs.lance", "logits")
    assert reader.rows.tolist() == [0, 2, 4, 6, 8]
    assert reader.read(torch.tensor([2, 6]))[:, 0].tolist() == [2, 6]
    assert reader.read()[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert reader.read(torch.empty(0, dtype=torch.int64)).shape == (0, 2)
    for absent in (3, 9):
        with pytest.raises(EvidenceError, match="does not hold"):
            reader.read(torch.tensor([absent]))


def test_a_table_of_another_size_is_refused(tmp_path: Path) -> None:
    recorded(tmp_path, [[[0, 1, 2, 3, 4, 5]]])
    with pytest.raises(RunError, match="not a multiple of the 5"):
        DynamicsReader(tmp_path / "dynamics.lance", 5)
