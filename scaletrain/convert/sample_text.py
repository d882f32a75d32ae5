"""Real text on which two models are compared, so that no corpus need be at hand.

Prose, numbers, code and several languages: such text uses many different tokens of any vocabulary, common and rare, and
the hidden states that a trained model was made for.
"""

from pathlib import Path

import torch
from torch import Tensor

from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.errors import CheckpointError

_N_ROWS = 2
_ROW_LENGTH = 128
_LONGEST_WINDOW = 1024  # rows that reach beyond a longer one would take minutes

SAMPLE_TEXT = """\
The lighthouse at the end of the breakwater had been automatic for thirty years, yet every evening, shortly before
sunset, an old man still climbed its 142 steps. He wound the clock that nobody read any more, wiped the salt from the
inside of the panes, and noted the wind in a ledger: "North-west, 6, rising." When he was asked why, he said that a
machine keeps the light burning, but it does not look at the sea.

Water boils at a lower temperature on a mountain, because the air above it weighs less. At sea level it takes 100 °C; on
a summit of 4,810 metres about 84 °C are enough, which is why beans cooked there for an hour are still hard. A pressure
cooker does the opposite: it holds the steam back, the pressure doubles, and the water reaches 120 °C before it boils.

In 1854 a physician marked on a map of London where people had died of cholera. The marks crowded around one pump in
Broad Street. He had its handle taken away, and the outbreak, which was already weakening, came to an end. What he had
shown was not only that the disease travels with water, but also that a table of addresses can say more than an opinion.

def merge_sorted(left: list[int], right: list[int]) -> list[int]:
    merged, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]


for (size_t row = 0; row < rows; ++row) {
    float sum = 0.0f;  /* one dot product a row */
    for (size_t col = 0; col < cols; ++col) sum += matrix[row * cols + col] * vector[col];
    result[row] = sum;
}

SELECT station, AVG(depth_m) AS mean_depth FROM soundings WHERE year >= 1998 GROUP BY station ORDER BY mean_depth DESC;

{"name": "tide table", "harbour": "Brest", "high_water": ["05:12", "17:38"], "range_m": 6.4, "valid": true}

Der Zug nach Lübeck fährt heute ausnahmsweise von Gleis sieben; wer schon auf dem Bahnsteig gegenüber steht, muss sich
beeilen, denn die Brücke wurde gesperrt, und der Weg durch die Unterführung dauert länger, wie jeder hier weiß.

Le marché ouvre à six heures, mais les pêcheurs arrivent bien avant l'aube. On y parle du temps, du prix du poisson et
des voisins, et l'on repart avec du pain chaud, trois citrons et une histoire de plus.

La biblioteca del pueblo guarda un mapa antiguo en el que el río todavía pasa por la plaza mayor.

Старый мост через реку построили ещё до войны, и каждую весну жители выходят смотреть, как идёт лёд.

Η θάλασσα ήταν ήρεμη εκείνο το πρωί και οι βάρκες γύριζαν μία μία στο λιμάνι.

春天的时候，山上的雪慢慢融化，河水一天比一天高。孩子们沿着河边跑，老人坐在门口喝茶。

駅前の小さな本屋は夜遅くまで開いていて、雨の日には誰かが必ず傘を忘れていく。

كان البحر هادئا في ذلك الصباح، وعادت القوارب إلى الميناء واحدا بعد الآخر.

If f(x) = x² − 3x + 2, then f(1) = f(2) = 0, and the smallest value, −1/4, is reached half-way, at x = 3/2. Between two
roots of such a polynomial its derivative has a root as well; this holds for any function that is smooth enough.

"Are you certain?" she asked. "No," said the clockmaker, "but I have measured it twice, on different days and with
different instruments, and I should be surprised, though not offended, if somebody else found another number."
"""


def sample_tokens(
    folder: Path, *, vocab_size: int, max_seq_len: int, sliding_window: int
) -> tuple[list[list[int]], str]:
    """Chooses the tokens that two models are compared on.

    There are two rows of 128, or of a little more than a sliding window that would else not be noticed.

    Args:
        folder: The ``tokenizer.json`` in it cuts the text into tokens.
        vocab_size: Tokens of the model.
        max_seq_len: Positions of the model; no row is longer.
        sliding_window: Tokens that a token sees; 0 for all.

    Returns:
        Rows of one length, and what they are, in words.

    Raises:
        CheckpointError: The tokenizer has tokens that the model has no row for.
        DataError: The tokenizer cannot be read.
    """
    length, remark = _ROW_LENGTH, ""
    if sliding_window > _LONGEST_WINDOW:
        remark = f", shorter than the sliding window of {sliding_window}, which is not tried therefore"
    elif sliding_window:
        length = max(length, sliding_window + 32)
    length = min(length, max_seq_len)
    wanted = _N_ROWS * length
    path = folder / "tokenizer.json"
    if not path.exists():
        drawn = torch.randint(vocab_size, (_N_ROWS, length), generator=torch.Generator().manual_seed(0))
        return drawn.tolist(), f"random tokens, since there is no tokenizer.json{remark}"
    stream = load_tokenizer(path).encode(SAMPLE_TEXT, add_special_tokens=False).ids
    if not stream or max(stream) >= vocab_size:
        raise CheckpointError(
            f"{path} cuts text into {len(stream)} tokens up to {max(stream, default=0)}, but the model has "
            f"{vocab_size}: it is another model's tokenizer. Remove it, or put the right one there."
        )
    stream = (stream * (wanted // len(stream) + 1))[:wanted]
    return [stream[start : start + length] for start in range(0, wanted, length)], f"real text{remark}"


def written_tokens(tokens_BT: Tensor) -> Tensor:
    """What a decoder is given beside sources: their rows the other way round, so that few write what they read.

    Args:
        tokens_BT: The sources.

    Returns:
        Tokens of the same shape.
    """
    return tokens_BT.flip(0)
