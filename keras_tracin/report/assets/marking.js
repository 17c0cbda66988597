// Buttons for decisions, and the dialog for the right label.

class Marks {
  // target() returns the example, or null; done() is called after a decision.
  constructor(root, target, done) {
    Object.assign(this, { root, target, done });
    this.buttons = Object.entries(KINDS).map(([kind, { key, word, sign }]) =>
      button([element("span", { "aria-hidden": "true" }, `${sign} `), word, element("kbd", {}, key.toUpperCase())], () => this.mark(kind), {
        class: kind,
        "data-kind": kind,
        "aria-keyshortcuts": key,
      }),
    );
    root.append(...this.buttons);
    decisions.watchers.push(() => this.refresh());
  }

  refresh() {
    const example = this.target();
    this.root.hidden = example === null;
    const made = example === null ? null : decisions.get(example);
    for (const each of this.buttons) {
      each.setAttribute("aria-pressed", String(made?.kind === each.dataset.kind));
    }
  }

  // A kind of decision, or null to remove it.
  mark(kind) {
    const example = this.target();
    if (example === null) return;
    markExample(example, kind, this.done);
  }
}

function markExample(example, kind, done) {
  const finish = (next) => {
    decisions.set([[example, next]]);
    say(`${train.ids[example]}: ${decisionText(next)}.`);
    done(next);
  };
  if (kind === "relabel") askLabel(example, (label) => finish({ kind, label }));
  else finish(kind ? { kind, label: null } : null);
}

const MOST_OPTIONS = 60;

// Asks which label is right, then calls chosen(label).
function askLabel(example, chosen) {
  asking = { example, chosen, options: [], active: 0, preferred: null };
  const input = find("#relabel-input");
  const made = decisions.get(example);
  input.value = "";
  input.placeholder = classes.length ? "Type to find a class" : "Type the label";
  find("#relabel-title").textContent = `The right label of ${train.ids[example]}`;
  asking.preferred = made?.kind === "relabel" ? made.label : (suggestionOf(example) ?? predictionOf(train, example));
  listOptions();
  find("#relabel").showModal();
  input.focus();
}

let asking = null;

// Classes that match the input: first exact matches, then those that begin with
// it. For an empty input, the preferred class is first.
function listOptions() {
  const { preferred } = asking;
  const typed = find("#relabel-input").value.trim();
  const wanted = typed.toLowerCase();
  const given = train.labels[asking.example];
  const closeness = ([value, name], place) => {
    if (!wanted) return place === preferred ? 0 : 1;
    if ([value, name].some((text) => text.toLowerCase() === wanted)) return 0;
    if (name.toLowerCase().startsWith(wanted)) return 1;
    return name.toLowerCase().includes(wanted) ? 2 : null;
  };
  asking.options = classes
    .map((each, place) => ({ label: place, closeness: closeness(each, place) }))
    .filter(({ label, closeness: how }) => how !== null && label !== given)
    .sort((one, other) => one.closeness - other.closeness)
    .slice(0, MOST_OPTIONS);
  const isNew = typed && report.is_open && labelOfValue(typed) === typed && typed !== given;
  if (isNew) asking.options.push({ label: typed, isNew });
  // Too many classes to list them; the suggestion is one of them.
  const suggested = suggestionOf(asking.example);
  if (!typed && !classes.length && suggested !== null) asking.options.push({ label: suggested });
  asking.active = 0;
  drawOptions();
}

function drawOptions() {
  const suggested = suggestionOf(asking.example);
  const predicted = predictionOf(train, asking.example);
  const remark = (label) => {
    const words = [label === suggested && "suggested", label === predicted && "predicted"].filter(Boolean);
    return words.length && label !== null ? element("span", { class: "quiet" }, words.join(", ")) : null;
  };
  const options = asking.options.map(({ label, isNew }, place) =>
    element(
      "div",
      {
        role: "option",
        id: `option-${place}`,
        "aria-selected": String(place === asking.active),
        onclick: () => {
          asking.active = place;
          chooseOption();
        },
      },
      element("span", {}, isNew ? `Use “${label}”` : nameOf(label)),
      remark(label),
    ),
  );
  find("#relabel-options").replaceChildren(...options);
  const active = options[asking.active];
  find("#relabel-input").setAttribute("aria-activedescendant", active ? active.id : "");
  active?.scrollIntoView({ block: "nearest" });
  const typed = find("#relabel-input").value.trim();
  find("#relabel-error").textContent = typed && !active ? `No other class fits “${typed}”.` : "";
}

function chooseOption() {
  const option = asking.options[asking.active];
  if (!option) {
    find("#relabel-error").textContent ||= "Type the right label.";
    return;
  }
  const { chosen } = asking;
  find("#relabel-input").blur(); // the next key is not for it, however soon
  find("#relabel").close(); // gives focus back to where it was
  chosen(option.label);
}

function openRelabelDialog() {
  const dialog = find("#relabel");
  find("form", dialog).addEventListener("submit", (event) => {
    event.preventDefault();
    chooseOption();
  });
  find("#relabel-input").addEventListener("input", () => listOptions());
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !asking.options.length) return;
    event.preventDefault();
    const { length } = asking.options;
    asking.active = (asking.active + step + length) % length;
    drawOptions();
  });
}

// The dialog that shows one training example.
const shownExample = {
  example: null,
  marks: null,
  openQuery: null,

  open(example) {
    this.example = example;
    this.refresh();
    const dialog = find("#example");
    if (!dialog.open) dialog.showModal();
    find(".content", dialog).scrollTop = 0;
  },

  refresh() {
    if (this.example === null) return;
    const content = trainingExample(this.example, (query) => {
      find("#example").close();
      this.openQuery(query);
    });
    find("#example .content").replaceChildren(...content.flat(9).filter(Boolean));
    find("#example [data-act=review]").hidden = !suspicion.has(this.example);
    this.marks.refresh();
  },

  start(openQuery, openReview) {
    this.openQuery = openQuery;
    const dialog = find("#example");
    this.marks = new Marks(find(".marks", dialog), () => this.example, () => {});
    decisions.watchers.push(() => this.refresh());
    dialog.addEventListener("close", () => {
      this.example = null;
    });
    find("[data-act=review]", dialog).addEventListener("click", () => {
      const { example } = this;
      dialog.close();
      openReview(example);
    });
  },
};
