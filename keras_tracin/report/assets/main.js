// Connects the views: tabs, tools, keys, printing.

decisions.open();

const views = {};
if (suspects) views.review = makeReview((query) => openQuery(query));
if (queries) views.queries = makeQueries();
if (suspects?.counts || suspects?.map) views.summary = makeSummary(openListed, openReview);
let current = null;

function openView(name, { focus = true } = {}) {
  current = views[name];
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const isThis = tab.dataset.view === name;
    tab.setAttribute("aria-selected", String(isThis));
    tab.tabIndex = isThis ? 0 : -1;
    find(`#${tab.dataset.view}`).hidden = !isThis;
  }
  current.root.classList.remove("in-detail");
  current.list.draw();
  if (focus) current.list.focus();
  try {
    // So that a reload returns here. It is not the id of an element, since jumping
    // to one would change the focus.
    history.replaceState(null, "", `#view=${name}`);
  } catch {
    // A sandbox may refuse this.
  }
}

function openQuery(query) {
  openView("queries");
  current.goTo(query, { focus: true });
  current.open(false);
}

function openReview(example) {
  openView("review");
  current.goTo(example, { focus: true });
  current.open(false);
}

// The review of examples that these filters leave.
function openListed(filters) {
  openView("review");
  current.filters.set(filters);
}

// On every card of an example, what was decided.
function markCards(examples) {
  for (const example of examples) {
    for (const place of document.querySelectorAll(`[data-example="${example}"] .decided`)) {
      place.replaceChildren(...[chip(decisions.get(example))].filter(Boolean));
    }
  }
}

function undo() {
  const [example] = decisions.undo();
  if (example === undefined) return;
  say(`Undone. ${train.ids[example]}: ${decisionText(decisions.get(example))}.`);
  const list = views.review?.list;
  if (current === views.review && list.has(example)) {
    list.goTo(example, { focus: list.root.contains(document.activeElement) });
  }
}

function tellTools() {
  const number = decisions.byExample.size;
  find("#undo").disabled = !decisions.history.length;
  find("#export").disabled = !number;
  find("#export").textContent = number ? `Export CSV (${count(number)})` : "Export CSV";
}

// The example that a key decides on, and the action after it.
function markByKey(kind) {
  if (shownExample.example !== null) return shownExample.marks.mark(kind);
  const focused = document.activeElement?.closest("[data-example]");
  if (focused) return markExample(Number(focused.dataset.example), kind, () => {});
  if (current === views.review) views.review.marks.mark(kind);
}

const markKeys = new Map(Object.entries(KINDS).map(([kind, { key }]) => [key, kind]));

function onKey(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.defaultPrevented || find("#relabel").open || find("#about").open) return;
  if (isTyping(event.target)) {
    if (key === "Escape") leaveField(event);
    return;
  }
  if (event.altKey || ((event.ctrlKey || event.metaKey) && key !== "z")) return;
  const act = keyAction(key);
  if (!act) return;
  event.preventDefault();
  act();
}

// Clears the input first, then the focus.
function leaveField(event) {
  event.preventDefault();
  if (event.target.type !== "search" || !event.target.value) return current.list.focus();
  event.target.value = "";
  current.refilter();
}

function keyAction(key) {
  if (key === "z") return undo;
  if (markKeys.has(key)) return () => markByKey(markKeys.get(key));
  if (key === "Backspace" || key === "Delete") return () => markByKey(null);
  if (find("#example").open) return null; // Esc closes it by itself
  const focusIsNowhere = document.activeElement === document.body;
  if (key === "n" && current === views.review) return () => goToOpen(current);
  if (key === "/") return () => find("input[type=search]", current.root)?.focus();
  if (key === "?") return () => find("#about").showModal();
  if (key === "Escape") return () => current.close();
  if (key.startsWith("Arrow") && focusIsNowhere) return () => current.list.focus();
  return null;
}

function onTabKey(event) {
  const names = Object.keys(views);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const at = names.indexOf(event.target.dataset.view);
  const next = names[(at + step + names.length) % names.length];
  openView(next, { focus: false });
  find(`#tab-${next}`).focus();
}

// Printed: the current example or query, and all decisions.
function fillPrint() {
  const examples = decidedExamples();
  const rows = examples.map((example) =>
    element(
      "tr",
      {},
      [train.ids[example], nameOf(train.labels[example]), decisionText(decisions.get(example))].map((text) =>
        element("td", {}, text),
      ),
    ),
  );
  const head = ["Id", "Given label", "Decision"].map((text) => element("th", {}, text));
  const made = rows.length
    ? [
        element("h2", {}, plural(rows.length, "decision")),
        element("table", {}, element("thead", {}, element("tr", {}, head)), element("tbody", {}, rows)),
      ]
    : [];
  find("#print").replaceChildren(...made);
}

function start() {
  shownExample.start(openQuery, openReview);
  openRelabelDialog();
  decisions.watchers.push(tellTools, markCards);
  tellTools();
  find("#undo").addEventListener("click", undo);
  find("#export").addEventListener("click", exportCsv);
  find("#load").addEventListener("click", () => find("#file").click());
  find("#file").addEventListener("change", async ({ target }) => {
    if (target.files.length) await loadCsv(target.files[0]);
    target.value = "";
  });
  find("#help").addEventListener("click", () => find("#about").showModal());
  find("#kept").textContent = decisions.storage
    ? "Decisions are stored in this browser, for this report."
    : "This browser stores no decisions for this page.";
  if (!decisions.storage) warnUnkept();
  for (const text of document.querySelectorAll("[data-score]")) {
    text.hidden = text.dataset.score !== (suspects?.score_name ?? "Self-influence");
  }
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", ({ target }) => {
      if (target === dialog || target.dataset?.act === "close") dialog.close();
    });
  }
  const names = Object.keys(views);
  find(".tabs").hidden = names.length < 2;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.hidden = !names.includes(tab.dataset.view);
    tab.addEventListener("click", () => openView(tab.dataset.view));
    tab.addEventListener("keydown", onTabKey);
  }
  document.addEventListener("keydown", onKey);
  addEventListener("beforeprint", fillPrint);
  addEventListener("beforeunload", (event) => {
    if (!decisions.storage && decisions.history.length) event.preventDefault();
  });
  const asked = location.hash.replace("#view=", "");
  openView(Object.hasOwn(views, asked) ? asked : names[0]);
}

start();
