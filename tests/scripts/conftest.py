"""What the programs run on: the task that is documented, and files."""

import runpy
import textwrap

import keras
import pytest

from keras_tracin import scripts
from tests.scripts.helpers import Workplace
from tests.scripts.trained_files import CLASSES, images, train, write_images


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A directory with digits_task.py, as documented, and its recorded run."""
    directory = tmp_path_factory.mktemp("scripts")
    text = scripts.__doc__.split("digits_task.py, which is")[1]
    example = textwrap.dedent(text.split("\n", 1)[1])
    (directory / "digits_task.py").write_text(example, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        runpy.run_path("digits_task.py", run_name="__main__")
    return directory


@pytest.fixture
def work(trained, monkeypatch, capsys):
    """What runs a program in that directory."""
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(trained)
    return Workplace(trained, capsys)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A directory of images and the model of them, of pixels from 0 to 1."""
    directory = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        write_images("photos/train", dict.fromkeys(CLASSES, 24))
        write_images("photos/test", {"cat": 2, "ant": 1}, seed=1)
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((6, 6, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(3, name="logits"),
            ]
        )
        data = images("photos/train").shuffle(8, seed=0)
        train("photos", model, data, epochs=12, rate=0.3)
    return directory


@pytest.fixture
def there(photos, monkeypatch, capsys):
    """What runs a program in that directory."""
    monkeypatch.chdir(photos)
    return Workplace(photos, capsys)
