"""Tells a supervisor, which reads no configuration itself, what a training's arguments come to.

``python -m scaletrain.launch.slurm.resolve [--config FILE] [--KEY VALUE ...]`` prints JSON.
"""

import json
import sys

from scaletrain.config.command_line import parse
from scaletrain.config.derive import check
from scaletrain.config.load import load_config
from scaletrain.errors import ConfigError, ScaletrainError
from scaletrain.launch.verdicts import EXIT_CODES, Verdict


def main(argv: list[str]) -> int:
    """Prints ``run_dir`` (absolute) and ``max_steps``.

    Args:
        argv: The training's arguments.

    Returns:
        0, or 2 for a user's mistake, which is told on the standard error.
    """
    try:
        command = parse(argv)
        if command.help or command.dry_run:
            raise ConfigError(
                "--help and --dry_run are not for a job: type python scaletrain/train.py with them, or see what a job "
                "would do by python -m scaletrain.launch.preview"
            )
        config = load_config(command.config, command.overrides)
        check(config)
    except ScaletrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODES[Verdict.USER_ERROR]
    print(json.dumps({"run_dir": str(config.run_dir.absolute()), "max_steps": config.train.max_steps}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
