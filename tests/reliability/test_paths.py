"""Names in archives, indices and run directories that point elsewhere: nothing outside is written or read."""

from __future__ import annotations

import io
import json
import pathlib
import runpy
import shutil
import tarfile

import numpy as np
import pytest
from safetensors.numpy import save_file

import mim_jax
from mim_jax.errors import CheckpointError, DataError, WeightsError
from mim_jax.train import train
from mim_jax.training.checkpoint import Checkpointer, load_run
from tests.tiny import ROOT, tiny_config

FILES = "./usr/share/datasets/fashion-mnist"
SMALL = {"model.depth": 1, "decoder.depth": 1}


def tar(members: list[tuple[str, bytes, str, bytes]]) -> bytes:
    """A gzipped tar file of (name, type, link target, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, kind, target, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def debian_package(members: list[tuple[str, bytes, str, bytes]]) -> bytes:
    """A .deb file: an ar archive of a version, a control and a data part."""
    control = b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": tar([("./control", tarfile.REGTYPE, "", control)]),
        "data.tar.gz": tar(members),
    }
    packed = b"!<arch>\n"
    for name, content in parts.items():
        packed += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        packed += content + b"\n" * (len(content) % 2)
    return packed


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="needs Debian's dpkg")
class TestPackages:
    """The real dpkg unpacks what a fake apt-get downloads."""

    @pytest.fixture
    def unpack(self, tmp_path, monkeypatch):
        tool = runpy.run_path(str(ROOT / "tools" / "prepare_data.py"), run_name="prepare_data")
        (tmp_path / "bin").mkdir()
        apt = tmp_path / "bin" / "apt-get"
        apt.write_text(f"#!/bin/sh\n/bin/cp {tmp_path}/d.deb .\n")
        apt.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
        (tmp_path / "tmp").mkdir()

        def run(members) -> dict[str, bytes]:
            (tmp_path / "d.deb").write_bytes(debian_package(members))
            with tool["debian_package"]() as folder:
                return {path.name: path.read_bytes() for path in folder.glob("*")}

        return run

    def test_a_good_package(self, unpack):
        assert unpack([(f"{FILES}/a", tarfile.REGTYPE, "", b"content")]) == {"a": b"content"}

    def test_members_that_point_outside(self, unpack, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        before = {path: path.read_bytes() for path in outside.iterdir()}
        evil = {
            "dots": [("../../../outside/evil", tarfile.REGTYPE, "", b"x")],
            "a folder that is a link": [
                ("./usr", tarfile.SYMTYPE, str(outside), b""),
                ("./usr/evil", tarfile.REGTYPE, "", b"x"),
            ],
            "a hard link": [
                (f"{FILES}/a", tarfile.LNKTYPE, str(outside / "secret"), b""),
                (f"{FILES}/a", tarfile.REGTYPE, "", b"overwritten"),
            ],
            "a file that is a link": [(f"{FILES}/a", tarfile.SYMTYPE, str(outside / "secret"), b"")],
            "a relative link": [(f"{FILES}/a", tarfile.SYMTYPE, "../" * 9 + str(outside / "secret")[1:], b"")],
            "the folder a link": [(FILES, tarfile.SYMTYPE, str(outside), b"")],
        }
        for name, members in evil.items():
            with pytest.raises(DataError) as caught:
                unpack(members)
            assert "\n" not in str(caught.value), name
        assert unpack([(f"{outside}/evil", tarfile.REGTYPE, "", b"x")]) == {}  # lands inside, under its whole name
        assert {path: path.read_bytes() for path in outside.iterdir()} == before


@pytest.mark.parametrize(
    "names", [["../x.safetensors"], ["{outside}"], [".."], [""], ["a\0b"], [5], [None, "w"], [["x"]], {"no": "map"}]
)
def test_an_index_of_shards_stays_in_its_directory(tmp_path, names):
    save_file({"norm.bias": np.ones(2, np.float32)}, tmp_path / "x.safetensors")
    inside = tmp_path / "inside"
    inside.mkdir()
    index = {str(number): name for number, name in enumerate(names)} if isinstance(names, list) else None
    text = json.dumps({"weight_map": index}).replace("{outside}", str(tmp_path / "x.safetensors"))
    (inside / "model.safetensors.index.json").write_text(text)
    objective = mim_jax.create(tiny_config("mae", SMALL))
    with pytest.raises(WeightsError, match=f"^{inside} has an index"):
        mim_jax.import_weights(objective, inside, "facebookresearch/mae")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 steps with checkpoints 4 and 8."""
    workdir = tmp_path_factory.mktemp("run")
    train(tiny_config("mae", SMALL), workdir)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


def test_odd_names_under_checkpoints_are_left_alone(workdir):
    folder = workdir / "checkpoints"
    notes = [folder / name / "notes" for name in ("9 ", "+9", "-9", "0x9", "009", "9.0", "1_0", "²", "٩", "...")]
    for file in notes:
        file.parent.mkdir()
        file.write_text("mine")
    (folder / "9").write_text("mine")
    checkpointer = Checkpointer(workdir)
    assert checkpointer.steps() == [4, 8]
    checkpointer.close()
    assert load_run(workdir).step == 8
    assert int(train(tiny_config("mae", SMALL), workdir).step) == 8
    assert [file.read_text() for file in (*notes, folder / "9")] == ["mine"] * (len(notes) + 1)


def test_a_link_in_place_of_a_checkpoint_is_refused(workdir, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    (workdir / "checkpoints" / "9").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"checkpoints/9 is a link.*init_from"):
        train(tiny_config("mae", SMALL), workdir)
    assert (outside / "precious").read_text() == "mine"
