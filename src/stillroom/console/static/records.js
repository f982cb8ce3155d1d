// Keyboard control of records: j and k move the focus; a, r and e decide on the focused one.
document.addEventListener("DOMContentLoaded", () => {
  "use strict";
  const entries = [...document.querySelectorAll(".entry")];
  const current = () => entries.findIndex((one) => one.contains(document.activeElement));
  const go = (at) => {
    const entry = entries[Math.max(0, Math.min(entries.length - 1, at))];
    if (!entry) return;
    entry.focus({ preventScroll: true });
    entry.scrollIntoView({ block: "nearest" });
  };
  const decide = (action) => {
    const entry = entries[current()];
    const button = entry && entry.querySelector(`.deciding button[value="${action}"]`);
    if (button) button.click();
  };
  const edit = () => {
    const entry = entries[current()];
    const form = entry && entry.querySelector("details.edit");
    if (!form) return;
    form.open = true;
    form.querySelector("textarea").focus();
  };
  if (location.hash) {
    const entry = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (entry) entry.focus({ preventScroll: true });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, dialog")) return;
    const acts = {
      j: () => go(current() + 1),
      k: () => go(current() - 1),
      a: () => decide("accept"),
      r: () => decide("reject"),
      e: edit,
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  });
});
