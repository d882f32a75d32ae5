"""What holds for every test: GPU tests run where a GPU is, and in strict mode nothing may be skipped."""

import os

import pytest

from scaletrain.hardware.host import describe_host


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects tests that need a GPU where there is none."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not describe_host().gpus:
        items[:] = [item for item in items if item not in on_gpu]
        config.hook.pytest_deselected(items=on_gpu)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With SCALETRAIN_STRICT=1 a skipped test fails the session: what setup promises has to be there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("SCALETRAIN_STRICT") != "1" or reporter is None or not reporter.stats.get("skipped"):
        return
    reporter.write_line(f"SCALETRAIN_STRICT=1: {len(reporter.stats['skipped'])} skipped, which counts as a failure")
    if exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
