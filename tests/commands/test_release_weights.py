from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from m2chat.commands import main
from m2chat.commands.release_weights import release_weights
from m2chat.errors import UserError
from m2chat.integrity import verify
from m2chat.models.checkpoints import HEADER, Header, load_trained, trainable_names, trainable_state_dict
from toys import named_backbones


def write(path: Path, module: nn.Module) -> Path:
    header = Header(stage="align", fingerprint="abc", version=1)
    torch.save(
        {
            "state_dict": trainable_state_dict(module),
            HEADER: header,
            "tasks": ["caption"],
            "optimizer_states": [{"state": {0: torch.zeros(100_000)}}],
            "loops": {"fit_loop": {}},
            "epoch": 3,
        },
        path,
    )
    return path


def test_small_and_loadable_into_fp32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = nn.Linear(30, 40), nn.Linear(30, 40)
    full = write(tmp_path / "full.ckpt", source)
    out = tmp_path / "m2chat" / "align.ckpt"
    assert main(["release-weights", "align", str(full), str(out)]) == 0
    assert "1,240 numbers in fp16" in capsys.readouterr().out
    assert verify(out)
    assert out.stat().st_size < 6000 < full.stat().st_size / 10
    load_trained(target, out, trainable_names(target), stage="align", backbones=named_backbones())
    assert target.weight.dtype == torch.float32
    assert torch.equal(target.weight, source.weight.half().float())
    payload = torch.load(out, weights_only=True)
    assert payload.keys() == {"state_dict", HEADER, "tasks", "epoch"}


def test_refusals(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    path = write(tmp_path / "a.ckpt", module)
    with pytest.raises(UserError, match="stage 'align', but stage 'm3ft'"):
        release_weights("m3ft", path, tmp_path / "out.ckpt")
    with torch.no_grad():
        module.weight[0, 0] = 1e6
    with pytest.raises(UserError, match=r"weight holds numbers that fp16 cannot"):
        release_weights("align", write(tmp_path / "b.ckpt", module), tmp_path / "out.ckpt")
    assert not (tmp_path / "out.ckpt").exists()
