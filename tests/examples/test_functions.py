import ast
import sysconfig
from pathlib import Path

import pytest

from examples.stdlib.functions import (
    MAX_DOC_WORDS,
    MAX_LINES,
    Function,
    conversations,
    functions_of,
    read_modules,
    splits_of,
)

SOURCE = '''"""A module."""
import os

class Outer:
    """A class."""

    @property
    async def read(self, path: str = "a", *, n=2) -> bytes:
        """Read a file.

        Of any size.
        """
        # a comment
    # another
        return path * n

    def write(self):
        """Write a line."""
        return """two
        lines"""

    class Inner:
        def one(self):
            "Give one."

            return 1

def bare(x):
    return x

def empty():
    """Do nothing."""

def short(): "In a line."; return 2
'''


def test_functions_lose_their_docstring_and_nothing_else() -> None:
    read, one = functions_of("a.b", SOURCE)
    assert (read.name, read.package) == ("Outer.read", "a")
    assert read.signature == "async def read(self, path: str='a', *, n=2) -> bytes:"
    assert read.doc == "Read a file.\n\nOf any size."
    assert one == Function("a.b", "Outer.Inner.one", "def one(self):", "Give one.", "def one(self):\n\n    return 1")
    assert read.code.splitlines()[1:] == ["    # a comment", "# another", "    return path * n"]


@pytest.mark.thorough
def test_code_of_the_library_is_that_of_its_source() -> None:
    modules = read_modules(Path(sysconfig.get_path("stdlib")))
    assert "json.decoder" in modules
    assert not any(name.startswith(("test.", "idlelib", "site-packages")) for name in modules)
    found = documented = 0
    for name in [name for name in modules if name.split(".")[0] in ("asyncio", "email", "http", "inspect", "typing")]:
        source = modules[name]
        wanted: dict[str, list[str]] = {}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
                documented += len(node.body) > 1
                node.body, node.decorator_list = node.body[1:], []
                wanted.setdefault(node.name, []).append(ast.dump(node))
        for function in functions_of(name, source):
            assert ast.dump(ast.parse(function.code).body[0]) in wanted[function.name.split(".")[-1]], function
            found += 1
    assert found > 0.95 * documented > 500


def test_what_is_asked_and_answered() -> None:
    function = Function(
        "a.b", "C.one", "def one(self) -> int:", "Give one.\n\nNever two.", "def one(self) -> int:\n    return 1"
    )
    request, question = (record["messages"] for record in conversations(function))
    assert [turn["role"] for turn in (*request, *question)] == ["user", "assistant"] * 2
    assert request[0]["content"] == (
        "Write `C.one` of Python's module `a.b`.\n\n```python\ndef one(self) -> int:\n```\n\nGive one.\n\nNever two."
    )
    assert request[1]["content"] == "```python\ndef one(self) -> int:\n    return 1\n```"
    assert question[0]["content"] == "What does `one(self) -> int` do in Python's module `a.b`?"
    assert question[1]["content"] == "Give one."


@pytest.mark.parametrize(("doc_words", "lines", "records"), [(1, 1, 2), (1, 99, 1), (999, 1, 0)])
def test_long_code_and_long_docstrings_are_left_out(doc_words: int, lines: int, records: int) -> None:
    assert MAX_DOC_WORDS < 999
    assert MAX_LINES < 99
    function = Function("m", "f", "def f():", "word " * doc_words, "\n".join(["def f():", *["    pass"] * lines]))
    assert len(list(conversations(function))) == records


def test_modules_of_a_package_stay_together() -> None:
    modules = [f"p{number}.m{part}" for number in range(40) for part in range(3)]
    functions = [Function(module, "f", "def f():", "d", "c") for module in modules]
    splits = splits_of(modules, functions)
    assert splits.keys() == {f"p{number}" for number in range(40)}
    assert sum(split == "test" for split in splits.values()) == 4
    assert sum(split == "validation" for split in splits.values()) == 2
