"""features.json of one dataset, in every form that TFDS has written.

Used by tests, and by write_rlds.py to ask TFDS whether it opens these forms.
"""

import json

CORE = "tensorflow_datasets.core.features."
MESSAGES = {
    "featuresDict": "FeaturesDict",
    "tensor": "TensorFeature",
    "image": "ImageFeature",
    "text": "TextFeature",
    "classLabel": "ClassLabel",
    "sequence": "Sequence",
    "boundingBox": "BoundingBoxFeature",
    "video": "VideoFeature",
    "audio": "AudioFeature",
}


def node(name, key, content):
    return {"pythonClassName": CORE + name, key: content}


def shape(*sizes):
    return {"dimensions": [str(size) for size in sizes]}


def features_of(steps, episode):
    dictionary = "features_dict.FeaturesDict"
    inner = node(dictionary, "featuresDict", {"features": steps})
    dataset = node("dataset_feature.Dataset", "sequence", {"feature": inner, "length": "-1"})
    return node(dictionary, "featuresDict", {"features": {"steps": dataset, **episode}})


AUDIO = {"shape": shape(-1), "dtype": "int64", "fileFormat": "wav", "encoding": "NONE"}
NOW = features_of(
    {
        "observation": node(
            "features_dict.FeaturesDict",
            "featuresDict",
            {
                "features": {
                    "image": node(
                        "image_feature.Image",
                        "image",
                        {"shape": shape(64, -1, 3), "dtype": "uint8", "encodingFormat": "jpeg"},
                    ),
                    "mask": node(
                        "labeled_image.LabeledImage",
                        "image",
                        {"shape": shape(8, 8, 1), "dtype": "uint8", "label": {"numClasses": "3"}},
                    ),
                    "state": node(
                        "tensor_feature.Tensor",
                        "tensor",
                        {"shape": shape(4), "dtype": "float32", "encoding": "zlib"},
                    ),
                    "film": node(
                        "video_feature.Video",
                        "video",
                        {"shape": shape(2, 9, 9, 3), "dtype": "uint8", "encodingFormat": "png"},
                    ),
                }
            },
        ),
        "is_first": node("tensor_feature.Tensor", "tensor", {"shape": {}, "dtype": "bool"}),
        "language_instruction": node("text_feature.Text", "text", {}),
        "kind": node("class_label_feature.ClassLabel", "classLabel", {"numClasses": "3"}),
        "box": node(
            "bounding_boxes.BBoxFeature",
            "boundingBox",
            {"shape": shape(4), "dtype": "float32", "bboxFormat": "REL_YXYX"},
        ),
        "words": node(
            "sequence_feature.Sequence",
            "sequence",
            {"feature": node("text_feature.Text", "text", {}), "length": "-1"},
        ),
        "sound": node("audio_feature.Audio", "audio", AUDIO),
        "own": {"pythonClassName": "lab.features.Pose", "jsonFeature": {"json": '{"axes": 3}'}},
    },
    {"episode_id": node("tensor_feature.Tensor", "tensor", {"shape": {}, "dtype": "int64"})},
)


def snake_case(name):
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)


def with_snake_case(tree):
    """The same as protocol buffers write it when asked to keep the names of fields."""
    out = {}
    for key, content in tree.items():
        if isinstance(content, dict) and key == "features":
            out[key] = {name: with_snake_case(value) for name, value in content.items()}
        else:
            nested = with_snake_case(content) if isinstance(content, dict) else content
            out[snake_case(key)] = nested
    return out


def with_messages(tree, as_text=False):
    """{"type", "content", "proto_cls"} at the root, as TFDS 4.5 wrote it."""
    key = next(key for key in tree if key != "pythonClassName")
    content = json.dumps(tree[key]) if as_text else tree[key]
    message = f"tensorflow_datasets.{MESSAGES[key]}"
    return {"type": tree["pythonClassName"], "content": content, "proto_cls": message}


def with_arguments(tree):
    """{"type", "content"} at every node, as TFDS 4.1 wrote it."""
    name = tree["pythonClassName"]
    if "jsonFeature" in tree:
        return {"type": name, "content": json.loads(tree["jsonFeature"]["json"])}
    key = next(key for key in tree if key != "pythonClassName")
    content = tree[key]
    if key == "featuresDict":
        arguments = {k: with_arguments(child) for k, child in content["features"].items()}
    elif key == "sequence":
        length = int(content["length"])
        arguments = {
            "feature": with_arguments(content["feature"]),
            "length": None if length == -1 else length,
        }
    else:
        arguments = {snake_case(field): value for field, value in content.items()}
        if key in ("boundingBox", "text"):
            arguments = {}
        if "label" in arguments:
            arguments = {"shape": arguments["shape"], "labels": int(content["label"]["numClasses"])}
        if key == "classLabel":
            arguments = {"num_classes": int(content["numClasses"])}
        if key == "video":
            arguments["ffmpeg_extra_args"] = []
        if key == "audio":
            arguments["sample_rate"] = None
        if "shape" in arguments:
            sizes = [int(size) for size in arguments["shape"].get("dimensions", [])]
            arguments["shape"] = [None if size == -1 else size for size in sizes]
    return {"type": name, "content": arguments}


def with_arguments_in_a_message(tree):
    """Arguments inside of the form of today, for classes that had no message yet."""
    arguments = with_arguments(tree)
    return {
        "pythonClassName": arguments["type"],
        "jsonFeature": {"json": json.dumps(arguments["content"])},
    }


FORMS = {
    "snake_case": with_snake_case,
    "messages": with_messages,
    "messages_as_text": lambda tree: with_messages(tree, as_text=True),
    "arguments": with_arguments,
    "arguments_in_a_message": with_arguments_in_a_message,
}
