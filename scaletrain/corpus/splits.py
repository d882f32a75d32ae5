"""Which documents are held out."""

import xxhash

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)


def is_validation(text: str, share: float) -> bool:
    """Whether a document is held out: decided by its text alone, whatever its name and its neighbours.

    Args:
        text: The document, as it is stored.
        share: Share of all documents that are to be held out.

    Returns:
        Always the same for the same text, so that copies of a document land on one side.
    """
    return xxhash.xxh3_64_intdigest(text.encode()) < share * 2.0**64
