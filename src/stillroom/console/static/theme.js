// Light, dark, or system theme; stored in the browser. Runs before the page is drawn.
(() => {
  "use strict";
  const names = ["system", "light", "dark"];
  const read = () => {
    try {
      const kept = localStorage.getItem("theme");
      return names.includes(kept) ? kept : "system";
    } catch {
      return "system";
    }
  };
  const apply = (name) => {
    if (name === "system") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.dataset.theme = name;
    for (const select of document.querySelectorAll("select.theme")) select.value = name;
  };
  apply(read());
  document.addEventListener("DOMContentLoaded", () => {
    apply(read());
    for (const select of document.querySelectorAll("select.theme")) {
      select.addEventListener("change", () => {
        try {
          localStorage.setItem("theme", select.value);
        } catch {
          // Without storage the choice lasts for this page alone.
        }
        apply(select.value);
      });
    }
    const menu = document.querySelector(".menu");
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && menu && menu.open) {
        menu.open = false;
        menu.querySelector("summary").focus();
      }
    });
  });
})();
