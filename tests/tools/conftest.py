"""Fixtures of all tests of tools."""

from tests.tools.trained import tool, trained

__all__ = ["tool", "trained"]
