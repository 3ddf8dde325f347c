"""Files of data sets that are fetched once, whole, and verified; CIFAR's archives among them."""

import dataclasses
import hashlib
import http.server
import threading

import pytest
import torch
from helpers import smooth_pictures, write_cifar10, write_cifar10_archive

from scorefield.data import cifar, load_dataset
from scorefield.data.download import fetch, once


@pytest.fixture
def server(tmp_path):
    """The address of a server of a folder on this machine, and that folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder
        httpd.shutdown()


def test_a_file_is_fetched_once_whole_and_verified(server, tmp_path, capsys):
    address, folder = server
    content = bytes(range(256)) * 10_000
    (folder / "a.bin").write_bytes(content)
    file = tmp_path / "cache/deep/a.bin"
    fetch(f"{address}/a.bin", file, hashlib.sha256(content).hexdigest())
    assert file.read_bytes() == content and capsys.readouterr().out == f"downloading {address}/a.bin to {file}\n"
    (folder / "a.bin").unlink()
    fetch(f"{address}/a.bin", file, "anything")      # it is there
    assert [f.name for f in file.parent.iterdir()] == ["a.bin"]


def test_what_is_altered_or_missing_leaves_nothing_behind(server, tmp_path):
    address, folder = server
    (folder / "a.bin").write_bytes(b"altered")
    for name, words in (("a.bin", "SHA-256 of what came is .*, expected 00"), ("b.bin", "HTTPError: HTTP Error 404")):
        with pytest.raises(OSError, match=f"the download of {address}/{name} failed .*{words}") as caught:
            fetch(f"{address}/{name}", tmp_path / "cache" / name, "00")
        assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_other_processes_of_a_machine_wait_for_the_first_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    waiting = threading.Thread(target=once, args=(tmp_path / "a", lambda: pytest.fail("made twice")))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    monkeypatch.setenv("LOCAL_RANK", "0")
    once(tmp_path / "a", (tmp_path / "a").touch)
    waiting.join(10)
    assert not waiting.is_alive()


def test_cifar10_is_fetched_from_its_page_where_nothing_is_at_the_default_place(server, tmp_path, monkeypatch):
    address, folder = server
    archive = write_cifar10_archive(folder, write_cifar10(tmp_path / "made", 23, 4))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "PAGE", address)
    monkeypatch.setattr(cifar, "CIFAR10", dataclasses.replace(cifar.CIFAR10, sha256=digest))
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path / "cache"))
    for _ in range(2):
        dataset = load_dataset({"dataset": "cifar10"})
        assert torch.equal(dataset.train.data, torch.from_numpy(smooth_pictures(27)[:23])) and dataset.classes == 10
        archive.unlink(missing_ok=True)      # the second time it comes from the cache
    assert [f.name for f in (tmp_path / "cache/cifar10").iterdir()] == ["cifar-10-python.tar.gz"]


@pytest.mark.parametrize("name, archive", [("cifar10", "cifar-10-python.tar.gz"), ("cifar100", "cifar-100-python.tar.gz")])
def test_without_a_network_one_line_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch, name, archive):
    monkeypatch.setattr(cifar, "PAGE", "http://127.0.0.1:1")      # refuses
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path))
    with pytest.raises(OSError, match=f"CIFAR-10.* is not in {tmp_path}/{name}, and the download of http://127.0.0.1:1/"
                                      f"{archive} failed .*; fetch that file on another machine, and put it into this "
                                      "folder or set data.path to it") as caught:
        load_dataset({"dataset": name})
    assert "\n" not in str(caught.value) and "pip" not in str(caught.value)


def test_the_archives_are_those_of_the_official_page():
    """The checksums that many projects pin, such as Keras."""
    assert cifar.PAGE == "https://www.cs.toronto.edu/~kriz"
    assert cifar.CIFAR10.sha256.startswith("6d958be0") and cifar.CIFAR100_COARSE.sha256.startswith("85cd44d0")
