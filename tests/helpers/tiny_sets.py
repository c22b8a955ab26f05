"""Small prepared data sets in tensorflow-datasets' array_record layout, written without it."""

import io
import json
import pathlib

import numpy as np
import PIL.Image
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example


def encode(image: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, form)
    return buffer.getvalue()


def record(image: bytes, label: int) -> bytes:
    example = tf_example.Example()
    example.features.feature["image"].bytes_list.value.append(image)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def random_part(n: int, shape: tuple[int, int, int], classes: int, seed: int):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    return images, (np.arange(n) % classes).astype(np.int32)


def write_shards(folder: pathlib.Path, stem: str, records: list[bytes], shards: int) -> list[int]:
    lengths = []
    for i, part in enumerate(np.array_split(np.arange(len(records)), shards)):
        file = folder / f"{stem}.array_record-{i:05d}-of-{shards:05d}"
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:4")
        for j in part:
            writer.write(records[j])
        writer.close()
        lengths.append(len(part))
    return lengths


def prepare(
    root: pathlib.Path,
    name: str = "tiny",
    version: str = "1.0.0",
    shape: tuple[int, int, int] = (6, 5, 3),
    sizes: tuple[int, int] = (50, 20),
    splits: tuple[str, ...] = ("train", "test"),
    classes: tuple[str, ...] = ("cat", "dog", "owl"),
    file_format: str = "array_record",
    shards: int = 2,
    seed: int = 0,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes root/name/version and returns what it holds: split -> (images, labels)."""
    folder = root / name / version
    folder.mkdir(parents=True)
    stem = name.split("/")[0]
    parts, described = {}, []
    for i, (split, n) in enumerate(zip(splits, sizes, strict=True)):
        images, labels = random_part(n, shape, len(classes), seed + i)
        records = [
            record(encode(image), int(label)) for image, label in zip(images, labels, strict=True)
        ]
        lengths = write_shards(folder, f"{stem}-{split}", records, shards)
        described.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(sum(map(len, records))),
                "shardLengths": [str(length) for length in lengths],
            }
        )
        parts[split] = (images, labels)
    describe(folder, stem, version, described, shape, classes, file_format)
    return parts


def describe(folder, name, version, splits, shape, classes, file_format="array_record"):
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    dimensions = {"dimensions": [str(size) for size in shape]}
    feature = "tensorflow_datasets.core.features."
    features = {
        "image": {
            "image": {"dtype": "uint8", "shape": dimensions},
            "pythonClassName": feature + "image_feature.Image",
        },
        "label": {
            "classLabel": {"numClasses": str(len(classes))},
            "pythonClassName": feature + "class_label_feature.ClassLabel",
        },
    }
    (folder / "features.json").write_text(
        json.dumps(
            {
                "featuresDict": {"features": features},
                "pythonClassName": feature + "features_dict.FeaturesDict",
            }
        )
    )
    (folder / "label.labels.txt").write_text("\n".join(classes) + "\n")
