// <ew-film frames="[{image, text, note, beside}, ...]" at label play pause>: one frame large, all of them
// small, and a slider to scrub through.  Arrow keys move it, as of every slider.
class Film extends HTMLElement {
  connectedCallback() {
    this.frames = JSON.parse(this.getAttribute("frames") || "[]");
    const label = this.getAttribute("label") || "";
    this.replaceChildren();
    if (!this.frames.length) return;
    this.setAttribute("role", "group");
    this.setAttribute("aria-label", label);
    const make = (name, settings = {}) => Object.assign(document.createElement(name), settings);
    this.picture = make("img", { alt: "" });
    this.words = make("p", { className: "ew-words" });
    this.note = make("span", { className: "ew-note" });
    this.slider = make("input", {
      type: "range", min: 0, max: this.frames.length - 1, step: 1, ariaLabel: label,
    });
    this.player = make("button", { type: "button", className: "ew-play", textContent: "▶" });
    this.player.setAttribute("aria-label", this.getAttribute("play") || "");
    const stage = make("div", { className: "ew-stage" });
    this.beside = make("div", { className: "ew-beside" });
    stage.append(this.picture, this.beside, this.words);
    const rail = make("div", { className: "ew-rail" });
    rail.append(this.player, this.slider, this.note);
    this.strip = make("div", { className: "ew-strip" });
    this.frames.forEach((frame, k) => {
      const one = make("button", { type: "button", title: frame.note || frame.text || "" });
      one.setAttribute("aria-label", `${k + 1} / ${this.frames.length}`);
      if (frame.image) one.append(make("img", { src: frame.image, alt: "" }));
      else one.textContent = frame.text;
      one.addEventListener("click", () => { this.pause(); this.show(k); });
      this.strip.append(one);
    });
    this.append(stage, rail, this.strip);
    this.slider.addEventListener("input", () => { this.pause(); this.show(+this.slider.value); });
    this.player.addEventListener("click", () => (this.timer ? this.pause() : this.play()));
    this.show(Math.min(+this.getAttribute("at") || 0, this.frames.length - 1));
  }

  disconnectedCallback() { this.pause(); }

  show(k) {
    const frame = this.frames[k];
    this.slider.value = k;
    this.slider.setAttribute("aria-valuetext", [frame.note, frame.text].filter(Boolean).join(": "));
    this.picture.hidden = !frame.image;
    if (frame.image) this.picture.src = frame.image;
    this.beside.innerHTML = frame.beside || "";
    this.beside.hidden = !frame.beside;
    this.words.textContent = frame.text || "";
    this.note.textContent = frame.note || `${k + 1} / ${this.frames.length}`;
    [...this.strip.children].forEach((one, j) => one.setAttribute("aria-pressed", j === k));
    const small = this.strip.children[k], strip = this.strip;
    strip.scrollLeft = small.offsetLeft - (strip.clientWidth - small.clientWidth) / 2;
  }

  play() {
    this.player.textContent = "⏸";
    this.player.setAttribute("aria-label", this.getAttribute("pause") || "");
    if (+this.slider.value === this.frames.length - 1) this.show(0);
    this.timer = setInterval(() => {
      const next = +this.slider.value + 1;
      if (next >= this.frames.length) this.pause();
      else this.show(next);
    }, 250);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    if (!this.player) return;
    this.player.textContent = "▶";
    this.player.setAttribute("aria-label", this.getAttribute("play") || "");
  }
}
if (!customElements.get("ew-film")) customElements.define("ew-film", Film);
