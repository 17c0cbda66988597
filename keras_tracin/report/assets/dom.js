// Creates elements. Text is inserted as text and never parsed as markup.

const find = (selector, within = document) => within.querySelector(selector);

// element("p", {class: "quiet", onclick: f}, "text", another, null, [more])
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat(9).filter((child) => child !== null && child !== undefined));
  return made;
}

const button = (text, onclick, attributes = {}) =>
  element("button", { type: "button", onclick, ...attributes }, text);

// For screen readers only.
function say(text) {
  find("#said").textContent = text;
}

const isNarrow = () => matchMedia("(max-width: 760px)").matches;

const isTyping = (target) =>
  target instanceof Element && target.matches("input, select, textarea");
