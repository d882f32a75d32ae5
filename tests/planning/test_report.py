"""What a person reads before a run starts."""

import re

import pytest

from scaletrain.config.schema import ModelConfig, TrainConfig
from scaletrain.planning.memory import plan_memory
from scaletrain.planning.report import Hardware, format_bytes, format_duration, plan_lines

GPT2 = ModelConfig(vocab_size=50257, d_model=768, n_layers=12, n_heads=12, max_seq_len=1024)
TRAIN = TrainConfig(max_steps=10_000, max_seq_len=1024, global_batch_size=240)


def report(hardware: Hardware, **plan: object) -> str:
    return "\n".join(plan_lines(GPT2, TRAIN, plan_memory(GPT2, TRAIN, zero_stage=1, world_size=8, **plan), hardware))


def test_it_names_parameters_tokens_and_their_ratio() -> None:
    text = report(Hardware())
    assert "124,439,808" in text
    assert "245,760 a step x 10,000 steps = 2,457,600,000" in text
    assert "19.7 per parameter" in text


def test_a_schedule_of_batch_sizes_counts() -> None:
    schedule = ({"until_tokens": 10 * 1024, "global_batch_size": 4},)
    train = TrainConfig(max_steps=5, max_seq_len=1024, global_batch_size=8, batch_schedule=schedule)
    lines = plan_lines(GPT2, train, plan_memory(GPT2, train, zero_stage=1, world_size=1), Hardware())
    # Three steps of 4 sequences reach the tenth; two of 8 follow.
    assert any(line.endswith(f"4,096, then 8,192 a step x 5 steps = {28 * 1024:,}") for line in lines)


def test_time_is_there_only_where_the_peak_is_known() -> None:
    assert "time" not in report(Hardware())
    # 2.4576e9 tokens of 8.54e8 operations on 8 devices of 312 TFLOP/s at 40 %
    assert re.search(r"time +35\.\d minutes at 40% of 2,496\.0 TFLOP/s", report(Hardware(peak_flops_per_s=8 * 312e12)))


def test_what_does_not_fit_is_said_with_a_remedy() -> None:
    assert "DOES NOT FIT" not in report(Hardware(device_memory=80 * 2**30))
    text = report(Hardware(device_memory=2 * 2**30))
    assert "DOES NOT FIT the 2.0 GiB" in text and "train.micro_batch_size" in text


def test_offloaded_bytes_are_held_against_the_hosts_memory() -> None:
    text = report(Hardware(device_memory=80 * 2**30, host_memory=2**20), offload="optimizer")
    assert re.search(r"host memory .*DOES NOT FIT the 1\.0 MiB", text)


@pytest.mark.parametrize(
    ("size", "text"), [(500, "0.5 KiB"), (3 * 2**20, "3.0 MiB"), (1.5 * 2**30, "1.5 GiB"), (2**41, "2.0 TiB")]
)
def test_bytes_are_written_for_people(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(90, "90.0 seconds"), (300, "5.0 minutes"), (7200, "2.0 hours"), (864_000, "10.0 days")]
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
