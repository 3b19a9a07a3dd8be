// A button of the bar opens its page, and shows which is open however it came to be.
const pages = [...element.querySelectorAll("[data-page]")];
const mark = (name) => {
  for (const one of pages) {
    if (one.dataset.page === name) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
};
mark("create");
element.addEventListener("click", (event) => {
  const one = event.target.closest("[data-page]");
  if (!one) return;
  window.everywayPage = { selected: one.dataset.page, __type__: "update" };
  trigger("select", { value: one.dataset.page, index: 0 });
});
const changed = { attributes: true, subtree: true, attributeFilter: ["style", "class"] };
new MutationObserver(() => {
  const open = [...document.querySelectorAll("[id^=page-]")].find((one) => one.offsetParent);
  if (open) mark(open.id.slice(5));
}).observe(document.querySelector("#ew-pages") || document.body, changed);
