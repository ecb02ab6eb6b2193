"""Indexing as an Apache Beam pipeline, for datasets that one machine does not index in time.

Each element of the pipeline is one shard, of which a worker writes a part. When all parts are
there, the launching program merges them. The index, and the dataset if it is not in object storage,
lie on a file system that every worker mounts. Needs the extra `beam`.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from imagewam_jax.data.index.build import explain_write_error, finish_index, only_builder
from imagewam_jax.data.index.dataset_index import DatasetIndex, default_index_dir
from imagewam_jax.data.index.features import Features
from imagewam_jax.data.index.shard_parts import PARTS_DIR, make_part, part_file
from imagewam_jax.data.index.tfds_folder import check_shards, read_tfds_folder
from imagewam_jax.errors import DataError
from imagewam_jax.storage.objects import AnyPath, as_path


def build_index_with_beam(
    dataset_dir: AnyPath | str,
    index_dir: Path | str | None = None,
    *,
    options: Sequence[str] = (),
    available_shards: bool = False,
) -> DatasetIndex:
    """Indexes a TFDS version folder as `build_index` does, with the same result.

    available_shards: as `build_index` has it.
    options: Beam's pipeline options, as on a command line; by default the local runner.

    Finished shards are kept and not read again by the next run. Raises DataError as `build_index`
    does; a worker's error is inside of Beam's own message.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise DataError(
            f"indexing with Beam needs the extra beam: pip install 'imagewam-jax[beam]' ({error})"
        ) from error
    folder = check_shards(read_tfds_folder(as_path(dataset_dir).absolute()), available_shards)
    index_dir = Path(index_dir).absolute() if index_dir else default_index_dir(folder.path)
    parts_dir = index_dir / PARTS_DIR
    shards = folder.shards()
    work = functools.partial(_index_one, features=folder.features, parts_dir=str(parts_dir))
    with only_builder(folder, index_dir):
        try:
            parts_dir.mkdir(parents=True, exist_ok=True)
            with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
                _ = (
                    pipeline
                    | "shards" >> beam.Create([str(path) for path in shards])
                    # Without this Beam fuses the two steps and one worker gets all shards.
                    | "spread" >> beam.Reshuffle()
                    | "index" >> beam.Map(work)
                )
        except OSError as error:
            raise explain_write_error(error, folder, parts_dir) from error
        except (DataError, RuntimeError) as error:
            raise DataError(f"{folder.path}: indexing with Beam failed: {error}") from error
        lost = [path.name for path in shards if not part_file(parts_dir, path).is_file()]
        if lost:
            raise DataError(
                f"{parts_dir}: {len(lost)} of {len(shards)} parts are not there ({lost[0]}, ...): "
                "do the workers of the pipeline mount this folder?"
            )
        return finish_index(folder, index_dir)


def _index_one(shard: str, features: Features, parts_dir: str) -> str:
    make_part(as_path(shard), features, Path(parts_dir))
    return shard
