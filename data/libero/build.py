"""Writes collected LIBERO demonstrations as an RLDS dataset.

    python data/libero/build.py --raw RAW_DIR --output DATA_DIR

The dataset is then DATA_DIR/<suite>_no_noops/1.0.0, in the layout of the public sets of that name
(docs/spec/simulators.md, 1.3), so that what reads those reads it too. Idle steps are left out. It
is no copy of a public set: the demonstrations are those of scripted experts.

OpenGL is never opened here: TensorFlow and MuJoCo's software renderer crash when they share a
process.
"""

import argparse
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32

from imagewam_jax.data.tools.rollouts import split_files

SIDE = 256
NO_OP_NORM = 1e-4


class LiberoNoNoops(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Demonstrations of the tasks of one LIBERO suite by scripted experts, without idle steps.

    Args:
        raw_dir: folder that `collect.py` filled.
        data_dir: folder of TFDS datasets; this one becomes data_dir/<suite>_no_noops/<version>.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}

    def __init__(self, *, raw_dir: str | Path, **options):
        suite, self.paths = collected(Path(raw_dir))
        self.name = f"{suite}_no_noops"
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        def image(doc: str) -> tfds.features.Image:
            return tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="jpeg", doc=doc)

        def vector(size: int, doc: str) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=(size,), dtype=np.float32, doc=doc)

        scalar = tfds.features.Scalar
        step = {
            "observation": {
                "image": image("RGB of the camera before the robot, rotated by 180 degrees."),
                "wrist_image": image("RGB of the camera at the wrist, rotated by 180 degrees."),
                "state": vector(
                    8,
                    "Position of the grip site in metres, axis-angle of the hand in radians, "
                    "positions of the two fingers in metres.",
                ),
                "joint_state": vector(7, "Angles of the arm in radians."),
            },
            "action": vector(
                7,
                "Displacement (1: 5 cm), rotation vector (1: 0.5 rad), gripper (-1: open, 1: "
                "close). The expert's action, without the noise of noisy episodes.",
            ),
            "language_instruction": tfds.features.Text(),
            "is_first": scalar(np.bool_),
            "is_last": scalar(np.bool_),
            "is_terminal": scalar(np.bool_, doc="The last step of every episode."),
            "reward": scalar(np.float32, doc="1 at the last step."),
            "discount": scalar(np.float32, doc="Always 1."),
        }
        episode = {"file_path": tfds.features.Text(doc="Task, seed, and whether with noise.")}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{type(self).__doc__.splitlines()[0]} Not a copy of a public dataset.",
            features=tfds.features.FeaturesDict(
                {"steps": tfds.features.Dataset(step), "episode_metadata": episode}
            ),
            homepage="https://libero-project.github.io",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing is downloaded.
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        for path in self.paths:
            with np.load(path) as raw:
                yield path.stem, rlds_episode(raw)


def collected(folder: Path) -> tuple[str, list[Path]]:
    """The suite of a collection and its episodes' files. FileNotFoundError: there are none."""
    settings = folder / "collection.json"
    suite = json.loads(settings.read_text()).get("suite") if settings.exists() else None
    paths = sorted(folder.glob(f"{suite}_*.npz"))
    if not paths:
        raise FileNotFoundError(f"{folder}: found no episodes that data/libero/collect.py wrote")
    return suite, paths


def without_no_ops(actions: Float32[np.ndarray, "t a=7"]) -> list[int]:
    """The steps that are kept: those that move the hand, or whose gripper is not as in the step
    that was kept last (docs/spec/simulators.md, 1.3)."""
    kept: list[int] = []
    for step, action in enumerate(actions):
        moves = np.linalg.norm(action[:6]) >= NO_OP_NORM
        if moves or (kept and action[6] != actions[kept[-1], 6]):
            kept.append(step)
    return kept


def rlds_episode(raw: Mapping[str, np.ndarray]) -> dict:
    """One collected episode in the layout of `LiberoNoNoops`'s features."""
    kept = without_no_ops(raw["actions"])
    images, wrist_images = (
        split_files(raw[f"{name}s"], raw[f"{name}_bytes"]) for name in ("image", "wrist_image")
    )
    states, joints, instruction = raw["states"], raw["joints"], str(raw["instruction"])
    actions = raw["actions"].copy()
    actions[:, 6] = 1 - 2 * actions[:, 6]  # collected with 1 for open and 0 for closed
    steps = [
        {
            "observation": {
                # TFDS stores what it reads from a file as it is, and encodes arrays.
                "image": io.BytesIO(images[step]),
                "wrist_image": io.BytesIO(wrist_images[step]),
                "state": states[step],
                "joint_state": joints[step],
            },
            "action": actions[step],
            "language_instruction": instruction,
            "is_first": step == kept[0],
            "is_last": step == kept[-1],
            "is_terminal": step == kept[-1],
            "reward": np.float32(step == kept[-1]),
            "discount": np.float32(1),
        }
        for step in kept
    ]
    noisy = "_noisy" if raw["noisy"] else ""
    file_path = f"{raw['task']}/seed_{int(raw['seed']):06d}{noisy}"
    return {"steps": steps, "episode_metadata": {"file_path": file_path}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, required=True, help="folder that collect.py filled")
    parser.add_argument("--output", type=Path, required=True, help="folder of TFDS datasets")
    parser.add_argument("--shards", type=int, default=4, help="files, at most one per episode")
    arguments = parser.parse_args()

    try:
        builder = LiberoNoNoops(raw_dir=arguments.raw, data_dir=arguments.output)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    shards = min(arguments.shards, len(builder.paths))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    split = builder.info.splits["train"]
    print(f"train: {split.num_examples} episodes in {split.num_shards} shards")
    print(builder.data_path)


if __name__ == "__main__":
    main()
