// Make: collects a form into overrides of its recipe, requests the estimate, and starts the job.
(() => {
  "use strict";
  const { post, problem, make } = window.stillroom;
  const $ = (id) => document.getElementById(id);
  const size = (bytes) => {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let value = bytes, unit = 0;
    while (value >= 999.5 && unit < 4) [value, unit] = [value / 1000, unit + 1];
    return `${unit && value < 100 ? Number(value.toPrecision(3)) : Math.round(value)} ${units[unit]}`;
  };
  const spell = (seconds) => {
    if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
    return `${(seconds / 3600).toFixed(1)} h`;
  };

  const mode = () => {
    const chosen = document.querySelector('input[name="mode"]:checked');
    return chosen ? chosen.value : "yaml";
  };

  const visible = (element) => {
    for (let one = element.closest("[data-option]"); one; one = one.parentElement.closest("[data-option]"))
      if (one.hidden) return false;
    return true;
  };

  const overrides = () => {
    const told = [];
    for (const field of document.querySelectorAll("#as-form [data-path]")) {
      const text = field.value.trim();
      field.classList.remove("invalid");
      if (!text || !visible(field)) continue;
      const control = field.dataset.control;
      const isRaw = ["yaml", "integer", "number", "boolean"].includes(control);
      told.push(`${field.dataset.path}=${isRaw ? text : JSON.stringify(text)}`);
      // A default option with changed settings is named as well, and so are those around it.
      for (let one = field.closest("[data-option]"); one; one = one.parentElement.closest("[data-option]")) {
        const named = `${one.closest("[data-method]").dataset.method}=`;
        if (!told.some((line) => line.startsWith(named))) told.unshift(`${named}${JSON.stringify(one.dataset.option)}`);
      }
    }
    const more = $("more") ? $("more").value.split("\n") : [];
    return told.concat(more.map((line) => line.trim()).filter(Boolean));
  };

  const body = () => {
    if (mode() === "yaml") return { recipe: $("yaml").value, overrides: [] };
    const kind = $("job").dataset.kind;
    const recipe = kind.includes("/") ? $("yaml").defaultValue : { version: 1, kind };
    return { recipe, overrides: overrides() };
  };

  const row = (name, need, free, isOver) =>
    make(
      "tr", {},
      make("th", { scope: "row", text: name }),
      make("td", { class: "number", text: need }),
      make("td", { class: `number${isOver ? " bad" : ""}`, text: free }),
    );

  const tellProblems = (told, problems) => {
    for (const one of problems) {
      const box = make("div", { class: "note bad" }, make("p", {}, make("strong", { text: one.what })));
      if (one.where) box.append(make("p", { text: `where: ${one.where}` }));
      if (one.expected) box.append(make("p", { text: `expected ${one.expected}` }));
      if (one.next) box.append(make("p", { text: `next: ${one.next}` }));
      told.append(box);
      for (const field of document.querySelectorAll("#as-form [data-path]"))
        if (one.where && one.where.split(/[\s':]/).includes(field.dataset.path)) field.classList.add("invalid");
    }
  };

  const tell = (found) => {
    const told = $("told");
    told.replaceChildren();
    if (found.estimate) {
      const { estimate, machine } = found;
      const body = make("tbody", {});
      body.append(
        row("memory", size(estimate.memory_bytes), size(machine.memory_bytes), estimate.memory_bytes > machine.memory_bytes),
        row("disk", size(estimate.disk_bytes), size(machine.disk_bytes), estimate.disk_bytes > machine.disk_bytes),
        row("time", `about ${spell(estimate.seconds)}`, `${machine.cores} cores`, false),
      );
      const head = make("thead", {}, make("tr", {}, make("td", {}), make("th", { scope: "col", class: "number", text: "needs" }), make("th", { scope: "col", class: "number", text: "free" })));
      told.append(make("table", {}, make("caption", { text: "Estimate, within a factor of three" }), head, body));
      if (estimate.basis)
        told.append(make("details", {}, make("summary", { text: "Basis of the estimate" }), make("p", { class: "small quiet", text: estimate.basis })));
    }
    for (const line of found.warnings || []) told.append(make("p", { class: "note", text: line }));
    tellProblems(told, found.problems || []);
    const isReady = found.valid && found.fits !== false && !(found.problems || []).length;
    if (isReady) told.append(make("p", { class: "note good", text: "It fits this machine." }));
    $("start").disabled = !isReady;
    $("start").classList.toggle("first", isReady);
    $("check").classList.toggle("first", !isReady);
    $("why").hidden = isReady;
  };

  const say = (text, isBad) => $("told").replaceChildren(make("p", { class: isBad ? "note bad" : "quiet", text }));

  const check = async () => {
    $("check").disabled = true;
    say("Estimating…", false);
    try {
      const reply = await post("/v1/recipes/check", body());
      if (reply.ok) tell(await reply.json());
      else say(await problem(reply), true);
    } catch {
      say("The console does not answer: is it still running?", true);
    }
    $("check").disabled = false;
  };

  const start = async () => {
    $("start").disabled = true;
    const reply = await post("/v1/jobs", { ...body(), name: $("label").value.trim() });
    if (reply.ok) window.location.href = `/make/jobs/${(await reply.json()).id}`;
    else {
      say(await problem(reply), true);
      $("start").disabled = false;
    }
  };

  const showOptions = (method) => {
    const select = method.querySelector(":scope > select");
    const chosen = select.value || select.dataset.default;
    for (const one of method.querySelectorAll(":scope > [data-option]")) one.hidden = one.dataset.option !== chosen;
  };

  document.addEventListener("DOMContentLoaded", () => {
    for (const method of document.querySelectorAll("[data-method]")) {
      showOptions(method);
      method.querySelector(":scope > select").addEventListener("change", () => showOptions(method));
    }
    for (const radio of document.querySelectorAll('input[name="mode"]'))
      radio.addEventListener("change", () => {
        $("as-form").hidden = mode() !== "form";
        $("as-yaml").hidden = mode() !== "yaml";
      });
    $("job").addEventListener("input", (event) => {
      if (event.target.id === "label") return;
      $("start").disabled = true;
      $("start").classList.remove("first");
      $("check").classList.add("first");
      $("why").hidden = false;
    });
    $("job").addEventListener("submit", (event) => {
      event.preventDefault();
      check();
    });
    $("check").addEventListener("click", check);
    $("check").disabled = false; // before, a click would have been lost
    $("start").addEventListener("click", start);
  });
})();
