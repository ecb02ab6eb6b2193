"""The registry as a table for people."""

from collections.abc import Iterable, Mapping

from imagewam_jax.data.dataset_spec import DatasetSpec, Encoding
from imagewam_jax.data.registry.mixtures import Mixture
from imagewam_jax.data.transforms import find_filter, find_transform

HEADER = ("dataset", "Hz", "cameras", "action", "state", "language", "transform", "mixtures")


def table_rows(
    specs: Iterable[DatasetSpec], mixtures: Mapping[str, Mixture]
) -> list[tuple[str, ...]]:
    """One row of text per dataset, in the columns of `HEADER`, sorted by name.

    Cameras are marked if they are stored as BGR or upside down. The transform is named with its
    gripper operation and filters, each mixture with the dataset's weight in it.
    """
    return [_row(spec, mixtures) for spec in sorted(specs, key=lambda spec: spec.name)]


def dataset_table(specs: Iterable[DatasetSpec], mixtures: Mapping[str, Mixture]) -> str:
    """Formats `table_rows` below their header, in columns of fixed width."""
    lines = [HEADER, *table_rows(specs, mixtures)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (lines[0], rule, *lines[1:])
    )


def _row(spec: DatasetSpec, mixtures: Mapping[str, Mixture]) -> tuple[str, ...]:
    return (
        spec.name,
        f"{spec.control_hz:g}",
        ", ".join(_cameras(spec)),
        _encoding(spec.action),
        _encoding(spec.state),
        ", ".join(key.rpartition("/")[2] for key in spec.language) or "-",
        _transform(spec),
        ", ".join(_weights(spec.name, mixtures)) or "-",
    )


def _cameras(spec: DatasetSpec) -> list[str]:
    names = []
    for role, camera in spec.cameras:
        flags = [flag for flag in ("bgr", "upside_down") if getattr(camera, flag)]
        key = camera.key.removeprefix("observation/")
        names.append(f"{role}={key}" + (f" ({', '.join(flags)})" if flags else ""))
    return names


def _encoding(encoding: Encoding) -> str:
    return f"{encoding.name} [{len(encoding.dims)}]" if encoding.dims else "-"


def _transform(spec: DatasetSpec) -> str:
    text = f"{spec.transform} v{find_transform(spec.transform).version}"
    if spec.option("gripper"):
        text += f", gripper {spec.option('gripper')}"
    for what, names in (("filter", spec.filters), ("drop filter", spec.drop_filters)):
        for name in names:
            text += f", {what} {name} v{find_filter(name).version}"
    return text


def _weights(dataset: str, mixtures: Mapping[str, Mixture]) -> list[str]:
    return [
        f"{name} {entry.weight:.3g}" + (" (blank)" if entry.blank_language else "")
        for name, mixture in mixtures.items()
        for entry in mixture.entries
        if entry.dataset == dataset
    ]
