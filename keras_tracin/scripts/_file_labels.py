"""Labels of arrays and tables, as the loss of a model takes them.

Synopsis:

    y, names, are_classes = read_labels(y, form, class_names, "'data.npz'")
    as_numbers(np.array(["1", "2"]))         # [1, 2]
"""

from __future__ import annotations

import numpy as np

from keras_tracin.scripts._model_file import FilesError, ModelForm


def read_labels(
    y: np.ndarray,
    form: ModelForm,
    class_names: list[str] | None,
    where: str,
) -> tuple[np.ndarray, list[str] | None, bool]:
    """Labels with names of classes, and whether they are class indices.

    Raises:
        FilesError: if words have no order that is known, or if classes are
            more than the model has.
    """
    labels, is_words = form.labels, y.dtype.kind in "SUO"
    if class_names is not None:
        labels.check(class_names, "--class_names")
    if is_words:
        words = [v.decode() if isinstance(v, bytes) else str(v) for v in y]
        if not labels.classes:
            number = [as_numbers(np.array([word])) for word in words]
            row = [each.dtype.kind in "SU" for each in number].index(True)
            raise FilesError(
                f"Labels of {where} should be numbers, as the model's loss "
                f"'{labels.loss}' takes them. Received: '{words[row]}' in row "
                f"{row}. Correct it, leave the row out, or name another "
                "--label_column."
            )
        distinct = sorted(set(words))
        unknown = [word for word in distinct if word not in (class_names or ())]
        if unknown:
            order = (
                f" In the order of the alphabet it is --class_names="
                f"{','.join(distinct)}"
                if len(distinct) == labels.classes
                else ""
            )
            raise FilesError(
                f"Labels of {where} are words, so --class_names should name "
                f"all {labels.classes} classes, in the order of the training. "
                f"Received: {class_names or 'none'}, and labels such as "
                f"'{unknown[0]}'.{order}"
            )
        indices = {name: at for at, name in enumerate(class_names or ())}
        y = np.array([indices[word] for word in words])
        return y, class_names, True
    single = y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)
    if not labels.classes or not single:
        return y, class_names, False
    values = y.reshape(-1)
    if "hinge" in labels.loss and set(values.tolist()) <= {-1, 1}:
        return y, class_names, False
    whole = values.astype(np.int64)
    # Soft labels of two classes are numbers between them.
    if labels.kind != "binary" or (whole == values).all():
        if not (whole == values).all():
            row = int(np.flatnonzero(whole != values)[0])
            raise FilesError(
                f"Labels of {where} should be whole numbers from 0 to "
                f"{labels.classes - 1}. Received: {values[row]} in row {row}. "
                "Correct them, or name the right --label_column."
            )
        labels.check_indices(whole, where)
        return whole, class_names, True
    return y, class_names, False


def check_readings(
    words: np.ndarray, numbers: np.ndarray, names: list[str], where: str
) -> None:
    """Refuses numbers that are names of some classes and indices of others."""
    if not ((numbers >= 0) & (numbers < len(names))).all():
        return  # they are names
    for word, number in zip(words.tolist(), numbers.tolist(), strict=True):
        if names.index(word) != number:
            raise FilesError(
                f"Labels of {where} should be numbers of classes or their "
                f"names. Received: '{word}', which is the name of the class "
                f"{names.index(word)} by --class_names and could be the class "
                f"{number} named '{names[int(number)]}'. Write labels in words."
            )


def as_numbers(words: np.ndarray) -> np.ndarray:
    """Whole numbers or floats, if all are such; else the words."""
    for kind in (np.int64, np.float32):
        try:
            return words.astype(kind)
        except (ValueError, OverflowError):
            continue
    return words
