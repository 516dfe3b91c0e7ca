"""Runs the recipes of a world's backbones in the order in which they rest on each other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from m2chat.errors import UserError
from m2chat.integrity import not_verified
from m2chat.worlds.manifest import write_manifest
from m2chat.worlds.parts import Backbones, Facts, Part


def _one_thread() -> None:
    """Prepares a process, before anything heavy is imported in it."""
    os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")})
    import torch

    torch.set_num_threads(1)


def _unlisted(recipe: Callable[[Path], Facts], root: Path) -> Facts:
    """Runs a recipe while the folder's manifest is still that of the files before."""
    with not_verified():
        return recipe(root)


class _Here(Executor):
    """Carries out everything at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Calls a function; its error is kept for the caller of `result`."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _executor(at_once: int) -> Executor:
    """A process a part: what one leaves behind, seeds or memory, never reaches another.

    On a busy machine two parts at a time on one thread each are quicker than one part on two threads.
    """
    if at_once == 1:
        return _Here()
    return ProcessPoolExecutor(at_once, get_context("spawn"), _one_thread, max_tasks_per_child=1)


def build(
    root: Path, backbones: Backbones, only: Collection[str] = (), executor: Executor | None = None
) -> dict[str, Facts]:
    """Trains parts, saves them below a folder and writes its manifest.

    Args:
        root: Folder of the backbones, such as ``data/micro``.
        backbones: What is made there.
        only: Names of the parts; all if none is named.
        executor: Executor of the recipes; by default a pool of processes, or this process.

    Returns:
        Seed, steps and quality of each part.

    Raises:
        UserError: If a part rests on another that is neither there nor built now.
    """
    parts, chosen = backbones.parts, _chosen(backbones.parts, only)
    for name, part in chosen.items():
        for need in part.needs:
            if need not in chosen and not all((root / path).exists() for path in parts[need].paths):
                raise UserError(f"{name!r} rests on {need!r}, which is not in {root}: add {need} to --only")
    root.mkdir(parents=True, exist_ok=True)
    recipes = {name: (part.train, part.needs) for name, part in chosen.items()}
    built = _run(root, backbones, recipes, executor)
    if left := [name for name, part in parts.items() if name not in chosen and set(part.needs) & chosen.keys()]:
        print(f"These rest on what is new and should be built again: --only {' '.join(left)}")
    print("Weights of M2Chat that were trained on other backbones are refused from now on: train both stages again")
    return built


def measure(
    root: Path, backbones: Backbones, only: Collection[str] = (), executor: Executor | None = None
) -> dict[str, Facts]:
    """Measures saved parts again and writes the manifest; arguments and result as for `build`.

    Raises:
        UserError: If a part is named that cannot be measured.
    """
    chosen = _chosen(backbones.parts, only)
    recipes = {name: (part.measure, ()) for name, part in chosen.items() if part.measure is not None}
    if only and (rest := chosen.keys() - recipes.keys()):
        raise UserError(
            f"--only {' '.join(sorted(rest))}: only training can measure it; choose of {', '.join(recipes)}"
        )
    return _run(root, backbones, recipes, executor)


def _chosen(parts: Mapping[str, Part], only: Collection[str]) -> dict[str, Part]:
    if unknown := sorted(set(only) - parts.keys()):
        raise UserError(f"--only {' '.join(unknown)}: choose of {', '.join(parts)}")
    return {name: part for name, part in parts.items() if not only or name in only}


def _run(
    root: Path,
    backbones: Backbones,
    recipes: Mapping[str, tuple[Callable[[Path], Facts], Collection[str]]],
    executor: Executor | None,
) -> dict[str, Facts]:
    """Runs recipes, each as soon as those that it needs have ended."""
    waiting, running, done = dict(recipes), dict[Future[Facts], str](), dict[str, Facts]()
    try:
        with executor or _executor(backbones.at_once) as pool:
            while waiting or running:
                open_ = waiting.keys() | set(running.values())
                ready = [name for name, (_, needs) in waiting.items() if not set(needs) & open_]
                for name in ready[: backbones.at_once - len(running)]:
                    print(f"{name}: started", flush=True)
                    running[pool.submit(_unlisted, waiting.pop(name)[0], root)] = name
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(future)
                    done[name] = future.result()
                    print(f"{name}: {json.dumps(done[name])}", flush=True)
    finally:
        if done:  # what has been finished stays known even if another part has failed
            print(f"Manifest: {write_manifest(root, backbones, done)}")
    return done
