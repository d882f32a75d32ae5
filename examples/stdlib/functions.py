"""Functions of Python's standard library with their docstrings, and the conversations that are made of them."""

import ast
import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.splits import Record, deal

# Tests, what is installed beside the library, programs and tables.
LEFT_OUT = {
    *("test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "ensurepip", "encodings"),
    *("site-packages", "dist-packages", "__pycache__", "__phello__"),
}
MAX_LINES = 30  # of a function
MAX_DOC_WORDS = 120
MAX_HELD_OUT_FUNCTIONS = 150  # of a package, above which it is for training


@dataclass(frozen=True)
class Function:
    """A function or method that has a docstring."""

    module: str
    name: str  # with the classes it is in, as `Class.method`
    signature: str  # from `def` to the colon
    doc: str
    code: str  # from `def` on, without the docstring, not indented

    @property
    def package(self) -> str:
        """What is not torn apart: modules of one package are often variants of each other."""
        return self.module.split(".")[0]


def read_modules(library: Path) -> dict[str, str]:
    """Reads the library's source.

    Args:
        library: Folder of the standard library.

    Returns:
        The source of each module by its name, in the order of names. A file that is not UTF-8 is left out.
    """
    modules = {}
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if LEFT_OUT.isdisjoint(parts):
            try:
                modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
    return dict(sorted(modules.items()))


def functions_of(module: str, source: str) -> Iterator[Function]:
    """Finds the functions with a docstring, those of classes too; not those inside other functions.

    Args:
        module: The module's name.
        source: Its source.

    Yields:
        Functions in the order of the source. One of which nothing is left without its docstring, or whose code cannot
        stand alone, is passed over.
    """
    lines = source.splitlines()

    def walk(body: list[ast.stmt], classes: tuple[str, ...]) -> Iterator[Function]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, (*classes, node.name))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                doc = ast.get_docstring(node)
                code = _without_docstring(node, lines)
                if doc and code:
                    yield Function(module, ".".join((*classes, node.name)), _signature(node), doc, code)

    yield from walk(ast.parse(source).body, ())


def conversations(function: Function) -> Iterator[Record]:
    """A request for the function, answered by its code, and a question, answered by its docstring.

    Args:
        function: What both are about. A long docstring gives neither, long code no request.

    Yields:
        Records with `messages`; code stands in a fence as chat models write it.
    """
    if len(function.doc.split()) > MAX_DOC_WORDS:
        return
    if len(function.code.splitlines()) <= MAX_LINES:
        request = f"Write `{function.name}` of Python's module `{function.module}`."
        yield _turns(
            f"{request}\n\n```python\n{function.signature}\n```\n\n{function.doc}", f"```python\n{function.code}\n```"
        )
    arguments = function.signature.removeprefix("async ").removeprefix("def ").removesuffix(":")
    question = f"What does `{arguments}` do in Python's module `{function.module}`?"
    yield _turns(question, " ".join(function.doc.split("\n\n")[0].split()))


def splits_of(modules: Iterable[str], functions: Iterable[Function]) -> dict[str, str]:
    """The split of each package."""
    sizes = Counter({module.split(".")[0]: 0 for module in modules})
    sizes.update(function.package for function in functions)
    return deal(sizes, MAX_HELD_OUT_FUNCTIONS)


def _turns(user: str, assistant: str) -> Record:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    word = "def" if isinstance(node, ast.FunctionDef) else "async def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{word} {node.name}({ast.unparse(node.args)}){returns}:"


def _without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    docstring = node.body[0]
    if len(node.body) < 2 or docstring.lineno == node.lineno or node.body[1].lineno == docstring.end_lineno:
        return ""
    assert docstring.end_lineno is not None and node.end_lineno is not None  # set by ast.parse
    kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
    indentation = " " * node.col_offset
    code = "\n".join(line.removeprefix(indentation) for line in kept)
    wanted = copy.copy(node)
    wanted.body, wanted.decorator_list = node.body[1:], []
    # A string of several lines loses its indentation too: then it is another function.
    try:
        return code if ast.dump(ast.parse(code).body[0]) == ast.dump(wanted) else ""
    except SyntaxError:
        return ""
