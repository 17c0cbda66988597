"""Data that `--data` and `--test_data` name, as their files hold them.

A source has labels as class indices or numbers, and inputs as they are in the
files; `_files_task` scales them and gives them the form that the model takes.

Synopsis:

    source = open_source(values, "data", form, class_names=None)
    source.data, source.class_names, source.pixels
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from keras_tracin.data.with_ids import with_ids
from keras_tracin.models.errors import brief
from keras_tracin.scripts._broken_images import IMAGES
from keras_tracin.scripts._model_file import FilesError, ModelForm

_BATCH = 256
_TFDS = re.compile(
    r"tfds:(?P<name>[\w/.+-]+(:\d+\.[\d*]+\.[\d*]+)?)(:(?P<split>[A-Za-z].*))?"
)
_TEXTS = (".txt",)
_COLOURS = {1: "grayscale", 3: "rgb", 4: "rgba"}
_FORMS = (
    "tfds:NAME or tfds:NAME:SPLIT, a folder with a subfolder of images or "
    "texts for each class, a .npz or a .csv file"
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Examples as files hold them.

    Attributes:
        where: what they are, for errors and notes.
        data: arrays `(x, y)` or `(x, y, sample_weight)`, or a batched dataset.
        class_names: names of the classes 0, 1, …, or None.
        pixels: whether inputs are pixels from 0 to 255.
        ids: ids of arrays, or None for positions.
        classes: whether labels are class indices.
        about: what was done to them, for notes.
        columns: columns of a table that go in, in their order.
    """

    where: str
    data: Any
    class_names: list[str] | None = None
    pixels: bool = False
    ids: np.ndarray | None = None
    classes: bool = True
    about: str = ""
    columns: Sequence[str] | None = None


def open_tfds(
    values: flags.FlagValues,
    flag: str,
    form: ModelForm,
    class_names: list[str] | None,
) -> Source:
    """A data set of TFDS that is prepared on the disk, with its own ids.

    Raises:
        FilesError: if there is none, or it has no inputs and labels of its
            own (`supervised_keys`).
    """
    import tensorflow_datasets as tfds  # it takes seconds

    spec = str(values[flag].value)
    parts = _TFDS.fullmatch(spec)
    if parts is None:
        raise FilesError(
            f"--{flag} should be tfds:NAME or tfds:NAME:SPLIT, such as "
            f"'tfds:mnist:train[:1000]'. Received: '{spec}'."
        )
    split = parts["split"] or ("train" if flag == "data" else "test")
    try:
        builder = tfds.builder(parts["name"], data_dir=values.data_dir)
        if not builder.info.splits:
            raise FileNotFoundError(f"{builder.data_dir} is not prepared")
        dataset = builder.as_dataset(
            split=split,
            shuffle_files=False,
            read_config=tfds.ReadConfig(add_tfds_id=True),
        )
    except Exception as error:  # of many kinds
        place = values.data_dir or "TFDS_DATA_DIR, or the default"
        raise FilesError(
            f"--{flag}='{spec}' cannot be read from the directory of TFDS "
            f"({place}). It said: {brief(error)} Expected a data set that is "
            "prepared there: `tfds build NAME` does that; --data_dir names "
            "another directory."
        ) from error
    features, keys = builder.info.features, builder.info.supervised_keys
    if keys is None or not all(isinstance(key, str) for key in keys):
        raise FilesError(
            f"--{flag}='{spec}' has no input and label of its own "
            f"(`supervised_keys` are {keys}). Received the features "
            f"{sorted(features)}. Choose among them by --task."
        )
    x_key, y_key, *weight = keys
    label = features[y_key]
    names, indices = class_names, None
    if isinstance(label, tfds.features.ClassLabel):
        own = list(label.names)
        names = class_names or own
        form.labels.check(own, f"'{spec}'")
        if sorted(names) != sorted(own):
            raise FilesError(
                f"--class_names should be those of '{spec}', in the order of "
                f"the training. Received: {names}, expected {own} in any "
                "order. Leave it out for this one."
            )
        indices = tf.constant([names.index(name) for name in own], tf.int64)

    def pick(element):
        x, y, *others = (element[key] for key in (x_key, y_key, *weight))
        return (x, y if indices is None else tf.gather(indices, y), *others)

    image = isinstance(features[x_key], tfds.features.Image)
    with_own = with_ids(dataset, "tfds_id").map(pick)
    return Source(
        f"'{spec}'" + ("" if parts["split"] else f" ({split})"),
        with_own.batch(_BATCH).prefetch(2),
        names,
        pixels=image and features[x_key].dtype == np.uint8,
        classes=indices is not None,
    )


def open_folder(
    values: flags.FlagValues,
    flag: str,
    form: ModelForm,
    class_names: list[str] | None,
) -> Source:
    """A folder with a subfolder for each class, as Keras reads it.

    The names of the files are the ids.

    Raises:
        FilesError: if its subfolders do not hold what the model takes.
    """
    folder = Path(str(values[flag].value))
    folders = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )
    where = f"the folder '{folder}'"
    is_text = _holds_texts(folder, folders, flag)
    names = class_names or folders
    unknown = [name for name in folders if name not in names]
    if unknown:
        raise FilesError(
            f"{where} has a subfolder '{unknown[0]}', which is none of the "
            f"classes {names}. Expected a subfolder for each class, or for "
            "some of them; --class_names names all, in the order of the "
            "training."
        )
    form.labels.check(names, where if class_names is None else "--class_names")
    ordered = [name for name in names if name in folders]
    options: dict[str, Any] = {
        "label_mode": "int",
        "class_names": ordered,
        "batch_size": _BATCH,
        "shuffle": False,
        "verbose": False,
    }
    taken, about = form.only_input, ""
    if taken.is_text != is_text:
        kinds = {True: "texts", False: "numbers, as of images"}
        raise FilesError(
            f"{where} holds {'texts' if is_text else 'images'}, expected what "
            f"the model takes: {kinds[taken.is_text]} ({taken.dtype} "
            f"{taken.shape}). A model of texts has a TextVectorization layer; "
            "for preprocessing outside of the model, use --task."
        )
    if is_text:
        dataset = keras.utils.text_dataset_from_directory(
            str(folder), **options
        )
    else:
        height, width, channels = _image_shape(taken.shape, where)
        dataset = keras.utils.image_dataset_from_directory(
            str(folder),
            color_mode=_COLOURS[channels],
            image_size=(height, width),
            **options,
        )
        about = f", read as {height} × {width} {_COLOURS[channels]}"
    if len(ordered) < len(names):
        indices = tf.constant([names.index(name) for name in ordered])
        dataset = dataset.map(lambda x, y: (x, tf.gather(indices, y)))
    return Source(where, dataset, list(names), not is_text, about=about)


def _holds_texts(folder: Path, folders: Sequence[str], flag: str) -> bool:
    """Whether subfolders hold texts; else they hold images.

    Raises:
        FilesError: if they hold neither, both, or folders of their own.
    """
    found: dict[str, str] = {}
    for name in folders:
        endings = {
            path.suffix.lower()
            for path in (folder / name).iterdir()
            if path.is_file()
        }
        is_image, is_text = endings & {*IMAGES}, endings & {*_TEXTS}
        if bool(is_image) != bool(is_text):
            found[name] = "texts" if is_text else "images"
        elif is_image:
            found[name] = "images and texts"
    kinds = sorted(set(found.values()))
    empty = [name for name in folders if name not in found]
    if len(kinds) != 1 or kinds[0] not in ("texts", "images") or empty:
        raise FilesError(
            f"--{flag}='{folder}' should have a subfolder for each class, with "
            f"images ({', '.join(IMAGES)}) or texts (.txt) in it. Received: "
            + (
                f"a subfolder '{empty[0]}' without any."
                if empty
                else f"subfolders of {' and '.join(kinds)}."
                if kinds
                else "no subfolders."
            )
        )
    return kinds[0] == "texts"


def _image_shape(
    shape: tuple[int | None, ...], where: str
) -> tuple[int, int, int]:
    """Height, width and channels of the images that a model takes."""
    whole = shape if len(shape) == 3 else (*shape, 1)
    if len(whole) != 3 or None in whole or whole[2] not in _COLOURS:
        raise FilesError(
            f"{where} holds images, whose size and colours the model should "
            f"tell. Received: a model that takes {shape}, expected (height, "
            "width, channels) with 1, 3 or 4 channels, or (height, width). Use "
            "--task for a model of images of any size or of values in a row."
        )
    height, width, channels = (int(size or 0) for size in whole)
    return height, width, channels


def check_exists(path: Path, flag: str) -> None:
    """Refuses a path that is not there.

    Raises:
        FilesError: naming the forms that data may have.
    """
    if not path.exists():
        raise FilesError(
            f"--{flag}='{path}' does not exist. Expected {_FORMS}."
        )


def no_source(path: Path, flag: str) -> FilesError:
    """The error for a file of another form."""
    return FilesError(f"--{flag} should be {_FORMS}. Received: '{path}'.")
