// Texts of tokens, marked by their shares of a score. Sign and size can be told
// without colour: a solid line below raises the score, a dashed one lowers it.

const LEAST_SHARE = 0.02; // of the largest: what is marked

// The tokens as a list to go through by keys: left and right in reading order, up
// and down by the size of their shares. A line below says what the current one has.
function markedText(set, at, shares, largest, title) {
  const numbers = shares.slice(0, -1);
  const total = shares.reduce((sum, share) => sum + share, 0);
  const order = numbers.map((_, place) => place).sort((one, other) => Math.abs(numbers[other]) - Math.abs(numbers[one]));
  const words = set.tokens[at].map((text, place) => markedToken(text, numbers[place], largest));
  const readout = element("p", { class: "readout quiet", "aria-hidden": "true" });
  const list = element("div", {
    class: "text tokens",
    role: "listbox",
    tabindex: 0,
    dir: "auto",
    "aria-label": `Tokens of ${title}`,
    "aria-orientation": "horizontal",
  });
  words.forEach(({ before, word }, place) => {
    word.id = `token-${(markedText.count += 1)}`;
    word.setAttribute("aria-setsize", words.length);
    word.setAttribute("aria-posinset", place + 1);
    list.append(before, word);
  });
  let current = null;
  function go(place) {
    if (current !== null) words[current].word.setAttribute("aria-selected", "false");
    current = place;
    const { word } = words[place];
    word.setAttribute("aria-selected", "true");
    word.scrollIntoView({ block: "nearest" });
    list.setAttribute("aria-activedescendant", word.id);
    // Shares of either sign may be much larger than their sum.
    const part = Math.round((100 * numbers[place]) / total);
    readout.replaceChildren(
      element("bdi", {}, shownToken(set.tokens[at][place])),
      ` ${signed(numbers[place])}`,
      Math.abs(part) <= 100 ? `, ${unsigned(part)}% of the score` : "",
    );
  }
  list.addEventListener("click", ({ target }) => {
    const place = words.findIndex(({ word }) => word === target.closest(".token"));
    if (place >= 0) go(place);
  });
  list.addEventListener("focus", () => {
    if (current === null && list.matches(":focus-visible")) go(order[0]);
  });
  list.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const at = current ?? order[0];
    const step = getComputedStyle(list).direction === "rtl" ? -1 : 1;
    const last = words.length - 1;
    const rank = order.indexOf(at);
    const next = {
      ArrowRight: at + step,
      ArrowLeft: at - step,
      ArrowDown: order[Math.min(rank + 1, last)],
      ArrowUp: order[Math.max(rank - 1, 0)],
      Home: 0,
      End: last,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    go(Math.min(Math.max(next, 0), last));
  });
  const rest = shares[shares.length - 1];
  readout.append(rest ? `Of no token: ${signed(rest)}` : "");
  return words.length ? [list, readout] : [element("p", { class: "quiet" }, "No tokens.")];
}
markedText.count = 0;

// What a token is called, where its letters cannot be seen.
const shownToken = (text) => text.trim() || (text.includes("\n") ? "line break" : "space");

const splitSpace = (text) => text.match(/^( *)([^]*)$/);

// The space before a word is no part of what is marked.
function markedToken(text, share, largest) {
  const [, before, rest] = splitSpace(text);
  const size = largest ? Math.abs(share) / largest : 0;
  const side = size < LEAST_SHARE ? "" : share > 0 ? " up" : " down";
  const word = element(
    "span",
    {
      class: `token${side}`,
      role: "option",
      "aria-selected": "false",
      "aria-label": `${shownToken(text)}, ${signed(share)}`,
      title: signed(share),
    },
    (rest || before).replaceAll("\n", "↵\n"),
  );
  word.style.setProperty("--share", size.toFixed(3));
  return { before: rest ? before : "", word };
}

// A query, with what it asks about.
function askedText(set, at) {
  const asked = new Set(set.asked?.[at] ?? []);
  const made = set.tokens[at].map((text, place) => {
    if (!asked.has(place)) return text;
    const [, before, word] = asked.has(place - 1) ? [, "", text] : splitSpace(text);
    return [before, element("strong", { class: "asked-about" }, word)];
  });
  return element("p", { class: "text", dir: "auto" }, made);
}

// The words that a query asks about, in one line.
function askedAbout(set, at) {
  const asked = set?.asked?.[at] ?? [];
  if (!asked.length) return null;
  const parts = asked.map((place, number) => {
    const apart = number && asked[number - 1] !== place - 1 ? " … " : "";
    return `${apart}${set.tokens[at][place]}`;
  });
  return element("bdi", {}, parts.join("").trim());
}

const sharesOf = (side, query, place) => report.shares?.[side]?.[query]?.[place] ?? null;

// The largest share of a token in a query's examples, which has the full colour.
function largestShare(query) {
  const all = ["proponents", "opponents"].flatMap((side) => report.shares?.[side]?.[query] ?? []);
  return all.reduce((largest, shares) => (shares ?? []).slice(0, -1).reduce((most, one) => Math.max(most, Math.abs(one)), largest), 0);
}

function tokenLegend() {
  const sample = (side, text) => {
    const made = element("span", { class: `token ${side}` }, text);
    made.style.setProperty("--share", "0.7");
    return made;
  };
  return element("p", { class: "legend quiet" }, sample("up", "raises the score"), " ", sample("down", "lowers the score"));
}

// A training example with its tokens: no button, since these can be gone through.
function tokenCard(example, score, largest, shares, most) {
  const title = `training example ${train.ids[example]}`;
  const details = button("Details", () => shownExample.open(example), { "aria-label": `Details of ${title}` });
  return element(
    "article",
    { class: "card tokens-card", "data-example": example, "aria-label": `${title}, ${signed(score)}` },
    element(
      "div",
      { class: "line" },
      element("span", { class: "score" }, signed(score)),
      labels(train, example),
      nameOf(train.labels[example]) === NO_LABEL ? null : idOf(example),
      element("span", { class: "decided" }, chip(decisions.get(example))),
      details,
    ),
    bar(score, largest),
    shares ? markedText(train, example, shares, most, title) : element("p", { class: "text", dir: "auto" }, train.texts[example]),
  );
}
