"""The features of the RLDS dataset that an import writes."""

from typing import Any

import numpy as np

from imagewam_jax.data.tools.lerobot.layout import Layout


def rlds_features(layout: Layout) -> Any:
    """The tfds.features.FeaturesDict of an episode."""
    import tensorflow_datasets as tfds

    def scalar(dtype: type) -> Any:
        return tfds.features.Scalar(dtype)

    steps: dict[str, Any] = {
        "is_first": scalar(np.bool_),
        "is_last": scalar(np.bool_),
        "is_terminal": scalar(np.bool_),
        "reward": scalar(np.float32),
        "discount": scalar(np.float32),
        "language_instruction": tfds.features.Text(),
    }
    observation: dict[str, Any] = {}
    for key, target in (layout.cameras | layout.copied).items():
        described = layout.features[key]
        if described.is_image:
            feature = tfds.features.Image(shape=layout.image_shape(key), encoding_format="jpeg")
        elif described.dtype == "string":
            feature = tfds.features.Text()
        else:
            # The floats of a tf.train.Example have 32 bits.
            encoding = "zlib" if described.dtype == "float64" else "none"
            feature = tfds.features.Tensor(
                shape=described.shape, dtype=np.dtype(described.dtype), encoding=encoding
            )
        prefix, _, name = target.rpartition("/")
        (observation if prefix else steps)[name] = feature
    return tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset({"observation": observation, **steps}),
            "episode_metadata": {
                "episode_index": scalar(np.int64),
                "source": tfds.features.Text(),
            },
        }
    )
