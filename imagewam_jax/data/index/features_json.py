"""Brings every form of features.json that TFDS opens into the form that TFDS writes today.

Today a node is the JSON of a protocol buffer: `{"pythonClassName": ..., "tensor": {...}}`, where
the second key says which kind of content it is. TFDS 4.1 to 4.4 wrote `{"type": ..., "content":
...}`, the content being the arguments of the feature's class; releases between wrote the same with
`"proto_cls"`, the content being that of today, as JSON or as a string of JSON. The JSON of a
protocol buffer may name its fields in either case, `python_class_name` or `pythonClassName`; a
content of arguments may also stand inside of today's form, as `"jsonFeature"`.

Sources: tensorflow_datasets/core/features/feature.py, `from_json` and `from_proto`, and
`from_json_content` of each class; tensorflow_datasets/core/proto/feature.proto.
"""

import json
from collections.abc import Mapping
from typing import Any

from imagewam_jax.errors import DataError

# Message -> the key of a node of today that holds such a message.
_KEY_OF_MESSAGE = {
    "JsonFeature": "jsonFeature",
    "FeaturesDict": "featuresDict",
    "TensorFeature": "tensor",
    "ClassLabel": "classLabel",
    "ImageFeature": "image",
    "VideoFeature": "video",
    "AudioFeature": "audio",
    "BoundingBoxFeature": "boundingBox",
    "TextFeature": "text",
    "TranslationFeature": "translation",
    "Sequence": "sequence",
}
_CONTENT_KEYS = frozenset(_KEY_OF_MESSAGE.values())
# Class -> the same key, for contents that are arguments of the class.
_KEY_OF_CLASS = {
    "FeaturesDict": "featuresDict",
    "Tensor": "tensor",
    "Scalar": "tensor",
    "ClassLabel": "classLabel",
    "Image": "image",
    "LabeledImage": "image",
    "Video": "video",
    "Audio": "audio",
    "BBoxFeature": "boundingBox",
    "BBox": "boundingBox",
    "Text": "text",
    "Translation": "translation",
    "TranslationVariableLanguages": "translation",
    "Sequence": "sequence",
    "Dataset": "sequence",
}


def current_form(node: Any, where: str = "") -> dict[str, Any]:
    """The node and all nodes below it as TFDS writes them today, keys that are not read left out.

    A class that is not one of TFDS keeps its name alone. where: the key of the node, for errors.
    Raises DataError for what no release of TFDS has written.
    """
    if not isinstance(node, Mapping):
        raise _malformed(where, node)
    if "type" in node:
        name, content = str(node["type"]), node.get("content")
        message = str(node.get("proto_cls") or "").rsplit(".", 1)[-1]
        if message and isinstance(content, str):
            content = _parse(content, where)
        if not message:
            return _of_arguments(name, content, where)
        if message not in _KEY_OF_MESSAGE:
            return {"pythonClassName": name}
        node = {"pythonClassName": name, _KEY_OF_MESSAGE[message]: content}
    node = {_camel_case(key): value for key, value in node.items()}
    name = str(node.get("pythonClassName", ""))
    key = next((key for key in node if key in _CONTENT_KEYS), None)
    if key is None:
        return {"pythonClassName": name}
    if not isinstance(node[key], Mapping):
        raise _malformed(where, node[key])
    content = {_camel_case(field): value for field, value in node[key].items()}
    if key == "jsonFeature":
        return _of_arguments(name, _parse(content.get("json", ""), where), where)
    if key == "featuresDict":
        content["features"] = _below(content.get("features", {}), where)
    elif key == "sequence":
        content["feature"] = current_form(content.get("feature"), where)
    return {"pythonClassName": name, key: content}


def _of_arguments(name: str, content: Any, where: str) -> dict[str, Any]:
    """A node from the arguments of its class, as TFDS 4.1 wrote them."""
    key = _KEY_OF_CLASS.get(name.rsplit(".", 1)[-1])
    if key is None:
        return {"pythonClassName": name}
    if not isinstance(content, Mapping):
        raise _malformed(where, content)
    if key == "featuresDict":
        fields: dict[str, Any] = {"features": _below(content, where)}
    elif key == "sequence":
        length = content.get("length")
        feature = current_form(content.get("feature"), where)
        fields = {"feature": feature, "length": -1 if length is None else length}
    else:
        fields = {_camel_case(field): value for field, value in content.items()}
        if isinstance(fields.get("shape"), list):
            sizes = [-1 if size is None else size for size in fields["shape"]]
            fields["shape"] = {"dimensions": sizes}
    return {"pythonClassName": name, key: fields}


def _below(nodes: Any, where: str) -> dict[str, Any]:
    if not isinstance(nodes, Mapping):
        raise _malformed(where, nodes)
    return {
        key: current_form(node, f"{where}/{key}" if where else key) for key, node in nodes.items()
    }


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise _malformed(where, text) from error


def _malformed(where: str, found: Any) -> DataError:
    return DataError(
        f"features.json: at {where or 'its root'}: {str(found)[:80]!r}, expected a feature as TFDS "
        "writes it"
    )


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)
