"""Runs the notebooks again, from the text that they are written in.

    python examples/make_notebooks.py
    python examples/make_notebooks.py --only=getting_started

Each notebook in `examples/notebooks` is kept twice: as text (`.py`, cells
between `# %%` lines), which is what one edits, and with its outputs (`.ipynb`),
which this program writes. It needs the `notebooks` extra.
"""

import os
import pathlib
import tempfile
from collections.abc import Iterator

import jupytext
import nbclient
import nbformat
from absl import app, flags

FOLDER = pathlib.Path(__file__).parent / "notebooks"
# What TensorFlow's C++ code logs while it is imported is no output of a cell.
_KERNEL = ["--IPKernelApp.capture_fd_output=False"]
_METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
}

_ONLY = flags.DEFINE_list(
    "only", None, "Names of the notebooks to run; all of them by default."
)


def main(_):
    texts = sorted(FOLDER.glob("*.py"))
    if _ONLY.value is not None:
        texts = [text for text in texts if text.stem in _ONLY.value]
    with tempfile.TemporaryDirectory() as directory:
        for text, notebook in zip(texts, ran(texts, directory), strict=True):
            path = text.with_suffix(".ipynb")
            nbformat.write(notebook, path)
            print(f"{path.name}: {path.stat().st_size // 1000} kB")


def read(text):
    """The notebook of this text, without outputs."""
    notebook = jupytext.read(text, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(_METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same each time
    return notebook


def ran(texts, directory) -> Iterator[nbformat.NotebookNode]:
    """Each notebook with its outputs.

    One process runs them all, since it takes seconds to start TensorFlow; each
    begins with no names defined.

    Args:
        texts: the paths of their texts.
        directory: where they run, and leave what they write.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    resources = {"metadata": {"path": str(directory)}}
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(metadata=_METADATA),
        timeout=300,
        resources=resources,
        extra_arguments=_KERNEL,
    )
    here = [str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, here))
    with client.setup_kernel(env={**os.environ, "PYTHONPATH": path}):
        for text in texts:
            notebook = client.nb = read(text)
            for number, cell in enumerate(notebook.cells):
                client.execute_cell(cell, number)
            _number(notebook)
            yield notebook
            forget = nbformat.v4.new_code_cell("%reset -f")
            client.nb = nbformat.v4.new_notebook(cells=[forget])
            client.execute_cell(forget, 0, store_history=False)


def _number(notebook: nbformat.NotebookNode) -> None:
    """As if a process had run this notebook alone; without times."""
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(codes, 1):
        cell.metadata.pop("execution", None)
        for part in [cell, *cell.outputs]:
            if "execution_count" in part:
                part.execution_count = number


if __name__ == "__main__":
    app.run(main)
