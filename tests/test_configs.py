"""Every YAML in configs/ is read by the real command line; those of the paper's scale say what the paper says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from m2chat import cli, lightning_cli
from m2chat.evaluation.rows import read_rows
from m2chat.models.config import BackboneConfig, M3AdapterConfig, NewAdapterConfig
from m2chat.models.decoder_config import DecoderConfig, LoraConfig, decoder_config
from m2chat.models.swap import with_decoder
from m2chat.shipped import MADE
from m2chat.worlds.emoji.recipe.visual_query import SIZES

ROOT = Path(__file__).parent.parent
BACKBONES = sorted(ROOT.glob("configs/backbone/*.yaml"))
M3ADAPTERS = sorted(ROOT.glob("configs/m3adapter/*.yaml"))
DECODERS = sorted(ROOT.glob("configs/decoder/*.yaml"))
OF_ROWS = sorted([*ROOT.glob("configs/rows/*.yaml"), *ROOT.glob("configs/ablations/*.yaml")])
OF_BASES = sorted(ROOT.glob("configs/paper/llama*.yaml"))
OF_CARDS = [ROOT / f"configs/paper/{name}.yaml" for name in ("ddp", "one_gpu_80")]
OF_PAPER_ROWS = sorted(ROOT.glob("configs/paper/rows/*.yaml"))
OF_POCKET_ROWS = sorted(ROOT.glob("configs/pocket/rows/*.yaml"))
OVERLAYS = [
    *OF_ROWS,
    *OF_BASES,
    *OF_CARDS,
    *OF_PAPER_ROWS,
    *OF_POCKET_ROWS,
    *sorted(ROOT.glob("configs/overlays/*.yaml")),
]
RUNS = sorted(set(ROOT.glob("configs/**/*.yaml")) - {*BACKBONES, *M3ADAPTERS, *DECODERS, *OVERLAYS})
POCKET = ROOT / "configs/pocket"
OURS = ROOT / "configs/paper/stage0.yaml"
ONE_CARD = ROOT / "configs/paper/one_gpu_24.yaml"
PAPER = [path for path in RUNS if path.parent.name == "paper" and path not in (OURS, ONE_CARD)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that reads a configuration as the command does, with nothing built: eight GPUs need not be there."""
    seen: list[Any] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("m2chat.early_checks.check_run", lambda arguments: None)  # weights need not be there either
    monkeypatch.setattr(lightning_cli.M2ChatCLI, "_set_seed", lambda self: None)
    monkeypatch.setattr(lightning_cli.M2ChatCLI, "instantiate_classes", lambda self: seen.append(self.config))
    monkeypatch.setattr(lightning_cli.M2ChatCLI, "_run_subcommand", lambda self, subcommand: None)

    def parse(path: Path, *arguments: str) -> Any:
        subcommand = "fit" if "train" in yaml.safe_load(path.read_text(encoding="utf-8"))["data"] else "test"
        assert cli.main([subcommand, "--config", name_of(path), *arguments]) == 0
        return seen.pop()[subcommand]

    return parse


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_it_parses_and_says_how_it_is_run(parsed: Any, path: Path) -> None:
    config = parsed(path)
    subcommand = "fit" if config.data.train else "test"
    text = path.read_text(encoding="utf-8")
    assert f"#   lightning {subcommand} --config {name_of(path)}\n" in text
    settings = yaml.safe_load(text)
    assert "max_tokens" in settings["data"] and "max_tokens" not in settings["model"]["init_args"].get("evaluation", {})
    comments = [line for line in text.splitlines() if line.startswith("#")]
    twins = [twin for twin in RUNS if twin.name == path.name and twin != path]
    assert all(any(name_of(twin) in line for line in comments) for twin in twins)


@pytest.mark.parametrize("path", OVERLAYS, ids=name_of)
def test_an_overlay_goes_with_the_commands_that_it_names(
    parsed: Any, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = re.findall(r"^#   lightning (\w+) +(--config .*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert commands and all(name_of(path) in arguments for _, arguments in commands)
    for subcommand, arguments in commands:
        first, *others = [part for part in arguments.split() if part != "--config"]
        config = parsed(ROOT / first, *[item for other in others for item in ("--config", other)])
        assert bool(config.data.train) == (subcommand == "fit")
        changed = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, value in changed.get("model", {}).get("init_args", {}).items():
            if str(value).endswith(".yaml"):  # a separate file, beside the first
                value = yaml.safe_load((path.parent / value).read_text(encoding="utf-8"))
            found = config.model.init_args[name]
            for key, wanted in value.items() if isinstance(value, dict) else ():
                inner = found[key] if not isinstance(wanted, dict) else {k: found[key][k] for k in wanted}
                assert (list(inner) if isinstance(wanted, list) else inner) == wanted
            assert isinstance(value, dict) or found == value
    assert "error" not in capsys.readouterr().err


def test_every_row_names_configurations_that_exist() -> None:
    rows = read_rows(ROOT / "configs")
    assert [row.name for row in rows if row.config is None] == ["m3ft"]
    assert {row.name for row in rows} == {path.stem for path in OF_ROWS} and len(rows) == len(OF_ROWS)
    for row in rows:
        for name in (*row.evaluations(), *row.shares, *row.trains):
            assert (ROOT / f"configs/{name}.yaml").is_file()


def test_stage_0_makes_the_adapter_that_its_twin_of_the_paper_names(parsed: Any) -> None:
    config = parsed(OURS)
    settings = config.model.init_args
    twin = parsed(ROOT / "configs/paper/stage1.yaml", "--config", "configs/paper/llama2.yaml").model.init_args.backbone
    assert settings.adapter_file == twin.adapter and settings.backbone.adapter == "new"
    assert settings.backbone.channel_order == twin.channel_order == "rgb"
    names = ("language_model", "vision_encoder", "image_decoder", "num_image_tokens")
    assert [settings.backbone[name] for name in names] == [twin[name] for name in names]
    assert all(source.describe for source in config.data.train) and config.data.language_model == twin.language_model


def test_the_pocket_system_trains_on_every_conversation_and_its_parts_fit_together(parsed: Any) -> None:
    from m2chat.worlds.emoji.shards import TALKS

    config = parsed(POCKET / "stage2.yaml")
    assert {source.name for source in config.data.train} == TALKS.keys()
    assert sum(source.weight for source in config.data.train) == pytest.approx(1.0)
    assert config.data.check_leaks == "words"
    backbone = config.model.init_args.backbone
    names = ("language_model", "vision_encoder", "image_decoder", "num_image_tokens")
    described = parsed(POCKET / "stage0.yaml").model.init_args.backbone
    assert described.adapter in MADE and NewAdapterConfig(**described.new_adapter) == SIZES, (
        "as `visual_query` makes it"
    )
    assert [described[name] for name in names] == [backbone[name] for name in names]
    for path in sorted(POCKET.glob("*.yaml")):
        config = parsed(path)
        sources = [*(config.data.train or []), *(config.data.val or []), *(config.data.test or [])]
        splits = [(Path(source.path).name, source.world) for source in sources]
        assert splits == [("test", "emoji")] * len(sources) or set(splits) == {("train", "emoji"), ("val", "emoji")}
        for callback in config.trainer.callbacks:
            settings = callback.get("init_args") or {}
            if callback.class_path.endswith((".CLIPScore", ".InterRel", ".EditScores", ".StoryConsistency")):
                assert settings.encoder.init_args.model == "data/pocket/metric_clip"
            elif callback.class_path.endswith((".FID", ".Judge")):
                chosen = settings.get("world") or settings.extractor.class_path
                assert chosen in ("emoji", "m2chat.metrics.extractors.PocketExtractor")
        assert "data/micro" not in str(config), "every network is a pocket one"


@pytest.mark.parametrize("name", ["rows/stage1", "ablations/phi_10"])
def test_rows_of_stage_1_are_evaluated_as_such(parsed: Any, name: str) -> None:
    overlay = ("--config", f"configs/{name}.yaml")
    model = parsed(ROOT / "configs/eval_coco.yaml", *overlay).model
    assert model == parsed(ROOT / "configs/eval_coco.yaml", *overlay, "--model", "AlignModule").model
    plain = parsed(ROOT / "configs/eval_coco.yaml", "--model", "AlignModule").model
    plain.init_args.phi = model.init_args.phi
    assert model == plain


@pytest.mark.parametrize("path", BACKBONES, ids=name_of)
def test_backbones_parse(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(BackboneConfig, "backbone")
    config = parser.parse_object({"backbone": yaml.safe_load(path.read_text(encoding="utf-8"))}).backbone
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) >= {"language_model", "adapter", "vision_encoder"}
    assert config.num_image_tokens == (8 if path.name in ("micro.yaml", "pocket.yaml") else 32)


@pytest.mark.parametrize("path", DECODERS, ids=name_of)
def test_decoders_go_with_every_command(parsed: Any, path: Path) -> None:
    config = parsed(ROOT / "configs/eval_mmdialog.yaml", "--model.init_args.backbone.decoder", name_of(path))
    found = config.model.init_args.backbone
    expected = with_decoder(BackboneConfig("", "", "", "data/micro/sdxl", 8), path)
    settings = {name: value for name, value in found.decoder.as_dict().items() if name != "__path__"}
    assert decoder_config(settings) == expected.decoder
    assert found.image_decoder == expected.image_decoder and found.num_image_tokens == 8


def test_the_image_decoder_is_configured_in_yaml_and_on_the_command_line(parsed: Any, tmp_path: Path) -> None:
    decoder = {"lora": [{"path": "style.safetensors", "weight": 0.5}], "preset": "fast"}
    (tmp_path / "decoder.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"backbone": {"decoder": decoder}}}}))
    setting = "--model.init_args.backbone.decoder"
    config = parsed(ROOT / "configs/stage1.yaml", f"--config={tmp_path / 'decoder.yaml'}", f"{setting}.scheduler=euler")
    backbone = ArgumentParser()
    backbone.add_argument("--backbone", type=BackboneConfig)
    made = backbone.instantiate(backbone.parse_object({"backbone": config.model.init_args.backbone})).backbone
    assert made.decoder == DecoderConfig(lora=[LoraConfig("style.safetensors", 0.5)], scheduler="euler", preset="fast")
    assert made.image_decoder == "data/micro/sdxl"


def test_a_scheduler_that_does_not_exist_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    wrong = "--model.init_args.backbone.decoder.scheduler=eular"
    assert cli.main(["fit", "--config=configs/stage1.yaml", wrong]) == 2
    assert "decoder.scheduler='eular': choose one of ddim" in capsys.readouterr().err


@pytest.mark.parametrize("path", M3ADAPTERS, ids=name_of)
def test_m3adapters_parse_and_stand_once(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(M3AdapterConfig, "m3adapter")
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = parser.parse_object({"m3adapter": settings}).m3adapter
    assert (config.width, config.heads) == {
        "micro.yaml": (192, 6), "pocket.yaml": (256, 8), "paper.yaml": (1536, 24)
    }[path.name]  # fmt: skip
    others = [other for other in ROOT.glob("configs/**/*.yaml") if other != path]
    assert not [other for other in others if f"width: {config.width}" in other.read_text(encoding="utf-8")]


@pytest.mark.parametrize("setting", ["backbone", "m3adapter"])
def test_no_scale_is_a_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    monkeypatch.chdir(ROOT)
    given = {"backbone": "configs/backbone/micro.yaml", "m3adapter": "configs/m3adapter/micro.yaml"}
    del given[setting]
    arguments = [f"--model.init_args.{name}={path}" for name, path in given.items()]
    assert cli.main(["fit", "--model", "AlignModule", *arguments, "--trainer.accelerator=cpu"]) == 2
    assert f"model.init_args.{setting} is not set" in capsys.readouterr().err


def test_settings_of_before_with_both_lengths_still_load(parsed: Any, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.yaml"
    earlier.write_text(
        "model: {init_args: {evaluation: {max_tokens: 320}}}\ndata: {max_tokens: 320}\n", encoding="utf-8"
    )
    config = parsed(ROOT / "configs/stage2.yaml", "--config", str(earlier))
    assert config.model.init_args.evaluation.max_tokens == config.data.max_tokens == 320


@pytest.mark.parametrize("path", PAPER, ids=name_of)
def test_the_paper_runs_on_eight_gpus(parsed: Any, path: Path) -> None:
    config = parsed(path)
    backbone, adapter = config.model.init_args.backbone, config.model.init_args.m3adapter
    assert (config.trainer.accelerator, config.trainer.devices) == ("gpu", 8)
    assert config.trainer.precision == "bf16-mixed"
    assert (adapter.width, adapter.heads, backbone.num_image_tokens, config.data.max_tokens) == (1536, 24, 32, 512)
    links = ("language_model", "vision_encoder", "image_decoder", "num_image_tokens")
    assert [config.data[name] for name in links] == [backbone[name] for name in links]
    assert (backbone.vision_encoder, backbone.channel_order) == ("ViT-L-14-quickgelu:openai", "bgr")


@pytest.mark.parametrize("path", PAPER, ids=name_of)
def test_the_paper_can_be_built_on_the_meta_device(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    from m2chat.models.blank import blank_m2chat
    from m2chat.models.trainable import set_trainable, trainable_names

    monkeypatch.chdir(ROOT)
    settings, module = lightning_cli.read_config([name_of(path)])
    model, _ = blank_m2chat(module.backbone, module.m3adapter)
    set_trainable(model, trainable_names(model, module.stage))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    m3adapter = sum(parameter.numel() for parameter in model.m3adapter.parameters())
    # Eq. 6 trains a part of the M³Adapter; Eq. 7 all of it, what BIAS-7B holds, and the two tokens' rows.
    assert trained == (57_312_000 if path.name == "stage1.yaml" else m3adapter + 63_095_552 + 16_384)
    assert settings.data.num_image_tokens == module.backbone.num_image_tokens == 32


@pytest.mark.parametrize(
    ("stage", "lr", "batch_size", "epochs", "schedule"), [(1, 1e-4, 8, 4, "cosine"), (2, 1e-5, 1, 20, "step")]
)
def test_the_recipe_of_the_paper(
    parsed: Any, stage: int, lr: float, batch_size: int, epochs: int, schedule: str
) -> None:
    config = parsed(ROOT / f"configs/paper/stage{stage}.yaml")
    optim = config.model.init_args.optim
    assert config.trainer.strategy.class_path.endswith("M2ChatFSDPStrategy")
    assert (config.data.batch_size, config.trainer.max_epochs, config.data.image_size) == (batch_size, epochs, 256)
    assert (optim.lr, optim.schedule, optim.weight_decay, list(optim.betas)) == (lr, schedule, 0.05, [0.9, 0.95])
    assert optim.drop_every_epochs == 5 and config.model.init_args.phi == 1.0
    weights = {source.name: source.weight for source in config.data.train}
    assert weights == ({"cc3m": 1.0, "laion": 0.25} if stage == 1 else {"instruct": 4.0, "mmdialog": 7.0})
    # Generation needs whole weights in every process.
    assert config.trainer.limit_val_batches == 0
    assert config.data.global_batch == 8 * batch_size and not config.model.init_args.shard_frozen


@pytest.mark.parametrize("stage", [1, 2])
def test_one_card_of_80_gb_takes_the_same_steps_and_draws_samples(parsed: Any, stage: int) -> None:
    config = parsed(ROOT / f"configs/paper/stage{stage}.yaml", "--config", "configs/paper/one_gpu_80.yaml")
    assert (config.trainer.devices, config.trainer.strategy, config.data.batch_size) == (1, "auto", 8)
    assert config.data.global_batch == (64, 8)[stage - 1]
    assert config.data.val and config.trainer.limit_val_batches == 1.0
    names = [callback.class_path.rpartition(".")[2] for callback in config.trainer.callbacks]
    assert names[-1] == "SampleImages" and "ModelCheckpoint" in names


def test_one_card_of_24_gb_differs_from_the_paper_in_its_card_alone(parsed: Any) -> None:
    config, twin = parsed(ONE_CARD), parsed(ROOT / "configs/paper/stage1.yaml")
    assert config.model == twin.model
    differ = {name for name in vars(config.data) if config.data[name] != twin.data[name]}
    assert differ == {"features", "num_workers"} and config.data.features == "data/features/one_gpu_24"
    differ = {name for name in vars(config.trainer) if config.trainer[name] != twin.trainer[name]}
    assert differ == {"devices", "strategy"} and config.trainer.devices == 1


@pytest.mark.parametrize("path", [path for path in RUNS if path.name.startswith("eval_")], ids=name_of)
def test_stage_1_can_be_evaluated_with_the_same_settings(parsed: Any, path: Path) -> None:
    own, other = parsed(path).model, parsed(path, "--model", "AlignModule").model
    assert other.class_path.endswith(".AlignModule")
    for name in ("backbone", "m3adapter", "evaluation"):
        assert other.init_args[name] == own.init_args[name]


def test_the_printed_configuration_is_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", "--config", "configs/stage2.yaml", "--seed_everything", "5", "--print_config"])
    assert end.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["seed_everything"] == 5 and printed["trainer"]["devices"] == 1
    arguments = printed["model"]["init_args"]
    assert arguments["evaluation"]["seed"] == 0  # pictures are drawn with the same noise whatever was trained
    assert arguments["backbone"]["language_model"] == "data/micro/llama"
    assert "seed" not in arguments and "seed" not in printed["data"]  # they follow that of the run


def test_stages_that_are_known_without_the_classes_are_theirs() -> None:
    from m2chat import early_checks
    from m2chat.training.align_module import AlignModule
    from m2chat.training.describe_module import DescribeModule
    from m2chat.training.m3ft_module import M3FTModule

    classes = (DescribeModule, AlignModule, M3FTModule)
    assert {item.__name__: (item.stage, item.init_stage) for item in classes} == early_checks._STAGES
