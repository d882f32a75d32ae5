"""What happens to a run's checkpoints while nobody trains."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from scaletrain.checkpoint.layout import COMPLETE, folder_name, list_checkpoints, partial_name, step_of
from scaletrain.checkpoint.verify import find_damage

Damage = Literal["truncated", "flipped", "deleted", "unfinished", "incomplete", "gone"]


def damage(places: Sequence[Path], kind: Damage, every_steps: int, draw: random.Random) -> str:
    """Damages the newest intact checkpoint of a place, as long as another intact one stays anywhere.

    Without an intact one a run refuses to start, as it should. ``unfinished`` and ``incomplete`` harm none: they add
    what a save leaves that was cut.

    Args:
        places: Folders of checkpoints; the node's beside the shared one.
        kind: What happens.
        every_steps: Interval of the saves.
        draw: Chooses file and place.

    Returns:
        What was done, in words.
    """
    intact = [f for place in places for f in list_checkpoints(place) if find_damage(f, "full") is None]
    if not intact:
        return "nothing to damage"
    newest = draw.choice([folder for folder in intact if folder == _newest_of(folder.parent, intact)])
    if kind in ("unfinished", "incomplete") or len(intact) < 2:
        return _add_cut_save(newest.parent, newest, every_steps, kind == "incomplete")
    if kind == "gone":
        shutil.rmtree(newest)
        return f"{newest.parent.name}/{newest.name} gone"
    victim = draw.choice(sorted(path for path in newest.iterdir() if path.is_file() and path.name != COMPLETE))
    content = bytearray(victim.read_bytes())
    place = draw.randrange(len(content))
    if kind == "deleted":
        victim.unlink()
    elif kind == "truncated":
        victim.write_bytes(content[:place])
    else:
        content[place] ^= 1 << draw.randrange(8)
        victim.write_bytes(content)
    return f"{newest.parent.name}/{newest.name}/{victim.name} {kind} at {place} of {len(content)}"


def _newest_of(place: Path, intact: Sequence[Path]) -> Path:
    return max((folder for folder in intact if folder.parent == place), key=lambda folder: step_of(folder) or 0)


def _add_cut_save(checkpoints: Path, source: Path, every_steps: int, has_final_name: bool) -> str:
    """The next checkpoint with half of its files: under its final name without COMPLETE, or under that of a draft."""
    step = (step_of(source) or 0) + every_steps
    folder = checkpoints / (folder_name(step) if has_final_name else partial_name(step))
    if folder.exists():
        return f"{folder.name} is there already"
    folder.mkdir()
    for path in sorted(path for path in source.iterdir() if path.is_file() and path.name != COMPLETE)[::2]:
        (folder / path.name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return f"{folder.name} half written"
