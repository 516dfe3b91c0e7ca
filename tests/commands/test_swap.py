from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from m2chat.commands import main
from m2chat.errors import UserError
from m2chat.models.config import BackboneConfig, LoraConfig
from m2chat.models.swap import with_decoder
from m2chat.pipeline import M2ChatPipeline

STUB = """
import json, shutil, sys
from pathlib import Path
import yaml
run, overlay = (Path(sys.argv[i + 1]) for i, item in enumerate(sys.argv) if item == "--config")
folder = Path(*(sys.argv[sys.argv.index(f"--trainer.logger.{name}") + 1] for name in ("name", "version")))
folder.mkdir(exist_ok=True)
rows = [json.loads(line) for line in (run.parent / "predictions.jsonl").read_text().splitlines()]
for number, row in enumerate(rows):
    row["scores"]["all_right"] = 0.0 if number < 2 else row["scores"]["all_right"]
(folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
(folder / "results.json").write_text((run.parent / "results.json").read_text())
(folder / "arguments.json").write_text(json.dumps([sys.argv[1:], yaml.safe_load(overlay.read_text())]))
"""


@pytest.fixture
def run(backbone: BackboneConfig, tmp_path: Path) -> Path:
    """An evaluation of twenty pictures, all of them right."""
    folder = tmp_path / "run"
    folder.mkdir()
    settings = {
        "backbone": {name: getattr(backbone, name) for name in ("language_model", "adapter", "vision_encoder",
                                                                "image_decoder", "num_image_tokens")},
        "m3adapter": {"width": 192, "heads": 6}, "evaluation": {"steps": 2, "guidance": None},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"init_args": settings}}))
    (folder / "results.json").write_text(json.dumps({"metrics": {}, "protocol": {"checkpoint": "some.ckpt"}}))
    rows = [
        {"id": f"s{n}", "meta": {"gate": [0.5 + n / 100]}, "scores": {"clip": 0.7, "inter_rel": 50.0, "all_right": 100}}
        for n in range(20)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "stub.py").write_text(STUB)
    return folder


def test_the_table_says_whether_the_meaning_is_kept(
    run: Path, backbone: BackboneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "fast.yaml"
    settings.write_text("preset: lcm-4\n")
    same = shutil.copytree(backbone.image_decoder, tmp_path / "same")
    lightning = f"{sys.executable} {tmp_path / 'stub.py'}"
    command = ["eval", "swap", str(run), "--decoder", str(same), "--decoder", str(settings), "--lightning", lightning]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "THE MEANING IS NOT KEPT (right pictures within 5 points)" in printed
    assert printed.count("90.00") >= 2 and "-10.00 [" in printed and "CLIP score" in printed and "gate" in printed
    assert "seconds a picture" in printed and "fast.yaml: 4 steps, guidance 1;" in printed
    (fast,), (whole,) = ((run / "swap").glob(f"{name}-*/arguments.json") for name in ("fast", "same"))
    arguments, overlay = json.loads(fast.read_text())
    changed = overlay["model"]["init_args"]
    assert changed["evaluation"] == {"steps": 4, "guidance": 1.0}
    assert changed["backbone"]["decoder"]["preset"] == "lcm-4" and arguments[0] == "test"
    assert arguments[arguments.index("--ckpt_path") + 1] == "some.ckpt"
    written = whole.stat().st_mtime_ns
    assert main([*command, "--tolerance", "10"]) == 0
    assert "NOT KEPT" not in capsys.readouterr().out
    assert whole.stat().st_mtime_ns == written, "nothing is done twice"


def test_another_text_space_is_refused_before_anything_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "swap", str(run), "--decoder", "data/micro/sd15", "--lightning", "false"]) == 2
    message = capsys.readouterr().err
    assert "'data/micro/sd15' (or --decoder) has another text space than the evaluated model" in message
    assert "choose a decoder with the same ones" in message and "train stage 1 again" in message
    assert not (run / "swap").exists()
    assert main(["eval", "swap", str(run.parent), "--decoder", "data/micro/sdxl"]) == 2
    assert "is no evaluation: it needs results.json and config.yaml" in capsys.readouterr().err


def test_what_a_path_names(backbone: BackboneConfig, tmp_path: Path) -> None:
    def saved(name: str, *names: str) -> str:
        save_file({name: torch.zeros(1) for name in names}, tmp_path / name)
        return str(tmp_path / name)

    unet = str(Path(backbone.image_decoder) / "unet")
    assert with_decoder(backbone, unet).decoder.unet == unet
    lora = saved("a.safetensors", "unet.x.lora_A.weight", "unet.x.lora_B.weight")
    assert with_decoder(with_decoder(backbone, unet), lora).decoder.lora == [LoraConfig(lora)]
    alone = saved("b.safetensors", "conv_in.weight")
    assert with_decoder(with_decoder(backbone, lora), alone).decoder.unet == alone
    sdxl = saved("c.safetensors", "model.diffusion_model.label_emb.0.0.weight", "conditioner.embedders.0.transformer.x")
    whole = with_decoder(with_decoder(backbone, lora), sdxl)
    assert whole.image_decoder == sdxl and not whole.decoder.lora
    settings = tmp_path / "d.yaml"
    settings.write_text(yaml.safe_dump({"image_decoder": sdxl, "unet": unet, "scheduler": "euler"}))
    both = with_decoder(backbone, settings)
    assert (both.image_decoder, both.decoder.unet, both.decoder.scheduler) == (sdxl, unet, "euler")
    wrong = {
        str(tmp_path / "nothing"): "it does not exist; expected is a diffusers folder",
        saved("e.safetensors", "something.else"): "it is nothing of this; expected is",
        str(tmp_path): "it is nothing of this",
        str(tmp_path / "f.yaml"): "it does not exist",
    }
    for path, message in wrong.items():
        with pytest.raises(UserError, match=message):
            with_decoder(backbone, path)
    settings.write_text("unett: x\n")
    with pytest.raises(UserError, match=r"unett.*Did you mean 'unet'"):
        with_decoder(backbone, settings)


def test_a_pipeline_draws_with_another_decoder(backbone: BackboneConfig, tmp_path: Path) -> None:
    settings = tmp_path / "fast.yaml"
    settings.write_text("preset: lcm-4\n")
    pipe = M2ChatPipeline.from_pretrained(image_decoder=settings)
    assert type(pipe.scheduler).__name__ == "LCMScheduler" and pipe.origin.backbone.decoder.preset == "lcm-4"
    pipe.save_pretrained(tmp_path / "saved")
    again = M2ChatPipeline.from_pretrained(tmp_path / "saved", image_decoder=backbone.image_decoder)
    assert type(again.scheduler).__name__ == "DDIMScheduler"
    for weights in (None, tmp_path / "saved"):
        with pytest.raises(UserError, match=r"'data/micro/sd15' \(or --decoder\) has another text space than"):
            M2ChatPipeline.from_pretrained(weights, image_decoder="data/micro/sd15")


@pytest.mark.parametrize("command", ["chat", "serve", "lens", "measure", "wish", "edit", "similar", "story"])
def test_every_command_that_draws_takes_a_decoder(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--decoder PATH" in capsys.readouterr().out
