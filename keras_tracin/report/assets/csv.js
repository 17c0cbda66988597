// Exports decisions to a table, and reads them from one.

const quoted = (field) =>
  /[",\r\n]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field;

// A spreadsheet interprets a field that begins like this as a formula. Names may
// be changed to avoid it; values and ids may not.
const harmless = (name) => (/^[=+\-@\t\r]/.test(name) ? `'${name}` : name);

const hasNames = classes.some(([value, name]) => value !== name);

function columns() {
  const given = hasNames ? ["given_label", "given_name"] : ["given_label"];
  const next = hasNames ? ["new_label", "new_name"] : ["new_label"];
  return ["id", ...given, "decision", ...next, "score"];
}

function labelFields(label) {
  if (label === null) return hasNames ? ["", ""] : [""];
  const value = valueOf(label);
  return hasNames ? [value, harmless(nameOf(label))] : [value];
}

// Ordered by suspicion, then by id.
function decidedExamples() {
  const rank = (example) => suspicion.get(example)?.rank ?? Infinity;
  return [...decisions.byExample.keys()].sort(
    (one, other) =>
      (rank(one) === rank(other) ? 0 : rank(one) - rank(other)) ||
      compareIds(train.ids[one], train.ids[other]),
  );
}

function writeCsv() {
  const lines = [columns()];
  for (const example of decidedExamples()) {
    const { kind, label } = decisions.get(example);
    lines.push([
      train.ids[example],
      ...labelFields(train.labels[example]),
      kind,
      ...labelFields(label),
      String(suspicion.get(example)?.score ?? ""),
    ]);
  }
  return lines.map((line) => `${line.map(quoted).join(",")}\r\n`).join("");
}

function parseCsv(text) {
  const lines = [];
  let line = [];
  const fields = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/gy;
  const content = text.replace(/^\ufeff/, "");
  while (fields.lastIndex < content.length) {
    const match = fields.exec(content);
    if (!match) throw new Error("is not a table");
    line.push(match[1] === undefined ? match[2] : match[1].replaceAll('""', '"'));
    if (match[3] !== ",") {
      lines.push(line);
      line = [];
    } else if (fields.lastIndex === content.length) {
      lines.push([...line, ""]); // the file ends with a comma
    }
  }
  return lines;
}

// The decisions in a table, and the number of rows for unknown examples or for
// examples with another label here.
function readCsv(text) {
  const [head, ...lines] = parseCsv(text);
  const place = (name) => {
    const at = head ? head.indexOf(name) : -1;
    if (at < 0) throw new Error(`has no column “${name}”`);
    return at;
  };
  const [id, given, kind, next] = ["id", "given_label", "decision", "new_label"].map(place);
  const changes = [];
  let others = 0;
  for (const line of lines) {
    const example = trainPlaces.get(line[id]);
    const fits =
      example !== undefined &&
      valueOf(train.labels[example]) === line[given] &&
      Object.hasOwn(KINDS, line[kind]) &&
      (line[kind] !== "relabel" || report.is_open || classPlaces.has(line[next]));
    if (fits) changes.push([example, decision(line[kind], line[next])]);
    else others += 1;
  }
  return { changes, others };
}

function exportCsv() {
  const page = decodeURIComponent(location.pathname.split("/").pop() ?? "");
  const name = page.replace(/\.html?$/i, "") || "report";
  const file = new Blob([writeCsv()], { type: "text/csv;charset=utf-8" });
  const address = URL.createObjectURL(file);
  element("a", { href: address, download: `${name}-decisions.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
  say(`${plural(decisions.byExample.size, "decision")} exported.`);
}

async function loadCsv(file) {
  const notice = find("#notice");
  notice.hidden = false;
  try {
    const { changes, others } = readCsv(await file.text());
    decisions.set(changes);
    const rest = others
      ? ` ${plural(others, "row was", "rows were")} left out: of examples that are not here, or that have another label.`
      : "";
    notice.textContent = `${plural(changes.length, "decision")} loaded from ${file.name}.${rest}`;
  } catch (error) {
    notice.textContent = `${file.name} ${error.message}. Load a file that this page has exported.`;
  }
}
