// Filters and sorts a list.

class Filters {
  // selects: [{name, label, options: [[value, text], …]}]; changed() is called
  // after every change.
  constructor(form, selects, changed) {
    this.form = form;
    this.changed = changed;
    this.shown = element("span", { class: "shown quiet" });
    const search = element("input", {
      type: "search",
      name: "search",
      placeholder: "Search",
      "aria-label": "Search ids, labels and content",
      autocomplete: "off",
      spellcheck: "false",
      "aria-keyshortcuts": "/",
    });
    const more = element("div", { class: "more" }, selects.map(select));
    const toggle = button("Filter", () => {
      const isOpen = form.classList.toggle("open");
      toggle.setAttribute("aria-expanded", String(isOpen));
    });
    toggle.className = "toggle";
    toggle.setAttribute("aria-expanded", "false");
    form.append(element("div", { class: "first" }, search, toggle), more, this.shown);
    this.defaults = this.values();
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", ({ target }) => target === search && changed());
    form.addEventListener("change", ({ target }) => target !== search && changed());
  }

  values() {
    return Object.fromEntries(new FormData(this.form));
  }

  tell(number, total, what) {
    this.shown.replaceChildren(`${count(number)} of ${plural(total, ...what)}`);
    if (JSON.stringify(this.values()) === JSON.stringify(this.defaults)) return;
    this.shown.append(" ", button("Clear filters", () => this.clear(), { class: "link" }));
  }

  // Shows what has these values, by the names of the fields.
  set(values) {
    this.form.reset();
    for (const [name, value] of Object.entries(values)) {
      if (this.form.elements[name]) this.form.elements[name].value = value;
    }
    this.changed();
  }

  clear() {
    this.form.reset();
    this.changed();
    find("input", this.form).focus();
  }
}

function select({ name, label, options }) {
  return element(
    "label",
    {},
    element("span", { class: "unseen" }, label),
    element(
      "select",
      { name, title: label },
      options.map(([value, text]) => element("option", { value }, text)),
    ),
  );
}

// The classes of items; empty if labels are not classes.
function classSelect(labelsOfItems) {
  if (!classes.length) return [];
  return [{ name: "label", label: "Label", options: [["", "All labels"], ...classOptions(labelsOfItems)] }];
}

// The classes that occur, with their numbers.
function classOptions(labelsOfItems) {
  const numbers = new Map();
  for (const label of labelsOfItems) numbers.set(label, (numbers.get(label) ?? 0) + 1);
  return classes
    .map(([, name], place) => [String(place), `${name} (${count(numbers.get(place) ?? 0)})`, place])
    .filter(([, , place]) => numbers.has(place));
}

const modelSelect = (set) =>
  set?.predicted && classes.length
    ? [
        {
          name: "model",
          label: "Prediction",
          options: [
            ["", "Any prediction"],
            ["differs", "Predicted ≠ label"],
            ["agrees", "Predicted = label"],
          ],
        },
      ]
    : [];

// Whether an example matches the selected label, prediction and words.
function fits({ label = "", model = "", search = "" }, set, at) {
  if (label && set.labels[at] !== Number(label)) return false;
  if (model && isMisread(set, at) !== (model === "differs")) return false;
  return search.trim().toLowerCase().split(/\s+/).every((word) => searchText(set, at).includes(word));
}
