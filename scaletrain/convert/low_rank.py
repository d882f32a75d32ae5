"""Products of two thin matrices, added to a range of a matrix that need not be in memory.

Shapes: R rank.
"""

from torch import Tensor


def add_product(values: Tensor, start: int, left: Tensor, right: Tensor, scale: float) -> None:
    """Adds ``scale * left @ right`` to a range of the flattened matrix: the end of a row, whole rows, a beginning.

    Args:
        values: The range, fp32, changed in place.
        start: Its first element.
        left: (rows, R).
        right: (R, columns).
        scale: What the product is multiplied by.
    """
    columns = right.shape[1]
    done = 0
    while done < len(values):
        row, first = divmod(start + done, columns)
        remaining = len(values) - done
        if first or remaining < columns:
            rows, width = 1, min(columns - first, remaining)
        else:
            rows, width = remaining // columns, columns
        box = values[done : done + rows * width].view(rows, width)
        box.addmm_(left[row : row + rows], right[:, first : first + width], alpha=scale)
        done += rows * width
