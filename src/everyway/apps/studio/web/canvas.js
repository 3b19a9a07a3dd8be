// <ew-canvas mode="words|mask" picture labels="{...}" regions="[{colour, words, strength}]" side>
//
// A canvas for regions: words are painted in colours ("words"), or what is to be seen or drawn anew
// in white on black ("mask").  Pixels are whole: no colour is blended into another.
// `value` is a data: address of the map, PNG, or "" where nothing is painted; `regions` has the
// colours with their words.  Keys on the canvas: arrows move the brush, space paints, b and B change
// its size, z takes the last stroke back.
const COLOURS = ["#e4572e", "#2e86ab", "#e9b44c", "#7b5ea7", "#5fad56", "#d46a92"];
const REST = "#dddddd";

class RegionCanvas extends HTMLElement {
  connectedCallback() {
    if (this.canvas) return;
    this.build();
    // whoever updates the page may keep this element, with other attributes, and take what is in it
    new MutationObserver(() => this.contains(this.canvas) || this.build()).observe(this, { childList: true });
  }

  build() {
    this.replaceChildren();
    this.mask = this.getAttribute("mode") === "mask";
    this.labels = JSON.parse(this.getAttribute("labels") || "{}");
    this.side = +this.getAttribute("side") || 192;
    this.brush = Math.round(this.side / (this.mask ? 8 : 5));
    this.undone = [];
    this.cursor = [this.side / 2, this.side / 2];
    const board = this.make("div", { className: "ew-board" });
    this.backdrop = this.make("img", { alt: "", hidden: true });
    this.canvas = this.make("canvas", { tabIndex: 0, width: this.side, height: this.side });
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", this.label("canvas"));
    this.ring = this.make("i", { className: "ew-ring", hidden: true });
    board.append(this.backdrop, this.canvas, this.ring);
    this.pen = this.canvas.getContext("2d", { willReadFrequently: true });
    this.append(board, this.tools());
    if (!this.mask) this.append(this.palette());
    this.listen();
    this.picture = this.getAttribute("picture") || "";
    if (!this.mask) {
      const given = JSON.parse(this.getAttribute("regions") || "[]");
      for (const one of given) this.addRegion(one);
      this.load(this.getAttribute("start"));
    }
    this.size(this.brush);
  }

  make(name, settings = {}) { return Object.assign(document.createElement(name), settings); }
  label(name) { return this.labels[name] || name; }

  // -- what pages read and set -------------------------------------------------------------------

  get value() { return this.painted() ? this.flat().toDataURL("image/png") : ""; }

  get regions() {
    const used = this.colours();
    return [...this.querySelectorAll(".ew-region")]
      .map((row) => ({
        colour: row.dataset.colour,
        words: row.querySelector("input[type=text]").value.trim(),
        strength: +row.querySelector("input[type=number]").value,
      }))
      .filter((one) => one.words && used.has(one.colour));
  }

  set picture(address) {
    this.backdrop.hidden = !address;
    if (!address) return;
    this.backdrop.onload = () => {
      const { naturalWidth: w, naturalHeight: h } = this.backdrop, long = Math.max(w, h);
      if (!this.mask || !long) return;
      const scale = Math.min(1, 512 / long);  // a mask has the shape of its picture
      this.canvas.width = Math.max(1, Math.round(w * scale));
      this.canvas.height = Math.max(1, Math.round(h * scale));
      this.undone = [];
      this.cursor = [this.canvas.width / 2, this.canvas.height / 2];
      this.size(Math.round(Math.max(this.canvas.width, this.canvas.height) / 6));
      this.load(this.getAttribute("start"));
    };
    this.backdrop.src = address;
  }

  load(address) {
    if (!address) return;
    const image = new Image();
    image.onload = () => {
      this.keep();
      this.pen.imageSmoothingEnabled = false;
      this.pen.drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
      this.changed();
    };
    image.src = address;
  }

  addRegion({ colour, words = "", strength = 1 } = {}) {
    const rows = this.querySelectorAll(".ew-region"), taken = new Set([...rows].map((r) => r.dataset.colour));
    colour = colour || COLOURS.find((c) => !taken.has(c));
    if (!colour) return;
    const row = this.make("div", { className: "ew-region" });
    row.dataset.colour = colour;
    const pick = this.make("input", { type: "radio", name: `ew-pick-${this.number()}` });
    pick.setAttribute("aria-label", `${this.label("pick")} ${rows.length + 1}`);
    const chip = this.make("i", { className: "ew-chip" });
    chip.style.background = colour;
    const said = this.make("input", { type: "text", value: words, placeholder: this.label("words") });
    said.setAttribute("aria-label", `${this.label("words")} ${rows.length + 1}`);
    const strong = this.make("input", { type: "number", value: strength, min: -10, max: 10, step: 0.25 });
    strong.setAttribute("aria-label", `${this.label("strength")} ${rows.length + 1}`);
    strong.title = this.label("strength");
    const fill = this.button("fill", "◧", () => this.fill(colour));
    fill.setAttribute("aria-label", `${this.label("fill")} ${rows.length + 1}`);
    pick.addEventListener("change", () => this.choose(colour));
    said.addEventListener("focus", () => { pick.checked = true; this.choose(colour); });
    row.append(pick, chip, said, strong, fill);
    this.list.append(row);
    pick.checked = true;
    this.choose(colour);
  }

  // -- painting ----------------------------------------------------------------------------------

  choose(colour) { this.colour = colour; }

  disc(x, y, colour) {
    const r = this.brush / 2;
    this.pen.globalCompositeOperation = colour ? "source-over" : "destination-out";
    this.pen.fillStyle = colour || "#000";
    for (let dy = -Math.ceil(r); dy <= r; dy++) {
      const half = Math.round(Math.sqrt(Math.max(0, r * r - dy * dy)));
      this.pen.fillRect(Math.round(x) - half, Math.round(y) + dy, 2 * half, 1);
    }
    this.pen.globalCompositeOperation = "source-over";
  }

  line([x0, y0], [x1, y1], colour) {
    const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / Math.max(1, this.brush / 6)));
    for (let k = 0; k <= steps; k++) this.disc(x0 + ((x1 - x0) * k) / steps, y0 + ((y1 - y0) * k) / steps, colour);
  }

  fill(colour) {  // every pixel that is not painted yet
    this.keep();
    this.pen.globalCompositeOperation = "destination-over";
    this.pen.fillStyle = colour;
    this.pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.pen.globalCompositeOperation = "source-over";
    this.changed();
  }

  clear() { this.keep(); this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height); this.changed(); }

  keep() {
    this.undone.push(this.pen.getImageData(0, 0, this.canvas.width, this.canvas.height));
    if (this.undone.length > 30) this.undone.shift();
  }

  undo() {
    if (this.undone.length) this.pen.putImageData(this.undone.pop(), 0, 0);
    this.changed();
  }

  changed() { this.dispatchEvent(new Event("change", { bubbles: true })); }

  pixels() { return this.pen.getImageData(0, 0, this.canvas.width, this.canvas.height).data; }

  painted() { return this.pixels().some((v, k) => k % 4 === 3 && v > 0); }

  colours() {
    const found = new Set(), data = this.pixels();
    let last = -1;
    for (let k = 0; k < data.length; k += 4) {
      if (data[k + 3] < 255) continue;
      const one = (data[k] << 16) | (data[k + 1] << 8) | data[k + 2];
      if (one !== last) found.add("#" + one.toString(16).padStart(6, "0"));
      last = one;
    }
    return found;
  }

  flat() {  // the map without transparency
    const copy = this.make("canvas", { width: this.canvas.width, height: this.canvas.height });
    const pen = copy.getContext("2d");
    pen.fillStyle = this.mask ? "#000000" : "#ffffff";
    pen.fillRect(0, 0, copy.width, copy.height);
    pen.drawImage(this.canvas, 0, 0);
    return copy;
  }

  // -- tools and keys ----------------------------------------------------------------------------

  number() { this.own = this.own || Math.random().toString(36).slice(2); return this.own; }

  size(pixels) {
    const wide = Math.max(this.canvas.width, this.canvas.height);
    this.brush = Math.max(2, Math.min(wide, Math.round(pixels)));
    this.sizer.max = wide / 2;
    this.sizer.value = this.brush;
  }

  tools() {
    const bar = this.make("div", { className: "ew-tools" });
    this.sizer = this.make("input", { type: "range", min: 2, max: this.side / 2, step: 1, ariaLabel: this.label("size") });
    this.sizer.title = this.label("size");
    this.sizer.addEventListener("input", () => this.size(+this.sizer.value));
    const erase = this.button("erase", "⌫", () => {
      this.erasing = !this.erasing;
      erase.setAttribute("aria-pressed", !!this.erasing);
    });
    erase.setAttribute("aria-pressed", false);
    const undo = this.button("undo", "↶", () => this.undo()), clear = this.button("clear", "✕", () => this.clear());
    bar.append(this.sizer, erase, undo, clear);
    if (this.mask) {
      this.colour = "#ffffff";
    } else bar.append(this.button("add", "+", () => this.addRegion()));
    return bar;
  }

  button(name, sign, act) {  // a sign, and where there is room its word
    const one = this.make("button", { type: "button", title: this.label(name) });
    const word = this.make("span", { textContent: this.label(`${name} word`) });
    one.append(sign, word);
    one.setAttribute("aria-label", this.label(name));
    one.dataset.tool = name;
    one.addEventListener("click", act);
    return one;
  }

  palette() { this.list = this.make("div", { className: "ew-regions" }); return this.list; }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.canvas.width,
      ((event.clientY - box.top) / box.height) * this.canvas.height,
    ];
  }

  get ink() { return this.erasing ? "" : this.colour || COLOURS[0]; }

  listen() {
    const c = this.canvas;
    let last = null;
    c.addEventListener("pointerdown", (event) => {
      if (!this.mask && !this.colour) this.addRegion();
      c.setPointerCapture(event.pointerId);
      this.keep();
      last = this.at(event);
      this.disc(...last, this.ink);
    });
    c.addEventListener("pointermove", (event) => {
      this.show(this.at(event));
      if (!last) return;
      const now = this.at(event);
      this.line(last, now, this.ink);
      last = now;
    });
    const end = () => { if (last) this.changed(); last = null; };
    c.addEventListener("pointerup", end);
    c.addEventListener("pointercancel", end);
    c.addEventListener("pointerleave", () => { if (document.activeElement !== c) this.ring.hidden = true; });
    c.addEventListener("focus", () => this.show(this.cursor));
    c.addEventListener("blur", () => { this.ring.hidden = true; });
    c.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const step = (event.shiftKey ? 4 : 1) * Math.max(1, Math.round(this.canvas.width / 24));
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (moves[event.key]) {
      const [x, y] = this.cursor, [dx, dy] = moves[event.key];
      const inside = (v, wide) => Math.max(0, Math.min(wide, v));
      this.cursor = [inside(x + dx, this.canvas.width), inside(y + dy, this.canvas.height)];
    } else if (event.key === " ") {
      if (!this.mask && !this.colour) this.addRegion();
      this.keep();
      this.disc(...this.cursor, this.ink);
      this.changed();
    } else if (event.key === "b") this.size(this.brush * 0.8);
    else if (event.key === "B") this.size(this.brush * 1.25);
    else if (event.key === "z") this.undo();
    else return;
    event.preventDefault();
    this.show(this.cursor);
  }

  show([x, y]) {
    const wide = this.canvas.clientWidth / this.canvas.width;
    this.cursor = [x, y];
    this.ring.hidden = false;
    const r = this.brush * wide;
    Object.assign(this.ring.style, {
      width: `${r}px`, height: `${r}px`,
      left: `${this.canvas.offsetLeft + x * wide - r / 2}px`, top: `${this.canvas.offsetTop + y * wide - r / 2}px`,
    });
  }
}
if (!customElements.get("ew-canvas")) customElements.define("ew-canvas", RegionCanvas);
