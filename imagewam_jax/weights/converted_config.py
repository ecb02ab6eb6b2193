"""The config of a converted checkpoint: what its weights and sidecar files say, and the rest."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from imagewam_jax.config.defaults import backbone_recipe
from imagewam_jax.config.schema import choose, policy_config
from imagewam_jax.errors import ConversionError, DataError
from imagewam_jax.preprocess.images import LAYOUTS, REFERENCES, mosaic
from imagewam_jax.preprocess.normalization import check_mode
from imagewam_jax.weights.layouts.imagewam_settings import MODES, places, setting
from imagewam_jax.weights.layouts.metadata import Metadata, SourceMetadata, find

# The fields of a model section that say how it is run and change none of its numbers.
RUN_TIME = ("attention", "remat", "unroll")


def merged_config(
    sections: Sequence[Mapping[str, Any]],
    metadata: Metadata,
    config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Merge the config sections of all components; for a whole policy, complete them to a config.

    A policy's other sections come from the user's `config`, else from the official recipe.
    ConversionError: the user's config is for another model or normalization than the files.
    """
    merged: dict[str, Any] = {}
    for section in sections:
        merged = _merge(merged, section)
    if "horizon" not in merged.get("model", {}):
        return merged
    if config is None:
        whole = json.loads(backbone_recipe(merged["model"]["backbone"]["name"]).to_json())
    else:
        whole = json.loads(json.dumps(config))
    merged["model"] |= {name: whole["model"][name] for name in RUN_TIME}
    if config is not None:
        _check_same(policy_config(whole["model"]), policy_config(merged["model"]), "model")
    merged["data"] = {
        "normalization": _mode(metadata, config),
        **_images_and_steps(_files(metadata), config),
    }
    steps = setting(_files(metadata), "eval_num_inference_steps")
    if config is None and steps is not None:
        merged["acting"] = {"euler_steps": steps}
    return _merge(whole, merged)


def _mode(metadata: Metadata, config: Mapping[str, Any] | None) -> str:
    """The normalization mode of actions and states; empty if nothing says so."""
    given = find(metadata, "normalization")
    settings = _files(metadata)
    files = setting(settings, *MODES)
    chosen = None if config is None else config["data"]["normalization"]
    if given is None and files is not None:
        where = next(path for name in MODES for path in places(settings, name))
        try:
            check_mode(files)
        except DataError as error:
            raise ConversionError(f"{where}: {error}") from error
        if chosen and files != chosen:
            raise ConversionError(
                f"the config has data.normalization={chosen!r}, the training config beside the "
                f"weights {where}={files!r}: give the right one as --set normalization=..."
            )
    mode = given or files or chosen or ""
    if mode:
        check_mode(mode)
    return mode


def _images_and_steps(
    settings: Mapping[str, Any], config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the training config says of the section `data`, besides the normalization.

    ConversionError: the user's config has other steps or images.
    """
    stride = setting(settings, "global_sample_stride")
    layout = setting(settings, "concat_multi_camera")
    if layout == "vertical":
        raise ConversionError(
            f"concat_multi_camera is {layout!r}: cameras above each other are not supported"
        )
    found = {} if stride is None else {"stride": stride}
    if config is None:
        return found
    data = config["data"]
    theirs = {"global_sample_stride": stride, "num_output_cameras": None, "video_size": None}
    theirs = {name: setting(settings, name) for name in theirs}
    ours = {
        "global_sample_stride": ("data.stride", data["stride"]),
        "num_output_cameras": ("the number of data.cameras", len(data["cameras"])),
        "video_size": ("images", _mosaic_size(data)),
    }
    for name, (what, value) in ours.items():
        if None not in (theirs[name], value) and theirs[name] != value:
            raise ConversionError(
                f"the config has {value} as {what}, the training config beside the weights "
                f"{name}={theirs[name]}"
            )
    if layout == "horizontal" and data["layout"] not in ("row", "single"):
        raise ConversionError(
            f"the config has data.layout={data['layout']!r}, the training config beside the "
            "weights concat_multi_camera='horizontal', which is the layout 'row'"
        )
    return found


def _mosaic_size(data: Mapping[str, Any]) -> list[int] | None:
    """Rows and columns of the image that a policy sees; None where cameras are apart."""
    if data["layout"] == REFERENCES:
        return None
    camera = jax.ShapeDtypeStruct((*data["image_size"], 3), np.float32)
    choose(LAYOUTS, data["layout"], "data.layout")
    try:
        image = jax.eval_shape(
            lambda cameras: mosaic(data["layout"], cameras), [camera] * len(data["cameras"])
        )
    except KeyError:
        raise ConversionError(
            f"the config has data.layout={data['layout']!r}, which is none"
        ) from None
    except DataError as error:
        raise ConversionError(f"the config: {error}") from error
    return list(image.shape[:2])


def _files(metadata: Metadata) -> Mapping[str, Any]:
    return metadata.files if isinstance(metadata, SourceMetadata) else metadata


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        # A section with another `name` has other fields, so that it replaces the whole section.
        same = nested and value.get("name") == merged[key].get("name")
        merged[key] = _merge(merged[key], value) if same else value
    return merged


def _check_same(config: Any, weights: Any, where: str) -> None:
    """ConversionError that names the first field in which two configs differ."""
    if config == weights:
        return
    if type(config) is type(weights) and dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            name = field.name
            _check_same(getattr(config, name), getattr(weights, name), f"{where}.{name}")
    else:
        raise ConversionError(
            f"the config has {where}={config!r}, the weights are of one with {weights!r}"
        )
