import re

import nbformat
import pytest

from examples import make_notebooks
from tests.examples.programs import DATA, needs

TEXTS = sorted(make_notebooks.FOLDER.glob("*.py"))
WITH_DATA = {
    "feature_space": "california_housing",
    "image_folder": "tfds/cifar10",
    "keras_hub_lora": "wikitext2",
    "language_model": "wikitext2",
    "text_folder": "dbpedia",
}

each_notebook = pytest.mark.parametrize("text", TEXTS, ids=lambda t: t.stem)
each_that_runs = pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            text,
            id=text.stem,
            marks=[needs(WITH_DATA[text.stem])]
            if text.stem in WITH_DATA
            else [],
        )
        for text in TEXTS
    ],
)


def committed(text):
    return nbformat.read(text.with_suffix(".ipynb"), as_version=4)


def sources(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def drawn(notebook):
    """The kinds of picture, table and value of each cell, in their order."""
    return [
        [
            set(output.data)
            for output in cell.get("outputs", [])
            if is_data(output)
        ]
        for cell in notebook.cells
    ]


def printing(notebook):
    """The places of the cells that print something.

    In how many pieces, and whether long work is announced as well, depends on
    how fast the machine is.
    """
    return {
        place
        for place, cell in enumerate(notebook.cells)
        if not all(map(is_data, cell.get("outputs", [])))
    }


def is_data(output):
    return "data" in output


def test_every_notebook_is_there_as_text_and_with_outputs():
    notebooks = make_notebooks.FOLDER.glob("*.ipynb")
    assert len(TEXTS) == 11
    assert set(WITH_DATA) <= {text.stem for text in TEXTS}
    assert sorted(path.stem for path in notebooks) == [t.stem for t in TEXTS]


@each_notebook
def test_text_and_notebook_have_the_same_cells(text):
    notebook = committed(text)
    nbformat.validate(notebook)
    assert sources(notebook) == sources(make_notebooks.read(text))
    assert sources(notebook)[0][1].startswith("# ")
    assert "**Description:**" in sources(notebook)[0][1]


@each_notebook
def test_committed_outputs_are_small_and_show_pictures(text):
    path = text.with_suffix(".ipynb")
    assert path.stat().st_size <= 300_000
    outputs = [output for cell in drawn(committed(text)) for output in cell]
    assert any(kind.startswith("image/") for kinds in outputs for kind in kinds)
    pictures = re.compile(r'"image/\w+": ".*?"')
    written = pictures.sub("", path.read_text(encoding="utf-8"))
    assert not re.findall(r"/(?:home|root|tmp|var|work|Users)/", written)


@pytest.fixture(scope="module")
def run_again(tmp_path_factory):
    """All notebooks whose data is there, run from start to end."""
    directory = tmp_path_factory.mktemp("notebooks")
    texts = [
        text
        for text in TEXTS
        if text.stem not in WITH_DATA or (DATA / WITH_DATA[text.stem]).is_dir()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_TRACIN_DATA", str(DATA.resolve()))
        notebooks = make_notebooks.run_notebooks(texts, directory)
        return dict(zip(texts, notebooks, strict=True))


@each_that_runs
def test_notebook_runs_and_prints_and_draws_as_committed(text, run_again):
    notebook = run_again[text]
    assert drawn(notebook) == drawn(committed(text))
    assert printing(notebook) >= printing(committed(text))
    kinds = {
        o.output_type for c in notebook.cells for o in c.get("outputs", [])
    }
    assert "error" not in kinds
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == [
        number + 1 for number in range(len(codes))
    ]
