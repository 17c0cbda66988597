"""The flags that name a model and its data as files, in place of a task."""

from __future__ import annotations

from typing import Any

from absl import flags

FILES = "The model and its data as files, in place of a task"

# All but --run, which a task takes as well.
NAMES = (
    "model",
    "data",
    "test_data",
    "data_dir",
    "scale",
    "offset",
    "class_names",
    "label_column",
    "id_column",
    "feature_columns",
    "compare_losses",
)


def define_files(values: flags.FlagValues) -> None:
    """Defines `--model`, `--data` and how the data are read."""
    options: dict[str, Any] = {"flag_values": values, "module_name": FILES}
    flags.DEFINE_string(
        "model",
        None,
        ".keras file of the compiled model, as `model.save` writes it. Its "
        "weights do not matter if there is a --run.",
        **options,
    )
    flags.DEFINE_string(
        "data",
        None,
        "The training data: tfds:NAME or tfds:NAME:SPLIT, a folder with a "
        "subfolder of images or texts for each class, a .npz or a .csv file.",
        **options,
    )
    flags.DEFINE_string(
        "test_data",
        None,
        "The queries, in one of the same forms; the split of tfds:NAME is then "
        "'test'.",
        **options,
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Directory of the data sets of TFDS. Default: TFDS_DATA_DIR, or that "
        "of TFDS. Nothing is downloaded.",
        **options,
    )
    flags.DEFINE_float(
        "scale",
        None,
        "Number that input values were divided by for training: 255 for "
        "pixels from 0 to 1, 1 if the model takes them from 0 to 255. "
        "Default for pixels: what the losses of the run tell; else 1.",
        **options,
    )
    flags.DEFINE_float(
        "offset",
        0.0,
        "Number that was added after the division: -1 with --scale=127.5 for "
        "pixels from -1 to 1.",
        **options,
    )
    flags.DEFINE_list(
        "class_names",
        None,
        "Names of the classes 0, 1, … in the order of the training. Default: "
        "of a folder, the order of the alphabet, as in Keras; of TFDS, its "
        "own. Needed where labels are words.",
        **options,
    )
    flags.DEFINE_string(
        "label_column", None, "Column of the labels in a .csv file.", **options
    )
    flags.DEFINE_string(
        "id_column",
        None,
        "Column of the ids in a .csv file. Default: row numbers, from 0.",
        **options,
    )
    flags.DEFINE_list(
        "feature_columns",
        None,
        "Columns of a .csv file that are the model's input, in their order. "
        "Default: of several inputs, the columns of their names; of one, all "
        "columns but those of labels and ids.",
        **options,
    )
    flags.DEFINE_bool(
        "compare_losses",
        True,
        "Refuse training data whose losses are not those that the run "
        "recorded: of another scale or order of classes, other data. Leave "
        "out where training itself differed, by augmentation or weights of "
        "examples.",
        **options,
    )
