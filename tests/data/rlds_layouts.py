"""RLDS sets in the feature layouts of public datasets, tiny, and one of odd features.

The layouts follow the public feature lists of `bridge_dataset`, `fractal20220817_data` and
`modified_libero_rlds`; the values are random. Imported by write_rlds.py alone: it needs TFDS.
"""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

F = tfds.features
FLAGS = ("is_first", "is_last", "is_terminal")


def floats(*shape, **options):
    return F.Tensor(shape=shape, dtype=np.float32, **options)


def jpeg(*shape):
    return F.Image(shape=shape, encoding_format="jpeg")


def standard_features():
    flags = {name: F.Scalar(np.bool_) for name in FLAGS}
    return {**flags, "reward": F.Scalar(np.float32), "discount": F.Scalar(np.float32)}


def standard_values(t, steps):
    last = t == steps - 1
    flags = dict(zip(FLAGS, (t == 0, last, last), strict=True))
    return {**flags, "reward": float(last), "discount": 1.0}


def random_image(rng, *shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


class Layout(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set of a few episodes; a subclass gives features, episode(rng, number, steps) and step."""

    VERSION = tfds.core.Version("1.0.0")
    EPISODE_STEPS: ClassVar = {"train": (3, 1, 4)}

    def _info(self):
        features = {"steps": F.Dataset(self.step_features()), **self.episode_features()}
        return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.EPISODE_STEPS}

    def _generate_examples(self, split):
        for number, steps in enumerate(self.EPISODE_STEPS[split]):
            rng = np.random.default_rng([len(split), number])
            values = self.episode(rng, number)
            embedding = normal(rng, 512)
            values["steps"] = [
                self.step(rng, number, t, steps, embedding) | self.standard(t, steps)
                for t in range(steps)
            ]
            yield number, values

    def standard(self, t, steps):
        return standard_values(t, steps)


class Bridge(Layout):
    def step_features(self):
        images = {f"image_{i}": jpeg(24, 32, 3) for i in range(4)}
        return standard_features() | {
            "observation": F.FeaturesDict({**images, "state": floats(7)}),
            "action": floats(7),
            "language_instruction": F.Text(),
            "language_embedding": floats(512),
        }

    def episode_features(self):
        has = [f"has_image_{i}" for i in range(4)] + ["has_language"]
        metadata = {"file_path": F.Text(), "episode_id": F.Scalar(np.int32)}
        metadata |= {name: F.Scalar(np.bool_) for name in has}
        return {"episode_metadata": F.FeaturesDict(metadata)}

    def episode(self, rng, number):
        has = {f"has_image_{i}": i <= number for i in range(4)}
        metadata = {"file_path": f"/raw/{number}/out.npy", "episode_id": -number, **has}
        return {"episode_metadata": {**metadata, "has_language": number != 1}}

    def step(self, rng, number, t, steps, embedding):
        images = {f"image_{i}": random_image(rng, 24, 32, 3) for i in range(4)}
        return {
            "observation": {**images, "state": normal(rng, 7)},
            "action": normal(rng, 7),
            "language_instruction": ("put the spoon in the pot", "", "öffne")[number],
            "language_embedding": embedding,
        }


class Fractal(Layout):
    EPISODE_STEPS: ClassVar = {"train": (5, 2)}
    ACTION: ClassVar = {
        "world_vector": 3,
        "rotation_delta": 3,
        "gripper_closedness_action": 1,
        "base_displacement_vector": 2,
        "base_displacement_vertical_rotation": 1,
    }
    OBSERVATION: ClassVar = {
        "base_pose_tool_reached": (7,),
        "gripper_closed": (1,),
        "orientation_box": (2, 3),
        "workspace_bounds": (3, 3),
    }

    def step_features(self):
        action = {name: floats(width) for name, width in self.ACTION.items()}
        action["terminate_episode"] = F.Tensor(shape=(3,), dtype=np.int32)
        observation = {name: floats(*shape) for name, shape in self.OBSERVATION.items()}
        observation |= {
            "image": jpeg(16, 20, 3),
            "natural_language_instruction": F.Text(),
            "natural_language_embedding": floats(512),
            # kuka stores its numbers so.
            "gripper_closedness_commanded": floats(1, encoding="zlib"),
            "clip_function_input": F.FeaturesDict(
                {"base_pose_tool_reached": floats(7, encoding="zlib")}
            ),
        }
        flags = {name: F.Scalar(np.bool_) for name in FLAGS}
        return flags | {
            "action": F.FeaturesDict(action),
            "observation": F.FeaturesDict(observation),
            "reward": F.Scalar(np.float32),
        }

    def episode_features(self):
        aspects = {name: F.Scalar(np.bool_) for name in ("success", "has_aspects", "feasible")}
        attributes = {
            "collection_mode": F.Scalar(np.int64),
            "collection_mode_name": F.Tensor(shape=(), dtype=np.str_),
        }
        return {"aspects": F.FeaturesDict(aspects), "attributes": F.FeaturesDict(attributes)}

    def episode(self, rng, number):
        return {
            "aspects": {"success": number == 0, "has_aspects": True, "feasible": False},
            "attributes": {"collection_mode": number + 2**40, "collection_mode_name": "teleop"},
        }

    def step(self, rng, number, t, steps, embedding):
        action = {name: normal(rng, width) for name, width in self.ACTION.items()}
        action["terminate_episode"] = np.array([t == steps - 1, t < steps - 1, 0], np.int32)
        observation = {name: normal(rng, *shape) for name, shape in self.OBSERVATION.items()}
        observation |= {
            "image": random_image(rng, 16, 20, 3),
            # It may change inside of an episode, and come back.
            "natural_language_instruction": ("pick coke can", "move near")[(number + t) % 2],
            "natural_language_embedding": embedding * (1 + (number + t) % 2),
            "gripper_closedness_commanded": normal(rng, 1),
            "clip_function_input": {"base_pose_tool_reached": normal(rng, 7)},
        }
        return {"action": action, "observation": observation}

    def standard(self, t, steps):
        values = standard_values(t, steps)
        del values["discount"]
        return values


class Libero(Layout):
    EPISODE_STEPS: ClassVar = {"train": (4, 6, 2)}

    def step_features(self):
        observation = {
            "image": jpeg(32, 32, 3),
            "wrist_image": jpeg(32, 32, 3),
            "state": floats(8),
            "joint_state": floats(7),
        }
        return standard_features() | {
            "observation": F.FeaturesDict(observation),
            "action": floats(7),
            "language_instruction": F.Text(),
        }

    def episode_features(self):
        return {"episode_metadata": F.FeaturesDict({"file_path": F.Text()})}

    def episode(self, rng, number):
        return {"episode_metadata": {"file_path": f"libero_spatial/demo_{number}.hdf5"}}

    def step(self, rng, number, t, steps, embedding):
        observation = {
            "image": random_image(rng, 32, 32, 3),
            "wrist_image": random_image(rng, 32, 32, 3),
            "state": normal(rng, 8),
            "joint_state": normal(rng, 7),
        }
        action = np.append(normal(rng, 6), np.float32(1 - 2 * (t % 2)))
        text = f"pick up the bowl {number % 2}"
        return {"observation": observation, "action": action, "language_instruction": text}


class Odd(Layout):
    """Whatever else TFDS can put into a step: integers as text, ragged rows, every number, PNG."""

    EPISODE_STEPS: ClassVar = {"train": (3, 1, 5), "test": (2, 1)}

    def step_features(self):
        tensor, sequence = F.Tensor, F.Sequence
        observation = {
            "rgb": F.Image(shape=(None, None, 3)),
            "gray": F.Image(shape=(9, 7, 1), encoding_format="png"),
            "depth": F.Image(shape=(8, 6, 1), dtype=np.uint16, encoding_format="png"),
            "instruction": tensor(shape=(512,), dtype=np.int32),
        }
        numbers = {
            "bool": tensor(shape=(2,), dtype=np.bool_),
            "uint8": F.Scalar(np.uint8),
            "int64": tensor(shape=(2,), dtype=np.int64),
            "uint64": F.Scalar(np.uint64),
            "float16": F.Scalar(np.float16),
            "float64": tensor(shape=(3,), dtype=np.float64),
            "float64_zlib": tensor(shape=(2, 2), dtype=np.float64, encoding="zlib"),
            "bool_bytes": tensor(shape=(3,), dtype=np.bool_, encoding="bytes"),
            "label": F.ClassLabel(num_classes=3),
            "box": F.BBoxFeature(),
        }
        return {
            "observation": F.FeaturesDict(observation),
            "numbers": F.FeaturesDict(numbers),
            "ragged": sequence(floats(2)),
            "ragged_ids": sequence(np.int64),
            "ragged_zlib": tensor(shape=(None,), dtype=np.float32, encoding="zlib"),
            "words": sequence(F.Text()),
            "objects": sequence({"id": np.int64, "name": F.Text()}),
            "pair": tensor(shape=(2,), dtype=np.str_),
            "bytes": F.Text(),
            # The features that are not indexed.
            "cloud": tensor(shape=(2000, 3), dtype=np.float32),
            "crops": sequence(F.Image(shape=(4, 4, 3))),
            "tree": sequence(sequence(np.int64)),
            "inner": F.Dataset({"x": np.int64}),
        }

    def episode_features(self):
        metadata = {
            "maybe": F.Scalar(np.float32, optional=True),
            "maybe_ids": F.Tensor(shape=(2,), dtype=np.int64, optional=True),
            "intrinsics": F.Tensor(shape=(3, 3), dtype=np.float64, encoding="zlib"),
            "tags": F.Sequence(F.Text()),
            "thumbnail": F.Image(shape=(4, 4, 3)),
        }
        return {"episode_metadata": F.FeaturesDict(metadata), "episode_id": F.Text()}

    def episode(self, rng, number):
        maybe = {} if number == 1 else {"maybe": 0.1 * number, "maybe_ids": [number, -1]}
        return {
            "episode_id": f"episode {number}",
            "episode_metadata": {"maybe": None, "maybe_ids": None}
            | maybe
            | {
                "intrinsics": rng.normal(size=(3, 3)),
                "tags": ["a", "bb", ""][:number],
                "thumbnail": random_image(rng, 4, 4, 3),
            },
        }

    def step(self, rng, number, t, steps, embedding):
        several = (number + t) % 3
        size = (8, 10 + number, 3)
        return {
            "observation": {
                "rgb": random_image(rng, *size),
                "gray": random_image(rng, 9, 7, 1),
                "depth": rng.integers(0, 2**16, (8, 6, 1)).astype(np.uint16),
                "instruction": np.arange(512, dtype=np.int32) * (number % 2),
            },
            "numbers": {
                "bool": np.array([t == 0, True]),
                "uint8": np.uint8(250 + t),
                "int64": np.array([-(2**62) - t, t]),
                "uint64": np.uint64(2**64 - 1 - t),
                "float16": np.float16(rng.normal()),
                "float64": rng.normal(size=3),
                "float64_zlib": rng.normal(size=(2, 2)),
                "bool_bytes": rng.normal(size=3) > 0,
                "label": several,
                "box": F.BBox(0.1, 0.2, 0.3, 0.1 * t + 0.4),
            },
            "ragged": list(normal(rng, several, 2)),
            "ragged_ids": list(range(t)),
            "ragged_zlib": normal(rng, several),
            "words": ["left", "ö"][:several],
            "objects": [{"id": i, "name": f"cup {i}"} for i in range(several)],
            "pair": ["x", f"{t}"],
            "bytes": b"\xff\xfe not UTF-8",
            "cloud": normal(rng, 2000, 3),
            "crops": [random_image(rng, 4, 4, 3)] * several,
            "tree": [[1], [2, 3]][:several],
            "inner": [{"x": i} for i in range(several)],
        }

    def standard(self, t, steps):
        return {}


class Cameras(Layout):
    """Images in every form but a single encoded one, and what is not read beside them."""

    EPISODE_STEPS: ClassVar = {"train": (3, 2, 4), "val": (2, 3)}
    SIZE: ClassVar = (10, 12)

    def step_features(self):
        def pixels(*shape, **options):
            return F.Tensor(shape=shape, dtype=np.uint8, **options)

        rows, columns = self.SIZE
        rgb = (rows, columns, 3)
        png = F.Image(shape=rgb, encoding_format="png")
        observation = {
            "png": png,
            "pixels": pixels(*rgb),
            "grey_zlib": pixels(rows, columns, 1, encoding="zlib"),
            "rgba_bytes": pixels(rows, columns, 4, encoding="bytes"),
            "stack": pixels(2, *rgb),
            "images": F.Sequence(png),
            "tensors": F.Sequence(pixels(*rgb)),
            "arms": F.Sequence({"view": png, "force": np.float32}),
            "label": F.LabeledImage(labels=3, shape=(rows, columns, 1)),
            # Features that are not read.
            "sometimes": F.Sequence(png),
            "stack_zlib": pixels(2, *rgb, encoding="zlib"),
            "open_zlib": pixels(None, None, 3, encoding="zlib"),
            "channels_first": pixels(3, 40, 40),
            "float": floats(40, 40, 3),
        }
        return {"observation": F.FeaturesDict(observation), "empty": F.Sequence(np.float32)}

    def episode_features(self):
        return {"episode_id": F.Scalar(np.int64)}

    def episode(self, rng, number):
        return {"episode_id": number}

    def step(self, rng, number, t, steps, embedding):
        rows, columns = self.SIZE
        rgb = [random_image(rng, rows, columns, 3) for _ in range(8)]
        observation = {
            "png": rgb[0],
            "pixels": rgb[1],
            "grey_zlib": rgb[1][..., :1],
            "rgba_bytes": random_image(rng, rows, columns, 4),
            "stack": np.stack(rgb[:2]),
            "images": rgb[2:5],
            "tensors": rgb[5:7],
            "arms": [{"view": view, "force": t} for view in rgb[3:5]],
            "label": rgb[7][..., :1] % 3,
            "sometimes": rgb[: 1 + t],
            "stack_zlib": np.stack(rgb[:2]),
            "open_zlib": rgb[0],
            "channels_first": random_image(rng, 3, 40, 40),
            "float": normal(rng, 40, 40, 3),
        }
        return {"observation": observation, "empty": []}

    def standard(self, t, steps):
        return {}


class CamerasArray(Cameras):
    """The same in ArrayRecord files."""


LAYOUTS = {"bridge": Bridge, "fractal": Fractal, "libero": Libero, "odd": Odd}
