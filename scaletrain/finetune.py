"""Fine-tunes a model: ``deepspeed scaletrain/finetune.py --init RUN [--config FILE] [--key VALUE ...]``.

The same command as ``scaletrain/train.py``, which only has to be told what to begin with.
"""

import sys

from scaletrain.launch.endings import let_go_of_streams
from scaletrain.train import main

if __name__ == "__main__":
    code = main(sys.argv[1:], needs_init=True)
    let_go_of_streams()
    sys.exit(code)
