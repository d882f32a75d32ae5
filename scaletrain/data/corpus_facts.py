"""What a run keeps of its corpus, beside the tokenizer, so that what was trained can be used without the corpus."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaletrain.data.manifest import Manifest
from scaletrain.data.tokenizer import Borders, load_tokenizer, read_borders, vocabulary_rows
from scaletrain.errors import DataError

FILE_NAME = "corpus.json"
"""In a run directory; beside it lies the tokenizer's ``tokenizer.json``."""
TEMPLATE_NAME = "chat_template.jinja"
"""The chat template of a corpus of conversations, beside them, by the name that it has in a Hugging Face folder."""


@dataclass(frozen=True)
class CorpusFacts:
    """What a task needs to know of the corpora that it reads; see ``Manifest``.

    Attributes:
        shown: Path or URL of the manifest, or where this was kept, for messages.
        borders: Tokens that begin and end a document.
        vocab_size: Largest token plus one.
        parts: Whether tokens have parts.
        values: Names of the numbers of a document.
        classes: Names of the classes.
        chat_template: What conversations were rendered with, in Jinja.
    """

    shown: str
    borders: Borders
    vocab_size: int
    parts: bool = False
    values: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    chat_template: str | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> "CorpusFacts":
        """The facts of a corpus."""
        entry = manifest.tokenizer
        return cls(
            manifest.shown,
            Borders(entry.eos_id, entry.bos_id),
            entry.vocab_size,
            manifest.parts,
            manifest.values,
            manifest.classes,
            manifest.chat_template,
        )

    @classmethod
    def read(cls, run_dir: Path) -> "CorpusFacts":
        """Reads what a run keeps.

        Args:
            run_dir: The run directory.

        Returns:
            The facts; without parts, values and classes where the run is older than these.

        Raises:
            DataError: A file is missing or damaged.
        """
        path, template = run_dir / FILE_NAME, run_dir / TEMPLATE_NAME
        borders = read_borders(path)
        content: Mapping[str, Any] = json.loads(path.read_text())
        try:
            return cls(
                str(path),
                borders,
                vocabulary_rows(load_tokenizer(run_dir / "tokenizer.json")),
                bool(content.get("parts", False)),
                tuple(map(str, content.get("values", ()))),
                tuple(map(str, content.get("classes", ()))),
                template.read_text(encoding="utf-8") if template.is_file() else None,
            )
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{run_dir} cannot be read: {error}. Start the run again, which writes it.") from None

    def keep(self, run_dir: Path, **more: Any) -> None:
        """Writes what ``read`` reads, but for the tokenizer.

        Args:
            run_dir: The run directory.
            **more: What else the file is to tell.
        """
        described = {
            **more,
            "eos_id": self.borders.eos_id,
            "bos_id": self.borders.bos_id,
            "parts": self.parts,
            "values": self.values,
            "classes": self.classes,
        }
        (run_dir / FILE_NAME).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        if self.chat_template is None:
            (run_dir / TEMPLATE_NAME).unlink(missing_ok=True)
        else:
            (run_dir / TEMPLATE_NAME).write_text(self.chat_template, encoding="utf-8")
