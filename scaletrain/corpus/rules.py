"""The rules by which documents are dropped or changed while a corpus is built: their settings, and the file of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from scaletrain.config.coercion import coerce
from scaletrain.config.fields import limits, unknown_key
from scaletrain.config.files import find_file, read_yaml
from scaletrain.config.section import Section
from scaletrain.corpus.bands import choose_bands
from scaletrain.errors import ConfigError


class DuplicateRules(Section):
    """Which copies are dropped; the first of them stays."""

    exact: bool = Field(True, description="drop a document whose bytes are those of an earlier one")
    near: bool = Field(False, description="drop a document that is nearly an earlier one")
    near_threshold: float = Field(0.8, gt=0, lt=1, description="share of common shingles at which two are near copies")
    near_permutations: int = Field(128, ge=16, le=1024, description="length of a document's MinHash signature")
    near_shingle_words: int = Field(5, ge=1, le=100, description="words in a shingle")


class LengthRules(Section):
    """How long a document may be."""

    min_characters: int | None = Field(None, ge=1)
    max_characters: int | None = Field(None, ge=1)
    min_words: int | None = Field(None, ge=1, description="words are what white space separates")
    max_words: int | None = Field(None, ge=1)


class CharacterRules(Section):
    """What a document may be made of; shares are 0 to 1."""

    min_letter_share: float | None = Field(None, ge=0, le=1, description="letters of all characters")
    min_alphanumeric_share: float | None = Field(None, ge=0, le=1, description="letters and digits of all characters")
    max_digit_share: float | None = Field(None, ge=0, le=1, description="digits of all characters")
    max_symbol_share: float | None = Field(
        None, ge=0, le=1, description="of all characters, those that are no letter, digit or white space"
    )
    min_mean_word_characters: float | None = Field(None, ge=0)
    max_mean_word_characters: float | None = Field(None, ge=0)
    min_words_with_letter_share: float | None = Field(None, ge=0, le=1)
    max_hash_or_ellipsis_per_word: float | None = Field(None, ge=0)


class LineRules(Section):
    """What a document's lines may be like; lines of white space do not count."""

    max_line_characters: int | None = Field(None, ge=1, description="of the longest line")
    max_mean_line_characters: float | None = Field(None, ge=1)
    max_bullet_line_share: float | None = Field(None, ge=0, le=1)
    max_ellipsis_line_share: float | None = Field(None, ge=0, le=1)
    max_repeated_line_share: float | None = Field(None, ge=0, le=1, description="lines that stood there before")
    max_repeated_line_character_share: float | None = Field(None, ge=0, le=1, description="characters in such lines")


class ReplacementRules(Section):
    """What is replaced by a placeholder."""

    emails: bool = Field(False, description="e-mail addresses, by <EMAIL>")
    ip_addresses: bool = Field(False, description="public IP addresses, by <IP_ADDRESS>")
    keys: bool = Field(False, description="access keys and private keys of well-known shapes, by <KEY>")


class CleaningRules(Section):
    """All rules; by default exact copies are dropped, and nothing else is done."""

    duplicates: DuplicateRules = DuplicateRules()
    length: LengthRules = LengthRules()
    characters: CharacterRules = CharacterRules()
    lines: LineRules = LineRules()
    replace: ReplacementRules = ReplacementRules()

    @property
    def look_at_text(self) -> bool:
        """Whether any rule needs more than the hash of a document."""
        others = self.model_copy(update={"duplicates": self.duplicates.model_copy(update={"exact": True})})
        return others != CleaningRules()


def rule_fields() -> dict[str, Any]:
    """Every rule by its key in the file, "length.min_words" for instance, with its field."""
    return {
        f"{section}.{name}": field
        for section, part in CleaningRules.model_fields.items()
        for name, field in _section(part.annotation).model_fields.items()
    }


def load_rules(path: Path | None) -> CleaningRules:
    """Reads the rules of a corpus.

    Args:
        path: A YAML file, looked up as given and then in the repository; None is the defaults.

    Returns:
        The rules; what the file leaves out has its default.

    Raises:
        ConfigError: Lists all that is wrong, each with its value, place, rule and remedy.
    """
    if path is None:
        return CleaningRules()
    known = rule_fields()
    problems: list[str] = []
    tree: dict[str, dict[str, Any]] = {}
    given = read_yaml(find_file(path, "--config"))
    for key, entry in given.items():
        if key in CleaningRules.model_fields and entry.value is None:
            continue  # a section without content
        if key not in known:
            problems.append(f"{key} ({entry.origin}): {unknown_key(key, [*known, *CleaningRules.model_fields])}")
            continue
        section, _, name = key.rpartition(".")
        try:
            tree.setdefault(section, {})[name] = coerce(known[key].annotation, entry.value)
        except ValueError as error:
            problems.append(f"{key} = {entry.value} ({entry.origin}): {error}")
    try:
        rules = CleaningRules.model_validate(tree)
    except ValidationError as error:
        for detail in error.errors():
            key = ".".join(map(str, detail["loc"]))
            problems.append(f"{key} = {detail['input']} ({given[key].origin}): must be {limits(known[key])}")
    else:
        problems.extend(_contradictions(rules))
    if problems:
        raise ConfigError("The rules of the corpus cannot be used:\n" + "\n".join(f"  {line}" for line in problems))
    return rules


def _contradictions(rules: CleaningRules) -> Iterable[str]:
    for section in (rules.length, rules.characters):
        for name, least in section:
            most = getattr(section, name.replace("min_", "max_", 1), None)
            if name.startswith("min_") and None not in (least, most) and least > most:
                yield f"{name} = {least} is more than {name.replace('min_', 'max_', 1)} = {most}: nothing would be left"
    if rules.duplicates.near:
        try:
            choose_bands(rules.duplicates.near_threshold, rules.duplicates.near_permutations)
        except ConfigError as error:
            yield str(error)


def _section(annotation: Any) -> type[Section]:
    assert isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation
