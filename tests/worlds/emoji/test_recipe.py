"""The recipes run, resume and leave folders that the project's loaders read; all numbers are tiny."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2chat.errors import UserError
from m2chat.metrics.extractors import PocketExtractor
from m2chat.models.config import NewAdapterConfig
from m2chat.models.weights.adapter import open_adapter
from m2chat.worlds.backbones import build
from m2chat.worlds.emoji.captions import Caption, caption_of
from m2chat.worlds.emoji.decoder import draw_truths
from m2chat.worlds.emoji.judge import JudgeNetwork, PictureJudge
from m2chat.worlds.emoji.recipe import clip, fid, make, metric_clip, text_encoders, unet, vae, visual_query
from m2chat.worlds.emoji.recipe.course import Plan
from m2chat.worlds.emoji.recipe.drawing import nearest_rates
from m2chat.worlds.emoji.recipe.few_step import FOLDER, train_few_step
from m2chat.worlds.emoji.recipe.judge import train_judge
from m2chat.worlds.emoji.recipe.parts import BACKBONES
from m2chat.worlds.emoji.recipe.sd15 import train_sd15
from m2chat.worlds.emoji.scenes import Pictures, Scene, core_concepts
from m2chat.worlds.manifest import verify_manifest

QUICK = Plan(steps=2, lr=1e-3, warmup=1)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def small(world: Pictures) -> Pictures:
    """A few pictures, two concepts of them with names of the core list."""
    from dataclasses import replace as changed

    core = {"red circle": "red heart", "green square": "green apple"}
    scenes = tuple(changed(s, concept=core.get(s.concept, s.concept)) for s in world.scenes)
    assert set(core.values()) <= set(core_concepts())
    return Pictures(scenes, world.pixels)


@pytest.fixture(scope="module")
def trained(small: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all parts of SDXL, two steps old."""
    out = tmp_path_factory.mktemp("pocket")
    assert vae.train_vae(small, out, QUICK, batch=2, device="cpu", widths=(8, 8, 8, 8))
    assert text_encoders.train_text_encoders(small, out, QUICK, batch=4, device="cpu")
    assert unet.train_unet(small, out, QUICK, batch=2, device="cpu", widths=(32, 32))
    assert train_judge(small, out, QUICK, batch=4, device="cpu")
    yield out


def test_the_projects_loader_reads_the_folder(trained: Path) -> None:
    from m2chat.models.weights.diffusion import load_diffusion

    parts: Any = load_diffusion(trained / "weights" / "sdxl", "image_decoder")
    assert parts.unet.config.addition_embed_type == "text_time"
    assert parts.vae.config.latent_channels == 8
    assert parts.scheduler.config.prediction_type == "v_prediction"
    assert parts.text_encoder.config.hidden_size + parts.text_encoder_2.config.hidden_size == sum(text_encoders.WIDTHS)
    assert parts.unet.config.cross_attention_dim == sum(text_encoders.WIDTHS)


def test_a_unet_goes_on_from_its_saved_weights_if_there_is_no_checkpoint(
    trained: Path, small: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    shutil.copytree(trained / "weights", tmp_path / "weights")
    file = tmp_path / "weights/sdxl/unet/diffusion_pytorch_model.safetensors"
    before = load_file(file)
    still = replace(QUICK, steps=1, lr=1e-9)
    assert unet.train_unet(small, tmp_path, still, batch=2, device="cpu", widths=(32, 32))
    assert "it begins with the weights in" in capsys.readouterr().out
    for name, tensor in load_file(file).items():
        torch.testing.assert_close(tensor, before[name], atol=1e-3, rtol=0)
    (tmp_path / "unet" / "checkpoint.pt").unlink()
    with pytest.raises(UserError, match="of other sizes"):
        unet.train_unet(small, tmp_path, still, batch=2, device="cpu", widths=(32, 64))


def test_styles_and_latents_may_change_between_runs(trained: Path, small: Pictures) -> None:
    plan = replace(QUICK, steps=3)
    assert unet.train_unet(small, trained, plan, batch=2, device="cpu", widths=(32, 32), styles=["noto"])
    before = torch.load(trained / "unet" / "latents.pt", weights_only=True)
    assert vae.train_vae(small, trained, plan, batch=2, device="cpu", widths=(8, 8, 8, 8))
    plan = replace(QUICK, steps=4)
    assert unet.train_unet(small, trained, plan, batch=2, device="cpu", widths=(32, 32))
    assert torch.equal(before, torch.load(trained / "unet" / "latents.pt", weights_only=True))
    assert unet.train_unet(small, trained, plan, batch=2, device="cpu", widths=(32, 32), new_latents=True)
    assert not torch.equal(before, torch.load(trained / "unet" / "latents.pt", weights_only=True))
    with pytest.raises(UserError, match="noto, twemoji, fluent"):
        unet.train_unet(small, trained, plan, styles=["apple"])


def test_what_is_held_out_is_never_drawn_from(small: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held out turns black: no batch of any recipe may hold it."""
    held = {scene for split in ("pair", "combination") for scene in small.of(split).scenes}  # type: ignore[arg-type]
    assert held
    pixels = small.pixels.copy()
    pixels[[scene in held for scene in small.scenes]] = 0
    seen: list[float] = []
    varied = vae.varied

    def watched(batch: torch.Tensor, rng: Any) -> torch.Tensor:
        seen.extend(batch.mean((1, 2, 3)).tolist())
        return varied(batch, rng)

    monkeypatch.setattr(vae, "varied", watched)
    dark = Pictures(small.scenes, pixels)
    vae.train_vae(dark, tmp_path, replace(QUICK, steps=30), batch=8, device="cpu", widths=(8, 8, 8, 8))
    assert len(seen) == 240
    assert min(seen) > -1


def test_a_decoder_only_stretch_leaves_the_latents_alone(small: Pictures, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    def latents() -> torch.Tensor:
        read: Any = AutoencoderKL.from_pretrained(tmp_path / "weights" / "sdxl" / "vae", low_cpu_mem_usage=False)
        return vae.latents_of(read.float(), vae.to_pixels(small.pixels[:2]))

    options: dict[str, Any] = dict(batch=2, device="cpu", widths=(8, 8, 8, 8))
    newest, snapshot = tmp_path / "weights" / "sdxl" / "vae", tmp_path / "snapshot"
    vae.train_vae(small, tmp_path, replace(QUICK, steps=3), **options, encoder_steps=2)
    before = latents()
    shutil.copytree(newest, snapshot)
    vae.train_vae(small, tmp_path, replace(QUICK, steps=5), **options, encoder_steps=2)
    assert torch.equal(before, latents())
    assert unet.newest_vae(newest, snapshot) == newest  # a sharper decoder of the same latents
    vae.train_vae(small, tmp_path, replace(QUICK, steps=7), **options)
    assert unet.newest_vae(newest, snapshot) == snapshot


def test_words_of_the_world_are_one_token_and_anything_can_be_spelt(trained: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(trained / "weights" / "sdxl" / "tokenizer")
    assert tokenizer.tokenize("a red circle in Twemoji style") == [
        f"{word}</w>" for word in ("a", "red", "circle", "in", "twemoji", "style")
    ]
    ids = tokenizer("straße 🍎").input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "straße🍎"


def test_a_caption_without_a_style_is_true_of_every_style(world: Pictures) -> None:
    red = [scene for scene in world.scenes if scene.concept == "red circle"]
    captions = [Caption(caption_of(red[0], style=style), style) for style in (True, False)]
    match = text_encoders.matches(captions, [red[0], red[0]], [*red, world.scenes[-1]])
    assert match.tolist() == [[True, False, False, False], [True, True, True, False]]


def test_contrast_is_least_where_texts_and_pictures_agree() -> None:
    vectors = torch.eye(4)
    match, scale = torch.eye(4), torch.tensor([20.0])
    right = text_encoders.contrast(vectors, vectors, scale, match)
    assert right < 1e-3 < text_encoders.contrast(vectors, vectors.roll(1, 0), scale, match)


def test_nearest_rates_of_true_pictures_are_whole(world: Pictures) -> None:
    rates = nearest_rates(world.pixels, world.scenes, world)
    assert rates == {"top1": 1.0, "top10": 1.0, "style": 1.0}
    wrong = nearest_rates(world.pixels, world.scenes[::-1], world)
    assert wrong["top1"] < 0.5


def test_the_judge_learns_to_read_and_names_only_what_exists(few: Pictures, trained_judge: Path) -> None:
    judge = PictureJudge.load(trained_judge, few)
    assert [verdict.scene for verdict in judge.read(few.pixels)] == list(few.scenes)
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    for verdict in judge.read(noise):
        assert verdict.scene in few.scenes
        assert not any(verdict.right(verdict.scene.attributes).values())


def test_a_judge_of_other_concepts_is_refused(world: Pictures, tmp_path: Path) -> None:
    from m2chat.worlds.emoji.recipe.judge import save_judge

    with pytest.raises(UserError, match="no judge"):
        PictureJudge.load(tmp_path, world)
    save_judge(JudgeNetwork(3), tmp_path)
    with pytest.raises(UserError, match="3 concepts"):
        PictureJudge.load(tmp_path, world)


def test_the_twins_rest_on_the_vae_and_draw(trained: Path, small: Pictures) -> None:
    """SD 1.5 shares VAE and first text encoder; the LoRA leaves the UNet as it is and draws in four steps."""
    from m2chat.models.weights.diffusion import load_diffusion

    weights = trained / "weights"
    assert train_sd15(small, trained, QUICK, batch=2, device="cpu", widths=(32, 32))
    parts: Any = load_diffusion(weights / "sd15", "image_decoder")
    assert parts.text_encoder_2 is None and parts.unet.config.cross_attention_dim == text_encoders.WIDTHS[0]
    shared = "vae/diffusion_pytorch_model.safetensors"
    assert (weights / "sd15" / shared).read_bytes() == (weights / "sdxl" / shared).read_bytes()
    before = (weights / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert train_few_step(small, trained, QUICK, batch=2, device="cpu", rank=2)
    assert (weights / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    judge = PictureJudge.load(weights / "judge", small)
    truth = small.take(range(2))
    for root, lora in ((weights / "sd15", None), (weights / "sdxl", weights / FOLDER)):
        assert draw_truths(root, judge, truth, lora=lora, steps=2).pixels.shape == truth.pixels.shape


def test_a_part_whose_needs_are_missing_is_refused(small: Pictures, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train the part vae first"):
        train_sd15(small, tmp_path, QUICK, device="cpu")
    with pytest.raises(UserError, match="train the part unet first"):
        train_few_step(small, tmp_path, QUICK, device="cpu")


def test_latents_of_pictures_in_another_order_are_refused(trained: Path, small: Pictures) -> None:
    other = small.take(range(len(small))[::-1])
    with pytest.raises(UserError, match="--new-latents"):
        unet.train_unet(other, trained, replace(QUICK, steps=9), batch=2, device="cpu", widths=(32, 32))


@pytest.mark.parametrize("name", ["clip", "metric_clip"])
def test_open_clip_reads_the_clips_and_a_stopped_one_goes_on(name: str, small: Pictures, tmp_path: Path) -> None:
    train: Any = {"clip": clip.train_clip, "metric_clip": metric_clip.train_metric_clip}[name]
    assert train(small, tmp_path, QUICK, batch=4, device="cpu")
    tokens = (tmp_path / "weights" / name / "tokenizer.json").read_bytes()
    assert train(small, tmp_path, replace(QUICK, steps=3), batch=4, device="cpu")
    assert (tmp_path / "weights" / name / "tokenizer.json").read_bytes() == tokens
    facts = clip.measure_saved(small, tmp_path / "weights" / name)
    assert {"named", "mean_true_cosine", "mean_cosine"} <= facts.keys()


def test_the_clip_learns_to_name_pictures(world: Pictures, tmp_path: Path) -> None:
    few = world.take([i for i, scene in enumerate(world.scenes) if not scene.tone and scene.style == "noto"][:6])
    shape = clip.ClipShape(width=32, layers=1, vision_width=32)
    plan = Plan(steps=60, lr=3e-3, warmup=5, decay=20, ema=0.9)
    assert clip.train_clip(few, tmp_path, plan, batch=12, device="cpu", shape=shape)
    assert float(str(clip.measure_saved(few, tmp_path / "weights" / "clip")["named"])) > 0.6


def test_metric_texts_hold_words_of_the_picture_among_idle_ones() -> None:
    rng = random.Random(0)
    scene = Scene("red apple", "noto", label="red apple", keywords=("fruit", "ripe"))
    texts = [metric_clip.sentence_about(scene, rng).text for _ in range(50)]
    words = {word for text in texts for word in text.split()}
    assert words & set(metric_clip.IDLE_WORDS)
    assert all({"red", "fruit", "ripe"} & set(text.split()) for text in texts)
    assert words <= {"red", "apple", "fruit", "ripe", *metric_clip.IDLE_WORDS}


def test_the_feature_network_sees_64_pixels(small: Pictures, tmp_path: Path) -> None:
    assert fid.train_fid(small, tmp_path, QUICK, batch=4, device="cpu")
    extractor = PocketExtractor(str(tmp_path / "weights" / "fid"))
    assert (extractor.metric, extractor.num_features) == ("fid_pocket", fid.FEATURES)
    features = extractor.extract([small.pixels[0], small.pixels[0][::2, ::2].repeat(2, 0).repeat(2, 1)])
    assert np.abs(features[0] - features[1]).max() > 1e-3
    assert fid.measure_saved(small, tmp_path / "weights" / "fid").keys() >= {"concept", "concept_unseen_pairs"}


def test_the_visual_query_learns_words_under_closed_gates(
    small: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "language_model": ROOT / "data/micro/llama", "clip": ROOT / "data/pocket/clip", "device": "cpu", "batch": 8,
        "sizes": NewAdapterConfig(prompts=2, layers=3, visual_blocks=1, visual_heads=2),
    }  # fmt: skip
    found = {}
    for steps in (1, 30):
        plan = Plan(steps=steps, lr=5e-3, warmup=1, ema=0.5)
        assert visual_query.train_visual_query(small, tmp_path / str(steps), plan, **settings)  # type: ignore[arg-type]
        found[steps] = json.loads(capsys.readouterr().out.splitlines()[-1])["names_found"]
    source = open_adapter(tmp_path / "30" / "weights" / "visual_query.pth", "adapter")
    assert source.base is not None and source.channel_order == "rgb"
    gates = [tensor for name, tensor in source.state.items() if name.endswith("attention.gate")]
    assert gates and all(not gate.any() for gate in gates)
    assert found[30] > found[1]
    with pytest.raises(UserError, match=r"no language model in .*make smollm2"):
        visual_query.train_visual_query(small, tmp_path, language_model=tmp_path / "none")


def test_a_finished_part_is_copied_and_measured_and_not_trained_again(
    trained: Path, small: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "world_pictures", lambda root: small)
    (tmp_path / "training").symlink_to(trained)
    done = build(tmp_path, BACKBONES, ["judge", "vae", "text_encoders"])
    assert done.keys() == {"judge", "vae", "text_encoders"} and done["judge"]["steps"] == 2
    assert "psnr_unseen_db" in done["vae"] and "concept" in done["judge"]
    assert (tmp_path / "sdxl" / "vae" / "config.json").is_file()
    assert verify_manifest(tmp_path, BACKBONES) == []
    shutil.copytree(trained, tmp_path / "other")
    (tmp_path / "training").unlink()
    (tmp_path / "other").rename(tmp_path / "training")
    assert vae.train_vae(small, tmp_path / "training", replace(QUICK, steps=9), 2, device="cpu", widths=(8, 8, 8, 8))
    with pytest.raises(UserError, match=r"latents of another VAE .*--new-latents"):
        build(tmp_path, BACKBONES, ["unet"])


def test_a_part_rests_on_the_shipped_ones_in_a_clone(
    trained: Path, small: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "world_pictures", lambda root: small)
    monkeypatch.setattr(make, "train", lambda *arguments: False)
    shutil.copytree(trained / "weights", tmp_path / "pocket")
    with pytest.raises(UserError, match="unet was stopped"):
        build(tmp_path / "pocket", BACKBONES, ["unet"])
    weights = tmp_path / "pocket" / make.TRAINING / "weights"
    assert (weights / "sdxl/vae/config.json").is_file() and (weights / "sdxl/tokenizer_2").is_dir()
    assert not (weights / "sdxl/unet").exists(), "it is trained from nothing"


def test_a_stopped_part_says_so_and_leaves_nothing_half_made(
    small: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "world_pictures", lambda root: small)
    monkeypatch.setattr(make, "train", lambda *arguments: False)
    with pytest.raises(UserError, match="judge was stopped: the same command goes on"):
        build(tmp_path, BACKBONES, ["judge"])
    assert not (tmp_path / "judge").exists()
