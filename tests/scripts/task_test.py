import textwrap

import keras
import numpy as np
import pytest

from keras_tracin.scripts.task import TaskError, load_task
from tests.error_rows import row


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a module of this name, to be imported from where one is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    monkeypatch.setattr("sys.modules", dict(__import__("sys").modules))

    def writes(name, text):
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(text), encoding="utf-8")

    return writes


CLASS = """
    import keras

    class Task:
        class_names = ["no", "yes"]

        def __init__(self, units=2):
            self.units = units

        def model(self):
            inputs = keras.Input([3])
            return keras.Model(inputs, keras.layers.Dense(self.units)(inputs))

        def train(self):
            return [1, 2], [0, 1]

    def of_three():
        return Task(3)

    task = Task(4)
"""


@pytest.mark.parametrize(
    ("attribute", "units"), [("Task", 2), ("of_three", 3), ("task", 4)]
)
def test_class_function_and_object_are_tasks(write, attribute, units):
    write("kinds", CLASS)
    task = load_task(f"kinds:{attribute}")
    assert task.model().output_shape == (None, units)
    assert task.train() == ([1, 2], [0, 1])
    assert task.option("class_names") == ["no", "yes"]
    assert task.option("loss") is None
    assert not task.has("test")


def test_module_is_a_task_and_values_serve_as_functions(write):
    write(
        "whole",
        """
        import keras, numpy as np
        inputs = keras.Input([3])
        model = keras.Model(inputs, inputs)
        train = np.ones([2, 3]), np.ones([2])
        test = train
        """,
    )
    task = load_task("whole")
    assert isinstance(task.model(), keras.Model)
    np.testing.assert_array_equal(task.test()[0], np.ones([2, 3]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "kinds.py:Task",
            "no module 'kinds.py'|no attribute 'py'|module 'kinds",
        ),
        ("kinds/Task", "should be module:attribute"),
        ("", "should be module:attribute"),
        ("nowhere:Task", row("no-module", "'nowhere'")),
        ("kinds.more:Task", row("no-module", "'kinds.more'")),
        (
            "kinds:Tsak",
            row("no-attribute", "'Tsak'...Task, keras, of_three, task"),
        ),
        ("kinds:keras", "no `model`|no `train`"),
        ("kinds", "has no `model`"),
        (
            "broken",
            row("failing-task", "Importing ... 'broken'...ZeroDivisionError"),
        ),
        (
            "needs",
            row(
                "failing-task", "Importing ...ModuleNotFoundError: ...not_there"
            ),
        ),
        ("fails:make", row("failing-task", "`make()` of ...KeyError: 'data'")),
        ("fails:Needs", row("failing-task", "`Needs()` of ...TypeError")),
    ],
)
def test_spec_that_names_no_task_is_an_error_that_says_why(
    write, spec, message
):
    write("kinds", CLASS)
    write("broken", "1 / 0")
    write("needs", "import not_there")
    write(
        "fails",
        """
        def make():
            return {}["data"]

        class Needs:
            def __init__(self, directory): ...
        """,
    )
    with pytest.raises(TaskError, match=message):
        load_task(spec)


def test_what_a_task_fails_to_give_is_named(write):
    write(
        "partly",
        """
        def model():
            return "a model"

        def train():
            raise FileNotFoundError("no images/train")
        """,
    )
    task = load_task("partly")
    with pytest.raises(TaskError, match=r"`model\(\)`.*Received: str"):
        task.model()
    with pytest.raises(
        TaskError, match=r"`train\(\)` .* FileNotFoundError: no images/train"
    ):
        task.train()
    with pytest.raises(TaskError, match=r"no queries. Give it a `test\(\)`"):
        task.test()
