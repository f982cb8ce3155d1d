// Shows a document at its marked span: in a dialog over the page, or on a page of its own.
(() => {
  "use strict";
  const show = (span) => {
    span.scrollIntoView({ block: "center" });
    span.focus({ preventScroll: true });
  };

  const open = async (link) => {
    const dialog = document.getElementById("source-dialog");
    const inside = document.getElementById("source-inside");
    const address = new URL(link.href);
    document.getElementById("source-link").href = address;
    address.searchParams.set("part", "1");
    address.hash = "";
    inside.textContent = "Opening…";
    dialog.showModal();
    try {
      const reply = await fetch(address);
      const page = new DOMParser().parseFromString(await reply.text(), "text/html");
      // An error is a whole page, the source a part of one.
      const main = page.querySelector("main") || page.body;
      inside.replaceChildren(...main.childNodes);
      const span = inside.querySelector("#span");
      if (span) show(span);
      else inside.focus();
    } catch {
      inside.textContent = "The console does not answer: is it still running?";
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    const dialog = document.getElementById("source-dialog");
    if (!dialog) {
      const span = document.getElementById("span");
      if (span) show(span);
      return;
    }
    document.getElementById("source-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a.to-source");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      open(link);
    });
  });
})();
