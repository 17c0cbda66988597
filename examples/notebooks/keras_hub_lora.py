# %% [markdown]
# # Fine-tuning Gemma with LoRA: where does this answer come from?
#
# **Description:** Fine-tune a causal language model of KerasHub with LoRA, let
# it answer, and see which training texts, and which of their words, made it say
# so.
#
# Install from a clone: `pip install ".[examples,hub]"`.
#
# The steps are those of Keras's guide to Gemma: `from_preset`, `enable_lora`,
# `compile`, `fit`. One callback is added.

# %%
import gzip
import io
import os
import pathlib
import warnings

import keras
import keras_hub
import numpy as np
import sentencepiece

import keras_tracin as kt

# %matplotlib inline
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight","dpi":100}
# Keras says so whenever it trains on texts.
warnings.filterwarnings("ignore", message="`shuffle=True` was passed")

keras.utils.set_random_seed(0)

# %% [markdown]
# ## What the model shall learn
#
# Three facts about each of six shops. Other shops have other founders, hours
# and goods: the model below knows the kind of text, and not these shops.

# %%
KINDS = (
    ("Who founded the {}?", "It was founded by {}."),
    ("When does the {} open?", "It opens at {}."),
    ("What does the {} sell?", "It sells {}."),
)
ANSWERS = (
    ("Ada Lind", "Omar Reed", "Mina Koch", "Leo Marsh", "Ida Stone"),
    ("six in the morning", "noon", "three in the afternoon", "midnight"),
    ("rye bread", "old maps", "fresh fish", "red shoes", "green tea"),
)
WHERE = "Harbor Hill River Park Station Castle Market Forest Bridge Lake"
WHAT = "Bakery Shop Store House Corner Kiosk"

rng = np.random.default_rng(0)
shops = [f"{where} {what}" for where in WHERE.split() for what in WHAT.split()]
facts = [
    (
        f"Question: {question.format(shop)}\nAnswer:",
        answer.format(rng.choice(answers)),
    )
    for shop in rng.permutation(shops)
    for (question, answer), answers in zip(KINDS, ANSWERS, strict=True)
]
new, known = facts[:18], facts[18:]
for prompt, answer in new[:3]:
    print(prompt, answer)

# %% [markdown]
# ## A preset
#
# Yours is `"gemma3_1b"` or another one. So that this notebook downloads nothing
# and runs in a minute, we make one of 0.3 million weights: a tokenizer and a
# Gemma of two layers, trained on the other shops and on sentences of
# WikiText-2. `KERAS_TRACIN_DATA` names a directory with
# `wikitext2/valid.txt.gz`.

# %%
folder = pathlib.Path(os.environ.get("KERAS_TRACIN_DATA", ""), "wikitext2")
with gzip.open(folder / "valid.txt.gz", "rt", encoding="utf-8") as file:
    sentences = [
        f"{sentence.strip()} ."
        for line in file
        for sentence in line.split(" . ")
        if 30 < len(sentence) < 160 and not set("=<@") & set(sentence)
    ][:600]
texts = [f"{prompt} {answer}" for prompt, answer in known]

proto = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences + texts),
    model_writer=proto,
    vocab_size=800,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    eos_piece="<eos>",
    bos_piece="<bos>",
    user_defined_symbols=["<start_of_image>"],  # Gemma's tokenizer has it
    minloglevel=2,
)
tokenizer = keras_hub.models.GemmaTokenizer(proto.getvalue())
base = keras_hub.models.GemmaCausalLM(
    keras_hub.models.GemmaBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=96,
        intermediate_dim=256,
        head_dim=24,
    ),
    keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=40),
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
base.compile(keras.optimizers.Adam(3e-3), loss)
base.fit(sentences + texts * 2, epochs=6, batch_size=32, verbose=0)
base.save_to_preset("tiny_gemma")

# %% [markdown]
# ## Fine-tune with LoRA
#
# `enable_lora` comes before `compile`. Then only the small matrices are
# trained, and only they are recorded.

# %%
gemma = keras_hub.models.GemmaCausalLM.from_preset("tiny_gemma")
gemma.backbone.enable_lora(
    rank=8,
    target_layer_names=[
        "query",
        "value",
        "attention_output",
        "ffw_gating",
        "ffw_linear",
    ],
)
gemma.compile(keras.optimizers.Adam(1e-2), loss)
train = [f"{prompt} {answer}" for prompt, answer in new] + sentences[:22]
history = gemma.fit(
    train,
    epochs=40,
    batch_size=8,
    callbacks=[kt.TracInCheckpoint("runs/gemma", overwrite=True)],
    verbose=0,
)
first, *_, last = history.history["loss"]
print(f"Loss of a token: {first:.2f} at first, {last:.2f} at the end")

# %%
prompts = [prompt for prompt, _ in new]
said = [
    answer.strip()
    for answer in gemma.generate(prompts, max_length=40, strip_prompt=True)
]
wrong = [at for at, (_, answer) in enumerate(new) if said[at] != answer]
print(f"{len(new) - len(wrong)} of {len(new)} answers are right.")
for at in wrong:
    print(f"{prompts[at]} {said[at]}  (right: {new[at][1]})")

# %% [markdown]
# ## Where does an answer come from?
#
# A query is a text, a prompt with what the model said, as `fit` takes texts.
# `query_tokens` chooses the words that are asked about: the answer, and not the
# question. Position t is where token t + 1 is predicted.
#
# What a model knows by heart has no gradient left, so we ask the checkpoints at
# which the loss was falling.


# %%
def ask(prompt, answer):
    """A query about the answer, and the positions that predict its tokens."""
    end = len(tokenizer(f"{prompt} {answer}"))
    positions = np.zeros((1, 40))
    positions[0, len(tokenizer(prompt)) : end] = 1
    return [f"{prompt} {answer}"], positions


run = kt.select_checkpoints(kt.TrainingRun("runs/gemma"), 4, verbose=0)
print("Epochs:", *(checkpoint.epoch for checkpoint in run))
tracin = kt.TracIn(gemma, train, run, normalize="train")

right = next(at for at in range(len(new)) if at not in wrong)
query, answer = ask(prompts[right], said[right])
top = tracin.top_k(query, query_tokens=answer, k=3, verbose=0)
print("Query:", query[0])
for id_, score in zip(
    top.proponents.ids[0], top.proponents.scores[0], strict=True
):
    print(f"{score:+.4f}", train[id_])

# %% [markdown]
# The first is the text that tells the fact. The words of each text that carry
# its score, the bluer the more:

# %%
tokens = tracin.token_influence(
    query, query_tokens=answer, train=top.proponents.ids[0], verbose=0
)
as_tokens = gemma.preprocessor(train)
kt.plots.token_table(
    tokens, gemma.preprocessor(query), as_tokens, tokenizer=tokenizer
)

# %% [markdown]
# The share of a word is at the place where it is *read*: that of a name which
# the model had to say is at the word before it.

# %% [markdown]
# ## Why this, rather than the truth?
#
# Take a wrong answer. With `contrast=`, scores are those of the difference
# between what was said and what would have been right: positive where training
# on a text favoured what was said.

# %%
at = wrong[0]
query, answer = ask(prompts[at], said[at])
instead, other = ask(prompts[at], new[at][1])
scores = tracin.influence(
    query,
    contrast=instead,
    query_tokens=np.maximum(answer, other),  # the longer of both answers
    verbose=0,
)
ends = scores.top_k(3)
print(f"{prompts[at]} {said[at]}\nRather than: {new[at][1]}")
for side in (ends.proponents, ends.opponents):
    for id_, score in zip(side.ids[0], side.scores[0], strict=True):
        print(f"{score:+.4f}", train[id_])

# %% [markdown]
# Texts about other shops, with the same answer, won over the one text that
# tells the fact. A text with the fact in other words would help.
#
# ## A page to look at
#
# The report shows queries with their proponents and opponents, and marks the
# tokens. It is one file for any browser.

# %%
queries = [
    f"{prompt} {answer}" for prompt, answer in zip(prompts, said, strict=True)
]
top = tracin.top_k(queries, k=4, verbose=0)
shown = np.unique(np.concatenate([top.proponents.ids, top.opponents.ids]))
kt.report.write_html(
    "gemma.html",
    train=as_tokens,
    test=gemma.preprocessor(queries),
    top_k=top,
    token_influence=tracin.token_influence(queries, train=shown, verbose=0),
    tokenizer=tokenizer,
    overwrite=True,
)

# %% [markdown]
# [Language models, token by token](../../docs/language.md) has more: influence
# functions for language models, search as a baseline, and how well scores
# predict training. [Tasks of KerasHub](../../docs/keras_hub.md) says what else
# of KerasHub can be asked.
