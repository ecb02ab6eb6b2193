"""Writes tiny LeRobot folders, v2.1 and v3.0, with pyarrow and PyAV alone.

Every frame shows its number: eight upright bars, white for the bits that are set. It can be read
back after any video codec and JPEG.
"""

import io
import itertools
import json

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HEIGHT, WIDTH = 32, 64
FPS = 10
TASKS = ("put the cup left", "öffne die Tür", "wait")

LOSSLESS = ("libx264", {"crf": "0"}, "yuv444p")
# Frames of three kinds, stored in another order than shown, one keyframe at the start.
REORDERED = ("libx264", {"crf": "12", "bf": "3", "g": "250", "sc_threshold": "0"}, "yuv420p")
AV1 = ("libsvtav1", {"crf": "25", "preset": "12", "g": "2"}, "yuv420p")


def picture(number, height=HEIGHT, width=WIDTH):
    """uint8 [height, width, 3]"""
    bits = (number >> np.arange(8)) & 1
    row = np.repeat(bits, width // 8) * 255
    return np.broadcast_to(row[None, :, None], (height, width, 3)).astype(np.uint8)


def number_of(image):
    height, width = image.shape[:2]
    bar = width // 8
    values = [int(image[height // 2, i * bar + bar // 2].mean() > 128) for i in range(8)]
    return sum(bit << i for i, bit in enumerate(values))


def write_video(path, numbers, encoding=LOSSLESS, fps=FPS):
    codec, options, pixel_format = encoding
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixel_format
        for number in numbers:
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


class Episode:
    """An episode's columns; frames of camera c have the numbers first_frame + 100 * c + t."""

    def __init__(self, index, length, first_row):
        rng = np.random.default_rng(index)
        self.index, self.length, self.first_row = index, length, first_row
        self.action = rng.normal(size=(length, 4)).astype(np.float32)
        self.state = rng.normal(size=(length, 3)).astype(np.float32)
        self.effort = rng.normal(size=(length, 2)) * 1e9 + 0.1
        self.matrix = rng.integers(-(2**40), 2**40, size=(length, 2, 3))
        self.reward = rng.normal(size=length).astype(np.float32)
        self.done = np.arange(length) == length - 1 if index % 2 else np.zeros(length, bool)
        self.task = (np.arange(length) + index) % len(TASKS)

    def frame_numbers(self, camera):
        return [self.first_row + 100 * camera + t for t in range(self.length)]


def episodes(lengths):
    starts = np.cumsum([0, *lengths])
    return [Episode(i, n, int(starts[i])) for i, n in enumerate(lengths)]


def image_bytes(number, kind):
    out = io.BytesIO()
    Image.fromarray(picture(number)).save(out, format=kind)
    return out.getvalue()


def table(episodes, images=()):
    """The rows of one parquet file.

    images: (key, camera, kind) held in it, as "PNG" or "JPEG", or as arrays of the axes "HWC" or
    "CHW".
    """

    def lists(values, dtype, width):
        flat = pa.array(np.concatenate(values).reshape(-1), dtype)
        return pa.FixedSizeListArray.from_arrays(flat, width)

    def plain(values, dtype):
        return pa.array(np.concatenate(values), dtype)

    columns = {
        "action": lists([e.action for e in episodes], pa.float32(), 4),
        "observation.state": lists([e.state for e in episodes], pa.float32(), 3),
        "observation.effort": lists([e.effort for e in episodes], pa.float64(), 2),
        "annotation.matrix": pa.array([m.tolist() for e in episodes for m in e.matrix]),
        "next.reward": plain([e.reward for e in episodes], pa.float32()),
        "next.done": plain([e.done for e in episodes], pa.bool_()),
        "note": pa.array([f"note {e.index}.{t}" for e in episodes for t in range(e.length)]),
        "timestamp": plain([np.arange(e.length) / FPS for e in episodes], pa.float32()),
        "frame_index": plain([np.arange(e.length) for e in episodes], pa.int64()),
        "episode_index": plain([np.full(e.length, e.index) for e in episodes], pa.int64()),
        "index": plain([e.first_row + np.arange(e.length) for e in episodes], pa.int64()),
        "task_index": plain([e.task for e in episodes], pa.int64()),
    }
    for key, camera, kind in images:
        if kind in ("HWC", "CHW"):
            pixels = [picture(n) for e in episodes for n in e.frame_numbers(camera)]
            axes = ["HWC".index(axis) for axis in kind]
            cells = [image.transpose(axes).tolist() for image in pixels]
            columns[key] = pa.array(cells, pa.list_(pa.list_(pa.list_(pa.uint8()))))
            continue
        cells = [
            {"bytes": image_bytes(n, kind), "path": None}
            for e in episodes
            for n in e.frame_numbers(camera)
        ]
        columns[key] = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return pa.table(columns)


def write_parquet(path, rows, row_group_size=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, row_group_size=row_group_size)


def info(version, lengths, cameras):
    """cameras: {key: "video" or "image"}"""

    def feature(dtype, shape, names=None):
        return {"dtype": dtype, "shape": list(shape), "names": names}

    features = {
        "action": feature("float32", (4,), {"motors": ["x", "y", "z", "gripper"]}),
        "observation.state": feature("float32", (3,)),
        "observation.effort": feature("float64", (2,)),
        "annotation.matrix": feature("int64", (2, 3)),
        "next.reward": feature("float32", (1,)),
        "next.done": feature("bool", (1,)),
        "note": feature("string", (1,)),
        "timestamp": feature("float32", (1,)),
        "frame_index": feature("int64", (1,)),
        "episode_index": feature("int64", (1,)),
        "index": feature("int64", (1,)),
        "task_index": feature("int64", (1,)),
    }
    for number, (key, dtype) in enumerate(cameras.items()):
        # Both orders occur in published sets.
        if number % 2:
            features[key] = feature(dtype, (3, HEIGHT, WIDTH), ["channels", "height", "width"])
        else:
            features[key] = feature(dtype, (HEIGHT, WIDTH, 3), ["height", "width", "channel"])
    described = {
        "codebase_version": version,
        "robot_type": "toy",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": len(TASKS),
        "chunks_size": 2,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "features": features,
    }
    if version == "v3.0":
        described["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        described["video_path"] = (
            "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        )
    else:
        described["data_path"] = (
            "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        )
        described["video_path"] = (
            "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        )
    return described


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def write_v21(root, lengths, encodings=(LOSSLESS, REORDERED)):
    """Two cameras in videos, two episodes to a chunk."""
    keys = ("observation.images.image", "observation.images.wrist_image")
    write_json(root / "meta/info.json", info("v2.1", lengths, dict.fromkeys(keys, "video")))
    written = episodes(lengths)
    lines = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
    write_lines(root / "meta/tasks.jsonl", lines)
    lines = [
        {"episode_index": e.index, "tasks": [TASKS[i] for i in set(e.task)], "length": e.length}
        for e in written
    ]
    write_lines(root / "meta/episodes.jsonl", lines)
    for e in written:
        chunk, name = f"chunk-{e.index // 2:03d}", f"episode_{e.index:06d}"
        write_parquet(root / "data" / chunk / f"{name}.parquet", table([e]))
        for camera, key in enumerate(keys):
            write_video(
                root / "videos" / chunk / key / f"{name}.mp4",
                e.frame_numbers(camera),
                encodings[camera],
            )
    return written


def write_v30(root, lengths, video_cuts, data_cut, encodings=(REORDERED, AV1), drift=0.0):
    """Two cameras in videos, many episodes to a file, each camera cut at its own episodes.

    video_cuts: per camera, the episodes at which a new file begins; data_cut the same for parquet.
    drift: seconds that each episode's from_timestamp is off by more than the one before.
    """
    keys = ("observation.images.image", "observation.images.wrist_image")
    write_json(root / "meta/info.json", info("v3.0", lengths, dict.fromkeys(keys, "video")))
    written = episodes(lengths)
    write_v30_tasks(root)
    rows = [
        {
            "episode_index": e.index,
            "length": e.length,
            "tasks": [TASKS[i] for i in set(e.task)],
            "dataset_from_index": e.first_row,
            "dataset_to_index": e.first_row + e.length,
            "stats/action/mean": e.action.mean(0).tolist(),
        }
        for e in written
    ]
    for number, group in enumerate(grouped(written, data_cut)):
        for e in group:
            rows[e.index] |= {"data/chunk_index": 0, "data/file_index": number}
        write_parquet(
            root / f"data/chunk-000/file-{number:03d}.parquet", table(group), row_group_size=7
        )
    for camera, key in enumerate(keys):
        for number, group in enumerate(grouped(written, video_cuts[camera])):
            shown = 0
            for place, e in enumerate(group):
                start = shown / FPS + drift * place
                shown += e.length
                rows[e.index] |= {
                    f"videos/{key}/chunk_index": number // 2,
                    f"videos/{key}/file_index": number % 2,
                    f"videos/{key}/from_timestamp": start,
                    f"videos/{key}/to_timestamp": start + e.length / FPS,
                }
            write_video(
                root / f"videos/{key}/chunk-{number // 2:03d}/file-{number % 2:03d}.mp4",
                [n for e in group for n in e.frame_numbers(camera)],
                encodings[camera],
            )
    # In two files, the later episodes first: readers may not go by the order of files.
    half = len(rows) // 2
    write_parquet(
        root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows[half:])
    )
    write_parquet(
        root / "meta/episodes/chunk-000/file-001.parquet", pa.Table.from_pylist(rows[:half])
    )
    return written


def write_v30_with_images(root, lengths):
    """Four cameras inside parquet, as PNG, JPEG and arrays, in one file of several row groups."""
    cameras = {"observation.image": "image", "wrist": "image", "array": "uint8", "chw": "uint8"}
    described = info("v3.0", lengths, cameras)
    described["splits"] = {"train": "0:2", "val": f"2:{len(lengths)}"}
    write_json(root / "meta/info.json", described)
    written = episodes(lengths)
    write_v30_tasks(root)
    images = [
        ("observation.image", 0, "PNG"),
        ("wrist", 1, "JPEG"),
        ("array", 1, "HWC"),
        ("chw", 0, "CHW"),
    ]
    rows = table(written, images)
    write_parquet(root / "data/chunk-000/file-000.parquet", rows, row_group_size=5)
    listed = [
        {
            "episode_index": e.index,
            "length": e.length,
            "dataset_from_index": e.first_row,
            "dataset_to_index": e.first_row + e.length,
            "data/chunk_index": 0,
            "data/file_index": 0,
        }
        for e in written
    ]
    write_parquet(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(listed))
    return written


def write_v30_tasks(root):
    # As pandas writes a frame whose unnamed index holds the instructions. Not in their order.
    order = (2, 0, 1)
    rows = pa.table(
        {
            "task_index": pa.array(order, pa.int64()),
            "__index_level_0__": pa.array([TASKS[i] for i in order]),
        }
    )
    write_parquet(root / "meta/tasks.parquet", rows)


def grouped(written, cuts):
    bounds = [0, *cuts, len(written)]
    return [written[a:b] for a, b in itertools.pairwise(bounds)]
