// A list of any length; only visible rows are in the document.

const ROW_HEIGHT = 68; // as in page.css
const OVERSCAN = 6; // rows drawn beyond the edges

class List {
  // draw(item) returns a row's children; choose(item) is called when a row becomes
  // current, open(item) after a click or Enter.
  constructor(root, label, { draw, choose, open }) {
    this.root = root;
    this.callbacks = { draw, choose, open };
    this.items = [];
    this.places = new Map();
    this.rows = new Map(); // place -> element
    this.current = -1;
    this.space = element("div", { class: "space" });
    this.none = element("p", { class: "none quiet", hidden: true }, "Nothing matches the filter.");
    root.append(this.space, this.none);
    root.setAttribute("role", "listbox");
    root.setAttribute("aria-label", label);
    root.addEventListener("scroll", () => this.later(), { passive: true });
    root.addEventListener("keydown", (event) => this.onKey(event));
    root.addEventListener("click", (event) => this.onClick(event));
    new ResizeObserver(() => this.later()).observe(root);
  }

  get item() {
    return this.items[this.current] ?? null;
  }

  // Shows these items; the current one stays if it is among them.
  setItems(items) {
    const before = this.item;
    this.items = items;
    this.places = new Map(items.map((item, place) => [item, place]));
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
    this.space.style.height = `${items.length * ROW_HEIGHT}px`;
    this.none.hidden = items.length > 0;
    this.current = -1;
    this.go(this.places.get(before) ?? (items.length ? 0 : -1));
    if (!items.length) this.callbacks.choose(null);
    this.draw();
  }

  has(item) {
    return this.places.has(item);
  }

  goTo(item, options) {
    this.go(this.places.get(item) ?? -1, options);
  }

  // Makes the row at an index the current one.
  go(place, { focus = false } = {}) {
    if (place < 0 || place >= this.items.length) return;
    const before = this.rows.get(this.current);
    if (before) {
      before.setAttribute("aria-selected", "false");
      before.tabIndex = -1;
    }
    this.current = place;
    this.reveal();
    this.draw();
    const row = this.rows.get(place);
    row.setAttribute("aria-selected", "true");
    row.tabIndex = 0;
    if (focus) row.focus({ preventScroll: true });
    this.callbacks.choose(this.items[place]);
  }

  focus() {
    this.reveal();
    this.draw();
    this.rows.get(this.current)?.focus({ preventScroll: true });
  }

  // Redraws the visible rows among these items.
  refresh(items) {
    for (const item of items) {
      const row = this.rows.get(this.places.get(item));
      row?.replaceChildren(...this.callbacks.draw(item));
    }
  }

  reveal() {
    const top = this.current * ROW_HEIGHT;
    const { scrollTop, clientHeight } = this.root;
    if (top < scrollTop) this.root.scrollTop = top;
    else if (top + ROW_HEIGHT > scrollTop + clientHeight) {
      this.root.scrollTop = top + ROW_HEIGHT - clientHeight;
    }
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    const { scrollTop, clientHeight } = this.root;
    const first = Math.max(0, Math.floor(scrollTop / ROW_HEIGHT) - OVERSCAN);
    const last = Math.min(
      this.items.length - 1,
      Math.ceil((scrollTop + clientHeight) / ROW_HEIGHT) + OVERSCAN,
    );
    // The current row stays, so that scrolling does not lose the focus.
    const isWanted = (place) => (place >= first && place <= last) || place === this.current;
    for (const [place, row] of this.rows) {
      if (isWanted(place)) continue;
      row.remove();
      this.rows.delete(place);
    }
    for (let place = first; place <= last; place += 1) this.place(place);
    if (this.current >= 0) this.place(this.current);
  }

  place(place) {
    if (this.rows.has(place)) return;
    const isCurrent = place === this.current;
    const row = element(
      "div",
      {
        class: "row",
        role: "option",
        tabindex: isCurrent ? 0 : -1,
        "aria-selected": String(isCurrent),
        "aria-setsize": this.items.length,
        "aria-posinset": place + 1,
      },
      this.callbacks.draw(this.items[place]),
    );
    row.style.top = `${place * ROW_HEIGHT}px`;
    row.dataset.place = place;
    this.rows.set(place, row);
    // In reading order.
    const after = [...this.space.children].find((other) => Number(other.dataset.place) > place);
    this.space.insertBefore(row, after ?? null);
  }

  onClick(event) {
    const row = event.target.closest(".row");
    if (!row) return;
    this.go(Number(row.dataset.place), { focus: true });
    this.callbacks.open(this.item, false);
  }

  onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(this.root.clientHeight / ROW_HEIGHT) - 1);
    const end = this.items.length - 1;
    const target = {
      ArrowDown: this.current + 1,
      ArrowUp: this.current - 1,
      PageDown: Math.min(this.current + page, end),
      PageUp: Math.max(this.current - page, 0),
      Home: 0,
      End: end,
    }[event.key];
    if (target !== undefined) {
      event.preventDefault();
      this.go(target, { focus: true });
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.callbacks.open(this.item, true);
    }
  }
}
