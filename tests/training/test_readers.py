"""Who reads the examples: a thread or processes, ahead of the steps, with the same bits; and what ends them."""

import dataclasses
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.data import from_arrays, load_dataset, make_codec
from scorefield.numerics.processes import World
from scorefield.sde_lib import VPSDE
from scorefield.training import Batches, ScoreMatching
from scorefield.training.readers import AUTO, Fetch, Workers, _work, chosen_workers

ROOT, CPU = Path(__file__).parents[2], torch.device("cpu")


class OnAccess:
    """Examples that are not in memory. Reading example `deadly` ends the process that reads it; `slow` sleeps at each."""

    def __init__(self, split, deadly=None, slow=0.0):
        self.inner, self.deadly, self.slow = split, deadly, slow

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        time.sleep(self.slow)
        if self.deadly is not None and self.deadly in index.tolist():
            faulthandler.disable()      # pytest's, whose report would hide that of the tests
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.inner[index]


@pytest.fixture(scope="module")
def digits():
    return load_dataset({"dataset": "digits"})


def batches_of(dataset, workers, world=None, **split):
    lazy = dataclasses.replace(dataset, train=OnAccess(dataset.train, **split))
    return Batches(lazy, make_codec(17, dequantize=True), ScoreMatching(VPSDE()), 100, 3, CPU, world, workers)


def processes(batches):
    return [process for process, _ in list(batches._ahead._workers)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_have_the_same_bits_for_every_number_of_workers_and_from_any_step(workers, digits):
    plain = Batches(digits, make_codec(17, dequantize=True), ScoreMatching(VPSDE()), 100, 3, CPU)
    batches = batches_of(digits, workers)
    for step in (*range(12, 20), 3, 4, 40):      # 1437 examples: an epoch ends within batch 14; then a resume, twice
        (batch, draw), (other, drawn) = batches(step), plain(step)
        pairs = zip((batch.x, batch.condition["label"], *draw[:3]), (other.x, other.condition["label"], *drawn[:3]),
                    strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    batches.close()


def test_the_numbers_of_a_steps_examples_are_known_and_shared_by_processes(digits):
    whole = batches_of(digits, 0).indices(20)
    assert torch.equal(digits.train[whole][1]["label"], batches_of(digits, 0)(20)[0].condition["label"])
    shares = [batches_of(digits, 0, World(rank, 4)).indices(20) for rank in range(4)]
    assert torch.equal(torch.stack(shares, 1).flatten(), whole)


def test_floats_labels_and_empty_conditions_come_back_from_a_process_as_they_were():
    x, c = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.randn(20, 2, dtype=torch.float64)
    told = {"label": torch.arange(20), "c": c, "on": c[:, 0] > 0}
    data = from_arrays(x, x[:1], told, {name: tensor[:1] for name, tensor in told.items()})
    fetch = Fetch(data.train, 8, 0)
    read = Workers(fetch, 2)
    for step in range(4):
        (here, told), (there, sent) = fetch(step), read(step)
        assert torch.equal(here, there) and here.dtype == there.dtype and list(told) == list(sent)
        assert all(torch.equal(told[name], sent[name]) and told[name].dtype == sent[name].dtype for name in told)
    read.close()


def pictures(folder, n=12):
    rng = np.random.default_rng(0)
    (folder / "a").mkdir(parents=True)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "a" / f"{i:02d}.png")
    return folder


@pytest.fixture
def lazy_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("scorefield.data.pictures.EAGER_BYTES", 0)
    return load_dataset({"dataset": "folder", "path": str(pictures(tmp_path / "set")), "channels": 3, "image_size": 8})


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_picture_is_one_line_that_names_the_file(workers, lazy_pictures):
    bad = lazy_pictures.train.data.files[3]
    whole, codec = bad.read_bytes(), make_codec(256, dequantize=True)
    bad.write_bytes(whole[:60])
    batches = Batches(lazy_pictures, codec, ScoreMatching(VPSDE()), 6, 0, CPU, workers=workers)
    with pytest.raises(ValueError, match=bad.name) as caught:
        for step in range(4):
            batches(step)
    assert caught.value.arguments == ("data.path",) and "\n" not in str(caught.value)
    bad.write_bytes(whole)
    batches.close()
    assert batches(0)[0].x.shape == (6, 3, 8, 8)
    batches.close()


def test_a_file_that_kills_its_reader_is_named_in_one_line(lazy_pictures):
    deadly = dataclasses.replace(lazy_pictures, train=OnAccess(lazy_pictures.train, deadly=5))
    deadly.train.split = lazy_pictures.train
    batches = Batches(deadly, make_codec(256, dequantize=True), ScoreMatching(VPSDE()), 4, 0, CPU, workers=2)
    with pytest.raises(OSError, match="was killed by SIGSEGV") as caught:
        for step in range(3):
            batches(step)
    assert str(lazy_pictures.train.data.files[5]) in str(caught.value) and "\n" not in str(caught.value)
    batches.close()


def test_a_reader_that_something_else_killed_is_told_from_a_bad_example(digits):
    batches = batches_of(digits, 1, slow=0.02)
    batches(0)
    processes(batches)[0].kill()
    with pytest.raises(OSError, match="was killed by SIGKILL, and each of them can be read; if memory ran out"):
        for step in range(1, 8):
            batches(step)
    batches.close()


@pytest.mark.parametrize("late", [0.0, 0.5], ids=["at work", "while they start"])
def test_readers_take_no_signals_and_end_with_close(late, digits, monkeypatch):
    def work(*words):
        time.sleep(late)
        _work(*words)

    monkeypatch.setattr("scorefield.training.readers._work", work)
    batches = batches_of(digits, 2)
    first = threading.Thread(target=batches, args=(0,))
    first.start()
    if not late:
        first.join()
    while len(readers := processes(batches)) < 2:
        time.sleep(0.01)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        for process in readers:
            os.kill(process.pid, getattr(signal, name))
    first.join()
    for step in range(1, 12):
        batches(step)
    assert all(process.is_alive() for process in readers)
    batches.close()
    assert not any(process.is_alive() for process in readers)


LONG = """
import sys, time
sys.path.insert(0, {tests!r})
from test_readers import batches_of, processes, load_dataset
batches = batches_of(load_dataset({{"dataset": "digits"}}), 2)
batches(0)
print(*[process.pid for process in processes(batches)], flush=True)
time.sleep({seconds})
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.costly
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc, and the kernel ends them at once on Linux alone")
@pytest.mark.parametrize("kill", [True, False], ids=["kill -9", "an end without close"])
def test_readers_end_with_the_process_that_started_them(kill):
    code = LONG.format(tests=str(ROOT / "tests" / "training"), seconds=60 if kill else 0)
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        readers = [int(word) for word in parent.stdout.readline().split()]
        if kill:
            assert len(readers) == 2 and all(map(alive, readers))
            parent.kill()
        assert parent.wait(30) == (-signal.SIGKILL if kill else 0)
    deadline = time.monotonic() + 10
    while any(map(alive, readers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(readers) == 2 and not any(map(alive, readers))


def test_a_thread_reads_for_a_network_on_the_cpu_and_processes_beside_a_gpu(digits, monkeypatch):
    monkeypatch.setattr("scorefield.training.readers.cores", lambda: 6)
    lazy, gpu = OnAccess(digits.train), torch.device("cuda")
    assert [chosen_workers(AUTO, lazy, device) for device in (CPU, gpu)] == [0, 5]
    assert [chosen_workers(n, lazy, CPU) for n in (0, 4)] == [0, 4]
    assert chosen_workers(4, digits.train, gpu) == 0      # they are in memory


def test_waiting_for_examples_is_counted_and_reading_ahead_hides_it(digits):
    batches = batches_of(digits, 2, slow=0.2)
    batches(0)
    first = batches.waited
    assert first >= 0.2
    for step in range(1, 5):
        time.sleep(0.4)
        batches(step)
    assert batches.waited - first < 0.4      # of 0.8
    batches.close()
