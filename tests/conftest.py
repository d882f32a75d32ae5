"""What holds for every test: those of special hardware run where it is, and in strict mode nothing may be skipped."""

import gc
import os

import hypothesis
import pytest

from scaletrain.hardware.host import describe_host

# Without a time limit for an example: what it takes depends on what else the machine does.
hypothesis.settings.register_profile("usual", deadline=None)
# Many more examples, for ten minutes: HYPOTHESIS_PROFILE=thorough python -m pytest tests/data/test_exact_stream.py
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=5000)
# The same examples each time: a change is judged by what it changes.
hypothesis.settings.register_profile("strict", deadline=None, derandomize=True)
_USUAL = "strict" if os.environ.get("SCALETRAIN_STRICT") == "1" else "usual"
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", _USUAL))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects tests that need hardware which this machine lacks, and those that must be asked for."""
    lacking = [] if describe_host().gpus else ["gpu"]
    if "thorough" not in config.option.markexpr:
        lacking.append("thorough")
    if any(item.get_closest_marker("fp16") for item in items) and not _cpu_has_fp16():
        lacking.append("fp16")
    dropped = [item for item in items if any(item.get_closest_marker(name) for name in lacking)]
    if dropped:
        items[:] = [item for item in items if item not in dropped]
        config.hook.pytest_deselected(items=dropped)


def pytest_collection_finish() -> None:
    """Spares the collector what was imported: it is looked through again and again, and nothing of it ever goes."""
    gc.freeze()


def _cpu_has_fp16() -> bool:
    import torch  # here, since the tests that do without it start sooner

    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With SCALETRAIN_STRICT=1 a skipped test fails the session: what setup promises has to be there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("SCALETRAIN_STRICT") != "1" or reporter is None or not reporter.stats.get("skipped"):
        return
    reporter.write_line(f"SCALETRAIN_STRICT=1: {len(reporter.stats['skipped'])} skipped, which counts as a failure")
    if exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
