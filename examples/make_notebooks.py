"""Runs the notebooks from their text, and writes their outputs.

    python examples/make_notebooks.py
    python examples/make_notebooks.py --only=getting_started

Each notebook in `examples/notebooks` has two files: text to edit (`.py`, with
cells between `# %%` lines), and the notebook with its outputs (`.ipynb`), which
this program writes. It needs the `notebooks` extra.
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
# Leaves names and settings of pictures as a process of its own would have them.
_FORGET = """
%reset -f
%config InlineBackend.figure_formats = ["png"]
%config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight"}
"""
# Logs of TensorFlow's C++ code are not outputs of a cell.
_KERNEL = ["--IPKernelApp.capture_fd_output=False"]
_METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
}

_ONLY = flags.DEFINE_list(
    "only", None, "Names of the notebooks to run. Default: all."
)


def main(_):
    texts = sorted(FOLDER.glob("*.py"))
    if _ONLY.value is not None:
        texts = [text for text in texts if text.stem in _ONLY.value]
    with tempfile.TemporaryDirectory() as directory:
        for text, notebook in zip(
            texts, run_notebooks(texts, directory), strict=True
        ):
            path = text.with_suffix(".ipynb")
            nbformat.write(notebook, path)
            print(f"{path.name}: {path.stat().st_size // 1000} kB")


def read(text):
    """Reads the text of a notebook, without outputs."""
    notebook = jupytext.read(text, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(_METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # reproducible
    return notebook


def run_notebooks(texts, directory) -> Iterator[nbformat.NotebookNode]:
    """Runs notebooks; yields each with its outputs.

    One process runs them all, since TensorFlow takes seconds to start; every
    notebook begins without any names defined, and with the usual pictures.

    Args:
        texts: paths of the notebooks' texts.
        directory: working directory of the notebooks.

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
    # tqdm warns where ipywidgets are missing, which no notebook needs.
    settings = {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore:IProgress"}
    with client.setup_kernel(env={**os.environ, **settings}):
        for text in texts:
            notebook = client.nb = read(text)
            for number, cell in enumerate(notebook.cells):
                client.execute_cell(cell, number)
            _tidy(notebook)
            yield notebook
            forget = nbformat.v4.new_code_cell(_FORGET)
            client.nb = nbformat.v4.new_notebook(cells=[forget])
            client.execute_cell(forget, 0, store_history=False)


def _tidy(notebook: nbformat.NotebookNode) -> None:
    """Numbers cells as if each notebook had its own process.

    Removes times, and logs of absl, which are as little an output of a cell.
    """
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(codes, 1):
        cell.metadata.pop("execution", None)
        cell.outputs = [
            output
            for output in cell.outputs
            if not output.get("text", "").startswith("WARNING:absl:")
        ]
        for part in [cell, *cell.outputs]:
            if "execution_count" in part:
                part.execution_count = number


if __name__ == "__main__":
    app.run(main)
