"""Markdown tables that can be read in a terminal as well, and units of the figures in them."""

from collections.abc import Iterable, Sequence

from imagewam_jax.training.chips import GB, GIB

TERA = 1e12


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table with aligned columns; those from `left` on align right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(head))]

    def shown(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * (width - (column >= left)) for column, width in enumerate(widths)]
    rule = [dashes + ":" * (column >= left) for column, dashes in enumerate(rule)]
    return "\n".join([shown(lines[0]), shown(rule), *map(shown, lines[1:])])


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / GIB:.2f}"


def gigabytes(size: float) -> str:
    """Bytes in GB."""
    return f"{size / GB:.2f}"


def tera(flops: float) -> str:
    """FLOPs in TFLOP."""
    return f"{flops / TERA:.2f}"


def milliseconds(seconds: float) -> str:
    """Seconds in ms."""
    return f"{1e3 * seconds:.2f}"
