"""A training that may stop at any moment and go on where it was: what every pocket recipe shares.

The learning rate warms up and then stays (warm-up, stable, decay), because nobody knows beforehand how many hours there
will be: a cosine must know its end, and a run continued past it starts from nothing again. Here every hour counts the
same, the average of the weights (EMA) gives at any time what a small rate would have given, and a decay is added once,
when the time is up; a run that goes on after it warms up again.

Everything random in a step follows from seed and step alone, so no generator's state has to be kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from m2chat.errors import UserError
from m2chat.files import whole_file
from m2chat.worlds.small_sdxl import decay_groups

SAVE_SECONDS = 300.0
CHECKPOINT, FINISHED = "checkpoint.pt", "finished.json"
BAD_STEPS = 20
"""Losses in a row that may be infinite before a training gives up; their steps change nothing."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast a part learns.

    Args:
        steps: Step at which it is finished.
        lr: Learning rate after the warm-up.
        warmup: Steps of the linear warm-up.
        decay: Steps of the decay at the end: the rate falls along a cosine to 1 % at `steps`.
        ema: Decay of the averaged weights per step; the average is younger at the beginning, and before a short
            `decay`.
        weight_decay: Weight decay of matrices; vectors have none.
        betas: Adam's decay rates.
        clip: Largest gradient norm.
    """

    steps: int
    lr: float
    warmup: int = 200
    decay: int = 0
    ema: float = 0.999
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rate = self.lr * min(1.0, (step + 1) / self.warmup)
        if step >= (start := self.steps - self.decay):
            through = torch.tensor((step - start) / max(1, self.decay))
            rate *= 0.01 + 0.99 * 0.5 * (1 + float(torch.cos(torch.pi * through)))
        return rate

    def keep(self, step: int) -> float:
        """How much of the averaged weights a step keeps.

        Young averages forget quickly, or the random start would stay in them. The last one must have forgotten what was
        before the rate's decay: it spans a quarter of it at most.
        """
        ema = min(self.ema, 1 - 4 / self.decay) if self.decay > 4 else self.ema
        return min(ema, (1 + step) / (10 + step))


class Course:
    """Trains modules in resumable steps.

    Args:
        folder: Where checkpoint, log and pid file lie; made if it is missing.
        modules: What is trained, by name; on the device already.
        plan: How long and how fast.
        seed: Seed of everything random.
        identity: What a checkpoint must agree with to be continued: sizes, data, frozen parts.
    """

    def __init__(
        self, folder: Path, modules: Mapping[str, nn.Module], plan: Plan, seed: int, identity: Mapping[str, Any]
    ) -> None:
        self.folder, self.plan, self.seed, self.identity = folder, plan, seed, dict(identity)
        self.modules = nn.ModuleDict(modules)
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            decay_groups([self.modules], plan.weight_decay), lr=plan.lr, betas=plan.betas, fused=True
        )
        self.averages = {name: p.detach().clone() for name, p in self.modules.named_parameters()}
        self.step, self.seconds = 0, 0.0
        self._asked_to_stop, self._bad_steps = False, 0
        folder.mkdir(parents=True, exist_ok=True)
        self._restore()

    @property
    def checkpoint(self) -> Path:
        """The newest state."""
        return self.folder / CHECKPOINT

    def randomness(self) -> random.Random:
        """Seeds torch for the coming step and returns a generator for everything else in it."""
        rng = random.Random(f"{self.seed}/{self.step}")
        torch.manual_seed(rng.getrandbits(62))
        return rng

    def run(
        self,
        loss_of: Callable[[random.Random], Tensor],
        measure: Callable[[], Mapping[str, object]] | None = None,
        every: int = 50,
        measure_every: int = 1000,
    ) -> bool:
        """Trains until the plan's end or until it is asked to stop (SIGTERM, SIGINT); the state is saved either way.

        Args:
            loss_of: The loss of the coming step, for a generator that only this step has.
            measure: Quality with the averaged weights.
            every: Steps between lines of the log.
            measure_every: Steps between measurements.

        Returns:
            Whether the plan's end was reached.
        """
        self._asked_to_stop = False
        started, saved, losses = time.process_time() - self.seconds, time.monotonic(), list[float]()
        with self._signals(), self._pid_file():
            while self.step < self.plan.steps and not self._asked_to_stop:
                for group in self.optimizer.param_groups:
                    group["lr"] = self.plan.rate(self.step)
                loss = loss_of(self.randomness())
                self._update(loss)
                losses.append(float(loss.detach()))
                self.step += 1
                self.seconds = time.process_time() - started
                if self.step % every == 0:
                    self._log(loss=sum(losses) / len(losses), lr=self.plan.rate(self.step - 1))
                    losses.clear()
                if measure is not None and self.step % measure_every == 0:
                    with self.averaged():
                        self._log(**measure())
                if time.monotonic() - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
            self.save()
        return self._is_finished()

    def _is_finished(self) -> bool:
        """Whether the plan's end is reached; then the folder says so, with seed, steps and cost."""
        path, is_finished = self.folder / FINISHED, self.step >= self.plan.steps
        if is_finished:
            facts = {"seed": self.seed, "steps": self.step, "cpu_seconds": round(self.seconds)}
            path.write_text(json.dumps(facts) + "\n")
        else:
            path.unlink(missing_ok=True)
        return is_finished

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.plan.clip)
        if not torch.isfinite(norm):  # one bad step must not end a night's run, many say that the rate is too high
            self._bad_steps += 1
            if self._bad_steps > BAD_STEPS:
                raise UserError(f"{self.folder.name}: {BAD_STEPS} losses in a row are not finite: lower --lr")
            return
        self._bad_steps = 0
        self.optimizer.step()
        keep = self.plan.keep(self.step)
        with torch.no_grad():
            now = [p for _, p in self.modules.named_parameters()]
            torch._foreach_lerp_(list(self.averages.values()), now, 1 - keep)  # type: ignore[arg-type]

    def freeze(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keeps parameters at their averages from now on: what is drawn with them does not change any more."""
        average_of = {id(p): self.averages[name] for name, p in self.modules.named_parameters()}
        for parameter in parameters:
            with torch.no_grad():
                parameter.copy_(average_of[id(parameter)])
            parameter.requires_grad_(False)
            parameter.grad = None

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the modules hold their averaged weights and are in evaluation mode, without gradients."""
        kept = {name: p.detach().clone() for name, p in self.modules.named_parameters()}
        training = self.modules.training
        try:
            self._load(self.averages)
            self.modules.eval()
            with torch.no_grad():
                yield
        finally:
            self._load(kept)
            self.modules.train(training)

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.modules.named_parameters():
                parameter.copy_(tensors[name])

    def save(self) -> None:
        """Writes the state; an older one stays until the new one is whole."""
        state = {
            "identity": self.identity,
            "step": self.step,
            "seconds": self.seconds,
            "modules": self.modules.state_dict(),
            "averages": self.averages,
            "optimizer": self.optimizer.state_dict(),
        }
        with whole_file(self.checkpoint) as part, part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    def _restore(self) -> None:
        if not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["identity"] != self.identity:
            raise UserError(
                f"{self.checkpoint} was begun as {state['identity']}, not as {self.identity}: continue it with the "
                "same settings, or choose another --out"
            )
        self.modules.load_state_dict(state["modules"])
        for name, average in self.averages.items():
            average.copy_(state["averages"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["fused"] = True  # states of a training begun without it say otherwise
        self.step, self.seconds = state["step"], state["seconds"]

    def _log(self, **values: object) -> None:
        row = {"step": self.step, "cpu_s": round(self.seconds), "time": time.strftime("%H:%M:%S"), **values}
        line = json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self._asked_to_stop = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _pid_file(self) -> Iterator[None]:
        """``<folder>.pid`` holds the process's number as long as it trains, for pausing it (SIGSTOP, SIGCONT)."""
        path = self.folder.with_suffix(".pid")
        path.write_text(f"{os.getpid()}\n")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def save_half(model: Any, folder: Path) -> None:
    """Saves a copy of a transformers or diffusers model as fp16 safetensors; the model stays as it is."""
    import copy

    copy.deepcopy(model).cpu().half().save_pretrained(folder)
