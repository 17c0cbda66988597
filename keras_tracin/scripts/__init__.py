"""Programs for the command line, each a thin shell over one library call.

    keras_tracin-check --task=digits_task
    keras_tracin-score --task=digits_task --k=10 --output=top.csv
    keras_tracin-self_influence --task=digits_task --output=suspicious.csv
    keras_tracin-label_issues --task=digits_task --output=issues.csv
    keras_tracin-index --task=digits_task --index=index/digits
    keras_tracin-query --task=digits_task --index=index/digits --queries=3
    keras_tracin-report --task=digits_task --output=digits.html

`python -m keras_tracin.scripts.check` is the same as `keras_tracin-check`, and
so on. `--help` lists the flags of each.

A saved model and data in files can take the place of a task:

    keras_tracin-score --model=model.keras --run=runs/a --k=5 \\
        --data=tfds:mnist --test_data='tfds:mnist:test[:10]'
    keras_tracin-label_issues --model=model.keras --run=runs/a \\
        --data=photos/train --scale=255 --output=issues.csv

The data are tfds:NAME:SPLIT, a folder with a subfolder of images or texts for
each class, a .npz file with `x` and `y`, or a .csv file with --label_column.
They are compared with the losses that the run recorded, and refused if theirs
are others. `--help` explains the flags, docs/programs.md all of it.

A program works on a *task*: a module, or an object in one, that builds the
model and its data. `--task=module` or `--task=module:attribute` names
it; the current directory is searched for the module first. A task has

- `model()`, which returns the model, built and compiled as it was for
  training. Its weights do not matter if there is a run.
- `train()`, which returns what `model.fit` took: arrays `(x, y)` or a batched
  `tf.data.Dataset`.
- `test()`, which returns the queries in the same form, if a program needs any.

and may have

- `run`: the directory that `TracInCheckpoint` recorded, or a `TrainingRun`;
  `--run` overrides it.
- `loss`: a loss to use in place of the compiled one.
- `class_weight`: the `class_weight` that `fit` was given.
- `fit(model, train, callbacks)`: for folds, trains a copy of the model as
  `kt.find_label_issues(..., fit=)` says.
- `class_names`, `feature_names`: for reports, names of the labels and of the
  values in a row.
- `shown_train()`, `shown_test()`: for reports, the same examples, with the same
  ids, in readable form, such as texts in place of tokens.

`model`, `train` and `test` may also be the values themselves instead of
functions. If `module:attribute` names a class or a function, it is called
without arguments and returns the task.

Example, digits_task.py, which is a task and records its own training:

    import keras
    from sklearn.datasets import load_digits

    import keras_tracin as kt

    digits = load_digits()
    x, y = digits.data.astype("float32") / 16, digits.target
    run = "runs/digits"
    class_names = [f"the digit {i}" for i in range(10)]

    def model():
        model = keras.Sequential(
            [
                keras.Input([64]),
                keras.layers.Dense(32, "relu", name="hidden"),
                keras.layers.Dense(10, name="logits"),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
        return model

    def train():
        return x[:1200], y[:1200]

    def test():
        return x[1200:1300], y[1200:1300]

    if __name__ == "__main__":
        record = kt.TracInCheckpoint(run, overwrite=True)
        model().fit(*train(), epochs=5, callbacks=[record])
"""
