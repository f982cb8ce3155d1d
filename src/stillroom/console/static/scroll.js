// Shows a hint above each table that is wider than the page.
document.addEventListener("DOMContentLoaded", () => {
  for (const region of document.querySelectorAll(".scroll")) {
    const hint = document.createElement("p");
    hint.className = "quiet small";
    hint.textContent = "Scroll sideways to see all columns.";
    region.before(hint);
    const update = () => (hint.hidden = region.scrollWidth <= region.clientWidth + 1 || !region.querySelector("table"));
    new ResizeObserver(update).observe(region);
    update();
  }
});
