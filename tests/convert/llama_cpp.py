"""llama.cpp itself, which loads a GGUF file and answers over HTTP on this machine.

It runs in a process of its own: what it prints, its threads, and an end of the process over a bad file stay there.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TIMEOUT_S = 60


@contextmanager
def running(path: Path, context_len: int = 128) -> Iterator["LlamaCpp"]:
    """Serves one GGUF file. Keys and values are kept in fp32, as scaletrain does on a CPU.

    Args:
        path: The file.
        context_len: Tokens that fit in.

    Yields:
        What answers.

    Raises:
        RuntimeError: llama.cpp refuses the file; with what it says.
    """
    command = [sys.executable, __file__, str(path), str(context_len)]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as said,  # a pipe that nobody reads would stop it when full
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, text=True) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        address = process.stdout.readline().strip()
        if not address.startswith("http://"):
            process.wait(_TIMEOUT_S)
            said.seek(0)
            raise RuntimeError(said.read())
        try:
            yield LlamaCpp(address)
        finally:
            process.stdin.close()  # which ends it
            process.wait(_TIMEOUT_S)


class LlamaCpp:
    """A server over one GGUF file.

    Args:
        address: Where it listens.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def generate(self, tokens: list[int], max_new_tokens: int) -> list[int]:
        """The likeliest tokens after these, up to the one that ends the text, which is not among them."""
        answer = self._post("/completion", prompt=tokens, n_predict=max_new_tokens, return_tokens=True)
        made: list[int] = answer["tokens"]
        return made[:-1] if answer["stop_type"] == "eos" else made

    def log_probabilities(self, tokens: list[int], vocab_size: int) -> list[float]:
        """Natural logarithm of the probability of each token to be the next one."""
        answer = self._post("/completion", prompt=tokens, n_predict=1, n_probs=vocab_size)
        found = {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}
        return [found[token] for token in range(vocab_size)]

    def tokenize(self, text: str, mark_start: bool = False) -> list[int]:
        """The tokens of a text; ``mark_start`` puts before it what the file says belongs there."""
        tokens: list[int] = self._post("/tokenize", content=text, add_special=mark_start, parse_special=False)["tokens"]
        return tokens

    def detokenize(self, tokens: list[int]) -> str:
        """The text of tokens."""
        return str(self._post("/detokenize", tokens=tokens)["content"])

    def _post(self, path: str, **fields: Any) -> dict[str, Any]:
        body = json.dumps({"temperature": 0, "cache_prompt": False, **fields}).encode()
        request = urllib.request.Request(self._address + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            content: dict[str, Any] = json.load(answer)
        return content


def serve(path: str, context_len: int) -> None:
    """Serves until standard input is closed."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = context_len
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    params.fit_params = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
