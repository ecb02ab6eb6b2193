"""TFDS builder that writes collected faucet demonstrations as RLDS.

It reads the files of `collect.py` and never opens OpenGL: TensorFlow and MuJoCo's software
renderer crash when they share a process.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import simplejpeg
import tensorflow_datasets as tfds

# The fourth of every ten pairs is held out, so that a collection of four pairs has both splits.
_HELD_OUT_REMAINDER = 3
_JPEG_QUALITY = 95


class MetaworldFaucet(tfds.core.GeneratorBasedBuilder):
    """Demonstrations of opening and closing a faucet in Meta-World, seen from above.

    Args:
        raw_dir: folder that `collect.py` filled.
        data_dir: folder of TFDS datasets; this one becomes data_dir/metaworld_faucet/<version>.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}

    def __init__(self, *, raw_dir: str | Path, **builder_options):
        self._raw_dir = Path(raw_dir)
        super().__init__(**builder_options)

    def _info(self) -> tfds.core.DatasetInfo:
        step = {
            "observation": {
                "image": tfds.features.Image(
                    shape=(None, None, 3),
                    encoding_format="jpeg",
                    doc="RGB from above, before the action.",
                ),
                "state": tfds.features.Tensor(
                    shape=(4,),
                    dtype=np.float32,
                    doc="Hand position in metres (x, y, z), gripper opening in [0, 1].",
                ),
            },
            "action": tfds.features.Tensor(
                shape=(4,),
                dtype=np.float32,
                doc="Displacement of the hand in centimetres (x, y, z), force that closes the "
                "gripper; all in [-1, 1]. The expert's action, without the noise of noisy "
                "episodes.",
            ),
            "language_instruction": tfds.features.Text(),
            "is_first": np.bool_,
            "is_last": np.bool_,
            "is_terminal": np.bool_,
            "reward": tfds.features.Scalar(
                np.float32, doc="1 if the task is done after the action."
            ),
            "discount": tfds.features.Scalar(
                np.float32, doc="0 at the terminal step, otherwise 1."
            ),
        }
        episode = {
            "task": tfds.features.Text(doc="Meta-World's name of the task."),
            "seed": tfds.features.Scalar(
                np.int64, doc="Simulator seed of the start state, shared by a pair of episodes."
            ),
            "noisy": tfds.features.Scalar(np.bool_, doc="Noise was added to executed actions."),
            "success": np.bool_,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Demonstrations of opening and closing a faucet from the same start "
            "states: only the instruction tells the two tasks apart.",
            features=tfds.features.FeaturesDict(
                {"steps": tfds.features.Dataset(step), "episode_metadata": episode}
            ),
            homepage="https://github.com/Farama-Foundation/Metaworld",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing is downloaded.
        paths = sorted(self._raw_dir.glob("faucet-*_*.npz"))
        val = [path for path in paths if _pair_index(path) % 10 == _HELD_OUT_REMAINDER]
        train = [path for path in paths if path not in val]
        if not train or not val:
            raise FileNotFoundError(
                f"{self._raw_dir}: expected collected episodes of at least "
                f"{_HELD_OUT_REMAINDER + 1} pairs, found {len(paths)} files"
            )
        return {"train": self._generate_examples(train), "val": self._generate_examples(val)}

    def _generate_examples(self, paths: list[Path]) -> Iterator[tuple[str, dict]]:
        for path in paths:
            with np.load(path) as raw:
                yield path.stem, rlds_episode(raw)


def rlds_episode(raw) -> dict:
    """One collected episode in the layout of `MetaworldFaucet`'s features."""
    images, states, actions, rewards = (
        raw[name] for name in ("images", "states", "actions", "rewards")
    )
    last = len(actions) - 1
    steps = [
        {
            "observation": {"image": _encode_jpeg(images[step]), "state": states[step]},
            "action": actions[step],
            "language_instruction": str(raw["instruction"]),
            "is_first": step == 0,
            "is_last": step == last,
            "is_terminal": step == last,
            "reward": rewards[step],
            "discount": np.float32(step != last),
        }
        for step in range(len(actions))
    ]
    metadata = {
        "task": str(raw["task"]),
        "seed": int(raw["seed"]),
        "noisy": bool(raw["noisy"]),
        "success": True,  # collect.py keeps no others
    }
    return {"steps": steps, "episode_metadata": metadata}


def _pair_index(path: Path) -> int:
    return int(path.stem.rsplit("_", 1)[1])


def _encode_jpeg(image: np.ndarray) -> bytes:
    """Encode in full color resolution: at 64 pixels the red handle is two pixels wide."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=_JPEG_QUALITY, colorsubsampling="444"
    )
