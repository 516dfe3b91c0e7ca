"""Trainings that stop and go on."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from m2chat.errors import UserError
from m2chat.worlds.emoji.recipe.course import Course, Plan

PLAN = Plan(steps=6, lr=0.1, warmup=2, decay=2, ema=0.5)


def begun(folder: Path, plan: Plan = PLAN, seed: int = 0, width: int = 3) -> Course:
    torch.manual_seed(5)
    return Course(folder / "part", {"net": nn.Linear(width, width)}, plan, seed, {"width": width})


def train(course: Course, stop_at: int | None = None) -> bool:
    def loss_of(rng: random.Random) -> Tensor:
        if course.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        inputs = torch.randn(4, 3) + rng.random()
        output: Tensor = course.modules["net"](inputs)
        return (output - inputs.flip(1)).square().mean()

    return course.run(loss_of, every=1)


def state(course: Course) -> list[Tensor]:
    return [*course.modules.state_dict().values(), *course.averages.values()]


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = begun(tmp_path / "a")
    assert train(whole)
    assert not train(begun(tmp_path / "b"), stop_at=2)
    rest = begun(tmp_path / "b")
    assert rest.step == 3
    assert train(rest)
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(rest), strict=True))


def test_a_stop_saves_and_takes_the_pid_file_away(tmp_path: Path) -> None:
    course = begun(tmp_path)
    pid_file = tmp_path / "part.pid"
    present = []
    kept = course.save
    course.save = lambda: (present.append(pid_file.read_text()), kept())[1]  # type: ignore[method-assign,func-returns-value]
    assert not train(course, stop_at=0)
    assert present == [f"{os.getpid()}\n"]
    assert not pid_file.exists()
    assert begun(tmp_path).step == 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_rate_warms_up_stays_and_falls_at_the_end() -> None:
    plan = Plan(steps=100, lr=1.0, warmup=10, decay=20)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[9:80]) == {1.0}
    assert rates[80:] == sorted(rates[80:], reverse=True)
    assert rates[99] < 0.03


def test_a_longer_plan_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    train(begun(tmp_path))
    longer = begun(tmp_path, replace(PLAN, steps=9))
    assert longer.step == 6
    assert train(longer)
    assert longer.step == 9


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    train(begun(tmp_path))
    with pytest.raises(UserError, match="'width': 4"):
        begun(tmp_path, width=4)


def test_frozen_parameters_stay_at_their_average(tmp_path: Path) -> None:
    course = begun(tmp_path)
    train(course, stop_at=2)
    net = course.modules["net"]
    course.freeze([net.bias])  # type: ignore[list-item]
    frozen, moving = net.bias.clone(), net.weight.clone()  # type: ignore[operator]
    assert torch.equal(frozen, course.averages["net.bias"])
    train(course)
    assert torch.equal(frozen, net.bias)
    assert torch.equal(frozen, course.averages["net.bias"])
    assert not torch.equal(moving, net.weight)


def test_a_loss_that_is_not_finite_changes_nothing_and_many_end_it(tmp_path: Path) -> None:
    course = begun(tmp_path, replace(PLAN, steps=100))
    before = [tensor.clone() for tensor in state(course)]
    with pytest.raises(UserError, match="--lr"):
        course.run(lambda rng: course.modules["net"](torch.full((1, 3), torch.inf)).sum())
    assert all(torch.equal(a, b) for a, b in zip(before, state(course), strict=True))


def test_averages_are_lent_and_given_back(tmp_path: Path) -> None:
    course = begun(tmp_path)
    train(course)
    net = course.modules["net"]
    before = net.weight.clone()  # type: ignore[operator]
    with course.averaged():
        assert torch.equal(net.weight, course.averages["net.weight"])
        assert not net.training
    assert torch.equal(net.weight, before)
    assert net.training
