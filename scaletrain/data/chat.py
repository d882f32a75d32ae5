"""Conversations as tokens: rendered by a Jinja template as Hugging Face's are, with a mark on what the assistant says.

A template marks what the assistant says by ``{% generation %}`` blocks. In one without them it is found by rendering
the conversation up to each answer, with the prompt that asks for it, and up to the answer's end.

A template may come from a stranger: it runs in Jinja's sandbox. So may a conversation: the name of a special token in a
message is text, and no message can pretend to end.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer

from scaletrain.config.files import find_file
from scaletrain.data.tokenizer import Borders, added_names
from scaletrain.errors import ConfigError, DataError

Messages = Sequence[Mapping[str, Any]]
"""Each with ``role``, ``content`` and whatever else the template knows."""

ASSISTANT = "assistant"
# Unicode keeps these for the inner use of a program: they are characters of no text.
_BEGIN, _END, _HIDDEN = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"[{_BEGIN}{_END}]")
_RESERVED = re.compile(f"[{_BEGIN}{_END}{_HIDDEN}]")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# As the names of special tokens in templates look.
_NAME_OF_SPECIAL_TOKEN = re.compile(r"<\|[^|<>\s]{1,60}\|>")


class Rendered(NamedTuple):
    """A conversation as text; ``spans`` are first and last + 1 character of what the assistant says, ascending."""

    text: str
    spans: list[tuple[int, int]]


class _GenerationBlocks(Extension):
    """Puts marks around what stands between ``{% generation %}`` and ``{% endgeneration %}``."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{_BEGIN}{caller()}{_END}"


class ChatTemplate:
    """A template in Jinja, in the environment that Hugging Face's templates expect.

    Attributes:
        source: The template.
        name: Of it, for messages.
        has_blocks: Whether it marks what the assistant says.
    """

    def __init__(self, source: str, name: str = "the chat template", now: datetime | None = None) -> None:
        """Compiles the template.

        Args:
            source: The template.
            name: Of it, for messages.
            now: What ``strftime_now`` tells. By default there is no such function, and templates that look whether
                there is one take a date of their own: the same conversation gives the same tokens on every day.

        Raises:
            ConfigError: It is no template.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        if now is not None:
            environment.globals["strftime_now"] = now.strftime
        self.source = source
        self.name = name
        self.has_blocks = _GENERATION.search(source) is not None
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"{name} is not a template of Jinja: line {error.lineno}: {error.message}.") from None

    @classmethod
    def load(cls, name: str) -> "ChatTemplate":
        """Reads a template.

        Args:
            name: A file, or the name of one in ``configs/chat``: ``chatml``, ``llama3``, ``plain``.

        Returns:
            The template.

        Raises:
            ConfigError: There is no such file, or it holds no template.
        """
        is_name = re.fullmatch(r"\w+", name) is not None
        path = find_file(Path("chat", f"{name}.jinja") if is_name else Path(name), "--chat_template")
        try:
            return cls(path.read_text(encoding="utf-8"), f"The chat template {path}")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The chat template {path} cannot be read: {error}.") from None

    def render(self, messages: Messages, names: Mapping[str, str], add_generation_prompt: bool = False) -> Rendered:
        """Renders a conversation.

        Args:
            messages: The conversation.
            names: Further variables of the template, such as ``bos_token`` and ``eos_token``.
            add_generation_prompt: Whether to add what stands before an answer that is wanted.

        Returns:
            The text, and in it what the assistant says.

        Raises:
            DataError: The template refuses the conversation, or what the assistant says cannot be found.
        """
        text = self._rendered(messages, names, add_generation_prompt)
        if self.has_blocks:
            return _take_marks(text, self.name)
        spans = list(self._answers(messages, names, text))
        return Rendered(text, spans)

    def _answers(self, messages: Messages, names: Mapping[str, str], text: str) -> Iterator[tuple[int, int]]:
        for number, message in enumerate(messages):
            if message.get("role") != ASSISTANT:
                continue
            before = self._rendered(messages[:number], names, add_generation_prompt=True)
            until = self._rendered(messages[: number + 1], names)
            if not until.startswith(before) or not text.startswith(until):
                raise DataError(
                    f"{self.name} has no {{% generation %}} blocks, and what it makes of the messages up to an answer "
                    f"(message {number + 1}) does not begin what it makes of all, so that the answer cannot be found. "
                    "Put {% generation %} and {% endgeneration %} around what the assistant says."
                )
            yield len(before), len(until)

    def _rendered(self, messages: Messages, names: Mapping[str, str], add_generation_prompt: bool = False) -> str:
        try:
            return self._template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **names,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise DataError(f"{self.name} refuses the conversation: {str(error).rstrip('.')}.") from None


def check_names(template: ChatTemplate, names: set[str]) -> None:
    """Checks that a tokenizer has the special tokens that a template names.

    Args:
        template: The template.
        names: Of the tokens that the tokenizer knows besides its vocabulary.

    Raises:
        ConfigError: It lacks one.
    """
    if lacking := sorted(set(_NAME_OF_SPECIAL_TOKEN.findall(template.source)) - names):
        raise ConfigError(
            f"{template.name} names {', '.join(lacking)}, which the tokenizer has not. Train one with --special_tokens "
            f"'{','.join(lacking)}', or give --chat_template plain."
        )


class ChatTokens(NamedTuple):
    """A conversation as tokens; ``parts`` has 1 for each that the assistant says, ``n_bytes`` is the text's length."""

    tokens: list[int]
    parts: list[int]
    n_bytes: int


class ChatEncoder:
    """Makes tokens of conversations."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, borders: Borders) -> None:
        """Checks that template and tokenizer go together.

        Args:
            template: The template.
            tokenizer: A byte-level tokenizer, to which the name of a special token in a text is text.
            borders: Its tokens that begin and end a document.

        Raises:
            ConfigError: The template names special tokens that the tokenizer has not.
        """
        self._template = template
        self._tokenizer = tokenizer
        self._borders = borders
        check_names(template, added_names(tokenizer))
        self._names = {"eos_token": _name_of(tokenizer, borders.eos_id)}
        self._names["bos_token"] = "" if borders.bos_id is None else _name_of(tokenizer, borders.bos_id)
        # The longest of several that begin at the same place, as the tokenizer finds them.
        added = tokenizer.get_added_tokens_decoder()
        special = [(token, known) for token, known in added.items() if known.special]
        special.sort(key=lambda item: -len(item[1].content))
        self._ids = [token for token, _ in special]
        self._ends = tuple(token.content for _, token in special)
        self._in_text = re.compile("|".join(_pattern(token) for _, token in special) or "(?!)")
        self._in_messages = re.compile("|".join(map(re.escape, self._ends)) or "(?!)")

    def encode(self, messages: Messages) -> ChatTokens:
        """Makes tokens of a conversation, as a model learns from.

        Args:
            messages: The conversation.

        Returns:
            The tokens of the rendered text, and at their end the one that ends a document, where it is not there
            already. That one is learnt if the token before it is.

        Raises:
            DataError: The template refuses the conversation, or it has nothing that the assistant says.
        """
        rendered = self._render(messages)
        tokens, parts = self._encode(*rendered)
        if 1 not in parts:
            raise DataError(f"{self._template.name} marks nothing of the conversation as what the assistant says.")
        if tokens[-1] != self._borders.eos_id:
            tokens.append(self._borders.eos_id)
            parts.append(parts[-1])
        return ChatTokens(tokens, parts, len(rendered.text.replace(_HIDDEN, "").encode()))

    def prompt(self, messages: Messages) -> list[int]:
        """Makes tokens of a conversation whose next message is the assistant's, up to where that begins.

        Args:
            messages: The conversation.

        Returns:
            The tokens, as those before an answer that a model learns from.

        Raises:
            DataError: The template refuses the conversation.
        """
        return self._encode(*self._render(messages, add_generation_prompt=True))[0]

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer: the one that ends a document, and the first that the template puts behind one."""
        conversation = [{"role": "user", "content": "a"}, {"role": ASSISTANT, "content": "a"}]
        tokens, parts, _ = self.encode(conversation)
        special = [token for token, part in zip(tokens, parts, strict=True) if part and token in self._ids]
        return frozenset({self._borders.eos_id, *special[:1]})

    def _render(self, messages: Messages, add_generation_prompt: bool = False) -> Rendered:
        text, spans = self._template.render(self._hidden(messages), self._names, add_generation_prompt)
        if not self._template.has_blocks:
            spans = [self._without_blanks_behind_end(text, span) for span in spans]
        return Rendered(text, spans)

    def _hidden(self, value: Any) -> Any:
        """The same messages, in which no name of a special token is whole."""
        if isinstance(value, str):
            if _RESERVED.search(value):
                raise DataError("A message holds a character from U+FDD0 to U+FDD2, which Unicode keeps out of texts.")
            return self._in_messages.sub(lambda found: found[0][:1] + _HIDDEN + found[0][1:], value)
        if isinstance(value, Mapping):
            return {key: self._hidden(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._hidden(item) for item in value]
        return value

    def _without_blanks_behind_end(self, text: str, span: tuple[int, int]) -> tuple[int, int]:
        """An answer ends with the token that ends it: the line's end behind that is the template's."""
        said = text[slice(*span)].rstrip()
        return (span[0], span[0] + len(said)) if said.endswith(self._ends) else span

    def _encode(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """Tokens of a rendered text, and their parts."""
        runs = list(self._runs(text, spans))
        pieces = [run for run, _ in runs if isinstance(run, str)]
        encoded = iter(self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False))
        tokens: list[int] = []
        parts: list[int] = []
        for run, part in runs:
            ids = next(encoded).ids if isinstance(run, str) else [run]
            tokens += ids
            parts += [part] * len(ids)
        return tokens, parts

    def _runs(self, text: str, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[str | int, int]]:
        """Cuts a rendered text into special tokens, where the template names them, and what lies between; with parts.

        No piece reaches into an answer or out of it: the tokens of the prompt that a model is asked with are those that
        it learnt to answer to.
        """
        edges = [edge for span in spans for edge in span]
        done = 0
        for found in [*self._in_text.finditer(text), None]:
            stop = found.start() if found else len(text)
            for begin, end in pairwise([done, *(edge for edge in edges if done < edge < stop), stop]):
                yield text[begin:end].replace(_HIDDEN, ""), _part_of(begin, spans)
            if found:
                assert found.lastindex is not None  # each token is a group
                yield self._ids[found.lastindex - 1], _part_of(found.start(found.lastindex), spans)
                done = found.end()


def _part_of(place: int, spans: Sequence[tuple[int, int]]) -> int:
    return int(any(begin <= place < end for begin, end in spans))


def _name_of(tokenizer: Tokenizer, token: int) -> str:
    """The name of a token that is there."""
    name = tokenizer.id_to_token(token)
    assert isinstance(name, str)
    return name


def _pattern(token: AddedToken) -> str:
    """Where a special token stands in a text, a group, and around it the blanks that it takes."""
    return (r"\s*" if token.lstrip else "") + f"({re.escape(token.content)})" + (r"\s*" if token.rstrip else "")


def _take_marks(text: str, name: str) -> Rendered:
    """Takes the marks out, and tells where they were."""
    marks = list(_MARKS.finditer(text))
    kinds = [mark[0] for mark in marks]
    if kinds != [_BEGIN, _END] * (len(marks) // 2):
        raise DataError(f"{name} has a {{% generation %}} block within another, or takes one apart.")
    places = [mark.start() - number for number, mark in enumerate(marks)]
    return Rendered(_MARKS.sub("", text), list(zip(places[::2], places[1::2], strict=True)))


def _to_json(value: Any, **options: Any) -> str:
    """Without the HTML that Jinja's own makes of quotes."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
