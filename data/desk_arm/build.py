"""Writes a small RLDS dataset that the registry does not know, for docs/your_data.md.

    python data/desk_arm/build.py --output DATA_DIR

A drawn hand moves over a drawn desk to the red or the blue block, as it is told, and closes its
gripper there. The dataset is as those that people bring: two cameras of different size, keys of its
own, no state, and no split that is held out. It becomes DATA_DIR/desk_arm/1.0.0.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

FRONT, WRIST = (48, 64), (48, 48)  # rows and columns of the pictures
COLORS = {"red": (200, 40, 40), "blue": (40, 60, 200)}
DESK, HAND, FINGERS = (190, 180, 160), (40, 40, 40), (250, 250, 250)
BLOCK = 5  # half the side of a block, in pixels of the front camera
SPEED = 2.0  # pixels per step, at most
CLOSING_STEPS = 4


class Scene(NamedTuple):
    """Positions on the desk are (row, column) in pixels of the front camera.

    closed: of the gripper, from 0 to 1.
    """

    blocks: dict[str, np.ndarray]
    hand: np.ndarray
    closed: float


def play(seed: int) -> Iterator[tuple[Scene, np.ndarray, float, str]]:
    """Yields of each step the scene, the displacement of the hand, 1 to close the gripper, and the
    task."""
    rng = np.random.default_rng(seed)
    low, high = np.array([18, 8]), np.array(FRONT) - 8
    blocks = {name: rng.uniform(low, high) for name in COLORS}
    while np.abs(blocks["red"] - blocks["blue"]).max() < 4 * BLOCK:
        blocks["blue"] = rng.uniform(low, high)
    color = ("red", "blue")[seed % 2]
    hand, closed = np.array([6.0, rng.uniform(8, FRONT[1] - 8)]), 0.0
    for _ in range(100):
        way = blocks[color] - hand
        there = np.abs(way).max() < 1
        move = way * min(1.0, SPEED / max(np.linalg.norm(way), 1e-6))
        task = f"grasp the {color} block"
        yield Scene(blocks, hand, closed), move.astype(np.float32), float(there), task
        hand = hand + move
        closed = min(1.0, closed + there / CLOSING_STEPS)
        if closed == 1:
            return


def front_view(scene: Scene) -> np.ndarray:
    """The desk from above, uint8 [48, 64, 3]."""
    image = np.full((*FRONT, 3), DESK, np.uint8)
    for name, center in scene.blocks.items():
        _square(image, center, BLOCK, COLORS[name])
    _square(image, scene.hand, 3, HAND)
    return image


def wrist_view(scene: Scene) -> np.ndarray:
    """What lies below the hand, twice as large, between the fingers; uint8 [48, 48, 3]."""
    half = WRIST[0] // 4
    image = np.full((*FRONT, 3), DESK, np.uint8)
    for name, center in scene.blocks.items():
        _square(image, center, BLOCK, COLORS[name])
    padded = np.pad(image, ((half, half), (half, half), (0, 0)))
    row, column = np.rint(scene.hand).astype(int)
    view = padded[row : row + 2 * half, column : column + 2 * half].repeat(2, 0).repeat(2, 1)
    opening = round((1 - scene.closed) * (half - 4))
    for side in (half * 2 - 4 - opening - 4, half * 2 + opening + 4):
        view[-12:, side : side + 4] = FINGERS
    return view


def _square(image: np.ndarray, center: np.ndarray, half: int, color: tuple) -> None:
    top, left = np.maximum(np.rint(center).astype(int) - half, 0)
    bottom, right = np.rint(center).astype(int) + half
    image[top:bottom, left:right] = color


class DeskArm(tfds.core.GeneratorBasedBuilder):
    """A drawn hand grasps the red or the blue block; 10 steps per second."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, episodes: int, **options):
        self._episodes = episodes
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features, scalar = tfds.features, tfds.features.Scalar
        step = {
            "cameras": {
                "front_view": features.Image(shape=(*FRONT, 3), encoding_format="jpeg"),
                "gripper_cam": features.Image(shape=(*WRIST, 3), encoding_format="jpeg"),
            },
            "commands": {
                "hand_displacement": features.Tensor(shape=(2,), dtype=np.float32),
                "close_gripper": scalar(np.float32),
            },
            "task_description": features.Text(),
            "is_first": scalar(np.bool_),
            "is_last": scalar(np.bool_),
            "is_terminal": scalar(np.bool_),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=features.FeaturesDict({"steps": features.Dataset(step)}),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing is downloaded.
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        for seed in range(self._episodes):
            played = list(play(seed))
            steps = [
                {
                    "cameras": {"front_view": front_view(scene), "gripper_cam": wrist_view(scene)},
                    "commands": {"hand_displacement": move, "close_gripper": close},
                    "task_description": task,
                    "is_first": number == 0,
                    "is_last": number == len(played) - 1,
                    "is_terminal": number == len(played) - 1,
                }
                for number, (scene, move, close, task) in enumerate(played)
            ]
            yield seed, {"steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of TFDS datasets")
    parser.add_argument("--episodes", type=int, default=120)
    arguments = parser.parse_args()
    builder = DeskArm(episodes=arguments.episodes, data_dir=arguments.output)
    builder.download_and_prepare()
    print(builder.data_path)


if __name__ == "__main__":
    main()
