"""`m2chat plan`: what a configuration will need, computed without a GPU and without a weight."""

from __future__ import annotations

import argparse
from typing import Any

from m2chat.commands.arguments import CONFIG, existing, in_range

USUAL_TOKENS = {"describe": 96, "align": 96, "m3ft": 256}
"""Length at which work is counted without `--tokens`: captions are short, conversations are not."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("plan", help="memory, work and time of a configuration on GPUs that need not be there")
    parser.add_argument(
        "--config",
        action="append",
        type=existing("file", CONFIG),
        required=True,
        help="as for `lightning`; may be repeated",
    )
    parser.add_argument(
        "--devices", type=in_range("devices"), default=None, help="number of GPUs (default: the configuration's)"
    )
    parser.add_argument("--memory", type=in_range("gigabytes"), default=None, help="memory of each GPU, in GB (10^9 "
                        "bytes; default: that of --gpu)")  # fmt: skip
    parser.add_argument("--gpu", default="h100", help="GPU whose data sheet counts, such as rtx4090, l40s, a100-40, "
                        "a100, h100-pcie or h200; a wrong name lists all (default: %(default)s)")  # fmt: skip
    parser.add_argument("--micro-batch", default=None, help="samples of a GPU, or 'auto' for the most that fit")
    parser.add_argument(
        "--tokens",
        type=in_range("max_tokens"),
        default=None,
        help="length of a usual sequence, at which work is counted",
    )
    parser.add_argument("--image-size", type=in_range("side"), default=None, metavar="PIXELS",
                        help="side of the pictures that are generated (default: the image decoder's)")  # fmt: skip
    parser.add_argument("--features", action="store_true", help="stage 1 from a feature cache, which `m2chat data "
                        "features` makes: its networks are not loaded")  # fmt: skip
    parser.set_defaults(run=run, rest=True)


def run(options: argparse.Namespace) -> None:
    """Prints the plan: of a training run, or of generation if the configuration evaluates.

    Raises:
        UserError: If a setting has no valid value, or not even one sample fits.
    """
    from m2chat.errors import UserError
    from m2chat.lightning_cli import read_config
    from m2chat.models.blank import blank_m2chat, blank_reading
    from m2chat.planning.gpus import gpu_named

    gpu = gpu_named(options.gpu)
    options.memory = gpu.size / 1e9 if options.memory is None else options.memory
    settings, module = read_config(options.config, options.overrides)
    if module.stage not in USUAL_TOKENS:
        raise UserError(
            f"--config: {type(module).__name__} cannot be planned; choose a configuration of stage 0, 1 or 2, or one "
            "that evaluates M²Chat"
        )
    if module.stage == "describe":
        model, assumed = blank_reading(module.backbone)
    else:
        model, assumed = blank_m2chat(module.backbone, module.m3adapter)
    print(
        f"# {', '.join(map(str, options.config))}: {module.stage}, on {options.gpu.upper()} of {options.memory:g} GB\n"
    )
    for line in assumed:
        print(f"- {line}")
    if settings.data.train:
        _training(options, settings, module, model, gpu)
    else:
        _inference(options, settings, module, model, gpu)


def _training(options: argparse.Namespace, settings: Any, module: Any, model: Any, gpu: Any) -> None:
    from dataclasses import replace

    from m2chat.models.trainable import adapter_names, freeze_first_layers, set_trainable, trainable_names
    from m2chat.models.units import components
    from m2chat.planning.host import plan_host
    from m2chat.planning.report import host_report, training_report
    from m2chat.planning.step import BatchShape
    from m2chat.planning.training import RESERVE, largest_batch, plan_training

    data = settings.data
    size = data.image_size or model.decoder.image_size
    shape = BatchShape(data.batch_size, data.max_tokens, size, module.backbone.num_image_tokens)
    usual = min(options.tokens or USUAL_TOKENS[module.stage], shape.tokens)
    set_trainable(model, adapter_names(model) if module.stage == "describe" else trainable_names(model, module.stage))
    freeze_first_layers(model, module.optim.frozen_layers)
    autocast = module.prepare_precision(model, str(settings.trainer.precision))
    devices, limit = options.devices or _devices(settings), options.memory * 1e9
    options.features = options.features or (module.stage == "align" and bool(data.features))
    whole = _take_out(options, module, model, replace(shape, tokens=usual), autocast) if options.features else None
    if options.micro_batch == "auto":
        batch = largest_batch(
            model, module.stage, shape, devices, autocast, limit, module.shard_frozen, options.features
        )
        shape = BatchShape(batch, shape.tokens, shape.image_size, shape.image_tokens)
    elif options.micro_batch is not None:
        shape = BatchShape(_count(options.micro_batch), shape.tokens, shape.image_size, shape.image_tokens)
    plan = plan_training(model, module.stage, shape, usual, devices, autocast, options.features)
    if whole is not None:
        print(
            f"\nFrom a feature cache: {plan.flops / 1e12:.3f} of {whole / 1e12:.3f} TFLOP a sample, so at most "
            f"{whole / plan.flops:.2f} times as many samples/s."
        )
    samples = data.samples_per_epoch * settings.trainer.max_epochs if data.samples_per_epoch else None
    print(training_report(plan, gpu, devices, limit, samples, module.shard_frozen))
    print(_step(shape.batch * devices, data.global_batch))
    layouts = (plan.sharded, plan.whole) if module.shard_frozen else (plan.whole, plan.sharded)
    on_cpu, memory = settings.trainer.accelerator == "cpu", layouts[0].memory
    shared = memory.total - RESERVE if module.shard_frozen and devices > 1 else None
    working = dict.fromkeys(components(model), memory.activations)
    host = plan_host(model, on_cpu, working, scores=module.stage != "align", shared=shared)
    print(host_report(host, _processes(options, settings), on_cpu))
    if layouts[0].memory.total > limit:
        print(f"\nWhat would make it fit {options.memory:g} GB:\n")
        print("\n".join(_advice(options, module, model, shape, autocast, devices, layouts, limit, settings)))


def _advice(
    options: argparse.Namespace,
    module: Any,
    model: Any,
    shape: Any,
    autocast: Any,
    devices: int,
    layouts: Any,
    limit: float,
    settings: Any,
) -> list[str]:
    from dataclasses import replace

    from m2chat.planning.advice import advice, changes
    from m2chat.planning.step import measure_step

    recomputed = module.gradient_checkpointing

    def peak(batch: int, again: bool) -> float:
        if again != module.gradient_checkpointing:
            module.gradient_checkpointing = again
            module.prepare_precision(model, str(settings.trainer.precision))
        return measure_step(model, module.stage, replace(shape, batch=batch), autocast, options.features).peak

    found = changes(model, module.stage, shape, devices, layouts, options.features, recomputed, peak)
    return advice(found, limit)


def _take_out(options: argparse.Namespace, module: Any, model: Any, shape: Any, autocast: Any) -> float:
    """Takes out what a feature cache makes superfluous; returns the operations of a sample without one.

    Raises:
        UserError: If the configuration does not train stage 1.
    """
    from m2chat.errors import UserError
    from m2chat.models.blank import without_cached
    from m2chat.planning.step import measure_step

    if module.stage != "align":
        raise UserError(
            f"--features: {options.config[-1]} trains {type(module).__name__}, and only stage 1 has a cache"
        )
    whole = measure_step(model, module.stage, shape, autocast).flops / shape.batch
    without_cached(model)
    return float(whole)


def _inference(options: argparse.Namespace, settings: Any, module: Any, model: Any, gpu: Any) -> None:
    import torch

    from m2chat.models.memory import lower_parameters
    from m2chat.planning.host import plan_host
    from m2chat.planning.inference import plan_inference
    from m2chat.planning.report import host_report, inference_report

    model.requires_grad_(False).eval()
    lower_parameters(model.parameters(), torch.bfloat16)
    evaluation = module.evaluation
    tokens = options.tokens or evaluation.max_tokens or settings.data.max_tokens
    plan = plan_inference(model, tokens, options.image_size or model.decoder.image_size)
    print(inference_report(plan, gpu, evaluation.drawing(module.backbone.decoder)[0], options.memory * 1e9))
    on_cpu, copies = settings.trainer.accelerator == "cpu", 1 + (module.stage == "m3ft")
    host = plan_host(model, on_cpu, plan.working, copies, scores=False)
    print(host_report(host, _processes(options, settings), on_cpu))
    if on_cpu:
        writes = plan_host(model, on_cpu, plan.working, copies)
        print(f"Where it writes text, and does not draw alone: {writes.own / 1e9:.2f} GB.")


def _step(together: int, wanted: int | None) -> str:
    """How many samples an optimiser step has, in words."""
    if wanted is None or wanted == together:
        return f"\nA step has {together} samples."
    if wanted % together:
        return f"\nA step of {together} samples is refused: data.global_batch is {wanted}."
    return f"\nA step has {wanted} samples: each GPU accumulates {wanted // together} batches."


def _processes(options: argparse.Namespace, settings: Any) -> int:
    """Processes on a computer."""
    here = _devices(settings, nodes=False)
    return min(here, options.devices or here)


def _devices(settings: Any, nodes: bool = True) -> int:
    devices = settings.trainer.devices
    return (int(devices) if str(devices).isdigit() else 1) * (int(settings.trainer.num_nodes) if nodes else 1)


def _count(text: str) -> int:
    from m2chat.errors import UserError

    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--micro-batch {text}: give a number of samples, or 'auto' for the most that fit")
    return int(text)
