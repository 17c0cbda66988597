"""The snippets of docs/recipes.md and docs/start.md, run as they stand."""

import re

import keras
import matplotlib
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import keras_tracin as kt
from tests.source_tree import ROOT

_SECTION = re.compile(r"^## (.*?)$(.*?)(?=^## |\Z)", re.M | re.S)
_CODE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def read_sections(page):
    """The code of each section of a page, by its heading."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = {name: _CODE.findall(part) for name, part in _SECTION.findall(text)}
    return {name: "\n".join(code) for name, code in found.items() if code}


RECIPES = read_sections("recipes.md")
LIBRARIES = {"keras": keras, "kt": kt, "np": np, "tf": tf}


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)


def write_images(folder, count):
    rng = np.random.default_rng(count)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 256, (32, 32, 3)).astype("uint8")
            path = folder / label / f"{number}.png"
            path.write_bytes(tf.io.encode_png(image).numpy())


def write_texts(folder, count):
    for label, word in (("good", "lovely"), ("bad", "dull")):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            text = f"a {word} film, number {number}"
            (folder / label / f"{number}.txt").write_text(text, "utf-8")


def write_arrays(folder):
    rng = np.random.default_rng(0)
    for names, count in (("features labels", 60), ("held_x held_y", 20)):
        x = rng.normal(size=(count, 8)).astype("float32")
        for name, values in zip(names.split(), (x, x[:, :1]), strict=True):
            np.save(folder / f"{name}.npy", values)


def write_table(folder):
    rng = np.random.default_rng(0)
    rooms, area = rng.uniform(size=(2, 60))
    streets = [f"{number} High Street" for number in range(60)]
    columns = {"rooms": rooms, "area": area, "price": rooms + area}
    table = pd.DataFrame(columns, index=pd.Index(streets, name="address"))
    table.to_csv(folder / "houses.csv")


def write_pretrained(folder):
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(6, activation="relu", name="hidden"),
            keras.layers.Dense(1),
        ]
    )
    model.save(folder / "pretrained.keras")


def write_preset(folder):
    hub = pytest.importorskip("keras_hub", reason="KerasHub is an extra")
    rng = np.random.default_rng(0)
    np.save(folder / "images.npy", rng.integers(0, 256, (16, 8, 8, 3)))
    np.save(folder / "classes.npy", rng.integers(0, 2, 16))
    task = hub.models.ViTImageClassifier(
        backbone=hub.models.ViTBackbone(
            image_shape=(8, 8, 3),
            patch_size=4,
            num_layers=1,
            num_heads=2,
            hidden_dim=4,
            mlp_dim=4,
        ),
        num_classes=2,
        preprocessor=hub.models.ViTImageClassifierPreprocessor(
            hub.layers.ViTImageConverter(image_size=(8, 8), scale=1 / 255)
        ),
    )
    task.save_to_preset(str(folder / "pets_preset"))


def write_files(folder, code):
    """Writes the files that a recipe names."""
    writers = {
        "pets/test": lambda: write_images(folder / "pets" / "test", 2),
        "pets/train": lambda: write_images(folder / "pets" / "train", 8),
        "reviews/train": lambda: write_texts(folder / "reviews" / "train", 16),
        "features.npy": lambda: write_arrays(folder),
        "houses.csv": lambda: write_table(folder),
        "pretrained.keras": lambda: write_pretrained(folder),
        "pets_preset": lambda: write_preset(folder),
    }
    for name, write in writers.items():
        if name in code:
            write()


def run(code):
    names = dict(LIBRARIES)
    exec(compile(code, "docs/recipes.md", "exec"), names)
    return names


# What is true of the names that a recipe has assigned at its end.
HOLDS = {
    "A first answer in ten lines": lambda g: (
        len(kt.TrainingRun("runs/first")) == 5
    ),
    "A folder of images": lambda g: (
        len(g["issues"].ids) == 16
        and all(str(i).endswith(".png") for i in g["top"].proponents.ids.flat)
    ),
    "A folder of texts": lambda g: all(
        str(i).endswith(".txt") for i in g["top"].opponents.ids.flat
    ),
    "A dataset that shuffles": lambda g: set(g["own"].ids) == set(range(200)),
    "A PyDataset": lambda g: len(g["train"]) == 4,
    "A pandas table": lambda g: (
        set(g["top"].proponents.ids.flat) <= set(g["train"].index)
    ),
    "A task of KerasHub": lambda g: g["tracin"].num_train == 16,
    "LoRA": lambda g: len(g["own"].ids) == 60,
    "Freezing and thawing": lambda g: len(kt.TrainingRun(g["run"])) >= 4,
    "Early stopping": lambda g: 0 < len(g["run"]) <= 10,
    "`validation_split`": lambda g: g["top"].proponents.ids.max() < 48,
}


def test_every_recipe_is_held_to_something():
    assert RECIPES.keys() == HOLDS.keys()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", HOLDS)
def test_recipe_runs(name, tmp_path):
    write_files(tmp_path, RECIPES[name])
    assert HOLDS[name](run(RECIPES[name]))


def test_the_first_page_finds_what_it_says(tmp_path):
    matplotlib.use("agg")
    names = run("\n".join(read_sections("start.md").values()))
    wrong = names["y_train"] != names["right"]
    assert wrong[names["top"].opponents.ids].mean() > 3 * wrong.mean()
    assert wrong[names["worst"]].mean() > 5 * wrong.mean()
    for name in ("why.png", "review.html"):
        assert (tmp_path / name).stat().st_size > 10_000
