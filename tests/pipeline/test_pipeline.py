"""`M2ChatPipeline` with the shipped micro weights: the conventions of diffusers, batches, saving."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as Pillow

import m2chat
from m2chat import shipped
from m2chat.errors import UserError
from m2chat.models.weights.exported import read_manifest
from m2chat.pipeline import M2ChatPipeline, OutputImage, Progress
from m2chat.pipeline.tasks import edit, text_to_image, wish
from m2chat.shipped import folder_of
from m2chat.text import M2ChatTokenizer
from m2chat.worlds.shapes.captions import parse_caption
from m2chat.worlds.shapes.scenes import Scene, Shape, render

ASK = "please paint a large red circle on the left on a blue background"
SHORT: dict[str, Any] = {"num_inference_steps": 2, "max_new_tokens": 24, "max_images": 1}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_line_without_any_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the shipped weights are found from anywhere
    output = M2ChatPipeline.from_pretrained()(ASK, **SHORT, image_mode="force")
    assert isinstance(output.images[0], Pillow.Image) and output.images[0].size == (32, 32)


def test_the_output_has_text_images_gate_and_their_order(pipe: M2ChatPipeline) -> None:
    output = pipe("I dream of a ball like the sea in front of snow", generator=seeded(), image_mode="force", **SHORT)
    kinds = [type(part) for part in output.segments]
    assert kinds.index(str) < kinds.index(OutputImage), "words come before their picture"
    assert output.text and len(output.images) == len(output.gate) == kinds.count(OutputImage) == 1
    assert all(0 <= gate <= 1 for gate in output.gate) and output.cut_tokens == 0


def test_a_batch_is_what_its_rows_are_alone(pipe: M2ChatPipeline) -> None:
    picture = render(Scene(Shape("square", "yellow"), "black", None, "large", "middle"), np.random.default_rng(0))
    prompts, images = [ASK, "turn it into a ring", "hello"], [None, Pillow.fromarray(picture), None]
    together = pipe(prompts, images, generator=[seeded(k) for k in range(3)], **SHORT)
    for row, output in enumerate(together):
        alone = pipe(prompts[row], images[row], generator=seeded(row), **SHORT)
        assert alone.text == output.text and alone.gate == pytest.approx(output.gate, abs=1e-5)
        for one, other in zip(alone.images, output.images, strict=True):
            assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1


def test_generators_decide_the_picture(pipe: M2ChatPipeline) -> None:
    first, again, other = (
        np.asarray(pipe(ASK, generator=seeded(k), image_mode="force", **SHORT).images[0]) for k in (0, 0, 1)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_negative_prompts_and_several_pictures_of_a_prompt(pipe: M2ChatPipeline) -> None:
    def drawn(**more: Any) -> Any:
        return pipe(ASK, generator=seeded(), given="caption", **SHORT, **more)

    plain = np.asarray(drawn().images[0])
    assert np.array_equal(plain, np.asarray(drawn(negative_prompt="").images[0]))
    away = [np.asarray(drawn(negative_prompt=text).images[0]) for text in ("a blue background", "a small ring")]
    assert not np.array_equal(plain, away[0]) and not np.array_equal(*away)
    first, second = drawn(num_images_per_prompt=2)
    assert np.abs(np.asarray(first.images[0]).astype(int) - plain).max() <= 1
    assert not np.array_equal(np.asarray(second.images[0]), plain)
    assert len(pipe([ASK, "hello"], num_images_per_prompt=2, image_mode="never")) == 4
    with pytest.raises(UserError, match="num_images_per_prompt=0: choose a whole number from 1"):
        drawn(num_images_per_prompt=0)


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_notebooks_show_texts_and_pictures(kind: Any, pipe: M2ChatPipeline) -> None:
    output = pipe("a <b>red</b> ring", output_type=kind, given="caption", **SHORT)
    (picture,) = output.pictures
    assert output._repr_html_().count("data:image/png;base64,") == 1
    assert "a &lt;b&gt;red&lt;/b&gt; ring" in picture._repr_html_() and "<b>" not in picture._repr_html_()
    assert "32" in repr(picture) and len(repr(output)) < 200, "no pixels in a console"
    assert "m3ft" in repr(pipe) and "32 px" in repr(pipe)


@pytest.mark.parametrize(("kind", "shape"), [("np", (32, 32, 3)), ("pt", (3, 32, 32))])
def test_output_types(kind: Any, shape: tuple[int, ...], pipe: M2ChatPipeline) -> None:
    (image,) = pipe(ASK, output_type=kind, image_mode="force", **SHORT).images
    assert tuple(image.shape) == shape and 0 <= float(image.min()) < float(image.max()) <= 1


def test_the_callback_sees_and_changes_latents_and_can_interrupt(pipe: M2ChatPipeline) -> None:
    seen: list[tuple[int, int]] = []

    def look(own: M2ChatPipeline, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        assert own is pipe and values["latents"].shape[0] == 1
        seen.append((step, timestep))
        own._interrupt = step == 1
        return {"latents": values["latents"] * 0}

    options = {**SHORT, "num_inference_steps": 5, "image_mode": "force"}
    (blank,) = pipe(ASK, generator=seeded(), callback_on_step_end=look, **options).images
    (plain,) = pipe(ASK, generator=seeded(), **options).images
    assert [step for step, _ in seen] == [0, 1] and seen[0][1] > seen[1][1]
    assert np.asarray(blank).std() < np.asarray(plain).std()


def test_the_progress_bar_counts_denoising_steps(pipe: M2ChatPipeline) -> None:
    shown = io.StringIO()
    pipe.set_progress_bar_config(file=shown)
    try:
        pipe(ASK, image_mode="force", **SHORT)
    finally:
        pipe.set_progress_bar_config(disable=True)
    assert "2/2" in shown.getvalue()


def test_schedulers_can_be_swapped(pipe: M2ChatPipeline) -> None:
    from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

    before = pipe.scheduler
    pictures = []
    try:
        for kind in (None, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, EulerAncestralDiscreteScheduler):
            if kind is not None:
                pipe.scheduler = kind.from_config(before.config)
            pictures.append(np.asarray(pipe(ASK, generator=seeded(), image_mode="force", **SHORT).images[0]))
    finally:
        pipe.scheduler = before
    assert not np.array_equal(pictures[0], pictures[2])
    assert np.array_equal(pictures[2], pictures[3]), "noise that is added on the way belongs to the seed too"


def test_other_schedulers_than_the_promised_ones_are_refused(pipe: M2ChatPipeline) -> None:
    from diffusers import TCDScheduler

    before = pipe.scheduler
    with pytest.raises(UserError, match="scheduler: its scheduler TCDScheduler is not supported"):
        pipe.scheduler = TCDScheduler.from_config(before.config)
    assert pipe.scheduler is before


def test_height_and_width(pipe: M2ChatPipeline) -> None:
    output = pipe(ASK, image_mode="force", height=32, width=48, **SHORT)
    assert output.images[0].size == (48, 32)
    assert pipe(ASK, image_mode="force", width=48, size=40, **SHORT).images[0].size == (48, 40)
    told = edit(pipe, output.images[0], ["make it small"], steps=1, height=48)
    assert told[0].images[0].size == (32, 48), "a context picture of any shape"


def test_a_preset_gives_steps_and_guidance(tmp_path: Path) -> None:
    quick = M2ChatPipeline.from_pretrained(decoder={"preset": "lightning-4"})
    assert (quick.draw_settings().steps, quick.draw_settings().guidance) == (4, 1.0)
    assert (quick.draw_settings(9).steps, quick.draw_settings(guidance=2.0).guidance) == (9, 2.0)
    assert quick.draw_settings(guidance_interval=(0.2, 0.8)).guidance_interval == (0.2, 0.8)
    with pytest.raises(UserError, match=r"guidance_interval=\[0\.8, 0\.2\]: give two shares"):
        quick.draw_settings(guidance_interval=(0.8, 0.2))
    steps: list[int] = []
    quick.set_progress_bar_config(disable=True)

    def count(pipe: M2ChatPipeline, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(timestep)
        return values

    picture = quick(ASK, image_mode="force", max_new_tokens=16, generator=seeded(), callback_on_step_end=count).images
    assert steps == [999, 749, 499, 249]
    session = quick.session(seed=0, image="force", max_images=1, preview_every=0)
    assert len([event for event in session.stream("hello") if isinstance(event, Progress)]) == 4
    quick.save_pretrained(tmp_path / "quick")
    again = M2ChatPipeline.from_pretrained(tmp_path / "quick")
    again.set_progress_bar_config(disable=True)
    assert again.origin.backbone.decoder.preset == "lightning-4"
    redrawn = again(ASK, image_mode="force", max_new_tokens=16, generator=seeded()).images
    assert np.array_equal(np.asarray(picture[0]), np.asarray(redrawn[0]))
    other = M2ChatPipeline.from_pretrained(tmp_path / "quick", decoder={"scheduler": "ddim"}).origin.backbone.decoder
    assert (other.preset, other.scheduler) == ("lightning-4", "ddim")


def test_text_to_image_takes_the_prompt_as_caption(pipe: M2ChatPipeline) -> None:
    output = pipe("a small green ring at the top on a pink background", given="caption", **SHORT)
    (part,) = output.segments
    assert isinstance(part, OutputImage) and part.caption == "a small green ring at the top on a pink background"
    assert part.gate == 1.0


def test_saved_and_loaded_it_says_the_same(pipe: M2ChatPipeline, tmp_path: Path, monkeypatch: Any) -> None:
    pipe.save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    loaded = M2ChatPipeline.from_pretrained(tmp_path / "mine")
    assert loaded.origin.m3adapter == pipe.origin.m3adapter and loaded.origin.stage == "m3ft"
    first, second = (own(ASK, generator=seeded(), image_mode="force", **SHORT) for own in (pipe, loaded))
    assert first.text == second.text
    assert np.array_equal(np.asarray(first.images[0]), np.asarray(second.images[0]))
    frozen = read_manifest(tmp_path / "mine").backbone
    assert Path(frozen.language_model).is_absolute()


def test_weights_of_stage_1_force_the_layout(tmp_path: Path) -> None:
    first = M2ChatPipeline.from_pretrained(folder_of("micro") / "m2chat/align.ckpt")
    output = first(ASK, **SHORT)
    assert len(output.images) == 1 and output.gate == [1.0]


def test_shown_pictures_are_described_by_the_released_model(pipe: M2ChatPipeline) -> None:
    scenes = [
        Scene(Shape("triangle", "pink"), "purple", None, "small", "bottom"),
        Scene(Shape("square", "blue"), "red", None, "large", "middle"),
    ]
    before = {name: tensor.clone() for name, tensor in pipe.model.named_parameters()}
    captions = pipe.caption([render(scene, np.random.default_rng(0)) for scene in scenes])
    for scene, caption in zip(scenes, captions, strict=True):
        said = parse_caption(caption)
        assert {name: said.get(name) for name in ("colour", "background")} == {
            "colour": scene.first.colour, "background": scene.background,
        }  # fmt: skip
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.model.named_parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompt": []}, "0 pictures for 0 prompts"),
        ({"prompt": ["a", "b"], "image": [None]}, "1 pictures for 2 prompts"),
        ({"prompt": "a", "output_type": "jpg"}, "choose one of pil, np, pt"),
        ({"prompt": "a", "size": 33}, "size=33: VAE and UNet need a multiple of 8; the nearest is 32 or 40"),
        ({"prompt": "a", "image_mode": "maybe"}, "choose one of auto, force, never"),
        ({"prompt": ["a", "b", "c"], "generator": [seeded(), seeded()]}, "2 generators for 3 prompts"),
        ({"prompt": ["a", "b"], "image": Pillow.new("RGB", (8, 8))}, "one picture for 2 prompts: give a list"),
        ({"prompt": ["a", "b"], "image": np.zeros((2, 8, 3), np.uint8)}, "one picture for 2 prompts: give a list"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps=0: choose a whole number from 1"),
        ({"prompt": "a", "num_inference_steps": 2.5}, "num_inference_steps=2.5: choose a whole number"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale=nan: choose from 0"),
        ({"prompt": "a", "guidance_scale": "5"}, "guidance_scale='5': choose from 0"),
        ({"prompt": "a", "temperature": -1.0}, "temperature=-1.0: choose from 0 to 100; 0 takes the likeliest"),
        ({"prompt": "a", "top_p": 1.5}, "top_p=1.5: choose above 0 to 1"),
        ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens=0: choose a whole number from 1"),
        ({"prompt": "a", "max_images": 17}, "max_images=17: choose a whole number from 1 to 16"),
        ({"prompt": None}, "prompt: NoneType is no text"),
        ({"prompt": 5}, "prompt: int is no text"),
        ({"prompt": b"hello"}, "prompt: bytes is no text"),
        ({"prompt": ["a", 5]}, r"prompt\[1\]: int is no text"),
        ({"prompt": ""}, "prompt: a text is empty: say something"),
        ({"prompt": ["a", " "]}, "prompt: a text is empty: say something"),
        ({"prompt": "a", "size": "32"}, "size='32': give a number of pixels"),
        ({"prompt": "a", "height": 32.0}, "height=32.0: give a number of pixels, .* as a whole number"),
        ({"prompt": "a", "height": 100_000}, "height=100000: at most 256 pixels, 8 times the 32"),
        ({"prompt": "a", "callback_on_step_end": 5}, "callback_on_step_end=5: give a function"),
        ({"prompt": "a", "callback_on_step_end": lambda pipe: {}}, "callback_on_step_end takes .*: give a function"),
        ({"prompt": "a", "given": "reply"}, "given='reply': choose nothing or caption"),
        ({"prompt": "a", "generator": 5}, "generator=5: give a torch.Generator"),
        (
            {"prompt": "a", "generator": Mock(spec=torch.Generator, device=torch.device("cuda:0"))},
            "of device cuda:0: g",
        ),
    ],
)
def test_bad_calls(call: dict[str, Any], message: str, pipe: M2ChatPipeline) -> None:
    with pytest.raises(UserError, match=message):
        pipe(**call)


def test_bad_calls_of_sessions_and_tasks(pipe: M2ChatPipeline) -> None:
    for call, message in (
        (lambda: pipe.session(seed=2**70).stream("hello"), "seed=1180591620717411303424: choose a whole number"),
        (lambda: pipe.session(seed=1.5).stream("hello"), "seed=1.5: choose a whole number"),
        (lambda: pipe.session().stream("hello", picture="1"), "picture='1': this session has 0 pictures"),
        (lambda: pipe.session().stream("hello", ["a.png"]), "str is no picture"),
        (lambda: pipe.session().stream([]), "say something, or show a picture"),
        (lambda: pipe.session().stream(None), "text: NoneType is neither a text nor a list"),
        (lambda: pipe.session().stream("a", Pillow.new("RGB", (8, 8))), "images: Image is no list of pictures"),
        (lambda: pipe.session(width=64_000).stream("a"), "width=64000: at most 256 pixels"),
        (lambda: pipe(ASK, image_mode="force", callback_on_step_end=lambda *a: 5, **SHORT), "returned int: return the"),
        (lambda: text_to_image(pipe, ""), "prompt: the text is empty"),
        (lambda: wish(pipe, None), "text: NoneType is no text"),
        (lambda: text_to_image(pipe, "a", seeds=()), "seeds: name at least one"),
        (lambda: text_to_image(pipe, "a", guidance=float("nan")), "guidance=nan: choose from 0"),
        (lambda: pipe.draw_captions(["a", "b"], [0]), "1 seeds for 2 captions"),
        (lambda: M2ChatPipeline(pipe.model, pipe.origin, max_tokens=-1), "max_tokens=-1: choose a whole number from 1"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_a_message_of_texts_and_pictures_in_their_order(pipe: M2ChatPipeline) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    session = pipe.session(image="never", max_new_tokens=4)
    session.reply(["look", picture, " and ", Pillow.new("RGB", (8, 8)), "see"], [picture])
    assert session.turns[0].parts == (0, "look", 1, "and", 2, "see") and len(session.images) == 3
    session.reply("see", [picture])
    assert session.turns[2].parts == (3, "see")


@pytest.mark.parametrize("content", ["", "manifest.json"])
def test_a_folder_that_holds_no_weights(content: str, tmp_path: Path) -> None:
    if content:
        (tmp_path / content).write_text("{}")
    with pytest.raises(UserError, match=r"is no folder of weights: it needs manifest\.json and model\.safetensors"):
        M2ChatPipeline.from_pretrained(tmp_path)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError, match="there is no checkpoint file"):
        M2ChatPipeline.from_pretrained("nowhere.ckpt")


def test_generation_in_less_memory(pipe: M2ChatPipeline) -> None:
    whole, fitted = pipe, M2ChatPipeline.from_pretrained().fit_to_memory("high")
    first, second = (own(ASK, generator=seeded(), image_mode="force", **SHORT) for own in (whole, fitted))
    assert first.text == second.text
    assert np.allclose(np.asarray(first.images[0], float), np.asarray(second.images[0], float), atol=1)
    with pytest.raises(UserError, match="--memory tiny: choose one of"):
        fitted.fit_to_memory("tiny")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["balanced", "low"])
def test_a_language_model_in_fewer_bits_still_replies(mode: Any) -> None:
    pytest.importorskip("torchao", reason="needs m2chat[memory]")
    fitted = M2ChatPipeline.from_pretrained().fit_to_memory(mode)
    output = fitted(ASK, generator=seeded(), image_mode="force", **SHORT)
    assert len(output.images) == 1
    assert fitted.caption([np.asarray(output.images[0])])[0]


@pytest.mark.parametrize(
    ("recorded", "configured", "expected"),
    [({"max_tokens": 200, "prompt": "chat"}, 192, 200), (None, 192, 192), (None, None, 512)],
    ids=["in the checkpoint", "in the run's config.yaml", "nowhere"],
)
def test_the_longest_sequence_is_that_of_the_training(
    recorded: dict[str, Any] | None, configured: int | None, expected: int, tmp_path: Path, monkeypatch: Any
) -> None:
    weights = folder_of("micro") / "m2chat"
    payload = torch.load(weights / "align.ckpt", weights_only=True)
    if recorded is not None:
        payload["config"] = {**payload.get("config", {}), "layout": recorded}
    (tmp_path / "checkpoints").mkdir()
    torch.save(payload, tmp_path / "checkpoints" / "align.ckpt")
    config = yaml.safe_load((weights / "config.yaml").read_text())
    config["data"] = {} if configured is None else {"max_tokens": configured}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    if recorded is not None:  # the format of the prompts as well, which needs the model's template
        with pytest.raises(UserError, match=r"data\.prompt=chat, and .* has no chat template"):
            M2ChatPipeline.from_pretrained(tmp_path / "checkpoints" / "align.ckpt")
        settings = M2ChatTokenizer.__init__

        def with_template(self: M2ChatTokenizer, folder: Path) -> None:
            settings(self, folder)
            self.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"

        monkeypatch.setattr(M2ChatTokenizer, "__init__", with_template)
    pipe = M2ChatPipeline.from_pretrained(tmp_path / "checkpoints" / "align.ckpt")
    assert pipe.layout.max_tokens == expected
    assert pipe.layout.prompts.name == ("alpaca" if recorded is None else "chat")
    pipe.save_pretrained(tmp_path / "saved")
    loaded = M2ChatPipeline.from_pretrained(tmp_path / "saved")
    assert loaded.layout.max_tokens == expected and loaded.layout.prompts.name == pipe.layout.prompts.name
    assert M2ChatPipeline.from_pretrained(tmp_path / "saved", max_tokens=100).layout.max_tokens == 100


def test_the_shipped_weights_state_their_longest_sequence(pipe: M2ChatPipeline) -> None:
    assert pipe.layout.max_tokens == 320


def test_the_package_offers_the_pipeline_and_imports_it_when_it_is_used() -> None:
    code = (
        "import sys, m2chat; light = 'torch' not in sys.modules; from m2chat import M2ChatPipeline, Session; "
        "import m2chat.pipeline as p; same = M2ChatPipeline is p.M2ChatPipeline and Session is p.Session; "
        "sys.exit(not (light and same))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        m2chat.Pipeline  # noqa: B018


def test_a_checkpoint_is_loaded_alone_and_an_earlier_one_with_its_config_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    micro = folder_of("micro").resolve()
    payload = torch.load(micro / "m2chat/align.ckpt", weights_only=True)
    config = yaml.safe_load((micro / "m2chat/config.yaml").read_text())
    settings = config["model"]["init_args"]
    for name in ("language_model", "adapter", "vision_encoder", "image_decoder"):
        settings["backbone"][name] = str(micro.parents[1] / settings["backbone"][name])
    payload["config"] |= {"backbone": settings["backbone"], "layout": {"max_tokens": 150, "num_image_tokens": 8}}
    path = tmp_path / "align.ckpt"
    monkeypatch.setattr(shipped, "ROOTS", (tmp_path,))
    torch.save(payload, path)
    (tmp_path / "config.yaml").write_text("model: {init_args: {}}")  # of another run: what the checkpoint holds counts
    pipe = M2ChatPipeline.from_pretrained(path)
    assert pipe.origin.m3adapter.width == 192 and pipe.layout.max_tokens == 150
    del payload["config"]
    torch.save(payload, path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert M2ChatPipeline.from_pretrained(path).origin.m3adapter.width == 192
    del settings["m3adapter"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="the shipped micro weights are not here"):
        M2ChatPipeline.from_pretrained(path)
