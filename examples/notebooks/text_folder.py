# %% [markdown]
# # A text classifier: which texts, and which words?
#
# **Description:** Train a classifier on a folder of text files, see which texts
# are behind a wrong prediction and which of their words carry it, and find
# files in the wrong folder.
#
# Install from a clone: `pip install ".[examples]"`.
#
# The network is that of Keras's example *Text classification from scratch*: a
# `TextVectorization` inside of the model, embeddings and a convolution.

# %%
import os
import pathlib
import textwrap
import warnings

import keras
import numpy as np
import pandas as pd

import keras_tracin as kt

# %matplotlib inline
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight","dpi":80}
# Keras says so whenever it trains on a `tf.data.Dataset`.
warnings.filterwarnings("ignore", message="`shuffle=True` was passed")

# %% [markdown]
# ## A folder of texts
#
# First sentences of Wikipedia about four kinds of subject, from DBpedia, which
# is downloaded the first time: `texts/train/Artist/00012.txt`. One of fifteen
# training files goes into the folder of another class. With texts of your own,
# begin at the next heading.

# %%
CLASSES = {3: "Artist", 4: "Athlete", 5: "OfficeHolder", 14: "WrittenWork"}
data = pathlib.Path(os.environ.get("KERAS_TRACIN_DATA", ""), "dbpedia")
if not data.is_dir():
    data = keras.utils.get_file(
        origin="https://s3.amazonaws.com/fast-ai-nlp/dbpedia_csv.tgz",
        extract=True,
    )

rng = np.random.default_rng(0)
is_misplaced = {}  # by the path of a training file
for part, most in (("train", 2_000), ("test", 1_000)):
    file = next(pathlib.Path(data).rglob(f"{part}.csv*"))
    rows = pd.read_csv(file, header=None, names=["label", "title", "text"])
    # Without Chinese and its like, which the font of the figures does not have.
    has_letters = rows.text.map(lambda text: max(map(ord, text)) < 0x2100)
    rows = rows[rows.label.isin(CLASSES) & has_letters]
    rows = rows.sample(frac=1, random_state=0)
    for number, row in enumerate(rows[:most].itertuples()):
        folder = CLASSES[row.label]
        if part == "train" and rng.random() < 1 / 15:
            others = [name for name in CLASSES.values() if name != folder]
            folder = rng.choice(others)
        path = pathlib.Path("texts", part, folder, f"{number:05}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(row.text.strip(), encoding="utf-8")
        if part == "train":
            is_misplaced[str(path)] = folder != CLASSES[row.label]
count = sum(is_misplaced.values())
print(f"{count} of {len(is_misplaced)} training files are in the wrong folder.")

# %% [markdown]
# ## Read, train, record
#
# Keras as usual, with one more callback. The names of the files are the ids.

# %%
keras.utils.set_random_seed(0)
train = keras.utils.text_dataset_from_directory("texts/train", seed=0)
test = keras.utils.text_dataset_from_directory("texts/test", shuffle=False)
names = train.class_names

words = keras.layers.TextVectorization(10_000, output_sequence_length=60)
words.adapt(train.map(lambda text, label: text))
model = keras.Sequential(
    [
        keras.Input((), dtype="string"),
        words,
        keras.layers.Embedding(10_000, 32),
        keras.layers.Dropout(0.5),
        keras.layers.Conv1D(32, 5, activation="relu"),
        keras.layers.GlobalMaxPooling1D(),
        keras.layers.Dense(len(names), activation="softmax", name="class"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(
    train,
    epochs=12,
    callbacks=[kt.TracInCheckpoint("runs/texts", overwrite=True)],
    verbose=0,
)
print(f"Accuracy: {model.evaluate(test, verbose=0)[1]:.1%}")

# %% [markdown]
# ## Why was this text misread?
#
# The two test texts with the highest loss.

# %%
predictions = model.predict(test, verbose=0)
labels = np.concatenate([y for _, y in test])
confidence = predictions[np.arange(len(labels)), labels]
worst = np.argsort(confidence)[:2]
texts = np.concatenate([x for x, _ in test])
queries = texts[worst], labels[worst]

tracin = kt.TracIn(model, train, "runs/texts")
top = tracin.top_k(queries, k=2, verbose=0)
kt.plots.text_table(
    top,
    queries,
    train,
    query_labels=[
        f"{names[label]} (taken for {names[predictions[at].argmax()]})"
        for at, label in zip(worst, labels[worst], strict=True)
    ],
    is_mislabeled=is_misplaced,
    class_names=names,
)

# %% [markdown]
# Labels in red are those of files that we had moved. The footballers in the
# folder `OfficeHolder`, for example, are opponents of the first query, which is
# about a footballer.
#
# ## Which words?
#
# A score is a sum over the words of the training text. To take it apart, the
# method needs a model that begins with tokens. This one has the same layers
# behind `words`, so the recorded run fits it as well.

# %%
behind = keras.Sequential(
    [keras.Input((60,), dtype="int64"), *model.layers[1:]]
)
behind.compile(loss="sparse_categorical_crossentropy")
as_tokens = train.map(lambda text, label: (words(text), label))
asked = np.asarray(words(queries[0][:1])), queries[1][:1]

by_token = kt.TracIn(behind, as_tokens, "runs/texts").token_influence(
    asked, train=top.proponents.ids[0], verbose=0
)
kt.plots.token_table(
    by_token, asked, as_tokens, tokenizer=words.get_vocabulary()
)

# %% [markdown]
# ## Which files are in the wrong folder?
#
# All files are ranked by how the training dealt with them, and the number of
# wrong ones is estimated.

# %%
issues = kt.find_label_issues(model, train, "runs/texts", verbose=0)
found = np.array([is_misplaced[file] for file in issues.issue_ids])
print(f"{issues.num_issues} files are suspected, {found.mean():.0%} rightly.")
print(f"{found.sum() / count:.0%} of the misplaced are among them.")
for reason in issues.reasons:
    print(textwrap.fill(reason, 80))

# %%
files = issues.ids[:6]
suspects = {
    "given": [names[label] for label in issues.given_labels[:6]],
    "suggested": [names[label] for label in issues.suggested_labels[:6]],
    "begins": [pathlib.Path(file).read_text("utf-8")[:60] for file in files],
}
pd.DataFrame(suspects, index=files)

# %% [markdown]
# ## A page to decide on
#
# The report shows each suspect beside the texts that contradict its label and
# those that agree with it. It is one file for any browser.

# %%
# The network was not trained to the end, as networks seldom are.
warnings.filterwarnings("ignore", message="The model has not converged")
by_loss = kt.InfluenceFunctions(model, train, relative="loss", layers="class")
kt.report.write_html(
    "texts.html",
    train=train,
    test=queries,
    top_k=top,
    label_issues=issues,
    explanation=issues.explain(by_loss, train, k=6, verbose=0),
    dynamics=kt.training_dynamics(model, train, "runs/texts", verbose=0),
    test_predictions=predictions[worst],
    class_names=names,
    overwrite=True,
)

# %% [markdown]
# The page exports decisions as CSV, with the names of the files.
# `kt.report.apply_decisions(train, "texts-decisions.csv")` returns the dataset
# with the new labels and without the removed texts.
