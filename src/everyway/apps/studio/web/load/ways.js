// A way of the plane is a button.
const choose = (event) => {
  const way = event.target.closest("[data-way]");
  if (!way || (event.type === "keydown" && !["Enter", " "].includes(event.key))) return;
  event.preventDefault();
  trigger("select", { value: way.dataset.way, index: 0 });
};
element.addEventListener("click", choose);
element.addEventListener("keydown", choose);
