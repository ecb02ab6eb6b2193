"""Converts LeRobot datasets, v2.1 and v3.0, to RLDS: `import_lerobot`.

Both layouts have meta/info.json (features with dtype, shape and names, fps, path templates). v2.1
keeps an episode to a file: meta/episodes.jsonl (episode_index, tasks, length), meta/tasks.jsonl
(task_index, task), data/chunk-000/episode_000000.parquet, and
videos/chunk-000/<key>/episode_000000.mp4, chunk = index // chunks_size; v2.0 differs in its
statistics alone. v3.0 keeps many episodes to a file, data/chunk-000/file-000.parquet and
videos/<key>/chunk-000/file-000.mp4; every camera cuts its files where it likes.
meta/episodes/chunk-000/file-000.parquet says for each episode where its rows (data/chunk_index,
data/file_index, dataset_from_index, dataset_to_index) and its frames (videos/<key>/chunk_index,
file_index, from_timestamp, to_timestamp) are; meta/tasks.parquet has the instructions as the
table's index. Features of dtype "video" are in videos, those of dtype "image" in parquet as
{bytes, path}, and arrays of uint8 in parquet may be images as well; a shape of (1,) is a plain
number there. Row i of an episode goes with the frame at i / fps, plus from_timestamp in v3.0.

Sources, for these facts: the repository huggingface/lerobot, src/lerobot/datasets/ (utils.py,
io_utils.py, feature_utils.py, dataset_metadata.py, dataset_writer.py, dataset_reader.py) and
src/lerobot/datasets/v30/convert_dataset_v21_to_v30.py; its issue 3177 for start times that drift in
long files; info.json files of published sets for what else occurs in them.

Modules: `folder` reads meta/; `layout` decides which feature becomes which; `rows` reads parquet,
`video` frames by their time; `images` makes JPEGs, `episodes` RLDS episodes of `features`; `jobs`
runs in parallel, `importer` runs everything; `suggested_spec` writes the dataset spec that
reads the result. The extra `lerobot` is needed; TensorFlow is imported only where RLDS is written.
"""

from imagewam_jax.data.tools.lerobot.importer import import_lerobot

__all__ = ["import_lerobot"]
