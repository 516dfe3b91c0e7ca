"""The files that scripts/true_size.py makes, and the two rows that need more than a command."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from m2chat._compat import ensure_torchvision

ensure_torchvision()

from m2chat.models import published  # noqa: E402
from m2chat.models.adapter_file import AdapterShape, adapter_parameter_names, to_official  # noqa: E402
from m2chat.models.config import BackboneConfig, M3AdapterConfig  # noqa: E402
from m2chat.models.weights.diffusion import skeleton  # noqa: E402

ROOT = Path(__file__).parents[1]
SMALL_LLAMA = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 6, "num_attention_heads": 16,
               "num_key_value_heads": 16}  # fmt: skip
BLOCK = 1 << 25
"""Random numbers that are repeated; every tensor starts at another one of them."""
M3ADAPTER = {"true": M3AdapterConfig(width=1536, heads=24), "small": M3AdapterConfig(width=192, heads=6)}


def make(folder: Path, size: str) -> None:
    """Makes what is not there yet."""
    torch.manual_seed(0)
    settings = published.LLAMA_7B | (SMALL_LLAMA if size == "small" else {})
    shape = published.BIAS_7B if size == "true" else replace(published.BIAS_7B, layers=5, visual_depth=2)
    steps = {
        "llama/7B": lambda at: llama(at, settings),
        "BIAS.pth": lambda at: adapter(at, settings, shape),
        "clip.pt": lambda at: clip(at, size),
        "sdxl": lambda at: sdxl(at, size),
        "pairs": pairs,
    }
    for name, step in steps.items():
        if not (folder / name).exists():
            print(f"  {name}", flush=True)
            part = folder / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(parents=True, exist_ok=True)
            step(part)
            part.rename(folder / name)
    if not (folder / "llama/tokenizer.model").is_file():
        tokenizer(folder / "llama/tokenizer.model", settings["vocab_size"])
    broken = folder / "broken"  # a decoder without its UNet's weights
    if not broken.exists():
        without = str(folder / "sdxl/unet")
        shutil.copytree(
            folder / "sdxl", broken, copy_function=os.link,
            ignore=lambda at, names: [name for name in names if at == without and name.endswith(".safetensors")],
        )  # fmt: skip
    named = BackboneConfig(
        str(folder / "llama"), str(folder / "BIAS.pth"), f"ViT-L-14-quickgelu:{folder / 'clip.pt'}",
        str(folder / "sdxl"), 32, channel_order="bgr", visual_heads=16,
    )  # fmt: skip
    fields = ("language_model", "adapter", "vision_encoder", "image_decoder", "num_image_tokens", "channel_order",
              "visual_heads")  # fmt: skip
    (folder / "backbone.yaml").write_text(yaml.safe_dump({name: getattr(named, name) for name in fields}))
    if not (folder / "connector").exists():
        print("  connector", flush=True)
        connector(folder, named, M3ADAPTER[size])


def numbers() -> Tensor:
    """Random numbers of deviation 0.02: small enough for every network to stay finite."""
    draws = np.random.default_rng(0).standard_normal(BLOCK, dtype=np.float32)
    return torch.from_numpy(0.02 * draws)


def like(name: str, shape: tuple[int, ...], random: Tensor) -> Tensor:
    """Numbers of a tensor: norms are one, biases zero, everything else random."""
    if len(shape) < 2:
        weight = name.endswith("weight")
        return torch.ones(shape) if weight else torch.zeros(shape)
    count = int(np.prod(shape))
    start = hash((name.count("."), len(name), count)) % 4096
    repeats = -(-(count + start) // len(random))
    return random.repeat(repeats)[start : start + count].reshape(shape)


def write(file: int, offset: int, name: str, shape: tuple[int, ...], random: Tensor) -> int:
    """Writes a tensor's fp16 numbers into a file, a block at a time; returns where it ends."""
    count = int(np.prod(shape))
    if len(shape) < 2:
        return offset + os.pwrite(file, like(name, shape, random).half().numpy().tobytes(), offset)
    raw = memoryview(random.numpy()).cast("B")  # of fp16
    start, left = 2 * (count % 4096), 2 * count
    while left:
        written = os.pwrite(file, raw[start : start + left], offset)
        offset, left, start = offset + written, left - written, 0
    return offset


def llama(folder: Path, settings: Mapping[str, Any]) -> None:
    """Meta's folder: ``params.json``, ``consolidated.00.pth``."""
    folder.mkdir()
    width, inner, vocab = (settings[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    params = {"dim": width, "multiple_of": 256, "n_heads": settings["num_attention_heads"],
              "n_layers": settings["num_hidden_layers"], "norm_eps": 1e-6, "vocab_size": -1}  # fmt: skip
    (folder / "params.json").write_text(json.dumps(params))
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (vocab, width), "norm.weight": (width,), "output.weight": (vocab, width),
    }  # fmt: skip
    for layer in range(settings["num_hidden_layers"]):
        at = f"layers.{layer}."
        shapes |= {f"{at}attention.w{kind}.weight": (width, width) for kind in "qkvo"}
        shapes |= {f"{at}feed_forward.w{kind}.weight": (inner, width) for kind in (1, 3)}
        shapes |= {f"{at}feed_forward.w2.weight": (width, inner)}
        shapes |= {f"{at}{kind}_norm.weight": (width,) for kind in ("attention", "ffn")}
    path = folder / "consolidated.00.pth"
    with torch.serialization.skip_data():  # memory that is never touched takes none
        torch.save({name: torch.empty(shape, dtype=torch.float16) for name, shape in shapes.items()}, path)
    reader = torch._C.PyTorchFileReader(str(path))
    places = {name: reader.get_record_offset(f"data/{number}") for number, name in enumerate(shapes)}
    random = numbers().half()
    with path.open("r+b") as file:
        for name, shape in shapes.items():
            write(file.fileno(), places[name], name, shape, random)


def tokenizer(path: Path, words: int) -> None:
    """The micro tokenizer with pieces that nobody types, up to the number of words."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString((ROOT / "data/micro/llama/tokenizer.model").read_bytes())
    for number in range(len(model.pieces), words):
        piece = model.pieces.add()
        piece.piece, piece.score = "".join(chr(0xE000 + int(digit)) for digit in str(number)), -1e6
    model.trainer_spec.vocab_size = words
    path.write_bytes(model.SerializeToString())


def adapter(path: Path, settings: Mapping[str, Any], shape: AdapterShape) -> None:
    """The tensors of BIAS-7B in its file's layout."""
    from m2chat.models.llama_adapter import AdapterLlamaConfig, AdapterLlamaForCausalLM

    config = AdapterLlamaConfig(adapter_len=shape.prompts, adapter_layers=shape.layers, **settings)
    with torch.device("meta"):
        model = nn.ModuleDict(
            {"llama": AdapterLlamaForCausalLM(config), "visual_query": shape.visual_query(config.hidden_size)}
        )
    names, random = adapter_parameter_names(model["llama"], model["visual_query"]), numbers()
    state = {name: like(name, tuple(p.shape), random) for name, p in model.named_parameters() if name in names}
    official = to_official(state, config.num_attention_heads)
    torch.save({"model": official, "config": {"w_bias": True, "w_lora": False, "lora_rank": 16}}, path)


class Script(nn.Module):
    """A TorchScript archive with tensors of given names, as OpenAI publishes CLIP.

    Args:
        tensors: Tensors by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            at: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(at, part):
                    at.add_module(part, nn.Module())
                at = getattr(at, part)
            at.register_parameter(last, nn.Parameter(tensor, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """Nothing: it is a container."""
        return x


def clip(path: Path, size: str) -> None:
    """ViT-L/14 as OpenAI's archive, without the text tower."""
    import open_clip

    settings = open_clip.get_model_config("ViT-L-14-quickgelu")
    with torch.device("meta"):
        vision = open_clip.CLIP(
            settings["embed_dim"], settings["vision_cfg"], {"layers": 1}, quick_gelu=True
        ).visual.state_dict()
    random = numbers()
    tensors = {f"visual.{name}": like(name, tuple(value.shape), random).half() for name, value in vision.items()}
    tensors["logit_scale"] = torch.tensor(4.6)
    torch.jit.script(Script(tensors)).save(str(path))


def sdxl(folder: Path, size: str) -> None:
    """SDXL base as diffusers saves it in fp16, with OpenAI's tokenizers."""
    from m2chat.text.clip_tokenizers import openai_tokenizers

    folder.mkdir()
    fewer = size == "small"
    configs: dict[str, dict[str, Any]] = {
        "text_encoder": {"model_type": "clip_text_model", **published.SDXL_TEXT_ENCODER},
        "text_encoder_2": {"model_type": "clip_text_model", **published.SDXL_TEXT_ENCODER_2}
        | ({"num_hidden_layers": 2} if fewer else {}),
        "unet": {"_class_name": "UNet2DConditionModel", **published.SDXL_UNET}
        | ({"transformer_layers_per_block": [1, 1, 1]} if fewer else {}),
        "vae": {"_class_name": "AutoencoderKL", **published.SDXL_VAE},
    }
    random = numbers().half()
    for name, config in configs.items():
        part = folder / name
        part.mkdir()
        (part / "config.json").write_text(json.dumps(config))
        stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
        state = skeleton(name, config).state_dict()
        write_safetensors(part / f"{stem}.safetensors", {key: tuple(v.shape) for key, v in state.items()}, random)
    (folder / "scheduler").mkdir()
    described = {"_class_name": "EulerDiscreteScheduler", **published.SDXL_SCHEDULER}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(described))
    for name, made in zip(("tokenizer", "tokenizer_2"), openai_tokenizers(), strict=True):
        made.save_pretrained(folder / name)
    kinds = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "EulerDiscreteScheduler"}
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    index |= {name: ["diffusers", kind] for name, kind in kinds.items()}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
              "tokenizer_2": ["transformers", "CLIPTokenizer"]}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def pairs(folder: Path) -> None:
    """Two pictures with captions, as shards."""
    from m2chat.data.shards import write_shards
    from m2chat.data.sources import caption_sample
    from m2chat.schema import Image
    from m2chat.worlds.shapes.captions import caption_of
    from m2chat.worlds.shapes.conversations import ConversationMaker
    from m2chat.worlds.shapes.scenes import render

    maker = ConversationMaker("train", 0)
    scenes = [maker.scene() for _ in range(2)]
    images = [Image(render(scene, maker.noise), caption_of(scene)) for scene in scenes]
    write_shards((caption_sample(f"pair/{i}", "pairs", image, {}) for i, image in enumerate(images)), folder)


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], random: Tensor) -> None:
    """A safetensors file in fp16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        at = 8 + len(text)
        for name, shape in shapes.items():
            at = write(file.fileno(), at, name, shape, random)


def connector(folder: Path, backbone: BackboneConfig, m3adapter: M3AdapterConfig) -> None:
    """Weights of stage 2 as they are before training, exported."""
    from m2chat.models.build import build_m2chat
    from m2chat.models.weights.exported import export_model

    model = build_m2chat(backbone, m3adapter)
    layout = {"max_tokens": 512, "num_image_tokens": 32, "prompt": "alpaca"}
    export_model(model, "m3ft", backbone, folder / "connector", tasks=("caption",), layout=layout)


# Rows


def build(folder: Path) -> int:
    """Builds the whole system, as for drawing."""
    from m2chat.pipeline import M2ChatPipeline

    pipe = M2ChatPipeline.from_pretrained(folder / "connector")
    count = sum(parameter.numel() for parameter in pipe.model.parameters())
    print(f"{count:,} parameters")
    return 0


def build_sharded(folder: Path) -> int:
    """Builds and shards the system in two processes; prints what each keeps."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rank, args=(folder, rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


def _rank(folder: Path, rank: int, port: int) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from true_size import Peaks, anonymous

    from m2chat.models.blank import blank_m2chat
    from m2chat.models.build import build_m2chat
    from m2chat.models.memory import lower_parameters
    from m2chat.models.trainable import set_trainable, trainable_names
    from m2chat.models.units import unit_parameters
    from m2chat.models.weights.exported import read_manifest
    from m2chat.training.strategy import shard

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    backbone = BackboneConfig(**yaml.safe_load((folder / "backbone.yaml").read_text()))
    blank_m2chat(backbone, M3AdapterConfig(width=8, heads=2))  # the libraries take their memory before
    peaks = Peaks(os.getpid(), alone=True)
    before = anonymous(os.getpid())
    model = build_m2chat(backbone, read_manifest(folder / "connector").m3adapter, settled=False)
    set_trainable(model, trainable_names(model, "align"))
    lower_parameters((p for p in model.parameters() if not p.requires_grad), torch.bfloat16)
    total = sum(parameter.nbytes for parameter in model.parameters())
    unit = max(sum(p.nbytes for p in group) for group in unit_parameters(model).values())
    within = {parameter for group in unit_parameters(model).values() for parameter in group}
    unit = max(unit, sum(p.nbytes for p in model.parameters() if p not in within))
    shard(model, init_device_mesh("cpu", (2,)))
    kept, peak = anonymous(os.getpid()), peaks.stop()[0]
    print(
        f"rank {rank}: {total / 1e9:.2f} GB of weights, a share {total / 2e9:.2f}, the largest unit {unit / 1e9:.2f}; "
        f"memory before {before / 1e9:.2f}, at most {peak / 1e9:.2f}, sharded {kept / 1e9:.2f}",
        flush=True,
    )
    distributed.destroy_process_group()
    if peak - before > total / 2 + unit + 0.1e9:
        raise SystemExit("that is more than a share and a unit")
