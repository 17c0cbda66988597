// Renders examples: in a row of a list, on a card, and in full.

function picture(set, at, alt = "") {
  return (set.images[at] ?? []).map((source) =>
    element("img", {
      alt,
      src: source,
      // Small images are enlarged without smoothing.
      onload: ({ target }) => target.classList.toggle("sharp", target.naturalWidth <= 64),
    }),
  );
}

const NO_LABEL = "no label"; // what stands for one

const number = (value) => (typeof value === "number" ? String(value) : value);

const pairs = (set, at) =>
  (set.rows[at] ?? []).map((value, place) => [set.features[place], number(value)]);

function excerpt(set, at) {
  if (set.texts.length) return set.texts[at].slice(0, 200);
  return pairs(set, at)
    .slice(0, 8)
    .map(([name, value]) => `${name} ${value}`)
    .join(" · ");
}

function whole(set, at) {
  const title = `${nameOf(set.labels[at])}, id ${set.ids[at]}`;
  const made = [];
  if (set.images.length) made.push(element("div", { class: "pictures" }, picture(set, at, title)));
  if (set.tokens) made.push(askedText(set, at));
  else if (set.texts.length) made.push(element("p", { class: "text" }, set.texts[at]));
  if (set.rows.length) {
    const lines = pairs(set, at).map(([name, value]) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)),
    );
    const hidden = set.hidden
      ? element("p", { class: "quiet" }, `and ${plural(set.hidden, "more value")}`)
      : null;
    made.push(
      element("div", { class: "scroller" }, element("table", { class: "values" }, element("tbody", {}, lines)), hidden),
    );
  }
  return made;
}

function facts(entries) {
  return element(
    "dl",
    { class: "facts" },
    entries
      .filter(([, value]) => value !== null)
      .map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

// The prediction, with a remark if it is not the label.
function predictionFact(set, at) {
  const text = predictionText(set, at);
  if (text === null) return null;
  const differs = isMisread(set, at);
  return [text, differs ? element("span", { class: "differs" }, " ≠ label") : null];
}

// The label and, in short, the prediction.
function labels(set, at) {
  if (set.tokens && nameOf(set.labels[at]) === NO_LABEL) {
    return element("span", { class: "labels" }, "id ", element("b", {}, set.ids[at]));
  }
  const label = element("b", {}, nameOf(set.labels[at]));
  const predicted = predictionText(set, at);
  let model = null;
  if (isMisread(set, at)) model = element("span", { class: "differs" }, ` ≠ model: ${predicted}`);
  else if (predicted !== null && classes.length) {
    const sure = set.confidence ? ` (${percent(set.confidence[at])})` : "";
    model = element("span", { class: "quiet" }, ` = model${sure}`);
  } else if (predicted !== null) model = element("span", { class: "quiet" }, ` · model: ${predicted}`);
  return element("span", { class: "labels" }, label, model);
}

// The queries with a training example among their strongest: by its index, lists
// of [query, side].
let moved = null;
function movedBy(example) {
  if (!queries) return [];
  if (!moved) {
    moved = new Map();
    for (const side of ["proponents", "opponents"]) {
      queries[side].examples.forEach((examples, query) => {
        for (const one of examples) {
          if (!moved.has(one)) moved.set(one, []);
          moved.get(one).push([query, side]);
        }
      });
    }
  }
  return moved.get(example) ?? [];
}

const MOST_LINKS = 12;
function movedQueries(example, openQuery) {
  const found = movedBy(example);
  return ["proponents", "opponents"].map((side) => {
    const of = found.filter(([, own]) => own === side).map(([query]) => query);
    if (!of.length) return null;
    const word = side === "proponents" ? "▲ Proponent" : "▼ Opponent";
    const links = of
      .slice(0, MOST_LINKS)
      .map((query) => button(queries.ids[query], () => openQuery(query), { class: "link" }));
    const rest = of.length > MOST_LINKS ? ` and ${of.length - MOST_LINKS} more` : "";
    const these = of.length === 1 ? "query" : "queries";
    return element("p", { class: `moved ${side}` }, `${word} of ${these} `, links.flatMap((link) => [link, " "]), rest);
  });
}

function suggestionFact(example) {
  const text = suggestionText(example);
  if (text === null) return null;
  return suggestionOf(example) === null ? element("span", { class: "quiet" }, text) : element("b", {}, text);
}

// Whether the label is one of those that are estimated to be wrong.
function estimateFact(found) {
  if (!found || suspects.num_issues === null) return null;
  return element("span", { class: found.isIssue ? "differs" : "quiet" }, found.isIssue ? "likely wrong" : "likely right");
}

const EXPLAINED = {
  opponents: ["▼ Contradicted by", "raised its loss under this label"],
  proponents: ["▲ Agrees with", "lowered its loss under this label"],
  neighbours: ["Nearest", "of all training examples"],
};

// Rows of examples that tell why this one is suspected.
function explanation(example) {
  return (explanations.get(example) ?? []).map(({ name, entries }) => {
    const [title, meaning] = EXPLAINED[name];
    const largest = Math.max(...entries.map(([, score]) => Math.abs(score))) || 1;
    return element(
      "section",
      { class: `ranking ${name}`, "aria-label": `${title.replace(/^[▲▼] /, "")}: ${meaning}` },
      element("h3", {}, title, element("span", { class: "quiet" }, ` ${meaning}`)),
      cards(entries.map(([other, score]) => card(other, score, largest))),
    );
  });
}

const cards = (made) => element("div", { class: train.images.length ? "cards images" : "cards" }, made);

function suspectFacts(example) {
  const found = suspicion.get(example);
  return facts([
    ["Given label", element("b", {}, nameOf(train.labels[example]))],
    ["Model predicts", predictionFact(train, example)],
    ["Suggested label", suggestionFact(example)],
    [suspects?.score_name, found ? short(found.score) : null],
    ["Rank", found ? `${count(found.rank)} of ${count(suspects.total)}` : null],
    ["Estimate", estimateFact(found)],
    ["Decision", chip(decisions.get(example)) ?? element("span", { class: "quiet" }, "not reviewed")],
  ]);
}

function trainingExample(example, openQuery) {
  const isPicture = train.images.length && !train.texts.length && !train.rows.length;
  return [
    element("h2", {}, "Training example ", element("span", { class: "id" }, train.ids[example])),
    element(
      "div",
      { class: isPicture ? "asked suspect" : "apart" },
      element("div", { class: "whole" }, whole(train, example)),
      suspectFacts(example),
    ),
    explanation(example),
    movedQueries(example, openQuery),
  ];
}
