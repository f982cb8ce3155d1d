// Light, dark, or as the system has it; kept on this machine. Runs before the page is drawn.
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
          // Kept for this page alone where nothing may be stored.
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
