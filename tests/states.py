"""The state of models and runs, and how tests damage it."""

from pathlib import Path

from keras import layers, ops


class Centred(layers.Layer):
    def call(self, x):
        return x - ops.mean(x, axis=0)


def state(model, directory=None):
    """All values of the model and its optimizer, and the bytes of the run."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer else ())]
    values = [ops.convert_to_numpy(v).tobytes() for v in variables]
    files = {}
    if directory is not None and Path(directory).is_dir():
        files = {
            path: path.read_bytes()
            for path in sorted(Path(directory).rglob("*"))
            if path.is_file()
        }
    return values, files


def last_weights(directory):
    return sorted(Path(directory).glob("checkpoints/*"))[-1]


def flip(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
