from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from m2chat.commands import main
from m2chat.commands.evaluation.swap import Drawing, _key, judged
from m2chat.errors import UserError
from m2chat.evaluation.statistics import Difference
from m2chat.models.config import BackboneConfig
from m2chat.models.decoder_config import DecoderConfig, LoraConfig, decoder_config
from m2chat.models.swap import changed, with_decoder
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
    assert "UNDECIDED with 20 pictures (right pictures -10.00 [" in printed and "not within 5; about" in printed
    assert printed.count("90.00") >= 2 and "-10.00 [" in printed and "CLIP score" in printed and "gate" in printed
    assert "seconds a picture" in printed and "fast.yaml: 4 steps, guidance 1;" in printed
    (fast,), (whole,) = ((run / "swap").glob(f"{name}-*/arguments.json") for name in ("fast", "same"))
    arguments, overlay = json.loads(fast.read_text())
    changed = overlay["model"]["init_args"]
    assert changed["evaluation"] == {"steps": 4, "guidance": 1.0}
    assert changed["backbone"]["decoder"]["preset"] == "lcm-4" and arguments[0] == "test"
    assert arguments[arguments.index("--ckpt_path") + 1] == "some.ckpt"
    written = whole.stat().st_mtime_ns
    assert main([*command, "--tolerance", "40"]) == 0
    assert capsys.readouterr().out.count("the meaning is kept") == 2
    assert whole.stat().st_mtime_ns == written, "nothing is done twice"


@pytest.mark.parametrize(
    ("low", "high", "n", "state", "needed"),
    [
        (-3.0, 4.0, 200, "kept", None),
        (-30.0, -6.0, 9, "lost", None),
        (-33.0, 0.0, 9, "undecided", 58),  # -11.5 misses by 6.5: (16.5 / 6.5)² times as many
        (-8.0, 6.0, 100, "undecided", 307),
        (0.0, 0.0, 9, "undecided", 60),  # no picture differs, and nine are too few to exclude a twentieth that does
        (0.0, 0.0, 60, "kept", None),
    ],
)  # fmt: skip
def test_three_verdicts(low: float, high: float, n: int, state: str, needed: int | None) -> None:
    change = -11.5 if low == -33 else (low + high) / 2
    verdict = judged(Difference("all_right", 80 + change, 80.0, low, high, 0.5, n), 5.0)
    assert (verdict.state, verdict.needed) == (state, needed)


def test_every_setting_that_changes_a_picture_is_in_the_key(backbone: BackboneConfig, tmp_path: Path) -> None:
    def key(image_decoder: Path | None = None, **settings: object) -> str:
        folder = str(image_decoder or backbone.image_decoder)
        return _key(Drawing(replace(backbone, image_decoder=folder, decoder=decoder_config(settings)), 12, 5.0))

    refiner = shutil.copytree(backbone.image_decoder, tmp_path / "refiner")
    same = shutil.copytree(backbone.image_decoder, tmp_path / "same")
    keys = [key(), key(refiner=str(refiner)), key(refiner=str(refiner), refiner_start=0.5), key(preset="fast")]
    keys.append(key(scheduler="dpmpp_2m", spacing="trailing"))  # as `fast`, without its interval
    for path, entries in (
        (refiner / "scheduler" / "scheduler_config.json", {"timestep_spacing": "leading"}),
        (refiner / "model_index.json", {"force_zeros_for_empty_prompt": False}),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
        keys.append(key(refiner=str(refiner)))
    assert key(same) == keys[0]
    for path, entries in (
        (same / "unet" / "config.json", {"attention_head_dim": 1}),
        (same / "vae" / "config.json", {"scaling_factor": 2.0}),
        (same / "model_index.json", {"force_zeros_for_empty_prompt": False}),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
        keys.append(key(same))
    assert len(set(keys)) == len(keys)


def test_another_unet_draws_without_loras_and_preset_of_the_old_one(
    backbone: BackboneConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unet, vae = (str(Path(backbone.image_decoder) / name) for name in ("unet", "vae"))
    few = {"lora": [{"path": "a.safetensors"}], "preset": "lcm-4", "scheduler": "euler", "vae": vae}
    before = replace(backbone, decoder=decoder_config(few))
    found = with_decoder(before, unet).decoder
    assert found == DecoderConfig(unet=unet, vae=vae)
    assert "replaces the UNet for which lora and preset and scheduler was set: it draws without" in caplog.text
    caplog.clear()
    assert changed(before.decoder, {"unet": unet, "preset": "fast"}) == DecoderConfig(unet=unet, vae=vae, preset="fast")
    assert changed(before.decoder, {"preset": "fast"}).lora == before.decoder.lora
    plain = replace(backbone, decoder=decoder_config({"scheduler": "euler"}))
    caplog.clear()
    assert with_decoder(plain, unet).decoder == DecoderConfig(unet=unet, scheduler="euler") and not caplog.text
    settings = tmp_path / "whole.yaml"
    settings.write_text(f"unet: {unet}\n")
    assert with_decoder(before, settings).decoder == DecoderConfig(unet=unet), "a file states all settings"


def test_a_folder_with_a_lora_alone(backbone: BackboneConfig, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    names = {f"unet.x.lora_{side}.weight": torch.zeros(1, 1) for side in "AB"}
    save_file(names, tmp_path / "lora" / "adapter_model.safetensors")
    (lora,) = with_decoder(backbone, tmp_path / "lora").decoder.lora
    assert lora.path == str(tmp_path / "lora" / "adapter_model.safetensors")
    save_file(names, tmp_path / "lora" / "second.safetensors")
    with pytest.raises(UserError, match="a folder with that file alone"):
        with_decoder(backbone, tmp_path / "lora")


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
