"""The metrics file of a run: one JSON object per line."""

import json
from pathlib import Path

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: Path | str) -> list[dict]:
    """The rows of a metrics file; none where there is no file. An unfinished last line, which
    a killed run can leave, is not a row."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]
