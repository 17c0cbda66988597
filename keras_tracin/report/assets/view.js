// A list with filters, and the details of the current row beside it. On a narrow
// screen, details cover the list.

class View {
  // items(filters) returns the items to list; row(item) a row's children;
  // content(item) the details; what: names for one and for many items.
  constructor(root, { label, what, selects, items, total, row, content, shown = () => {} }) {
    Object.assign(this, { root, items, total, what, content, shown });
    this.detail = find(".detail", root);
    this.list = new List(find(".list", root), label, {
      draw: row,
      choose: (item) => this.show(item),
      open: (_, byKey) => this.open(byKey),
    });
    this.filters = new Filters(find(".filters", root), selects, () => this.refilter());
    this.steps = this.makeSteps();
    this.refilter();
  }

  makeSteps() {
    const position = element("span", { class: "position" });
    const step = (by) => () => this.list.go(this.list.current + by);
    find(".steps", this.root).append(
      button("‹ List", () => this.close(), { class: "back" }),
      position,
      button("↑", step(-1), { "aria-label": "Previous" }),
      button("↓", step(1), { "aria-label": "Next" }),
    );
    return position;
  }

  refilter() {
    const found = this.items(this.filters.values());
    this.list.root.scrollTop = 0;
    this.list.setItems(found);
    this.filters.tell(found.length, this.total, this.what);
  }

  // Goes to an item; removes the filter if it hides the item.
  goTo(item, options) {
    if (!this.list.has(item)) {
      this.filters.form.reset();
      this.refilter();
    }
    this.list.goTo(item, options);
  }

  show(item) {
    const made = item === null ? [] : [this.content(item)].flat(9).filter(Boolean);
    find(".content", this.detail).replaceChildren(...made);
    this.detail.classList.toggle("empty", item === null);
    this.detail.scrollTop = 0;
    find(".content", this.detail).scrollTop = 0;
    if (this.steps) this.tellPosition();
    this.shown(item);
  }

  refresh(items) {
    this.list.refresh(items);
    if (items.includes(this.list.item)) this.show(this.list.item);
  }

  tellPosition() {
    const { current, items } = this.list;
    this.steps.textContent = `${count(current + 1)} of ${count(items.length)}`;
  }

  open(byKey) {
    if (isNarrow()) this.root.classList.add("in-detail");
    if (byKey || isNarrow()) this.detail.focus({ preventScroll: true });
  }

  close() {
    this.root.classList.remove("in-detail");
    this.list.focus();
  }
}
