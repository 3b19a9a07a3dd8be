// Dark or light, remembered; Ctrl+Enter makes what the open page makes.
(() => {
  const key = "everyway-theme";
  const apply = (name) => document.body && document.body.classList.toggle("dark", name === "dark");
  const wanted = () => localStorage.getItem(key) ||
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const start = () => {
    apply(wanted());
    new MutationObserver(() => {  // the page's own start sets it once more
      if (document.body.classList.contains("dark") !== (wanted() === "dark")) apply(wanted());
    }).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  };
  if (document.body) start(); else addEventListener("DOMContentLoaded", start);
  addEventListener("click", (event) => {
    if (!event.target.closest || !event.target.closest("[data-theme]")) return;
    localStorage.setItem(key, wanted() === "dark" ? "light" : "dark");
    apply(wanted());
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const open = [...document.querySelectorAll("button.primary")].find((one) => one.offsetParent);
    if (open) open.click();
  });
})();
