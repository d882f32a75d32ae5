"""Draws trials: number N of a seed is always the same."""

import random
from dataclasses import replace
from typing import get_args

from tests.chaos.damage import Damage
from tests.chaos.launching import Setting, Starter
from tests.chaos.strikes import Kind, Phase, Strike
from tests.chaos.trial import Disk, Trial

# What it takes until the first step, about.
START_S: dict[Starter, float] = {"forked": 3.0, "command": 8.0, "deepspeed": 8.0}
# Enough for a disk that is full for a while and then is not.
STEPS_OF_DISK_TRIALS = 48


def draw_trial(seed: int, number: int, may_mount: bool) -> Trial:
    """Draws what happens to one run.

    Args:
        seed: Of all trials.
        number: Which one.
        may_mount: Whether small disks can be mounted.

    Returns:
        The trial.
    """
    draw = random.Random(f"{seed} {number}")
    name = f"trial-{seed}-{number}"
    mode = draw.choices(["exact", "elastic", "disk", "nan"], [60, 22, 10, 8])[0]
    starter: Starter = draw.choices(get_args(Starter), [80, 12, 8])[0]
    setting = Setting(
        stage=draw.randrange(4),
        ranks=draw.choice([1, 2, 2, 2]),
        precision=draw.choice(["fp32", "bf16"]),
        workers=draw.randrange(2),
        every_steps=draw.randint(2, 4),
        local_every_steps=draw.choice([0, 0, 1, 2]),
        background=draw.random() < 0.7,
    )
    if mode == "nan":
        place = f"{draw.randrange(setting.ranks)}:{draw.randrange(4, 30)}"
        return Trial(name, (setting,), starter=starter, nan=place, most_attempts=1)
    if mode == "disk" and may_mount:
        strikes = tuple(Strike("fill_disk", steps=draw.randint(1, 12), delay_s=draw.random() / 10) for _ in range(2))
        disk: Disk = draw.choice(
            ["run", "checkpoints", "node"] if setting.local_every_steps else ["run", "checkpoints"]
        )
        setting = replace(setting, max_steps=STEPS_OF_DISK_TRIALS)
        return Trial(name, (setting,), (strikes,), starter=starter, disk=disk, most_attempts=1)
    n_cuts = draw.randint(1, 3)
    strikes_of_attempts = tuple(tuple(_draw_strikes(draw, starter)) for _ in range(n_cuts))
    damages = tuple(draw.choice([None, *get_args(Damage)]) for _ in range(n_cuts))
    settings: tuple[Setting, ...] = (setting,)
    if mode == "elastic":
        settings = tuple(
            replace(setting, stage=draw.randrange(4), ranks=draw.randint(1, 4), precision="fp32", dropout=0.0)
            for _ in range(n_cuts + 1)
        )
    return Trial(name, settings, strikes_of_attempts, damages, starter)


def _draw_strikes(draw: random.Random, starter: Starter) -> list[Strike]:
    """One that ends the attempt, and sometimes a pause before."""
    kinds: list[Kind] = ["kill_one", "kill_all", "term_one", "term_all", "usr2_all"]
    found = [Strike("pause_one", steps=draw.randint(0, 3), rank=draw.randrange(4))] if draw.random() < 0.2 else []
    phase: Phase = draw.choices(get_args(Phase), [2, 3, 3, 1])[0]
    longest_s = START_S[starter] if phase == "start" else 0.06
    delay_s = draw.uniform(0, longest_s)
    return [*found, Strike(draw.choice(kinds), phase, draw.randint(0, 5), delay_s, draw.randrange(4))]
