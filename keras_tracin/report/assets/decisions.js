// Decisions on training examples: stored in the browser, with undo.

const KINDS = {
  keep: { key: "k", word: "Keep", sign: "✓" },
  relabel: { key: "r", word: "Relabel", sign: "→" },
  remove: { key: "x", word: "Remove", sign: "✕" },
  unsure: { key: "u", word: "Unsure", sign: "?" },
};

const decisions = {
  byExample: new Map(), // place in the training set -> {kind, label}
  history: [], // lists of [example, what it was before]
  watchers: [],
  storage: null,
  key: `keras_tracin.report.${document.body.dataset.digest}`,

  get(example) {
    return this.byExample.get(example) ?? null;
  },

  // Applies [[example, {kind, label} or null], …] as one step for undo.
  set(changes) {
    const real = changes.filter(([example, next]) => !isSame(this.get(example), next));
    if (!real.length) return;
    this.history.push(real.map(([example]) => [example, this.get(example)]));
    this.put(real);
  },

  // Returns the examples of the step that was undone.
  undo() {
    const step = this.history.pop();
    if (!step) return [];
    this.put(step);
    return step.map(([example]) => example);
  },

  put(changes) {
    for (const [example, next] of changes) {
      if (next) this.byExample.set(example, next);
      else this.byExample.delete(example);
    }
    this.save();
    const examples = changes.map(([example]) => example);
    for (const watcher of this.watchers) watcher(examples);
  },

  // `storage` stays null if the page may not store anything.
  open() {
    try {
      localStorage.setItem(`${this.key}.probe`, "1");
      localStorage.removeItem(`${this.key}.probe`);
      this.storage = localStorage;
    } catch {
      return;
    }
    this.read();
    // Changes in another tab with the same report.
    addEventListener("storage", (event) => {
      if (event.key !== this.key && event.key !== null) return;
      const before = [...this.byExample.keys()];
      this.history = [];
      this.read();
      const examples = [...new Set([...before, ...this.byExample.keys()])];
      for (const watcher of this.watchers) watcher(examples);
    });
  },

  read() {
    this.byExample.clear();
    let stored = [];
    try {
      stored = JSON.parse(this.storage.getItem(this.key) ?? "[]");
    } catch {
      return;
    }
    for (const [id, kind, value] of stored) {
      const example = trainPlaces.get(id);
      if (example === undefined || !Object.hasOwn(KINDS, kind)) continue;
      this.byExample.set(example, decision(kind, value));
    }
  },

  save() {
    if (!this.storage) return;
    const stored = [...this.byExample].map(([example, { kind, label }]) => [
      train.ids[example],
      kind,
      label === null ? null : valueOf(label),
    ]);
    try {
      this.storage.setItem(this.key, JSON.stringify(stored));
    } catch {
      this.storage = null;
      warnUnkept();
    }
  },
};

const decision = (kind, value) => ({
  kind,
  label: kind === "relabel" ? labelOfValue(value) : null,
});

const isSame = (one, other) =>
  one === other || (one && other && one.kind === other.kind && one.label === other.label);

function decisionText(made) {
  if (!made) return "not reviewed";
  const word = KINDS[made.kind].word;
  return made.kind === "relabel" ? `${word}: ${nameOf(made.label)}` : word;
}

function chip(made) {
  if (!made) return null;
  const { word, sign } = KINDS[made.kind];
  const text = made.kind === "relabel" ? nameOf(made.label) : word;
  const spoken = made.kind === "relabel" ? element("span", { class: "unseen" }, "Relabel as ") : null;
  return element(
    "span",
    { class: `chip ${made.kind}`, title: decisionText(made) },
    element("span", { "aria-hidden": "true" }, `${sign} `),
    spoken,
    text,
  );
}

function warnUnkept() {
  const notice = find("#notice");
  notice.hidden = false;
  notice.textContent =
    "This browser does not store decisions for this page. Export them before you close it.";
}
