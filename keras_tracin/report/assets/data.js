// The data of the page. An example is `{set, at}`; of the training set, `at`.

const report = JSON.parse(find("#data").textContent);
const { classes, queries, suspects } = report;

const train = report.sets.train;
const test = report.sets.test ?? null;

// Texts of tokens are their pieces, one after another.
for (const set of [train, test]) {
  if (set?.tokens) set.texts = set.tokens.map((pieces) => pieces.join(""));
}

// A label is the index of its class, or a text if there are no classes.
const nameOf = (label) => (typeof label === "number" ? classes[label][1] : label);
const valueOf = (label) => (typeof label === "number" ? classes[label][0] : label);

const classPlaces = new Map(classes.map(([value], place) => [value, place]));
const labelOfValue = (value) => classPlaces.get(value) ?? value;

const trainPlaces = new Map(train.ids.map((id, place) => [id, place]));

// By index in the training set: score and rank of the suspicion, the suggested
// label, and whether the given label is estimated to be wrong.
const suspicion = new Map();
if (suspects) {
  suspects.examples.forEach((example, place) => {
    suspicion.set(example, {
      score: suspects.scores[place],
      rank: place + 1,
      suggested: suspects.suggested?.[place] ?? null,
      probability: suspects.probabilities?.[place] ?? null,
      isIssue: place < (suspects.num_issues ?? 0),
    });
  });
}

// By index in the training set: rows of examples that explain the suspicion, each
// `{name, entries: [[example, score], …]}`. A suspect agrees with itself, which is
// not shown.
const explanations = new Map();
for (const [name, row] of Object.entries(suspects?.explained ?? {})) {
  row.of.forEach((example, place) => {
    const entries = row.examples[place]
      .map((other, rank) => [other, row.scores[place][rank]])
      .filter(([other]) => other !== example);
    if (!explanations.has(example)) explanations.set(example, []);
    explanations.get(example).push({ name, entries });
  });
}

// The suggested label, if it is another than the given one.
function suggestionOf(example) {
  const suggested = suspicion.get(example)?.suggested ?? null;
  return suggested === train.labels[example] ? null : suggested;
}

function suggestionText(example) {
  const { suggested, probability } = suspicion.get(example) ?? {};
  if (suggested === null || suggested === undefined) return null;
  const name = suggestionOf(example) === null ? "the given one" : nameOf(suggested);
  return probability === null ? name : `${name} (${percent(probability)})`;
}

const predictionOf = (set, at) => (set?.predicted ? set.predicted[at] : null);

function isMisread(set, at) {
  const predicted = predictionOf(set, at);
  return predicted !== null && classes.length > 0 && predicted !== set.labels[at];
}

function percent(share) {
  // 100% only if it is exact.
  if (share >= 0.995 && share < 1) return ">99%";
  return `${Math.round(share * 100)}%`;
}

function predictionText(set, at) {
  const predicted = predictionOf(set, at);
  if (predicted === null) return null;
  const sure = set.confidence ? ` (${percent(set.confidence[at])})` : "";
  return `${nameOf(predicted)}${sure}`;
}

// Three digits for display; the export has all digits.
function short(score) {
  const size = Math.abs(score);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return size.toExponential(2);
  return String(Number(size.toPrecision(3)));
}

const signed = (score) => `${score < 0 ? "−" : "+"}${short(score)}`;
const unsigned = (score) => `${score < 0 ? "−" : ""}${short(score)}`;

const count = (number) => number.toLocaleString("en");

const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

// In lower case, for searching; created at the first use.
const searchable = new Map();
function searchText(set, at) {
  const places = searchable.get(set) ?? new Map();
  searchable.set(set, places);
  if (!places.has(at)) {
    const parts = [
      set.ids[at],
      nameOf(set.labels[at]),
      set.predicted ? nameOf(set.predicted[at]) : "",
      set.texts[at] ?? "",
      (set.rows[at] ?? []).join(" "),
    ];
    places.set(at, parts.join("\n").toLowerCase());
  }
  return places.get(at);
}

const areSmallNumbers = train.ids.every((id) => /^-?\d{1,15}$/.test(id));

// Integer ids are sorted as numbers.
function compareIds(one, other) {
  if (areSmallNumbers) return Number(one) - Number(other);
  const whole = /^-?\d+$/;
  if (whole.test(one) && whole.test(other)) {
    const difference = BigInt(one) - BigInt(other);
    return difference < 0n ? -1 : difference > 0n ? 1 : 0;
  }
  return one < other ? -1 : one > other ? 1 : 0;
}
