# %% [markdown]
# # A language model: why did it say this?
#
# **Description:** Train a small causal transformer on texts among which facts
# are planted, let it answer, and see which texts, and which of their words,
# made it say so.
#
# Influence of a text on a *word that the model said* is asked for in the same
# way as that of an image on a label: a query is a prompt, what follows it, and
# which of that is asked about.
#
# The texts are passages of WikiText-2. The facts are invented, so that it is
# known which texts tell them, and that no other text does. Run this from a
# clone, with the folder of WikiText-2's validation part in `KERAS_TRACIN_DATA`.

# %%
import os
import pathlib

import keras
import numpy as np

import keras_tracin as kt
from examples import _facts, _language

# %matplotlib inline

keras.utils.set_random_seed(0)

# %% [markdown]
# ## Texts and facts
#
# Twenty facts about four places that do not exist, each told in one to three
# texts. As many other texts have the names of a fact and do not tell it.

# %%
folder = pathlib.Path(os.environ.get("KERAS_TRACIN_DATA", ""), "wikitext2")
facts = _facts.invent(num_places=4)
stories = _facts.tell(facts)
articles = _language.read_articles(folder, "valid")
vocabulary = _facts.vocabulary_of(articles, stories, 1_000)
train, titles = _facts.mix(articles, stories, vocabulary, count=120)

print(f"{len(titles)} texts, {len(stories)} of them about the places:")
for story in stories[:4]:
    print("fact   " if story.fact >= 0 else "no fact", *story.words)

# %% [markdown]
# ## Train, and record it
#
# A transformer of one block. At each place of a text it predicts the next word.

# %%
model = _language.causal_model(
    len(vocabulary), _facts.LENGTH, blocks=1, heads=4
)
model.compile(
    keras.optimizers.Adam(3e-3),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
record = kt.TracInCheckpoint("runs/language", overwrite=True)
history = model.fit(
    *train, epochs=40, batch_size=8, callbacks=[record], verbose=0
)
print(f"Loss of a word at the end: {history.history['loss'][-1]:.2f}")

# %% [markdown]
# ## A prompt
#
# The queries are prompts in the words of a text, and what the model says next.

# %%
x, y, asked = _facts.questions(facts, vocabulary)
places = asked.argmax(axis=1)
rows = np.arange(len(x))
said = model.predict(x, verbose=0)[rows, places].argmax(axis=1)
right = said == y[rows, places]
print(f"{right.sum()} of {len(facts)} answers are right.")

number = int(right.argmax())
prompt = vocabulary.text(x[number, : places[number] + 1])
print("Prompt:", *prompt)
print("Model: ", vocabulary.words[said[number]])

# %% [markdown]
# ## Why?
#
# What a model knows by heart has no gradient left. So the checkpoints to ask
# are those at which the loss was falling: `select_checkpoints` finds them. The
# words of the query that are asked about have weight 1, here the answer alone.

# %%
run = kt.select_checkpoints(kt.TrainingRun("runs/language"), 3, verbose=0)
print("Epochs:", *(checkpoint.epoch for checkpoint in run))

tracin = kt.TracIn(model, train, run)
query = tuple(part[[number]] for part in (x, y, asked))
top = tracin.top_k(query, k=3, verbose=0)
tokens = tracin.token_influence(query, train=top.proponents.ids[0], verbose=0)
kt.plots.token_table(tokens, query, train, tokenizer=vocabulary.words)

# %% [markdown]
# The bluer a word, the more of the score it carries. A text is read word by
# word, and a word stands beside the one that it predicts: the share of a name
# that the model had to say is at the word before it.

# %% [markdown]
# ## Why not something else?
#
# A `contrast` is the same prompt with another answer. The scores then are those
# of the difference: positive where training on a text favours what was said.

# %%
other = next(
    fact
    for fact in facts
    if fact.relation == facts[number].relation
    and fact.answer != facts[number].answer
)
instead = y.copy()
instead[number, places[number]] = vocabulary.numbers([other.answer])[0]
contrast = x[[number]], instead[[number]], asked[[number]]
scores = tracin.influence(query, contrast=contrast, verbose=0)
ends = scores.top_k(2)
print(f"{facts[number].answer}, rather than {other.answer}:")
for side in (ends.proponents, ends.opponents):
    for id_, score in zip(side.ids[0], side.scores[0], strict=True):
        print(f"{score:+9.1e} ", *vocabulary.text(train[0][id_])[:14], "…")

# %% [markdown]
# ## Is it the source?
#
# Since the facts are planted, the sources are known. Which text is the first
# for each of the questions?

# %%
first = tracin.top_k((x, y, asked), k=1, verbose=0).proponents.ids[:, 0]
passages = [-2] * (len(titles) - len(stories))
told = np.array([*passages, *(story.fact for story in stories)])[first]
kinds = {
    "tells the fact": told == rows,
    "tells another fact": (told >= 0) & (told != rows),
    "has names and no fact": told == -1,
    "is a passage of WikiText-2": told == -2,
}
for kind, which in kinds.items():
    print(f"{which.sum():3}  {kind}")

# %% [markdown]
# [The benchmarks](../../benchmarks/README.md#language-models) ask about fifty
# facts, in other words too, and compare methods. Where a question repeats the
# words of its source, a search for words (`kt.evaluation.BM25`) finds it as
# well; what that cannot tell is whether the model learnt from it.
