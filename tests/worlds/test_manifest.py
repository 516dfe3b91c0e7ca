from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from m2chat.commands import main
from m2chat.errors import UserError
from m2chat.worlds.manifest import MANIFEST, verify_manifest, write_manifest
from m2chat.worlds.shapes.recipe.parts import BACKBONES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {"fid/config.json": "{}", "sdxl/vae/w": "abc", "m2chat/align.ckpt": "weights", "README.md": "read me"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "x.tar").write_text("not shipped")
    return tmp_path


def parts(root: Path) -> dict[str, dict[str, object]]:
    return json.loads((root / MANIFEST).read_text())["parts"]  # type: ignore[no-any-return]


def test_contents(root: Path) -> None:
    write_manifest(root, BACKBONES, {"fid": {"seed": 0, "steps": 9, "right": 0.9}})
    manifest = json.loads((root / MANIFEST).read_text())
    assert manifest["total_bytes"] == 12
    assert manifest["parts"].keys() == {"vae", "fid", "m2chat"}
    fid = manifest["parts"]["fid"]
    assert (fid["seed"], fid["steps"], fid["quality"]) == (0, 9, {"right": 0.9})
    sha = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert fid["files"] == {"fid/config.json": {"bytes": 2, "sha256": sha}}


def test_verify_names_every_difference(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--manifest"):
        verify_manifest(root, BACKBONES)
    write_manifest(root, BACKBONES, {})
    assert verify_manifest(root, BACKBONES) == []
    (root / "fid/config.json").write_text("[]")
    (root / "sdxl/vae/w").rename(root / "sdxl/vae/v")
    faults = ["sdxl/vae/w is missing", "sdxl/vae/v is not listed", "fid/config.json has changed"]
    assert verify_manifest(root, BACKBONES) == faults
    assert main(["backbones", "--verify", "--out", str(root)]) == 2
    assert all(fault in capsys.readouterr().err for fault in faults[:1])
    assert main(["backbones", "--manifest", "--out", str(root)]) == 0
    assert main(["backbones", "--verify", "--out", str(root)]) == 0


def test_quality_is_forgotten_with_the_files(root: Path) -> None:
    write_manifest(root, BACKBONES, {"fid": {"seed": 0, "steps": 9, "right": 0.9}})
    write_manifest(root, BACKBONES, {"vae": {"psnr": 40.0}})
    assert parts(root)["fid"]["quality"] == {"right": 0.9}
    (root / "fid/config.json").write_text("[]")
    write_manifest(root, BACKBONES, {})
    assert parts(root)["fid"]["quality"] == {} and parts(root)["fid"]["steps"] is None


def test_refusals_leave_the_old_manifest(root: Path) -> None:
    old = write_manifest(root, BACKBONES, {}).read_text()
    (root / "sdxl/unet-partial").mkdir()
    (root / "sdxl/unet-partial/w").write_text("left over")
    with pytest.raises(UserError, match="unet-partial/w belongs to no part"):
        write_manifest(root, BACKBONES, {})
    (root / "sdxl/unet-partial/w").unlink()
    with pytest.raises(UserError, match="12 bytes, more than the 11"):
        write_manifest(root, replace(BACKBONES, limit=11), {})
    assert (root / MANIFEST).read_text() == old
