// Suspected labels for decisions one by one, the most suspicious first.

const STATES = [
  ["", "Reviewed or not"],
  ["open", "Not reviewed"],
  ["done", "Reviewed"],
  ["keep", "Keep"],
  ["relabel", "Relabel"],
  ["remove", "Remove"],
  ["unsure", "Unsure"],
];

const REVIEW_ORDERS = {
  high: null, // as they are
  low: (one, other) => suspicion.get(one).score - suspicion.get(other).score,
  label: (one, other) => compareLabels(train.labels[one], train.labels[other]),
  id: (one, other) => compareIds(train.ids[one], train.ids[other]),
};

// Classes in their order, numbers by size, other texts alphabetically.
function compareLabels(one, other) {
  const difference = Number(one) - Number(other);
  return Number.isNaN(difference) ? String(one).localeCompare(String(other)) : difference;
}

const inState = (example, state) => {
  const kind = decisions.get(example)?.kind;
  if (!state) return true;
  return state === "open" ? !kind : state === "done" ? Boolean(kind) : kind === state;
};

function reviewItems(filters) {
  const found = suspects.examples.filter(
    (example) =>
      inState(example, filters.state) &&
      isEstimated(example, filters.issue) &&
      isSuggested(example, filters.suggested) &&
      fits(filters, train, example),
  );
  const order = REVIEW_ORDERS[filters.order];
  return order ? found.sort(order) : found;
}

function reviewRow(example) {
  const { score, rank, isIssue } = suspicion.get(example);
  return [
    element("span", { class: "rank quiet" }, count(rank)),
    train.images.length ? element("span", { class: "thumb" }, picture(train, example).slice(0, 1)) : null,
    element(
      "span",
      { class: "middle" },
      suggestionOf(example) === null ? labels(train, example) : suggestedLabels(example),
      element("span", { class: "excerpt quiet" }, excerpt(train, example) || `id ${train.ids[example]}`),
    ),
    element(
      "span",
      { class: "right" },
      element("span", { class: "score" }, short(score)),
      chip(decisions.get(example)) ?? (isIssue ? doubt() : null),
    ),
  ].filter(Boolean);
}

const doubt = () =>
  element(
    "span",
    { class: "doubt", title: "Estimated to be wrong" },
    element("span", { class: "unseen" }, "Estimated to be "),
    "wrong?",
  );

// The given label and the suggested one.
function suggestedLabels(example) {
  return element(
    "span",
    { class: "labels" },
    element("b", {}, nameOf(train.labels[example])),
    element("span", { "aria-hidden": "true" }, " → "),
    element("span", { class: "unseen" }, ", suggested: "),
    suggestionText(example),
  );
}

// Whether labels are estimated to be wrong, where that is known.
const issueSelect = () =>
  suspects.num_issues === null
    ? []
    : [
        {
          name: "issue",
          label: "Estimate",
          options: [
            ["", "Right or wrong"],
            ["wrong", `Estimated to be wrong (${count(Math.min(suspects.num_issues, suspects.examples.length))})`],
            ["right", "Estimated to be right"],
          ],
        },
      ];

// The labels that are suggested in place of the given ones.
function suggestedSelect() {
  const options = suspects.suggested ? classOptions(suspects.examples.map(suggestionOf)) : [];
  if (!options.length) return [];
  return [{ name: "suggested", label: "Suggested label", options: [["", "Any suggestion"], ...options] }];
}

const isSuggested = (example, label = "") => !label || suggestionOf(example) === Number(label);

const isEstimated = (example, issue) => !issue || suspicion.get(example).isIssue === (issue === "wrong");

function makeReview(openQuery) {
  const root = find("#review");
  let marks = null;
  const view = new View(root, {
    label: "Suspected labels",
    what: ["suspect"],
    total: suspects.examples.length,
    selects: [
      { name: "state", label: "Decision", options: STATES },
      ...classSelect(suspects.examples.map((example) => train.labels[example])),
      ...suggestedSelect(),
      ...modelSelect(train),
      ...issueSelect(),
      {
        name: "order",
        label: "Order",
        options: [
          ["high", "Highest score first"],
          ["low", "Lowest score first"],
          ["label", "By label"],
          ["id", "By id"],
        ],
      },
    ],
    items: reviewItems,
    row: reviewRow,
    content: (example) => trainingExample(example, openQuery),
    shown: () => marks?.refresh(),
  });
  marks = new Marks(find(".marks", root), () => view.list.item, (made) => made && advance(view));
  marks.refresh();
  decisions.watchers.push((examples) => {
    view.refresh(examples);
    tellProgress();
  });
  tellProgress();
  const first = suspects.examples.findIndex((example) => !decisions.get(example));
  if (first > 0) view.list.go(first);
  return Object.assign(view, { marks });
}

// Moves to the next row; the focus stays in the list or on a button.
function advance(view) {
  const { list } = view;
  if (list.current + 1 < list.items.length) {
    list.go(list.current + 1, { focus: list.root.contains(document.activeElement) });
  } else {
    say("This was the last in the list.");
  }
}

function goToOpen(view) {
  const { items, current } = view.list;
  const after = [...items.slice(current + 1), ...items.slice(0, current + 1)];
  const next = after.find((example) => !decisions.get(example));
  if (next === undefined) say("Everything in the list is reviewed.");
  else view.list.goTo(next, { focus: view.list.root.contains(document.activeElement) });
}

function tellProgress() {
  const numbers = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, 0]));
  let done = 0;
  for (const example of suspects.examples) {
    const made = decisions.get(example);
    if (!made) continue;
    done += 1;
    numbers[made.kind] += 1;
  }
  const total = suspects.examples.length;
  find("#progress-text").replaceChildren(element("b", {}, count(done)), ` of ${count(total)} reviewed`);
  Object.assign(find("#progress"), { max: total, value: done });
  const parts = Object.entries(KINDS)
    .filter(([kind]) => numbers[kind])
    .map(([kind, { sign, word }]) => `${sign} ${count(numbers[kind])} ${word.toLowerCase()}`);
  find("#tally").textContent = done === total ? `All done. ${parts.join(" · ")}` : parts.join(" · ");
}
