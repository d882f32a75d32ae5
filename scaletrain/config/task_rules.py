"""What a task asks of the model and of the data."""

from collections.abc import Iterator, Sequence

from scaletrain.config.schema import DataConfig, ModelConfig, TaskConfig

LABELLED = ("classification", "regression")
"""Tasks that tell something of a whole document, with a head of their own."""
_CAUSAL = ("causal_lm", "sft")
_WRITING = (*_CAUSAL, "seq2seq")
_ONE_DOCUMENT = ("seq2seq", *LABELLED)


def task_problems(task: TaskConfig, model: ModelConfig, data: DataConfig, prompts: Sequence[str] = ()) -> Iterator[str]:
    """Finds what a task cannot be done with.

    Args:
        task: The task.
        model: The model's description.
        data: How documents are laid out.
        prompts: What evaluations are asked to continue.

    Yields:
        A text for each rule that is broken, with the values and a remedy.
    """
    # What the loss does not reach gets no gradient.
    has_pairs = task.name == "masked_lm" and task.next_sentence
    reads_head = task.name in LABELLED or has_pairs
    for key in ("pooler", "n_classes"):
        if getattr(model, key) and not reads_head:
            yield f"model.{key} = {getattr(model, key)} is not read by task {task.name}; leave it out"
    if reads_head and not model.n_classes:
        yield f"task {task.name} is told by a head, but model.n_classes is 0; set it to the number of classes or values"
    if has_pairs and model.n_classes not in (0, 2):
        yield f"model.n_classes = {model.n_classes}, but task.next_sentence tells two classes; set it to 2"
    # Of a BERT that goes on with masked tokens alone, all tokens are in the first segment.
    if model.n_segments and not reads_head and task.name != "masked_lm":
        yield f"model.n_segments = {model.n_segments} is not read by task {task.name}; leave it out"
    if model.n_encoder_layers and task.name != "seq2seq":
        yield (
            f"model.n_encoder_layers = {model.n_encoder_layers} reads a source, which task {task.name} does not have; "
            "set it to 0, or train on pairs with task seq2seq"
        )
    if task.name == "seq2seq" and not model.n_encoder_layers:
        yield (
            "task seq2seq reads the source with an encoder, but model.n_encoder_layers is 0; set it, or train a causal "
            "model on the same pairs with --task.name sft"
        )
    if model.kind == "cnn" and task.name not in LABELLED:
        yield f"model.kind cnn tells classes or values alone, and no tokens as task {task.name} does; take another kind"
    if task.name in LABELLED:
        for key in ("output_transform", "output_bias"):
            if getattr(model, key):
                yield f"model.{key} belongs to the output layer, which task {task.name} does not read; set it to false"
        if not model.tie_embeddings:
            yield f"task {task.name} reads no output layer; set model.tie_embeddings to true, so that none is held"
    if task.name in _CAUSAL and not model.causal:
        yield "model.causal = False lets a token see the next one, which it is trained to predict; set it to true"
    if task.name == "masked_lm" and model.causal:
        yield "task masked_lm tells hidden tokens from both sides, but model.causal is true; set it to false"
    if reads_one_document(task) and data.packing != "document":
        option = "with task.next_sentence " if has_pairs else ""
        yield (
            f"task {task.name} {option}reads one document a row, but data.packing is {data.packing}; set it to document"
        )
    if prompts and task.name not in _WRITING:
        yield f"eval.prompts = {list(prompts)} are texts to go on with, which task {task.name} does not; set it to []"
    yield from _unread_keys(task)


def head_problem(n_classes: int, names: Sequence[str], kind: str, shown: str) -> str | None:
    """Compares the outputs of a head with what a corpus has.

    Args:
        n_classes: Of the model.
        names: Of the corpus's classes or values.
        kind: What they are, in the plural.
        shown: The corpus, for the message.

    Returns:
        What is wrong, with the remedy; None where they are as many.
    """
    if n_classes == len(names):
        return None
    return (
        f"model.n_classes, the outputs of the head, is {n_classes}, but {shown} has {len(names)} {kind}. Set "
        f"--model.n_classes {len(names)}."
    )


def reads_one_document(task: TaskConfig) -> bool:
    """Whether each row of a task is one document."""
    return task.name in _ONE_DOCUMENT or (task.name == "masked_lm" and task.next_sentence)


def _unread_keys(task: TaskConfig) -> Iterator[str]:
    read = {
        "masked_lm": ("mask_share", "whole_words", "next_sentence"),
        "classification": ("class_weights",),
        "regression": ("huber_delta",),
        "seq2seq": ("text_metrics", "beams"),
    }
    for name, keys in read.items():
        for key in keys:
            if name != task.name and getattr(task, key) != TaskConfig.model_fields[key].default:
                found = getattr(task, key)
                yield f"task.{key} = {found} is read by task {name}, but task.name is {task.name}; leave it out"
