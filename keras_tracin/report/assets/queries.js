// Queries with their proponents and opponents.

const queryExample = (query) => (queries.examples && test ? queries.examples[query] : null);

const strongest = (side) => (query) => Math.abs(queries[side].scores[query][0]);

const QUERY_ORDERS = {
  given: null,
  proponent: (one, other) => queries.proponents.scores[other][0] - queries.proponents.scores[one][0],
  opponent: (one, other) => queries.opponents.scores[one][0] - queries.opponents.scores[other][0],
  label: (one, other) => compareLabels(test.labels[queryExample(one)], test.labels[queryExample(other)]),
};

function queryItems(filters) {
  const found = queries.ids
    .map((_, query) => query)
    .filter((query) => {
      const at = queryExample(query);
      if (at !== null) return fits(filters, test, at);
      return queries.ids[query].toLowerCase().includes(filters.search.trim().toLowerCase());
    });
  const order = QUERY_ORDERS[filters.order];
  return order ? found.sort(order) : found;
}

function queryRow(query) {
  const at = queryExample(query);
  const best = queries.proponents.scores[query][0];
  const worst = queries.opponents.scores[query][0];
  return [
    at !== null && test.images.length ? element("span", { class: "thumb" }, picture(test, at).slice(0, 1)) : null,
    element(
      "span",
      { class: "middle" },
      at === null ? element("b", {}, queries.ids[query]) : labels(test, at),
      element("span", { class: "excerpt quiet" }, (at !== null && excerpt(test, at)) || `id ${queries.ids[query]}`),
    ),
    element(
      "span",
      { class: "right" },
      element("span", { class: "score proponents", title: "Strongest proponent" }, `▲ ${signed(best)}`),
      element("span", { class: "score opponents", title: "Strongest opponent" }, `▼ ${signed(worst)}`),
    ),
  ].filter(Boolean);
}

function makeQueries() {
  const hasExamples = queries.examples && test;
  const labelsOfQueries = hasExamples ? queries.examples.map((at) => test.labels[at]) : [];
  return new View(find("#queries"), {
    label: "Queries",
    what: ["query", "queries"],
    total: queries.ids.length,
    selects: [
      ...(hasExamples ? classSelect(labelsOfQueries) : []),
      ...(hasExamples ? modelSelect(test) : []),
      {
        name: "order",
        label: "Order",
        options: [
          ["given", "In the order given"],
          ["proponent", "Strongest proponent first"],
          ["opponent", "Strongest opponent first"],
          ...(hasExamples ? [["label", "By label"]] : []),
        ],
      },
    ],
    items: queryItems,
    row: queryRow,
    content: queryContent,
  });
}

// A table compares rows of values; the query is the first.
const isTable = () => !train.images.length && !train.texts.length;

function queryContent(query) {
  const at = queryExample(query);
  const largest = Math.max(strongest("proponents")(query), strongest("opponents")(query)) || 1;
  const isLabelled = at !== null && !(test.tokens && nameOf(test.labels[at]) === NO_LABEL);
  const asked =
    at === null
      ? null
      : element(
          "div",
          { class: isTable() ? "asked flat" : "asked" },
          isTable() ? null : element("div", { class: "whole" }, whole(test, at)),
          facts([
            ["Asks about", askedAbout(test, at)],
            ["Label", isLabelled ? element("b", {}, nameOf(test.labels[at])) : null],
            ["Model predicts", predictionFact(test, at)],
          ]),
        );
  const sides = [
    side(query, "proponents", "▲ Proponents", "lowered the query’s loss", largest),
    side(query, "opponents", "▼ Opponents", "raised the query’s loss", largest),
  ];
  const title = element("h2", {}, "Query ", element("span", { class: "id" }, queries.ids[query]));
  if (!train.tokens) return [title, asked, element("div", { class: isTable() ? "apart" : "sides" }, sides)];
  const legend = report.shares?.proponents ? tokenLegend() : null;
  return element(
    "div",
    { class: "beside" },
    element("div", { class: "question" }, [title, asked, legend].filter(Boolean)),
    element("div", { class: "answers" }, sides),
  );
}

function side(query, name, title, meaning, largest) {
  const examples = queries[name].examples[query];
  const scores = queries[name].scores[query];
  const found = examples.map((example, place) => [example, scores[place]]);
  const most = train.tokens ? largestShare(query) : 0;
  const made = train.tokens
    ? (example, score, place) => tokenCard(example, score, largest, sharesOf(name, query, place), most)
    : (example, score) => card(example, score, largest);
  return element(
    "section",
    { class: `ranking ${name}`, "aria-label": `${title.slice(2)}: ${meaning}` },
    element("h3", {}, title, element("span", { class: "quiet" }, ` ${meaning}`)),
    isTable()
      ? table(query, found)
      : cards(found.map(([example, score], place) => made(example, score, place))),
  );
}

function bar(score, largest) {
  const made = element("span", { class: "bar", "aria-hidden": "true" }, element("span"));
  made.firstChild.style.width = `${(100 * Math.abs(score)) / largest}%`;
  return made;
}

const idOf = (example) => element("span", { class: "id quiet" }, `id ${train.ids[example]}`);

function card(example, score, largest) {
  return element(
    "button",
    { type: "button", class: "card", "data-example": example, onclick: () => shownExample.open(example) },
    picture(train, example).slice(0, 1),
    element("span", { class: "line" }, element("span", { class: "score" }, signed(score)), labels(train, example), idOf(example)),
    bar(score, largest),
    train.texts.length || train.rows.length
      ? element("span", { class: "excerpt" }, train.texts.length ? train.texts[example] : excerpt(train, example))
      : null,
    element("span", { class: "decided" }, chip(decisions.get(example))),
  );
}

function table(query, found) {
  const at = queryExample(query);
  const cells = (set, place) => (set.rows[place] ?? []).map((value) => element("td", {}, number(value)));
  const asked =
    at !== null && test.rows.length === test.ids.length
      ? element("tr", { class: "query" }, element("th", { scope: "row" }, "Query"), element("td", {}), element("td", {}, nameOf(test.labels[at])), cells(test, at))
      : null;
  const rows = found.map(([example, score]) =>
    element(
      "tr",
      { "data-example": example },
      element(
        "th",
        { scope: "row" },
        button(train.ids[example], () => shownExample.open(example), { class: "link", "data-example": example }),
        element("span", { class: "decided" }, chip(decisions.get(example))),
      ),
      element("td", { class: "score" }, signed(score)),
      element("td", {}, element("b", {}, nameOf(train.labels[example]))),
      cells(train, example),
    ),
  );
  const head = ["Example", "Score", "Label", ...train.features].map((name) => element("th", { scope: "col" }, name));
  return element(
    "div",
    { class: "scroller", tabindex: 0, role: "region", "aria-label": "Values" },
    element("table", { class: "compared" }, element("thead", {}, element("tr", {}, head)), element("tbody", {}, asked, rows)),
  );
}
