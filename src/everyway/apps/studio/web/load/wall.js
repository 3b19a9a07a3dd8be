// A result of the gallery is a button; the chosen one is pressed.
element.addEventListener("click", (event) => {
  const one = event.target.closest("[data-row]");
  if (!one) return;
  for (const other of element.querySelectorAll("[data-row]"))
    other.setAttribute("aria-pressed", other === one);
  trigger("select", { index: +one.dataset.row, value: "" });
  document.querySelector("#told")?.scrollIntoView({ behavior: "smooth", block: "nearest" });
});
