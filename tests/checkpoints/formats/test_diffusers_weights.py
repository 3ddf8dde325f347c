"""The weights of a folder of diffusers: shards, variants, which file is read, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from scorefield.checkpoints.checkpoint import Checkpoint
from scorefield.checkpoints.formats import diffusers_weights, hub
from scorefield.checkpoints.formats.diffusers import read, write
from scorefield.checkpoints.formats.diffusers_weights import BASE, chosen, is_whole, parts_of, read_weights
from scorefield.models.build import build_denoiser

NUMBERS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4.0), "c": torch.ones(1)}
PLACES = {"a": 1, "b": 2, "c": 2}      # the shard of each
SAFE, BIN = f"{BASE}.safetensors", f"{BASE}.bin"


def save(path, tensors):
    (save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)


@pytest.fixture
def shards(tmp_path):
    """Writes the numbers as two shards and their index; returns the index."""
    def shards(suffix="safetensors", variant="", old=False, tensors=NUMBERS, places=PLACES, change=None):
        dot = f".{variant}" if variant else ""
        before, after = ("", dot) if old else (dot, "")
        names = [f"{BASE}{before}-{i:05d}-of-00002{after}.{suffix}" for i in (1, 2)]
        for i, name in enumerate(names, 1):
            save(tmp_path / name, {key: tensors[key] for key, place in places.items() if place == i})
        content = {"metadata": {"total_size": 44}, "weight_map": {key: names[place - 1] for key, place in places.items()}}
        if change:
            content = change(content)
        index = tmp_path / (f"{BASE}.{suffix}{dot}.index.json" if old else f"{BASE}.{suffix}.index{dot}.json")
        index.write_text(content if isinstance(content, str) else json.dumps(content))
        return index
    return shards


def assert_numbers(tensors, times=1.0):
    assert tensors.keys() == NUMBERS.keys()
    assert all(torch.equal(tensors[key].float(), times * value) for key, value in NUMBERS.items())


@pytest.mark.parametrize(("variant", "old"), [("", False), ("fp16", False), ("fp16", True), ("ema", False)])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_joined(suffix, variant, old, shards, tmp_path):
    index = shards(suffix, variant, old)
    tensors, path = read_weights(tmp_path)
    assert_numbers(tensors)
    assert path == index


@pytest.mark.parametrize(("names", "expected"), [
    ([SAFE, BIN], SAFE), ([BIN, f"{BASE}.fp16.safetensors"], BIN), ([f"{BASE}.fp16.bin", f"{BASE}.fp16.safetensors"],
                                                                    f"{BASE}.fp16.safetensors"),
    ([f"{BASE}.ema.safetensors", f"{BASE}.fp16.bin"], f"{BASE}.fp16.bin"), ([f"{BASE}.non_ema.bin"], f"{BASE}.non_ema.bin"),
    ([f"{BASE}.ema.bin", f"{BASE}.bf16.bin"], None), ([], None), (["model.safetensors", "config.json"], None),
    ([f"{SAFE}.index.json", BIN], f"{SAFE}.index.json"), ([f"{SAFE}.index.json", SAFE], SAFE),
    ([f"{BIN}.index.json", f"{BASE}.fp16.safetensors"], f"{BIN}.index.json"),
    ([f"{BASE}.fp16-00001-of-00002.safetensors", f"{SAFE}.index.fp16.json"], f"{SAFE}.index.fp16.json"),
    ([f"{BASE}-00001-of-00002.safetensors", f"{BASE}.fp16-00001-of-00002.safetensors"], None),
], ids=range(13))
def test_the_plain_weights_are_read_else_fp16_else_the_only_variant(names, expected):
    assert chosen(names) == expected and chosen(names[::-1]) == expected


def test_of_a_plain_file_and_its_variant_the_full_one_is_read(tmp_path):
    save(tmp_path / f"{BASE}.fp16.safetensors", {key: 2 * value.half() for key, value in NUMBERS.items()})
    tensors, path = read_weights(tmp_path)
    assert_numbers(tensors, 2.0)
    assert path.name == f"{BASE}.fp16.safetensors"
    save(tmp_path / BIN, NUMBERS)
    tensors, path = read_weights(tmp_path)
    assert_numbers(tensors)
    assert path.name == BIN


def test_several_variants_without_a_plain_one_or_fp16_are_named(tmp_path):
    for variant in ("ema", "bf16"):
        save(tmp_path / f"{BASE}.{variant}.safetensors", NUMBERS)
    with pytest.raises(ValueError, match="only as the variants bf16, ema; keep the files of the one that you mean"):
        read_weights(tmp_path)


# Shards that are refused


def changed(key, value):
    return lambda content: content | {"weight_map": content["weight_map"] | {key: value}}


@pytest.mark.parametrize(("change", "match"), [
    (lambda content: "{", "damaged"), (lambda content: {"metadata": {}}, "weight_map does not map"),
    (lambda content: content | {"weight_map": {}}, "weight_map does not map"),
    (lambda content: content | {"weight_map": {"a": 1}}, "weight_map does not map"),
    *((changed("a", place), "weight_map names .*not a file of weights beside it") for place in (
        "../secret.safetensors", "/etc/a.safetensors", "shards/one.safetensors", "..\\a.bin", "", "..", "config.json",
        "a\0.bin", "C:a.bin")),
    (changed("a", f"{BASE}-00003-of-00003.safetensors"), "lists 2 shards, but .*-00003-of-00003.safetensors not there"),
    (changed("d", f"{BASE}-00002-of-00002.safetensors"), "-00002-of-00002.safetensors does not fit .*it lacks d;"),
    (changed("a", f"{BASE}-00002-of-00002.safetensors"), "-00002-of-00002.safetensors does not fit .*it lacks a;"),
    (lambda content: content | {"weight_map": {k: content["weight_map"][k] for k in "ab"}}, "also holds c;"),
], ids=range(17))
def test_an_index_that_does_not_fit_its_shards_is_refused(change, match, shards, tmp_path):
    index = shards(change=change)
    with pytest.raises(ValueError, match=match) as caught:
        read_weights(tmp_path)
    assert "\n" not in str(caught.value) and index.name.removesuffix(".json") in str(caught.value)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_shard_that_is_missing_or_truncated_is_refused(suffix, shards, tmp_path):
    shards(suffix)
    second = tmp_path / f"{BASE}-00002-of-00002.{suffix}"
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(ValueError, match="00002-of-00002.* is truncated, altered or no"):
        read_weights(tmp_path)
    second.unlink()
    with pytest.raises(ValueError, match=f"lists 2 shards, but {second.name} not there; fetch what is missing"):
        read_weights(tmp_path)


# A whole folder


@pytest.fixture
def checkpoint():
    config = {"sde": {"name": "ddpm"}, "data": {"low": -1.0, "high": 1.0}, "shape": [3, 8, 8], "levels": 256, "model": {
        "network": "unet", "parametrization": "eps", "time_input": "index", "width": 8, "multipliers": (1, 2),
        "num_blocks": 1, "attention_resolutions": (), "classes": 3}, "training": {"label_dropout": 0.1}}
    torch.manual_seed(0)
    network = build_denoiser(config, (3, 8, 8)).network
    return Checkpoint(config, {name: torch.randn(value.shape) for name, value in network.state_dict().items()})


def assert_same(one, other):
    assert one.averaged.keys() == other.averaged.keys()
    assert all(torch.equal(one.averaged[name], value) for name, value in other.averaged.items())


def test_more_than_the_limit_is_written_as_shards_and_read_back(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusers_weights, "SHARD_BYTES", 20_000)
    write(checkpoint, tmp_path / "folder")
    index = json.loads((tmp_path / "folder" / f"{SAFE}.index.json").read_text())
    files = sorted(file.name for file in (tmp_path / "folder").glob("*.safetensors"))
    count = len(files)
    assert count > 2 and files == [f"{BASE}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    held = {file: load_file(tmp_path / "folder" / file) for file in files}
    for file, tensors in held.items():
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 20_000 or len(tensors) == 1
        assert {name for name, place in index["weight_map"].items() if place == file} == set(tensors)
    total = sum(tensor.nbytes for tensors in held.values() for tensor in tensors.values())
    assert index["metadata"]["total_size"] == total == sum(value.nbytes for value in checkpoint.averaged.values())
    assert_same(read(tmp_path / "folder"), checkpoint)
    monkeypatch.setattr(diffusers_weights, "SHARD_BYTES", total)      # as many bytes as there are fit into one file
    write(checkpoint, tmp_path / "one")
    assert [file.name for file in (tmp_path / "one").glob(f"{BASE}*")] == [SAFE]
    assert_same(read(tmp_path / "one"), checkpoint)


def test_the_shards_of_a_folder_come_to_diffusers_and_from_it(checkpoint, tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setattr(diffusers_weights, "SHARD_BYTES", 20_000)
    write(checkpoint, tmp_path / "ours")
    model = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False)
    for variant in (None, "fp16"):
        there = tmp_path / str(variant)
        model.save_pretrained(there, max_shard_size="20KB", variant=variant)
        (there / "scheduler_config.json").write_text((tmp_path / "ours" / "scheduler_config.json").read_text())
        assert len(list(there.glob("*.safetensors"))) > 2
        given = {"model": {"classes": 3}, "training": {"label_dropout": 0.1}}      # which diffusers does not keep
        assert_same(read(there, given), checkpoint)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_of_the_variant_fp16_are_read_as_float32_and_reported(suffix, checkpoint, tmp_path):
    write(checkpoint, tmp_path)
    assert read(tmp_path).note == ""
    halves = {name: value.half() for name, value in load_file(tmp_path / SAFE).items()}
    (tmp_path / SAFE).unlink()
    save(tmp_path / f"{BASE}.fp16.{suffix}", halves)
    again = read(tmp_path)
    assert again.note == f"the weights of {BASE}.fp16.{suffix} are float16, read as float32"
    assert all(torch.equal(again.averaged[name], value.half().float()) for name, value in checkpoint.averaged.items())


# What is fetched


SHARDS = [f"{BASE}-{i:05d}-of-00002.safetensors" for i in (1, 2)]
HALF_SHARDS = [f"{BASE}.fp16-{i:05d}-of-00002.safetensors" for i in (1, 2)]
OLD_SHARDS = [f"{BASE}-{i:05d}-of-00002.fp16.safetensors" for i in (1, 2)]


@pytest.mark.parametrize(("files", "expected"), [
    ([SAFE, *SHARDS, f"{SAFE}.index.json"], [SAFE]), ([*SHARDS, f"{SAFE}.index.json"], [f"{SAFE}.index.json", *SHARDS]),
    ([*SHARDS, *HALF_SHARDS, f"{SAFE}.index.json", f"{SAFE}.index.fp16.json"], [f"{SAFE}.index.json", *SHARDS]),
    ([*HALF_SHARDS, f"{SAFE}.index.fp16.json", f"{BASE}.ema.bin"], [f"{SAFE}.index.fp16.json", *HALF_SHARDS]),
    ([*OLD_SHARDS, f"{SAFE}.fp16.index.json"], [f"{SAFE}.fp16.index.json", *OLD_SHARDS]),
    ([f"{BASE}.fp16.safetensors", f"{BASE}.ema.safetensors"], [f"{BASE}.fp16.safetensors"]),
    (["model.safetensors", "a.pth"], ["model.safetensors"]), (["config.json"], []),
], ids=range(8))
@pytest.mark.parametrize("folder", ["", "unet/"])
def test_from_the_hub_comes_the_one_copy_that_is_read_with_all_its_shards(folder, files, expected):
    there = ["config.json", f"{folder}config.json", *(folder + file for file in files)]
    assert hub._weights(there) == [folder + file for file in expected]


def test_shards_in_the_cache_are_whole_or_not():
    index = f"{SAFE}.index.json"
    assert is_whole([SAFE]) and is_whole([index, *SHARDS])
    assert not is_whole([index]) and not is_whole([index, SHARDS[0]])
    assert parts_of(index, [*SHARDS, *HALF_SHARDS, index]) == [index, *SHARDS]
