// A button of the bar opens its page, and shows which is open however it came to be.  The address
// names it, so that the browser's back button, a reload and the other language stay on it.
const names = [...element.querySelectorAll("[data-page]")].map((one) => one.dataset.page);
const first = names[0];
const asked = () => (names.includes(location.hash.slice(1)) ? location.hash.slice(1) : first);
const open = (name) => {
  window.everywayPage = { selected: name, __type__: "update" };
  trigger("select", { value: name, index: 0 });
};
const mark = (name) => {
  for (const one of element.querySelectorAll("[data-page]")) {
    if (one.dataset.page === name) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
  const hash = name === first ? "" : `#${name}`;
  if (asked() !== name) history.pushState(null, "", location.pathname + hash);
  document.querySelector(".ew-switches a").hash = hash;
};
let shown = first;
mark(asked());
if (asked() !== first) open(asked());
element.addEventListener("click", (event) => {
  const one = event.target.closest("[data-page]");
  if (one) open(one.dataset.page);
});
addEventListener("popstate", () => open(asked()));
const changed = { attributes: true, subtree: true, attributeFilter: ["style", "class"] };
new MutationObserver(() => {
  const now = [...document.querySelectorAll("[id^=page-]")].find((one) => one.offsetParent);
  if (!now || now.id.slice(5) === shown) return;
  shown = now.id.slice(5);
  mark(shown);
}).observe(document.querySelector("#ew-pages") || document.body, changed);
