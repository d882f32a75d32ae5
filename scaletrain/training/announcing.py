"""What a run says of itself to people when it starts and when it ends."""

import logging
import time

import torch

from scaletrain.config.schema import RunConfig
from scaletrain.config.tune_rules import trained_part
from scaletrain.data.dataset import SequenceDataset
from scaletrain.data.loader import Share
from scaletrain.engine.engine import Engine
from scaletrain.launch.deadline import shown
from scaletrain.launch.verdicts import Ending, Verdict
from scaletrain.monitors.progress import format_count, start_banner
from scaletrain.protocols import TrainingState
from scaletrain.training.evaluating import Evaluating
from scaletrain.training.loop import TrainingRun

logger = logging.getLogger(__name__)


def announce(
    config: RunConfig,
    share: Share,
    engine: Engine,
    dataset: SequenceDataset,
    state: TrainingState,
    end_s: float | None,
) -> None:
    """Says at a start what the run is made of.

    Args:
        config: The run's configuration.
        share: How the next step is cut.
        engine: The model on all ranks.
        dataset: What the run reads.
        state: Where it stands.
        end_s: When this process will be ended, in Unix seconds; None for never.
    """
    train, plan = config.train, share.plan(state.sequences)
    part = trained_part(config.model, config.lora, config.tune)
    step_tokens = plan.global_batch_size * train.max_seq_len
    sequences = share.schedule.sequence_after(state.sequences, max(0, train.max_steps - state.step))
    epochs = sequences / sum(source.sequences_per_epoch for source in dataset.order.sources)
    tokens = format_count(sequences * train.max_seq_len)
    rows = [
        ("parameters", f"{part.total:,}{f', of which {part.trained:,} are trained' if part.frozen else ''}"),
        (
            "batch",
            f"{plan.global_batch_size} sequences x {train.max_seq_len} = {format_count(step_tokens)} tokens a step",
        ),
        ("", f"{plan.world_size} ranks x {plan.micro_steps} micro steps x {plan.micro_batch_size} sequences"),
        ("run", f"{train.max_steps} steps = {tokens} tokens = {epochs:.2f} epochs"),
        ("arithmetic", f"{train.precision}, ZeRO {engine.stage}, {'compiled' if train.compile else 'eager'}"),
        ("device", f"{engine.device.type}, {torch.get_num_threads()} threads a rank"),
    ]
    if plan.filling_share > 0:
        rows.append(("filling", f"{plan.filling_share:.1%} of the rows are masked: the sizes do not divide"))
    if len(dataset.names) > 1:
        rows.append(("sources", ", ".join(dataset.names)))
    if state.skipped:
        rows.append(("left out", ", ".join(sorted({skipped.path for skipped in state.skipped}))))
    if state.skipped_sequences:
        ranges = ", ".join(f"{one.first} to {one.stop - 1}" for one in share.schedule.left_out)
        rows.append(("passed over", f"sequences {ranges}"))
    if end_s is not None:
        rows.append(
            ("job's end", f"saves and ends before {shown(end_s)}, {(end_s - time.time()) / 3600:.2f} h from now")
        )
    start = f"goes on at step {state.step}" if state.step else "starts"
    logger.info("%s", start_banner(f"{config.run_dir} {start}", rows))


def conclude(ending: Ending, run: TrainingRun, evaluating: Evaluating) -> None:
    """Says at an end how to go on, or what has come of the run.

    Args:
        ending: How it ended.
        run: The run.
        evaluating: Has the samples.
    """
    if ending.verdict is not Verdict.COMPLETE:
        logger.info("ends at step %d (%s); the same command goes on", run.state.step, ending.reason)
        return
    for prompt, text in evaluating.samples:
        logger.info("sample, from %r:\n%s%s", prompt, prompt, text)
    told = f": {run.complete_because}" if run.complete_because else ""
    where = run.folder.parent
    logger.info("the run is complete: %d steps%s; watch it: tensorboard --logdir %s", run.state.step, told, where)
