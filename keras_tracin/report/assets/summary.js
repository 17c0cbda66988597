// All training examples together: how many labels of each class are suspected, and
// the map of the training.

const share = (part, whole) => (whole ? percent(part / whole) : "");

function makeSummary(openListed, openReview) {
  const root = find("#summary");
  const { counts, map } = suspects;
  find(".content", root).append(
    ...[counts ? estimate() : null, counts ? classTable(openListed) : null, pairTable(openListed), map ? dynamicsMap(openReview) : null].filter(
      Boolean,
    ),
  );
  // What the other views offer to the keys.
  const list = { root, draw: () => {}, focus: () => root.focus(), has: () => false };
  return { root, list, close: () => {}, refilter: () => {}, goTo: () => {}, open: () => {} };
}

function estimate() {
  const listed = suspects.examples.length;
  const rest = suspects.num_issues > listed ? ` The ${count(listed)} most suspicious are listed.` : "";
  return element(
    "p",
    { class: "estimate" },
    element("b", {}, count(suspects.num_issues)),
    ` of ${plural(suspects.total, "label")} (${share(suspects.num_issues, suspects.total)}) are estimated to be wrong.${rest}`,
  );
}

function numbersTable(title, head, rows) {
  return element(
    "section",
    {},
    element("h2", {}, title),
    element(
      "div",
      { class: "scroller", tabindex: 0, role: "region", "aria-label": title },
      element(
        "table",
        {},
        element("thead", {}, element("tr", {}, head.map((name) => element("th", { scope: "col" }, name)))),
        element("tbody", {}, rows),
      ),
    ),
  );
}

function classTable(openListed) {
  const largest = Math.max(...suspects.counts.classes.map(([, total, found]) => found / total));
  const rows = suspects.counts.classes.map(([label, total, found]) => {
    const open = () => openListed({ label, issue: "wrong" });
    const name = found ? button(nameOf(label), open, { class: "link" }) : nameOf(label);
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, name),
      element("td", {}, count(total)),
      element("td", {}, count(found)),
      element("td", {}, share(found, total)),
      element("td", { class: "opponents" }, bar(found / total, largest || 1)),
    );
  });
  return numbersTable("Classes", ["Given label", "Examples", "Wrong?", "Share"], rows);
}

const MOST_PAIRS = 10;

function pairTable(openListed) {
  const pairs = suspects.counts?.pairs ?? [];
  if (!pairs.length) return null;
  const rows = pairs.slice(0, MOST_PAIRS).map(([given, suggested, found]) => {
    const open = () => openListed({ label: given, suggested, issue: "wrong" });
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, button(`${nameOf(given)} → ${nameOf(suggested)}`, open, { class: "link" })),
      element("td", {}, count(found)),
    );
  });
  const made = numbersTable("Given and suggested label", ["Given → suggested", "Wrong?"], rows);
  const rest = pairs.length - MOST_PAIRS;
  if (rest > 0) made.append(element("p", { class: "quiet" }, `and ${plural(rest, "rarer pair")}`));
  return made;
}

const MANY_POINTS = 5_000; // drawn as squares, which is faster

// Where a point of the map is, in CSS pixels of a drawing.
const MARGIN = 40;
const MOST_VARIABLE = 0.5; // of numbers from 0 to 1
const NEAR = 12; // pixels from a point to a click on it

function placer(width, height) {
  return ([variability, confidence]) => [
    MARGIN + (variability / MOST_VARIABLE) * (width - MARGIN - 8),
    height - MARGIN - confidence * (height - MARGIN - 8),
  ];
}

function dynamicsMap(openReview) {
  const canvas = element("canvas", {
    class: "map",
    role: "img",
    "aria-label": "Map of the training: examples by the mean and the variability of the probability of their given label. The review lists those suspected.",
  });
  const draw = () => drawMap(canvas);
  canvas.addEventListener("click", (event) => {
    const at = nearestPoint(canvas, event.offsetX, event.offsetY);
    if (at !== null) openReview(suspects.map.of[at]);
  });
  canvas.addEventListener("mousemove", (event) => {
    const at = nearestPoint(canvas, event.offsetX, event.offsetY);
    canvas.classList.toggle("on-point", at !== null);
    const example = at === null ? null : suspects.map.of[at];
    canvas.title = at === null ? "" : `id ${train.ids[example]}, ${nameOf(train.labels[example])}`;
  });
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const { others, of, total } = suspects.map;
  const drawn = of.length + others.length;
  const some = drawn < total ? ` ${count(drawn)} of ${count(total)} examples are drawn.` : "";
  const sign = (name) => element("span", { class: `sign ${name}`, "aria-hidden": "true" });
  return element(
    "section",
    {},
    element("h2", {}, "Map of the training"),
    element("p", { class: "quiet" }, `Each point is a training example. High: the given label was probable at most checkpoints. Right: its probability changed. Choose a suspect to review it.${some}`),
    canvas,
    element("p", { class: "signs" }, sign("wrong"), "estimated to be wrong ", sign("listed"), "listed ", sign("other"), "not listed"),
  );
}

function drawMap(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width) return;
  const scale = devicePixelRatio || 1;
  Object.assign(canvas, { width: width * scale, height: height * scale });
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const colour = (name) => getComputedStyle(document.body).getPropertyValue(name);
  const place = placer(width, height);
  const isMany = suspects.map.points.length > MANY_POINTS;
  const dot = (point, size) => {
    const [x, y] = place(point);
    if (isMany) {
      pen.fillRect(x - size, y - size, 2 * size, 2 * size);
      return;
    }
    pen.beginPath();
    pen.arc(x, y, size, 0, 7);
    pen.fill();
  };
  pen.globalAlpha = 0.45;
  pen.fillStyle = colour("--strong-line");
  for (const point of suspects.map.others) dot(point, 1.5);
  pen.globalAlpha = 0.8;
  suspects.map.points.forEach((point, at) => {
    const { isIssue } = suspicion.get(suspects.map.of[at]);
    pen.fillStyle = colour(isIssue ? "--remove" : "--accent");
    dot(point, isIssue ? 3.5 : 2.5);
  });
  pen.globalAlpha = 1;
  drawAxes(pen, width, height, colour("--quiet"));
}

function drawAxes(pen, width, height, colour) {
  const place = placer(width, height);
  pen.strokeStyle = colour;
  pen.fillStyle = colour;
  pen.font = "12px system-ui, sans-serif";
  pen.beginPath();
  pen.moveTo(...place([0, 1]));
  pen.lineTo(...place([0, 0]));
  pen.lineTo(...place([MOST_VARIABLE, 0]));
  pen.stroke();
  pen.textAlign = "right";
  for (const value of [0, 0.5, 1]) {
    const [x, y] = place([0, value]);
    pen.fillText(String(value), x - 6, y + 4);
  }
  pen.textAlign = "center";
  for (const value of [0, 0.25, 0.5]) {
    const [x, y] = place([value, 0]);
    pen.fillText(String(value), Math.min(x, width - 12), y + 16);
  }
  pen.fillText("Variability of the probability", width / 2, height - 6);
  pen.rotate(-Math.PI / 2);
  pen.fillText("Mean probability", -height / 2, 12);
  pen.rotate(Math.PI / 2);
}

// The suspect at a place of the drawing, or null.
function nearestPoint(canvas, x, y) {
  const place = placer(canvas.clientWidth, canvas.clientHeight);
  let nearest = null;
  let least = NEAR;
  suspects.map.points.forEach((point, at) => {
    const [left, top] = place(point);
    const distance = Math.hypot(left - x, top - y);
    if (distance < least) [nearest, least] = [at, distance];
  });
  return nearest;
}
