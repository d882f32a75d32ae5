"""A run's model, to be used in one process without DeepSpeed: for texts, for predictions, to be judged."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from scaletrain.checkpoint.layout import step_of
from scaletrain.checkpoint.verify import require_checkpoint
from scaletrain.checkpoint.weights import merged_weights
from scaletrain.config.load import load_config
from scaletrain.config.schema import RunConfig
from scaletrain.data.corpus_facts import CorpusFacts
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.errors import ConfigError
from scaletrain.model.build import Model, build_model
from scaletrain.protocols import Step
from scaletrain.tasks.registry import build_task
from scaletrain.tasks.task import Task, TaskSetting


@dataclass(frozen=True)
class TrainedRun:
    """What a run has made.

    Attributes:
        run_dir: Its folder.
        config: Its configuration.
        corpus: What it keeps of its corpora.
        tokenizer: Of the corpora.
        model: In evaluation, with fp32 weights, on the GPU where there is one: with the moving average of the weights
            where the run keeps one, and with what adapters add.
        task: What the run learns.
        step: Of the checkpoint.
    """

    run_dir: Path
    config: RunConfig
    corpus: CorpusFacts
    tokenizer: Tokenizer
    model: Model
    task: Task
    step: int | None

    @classmethod
    def open(cls, run_dir: Path, step: Step | None = None, trusted: bool = False) -> "TrainedRun":
        """Loads a run's model; the corpora need not be there.

        Args:
            run_dir: The folder of a run that has saved a checkpoint.
            step: A certain checkpoint; the newest intact one by default.
            trusted: Whether objects of any class may be unpickled, which runs what the files say.

        Returns:
            The run.

        Raises:
            ConfigError: The folder is no run's.
            CheckpointError: There is no such checkpoint, or it is damaged.
            DataError: What the run keeps of its corpora cannot be read.
        """
        if not (run_dir / "config.yaml").is_file():
            raise ConfigError(f"--run_dir {run_dir} holds no config.yaml; give the folder of a run that was started")
        config = load_config(run_dir / "config.yaml", {})
        corpus, tokenizer = CorpusFacts.read(run_dir), load_tokenizer(run_dir / "tokenizer.json")
        # The weights of classes are for training, and would ask for the corpus.
        asked = config.task.model_copy(update={"class_weights": "none"})
        task = build_task(TaskSetting(asked, config.loss, config.model, corpus, tokenizer))
        folder = require_checkpoint(run_dir / "checkpoints", step, "sizes")
        model = build_model(config.model)
        model.load_state_dict(merged_weights(folder, trusted, averaged=config.optim.ema_decay > 0))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(run_dir, config, corpus, tokenizer, model.to(device).eval(), task, step_of(folder))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device
