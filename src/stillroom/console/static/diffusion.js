// Diffusion: plays and scrubs the steps of a text, and compares decoding settings.
(() => {
  "use strict";
  const { post, problem, make, svg } = window.stillroom;
  const $ = (id) => document.getElementById(id);
  const runs = [];
  const isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  const show = (canvas, told, at) => {
    const step = told.steps[at];
    const written = new Set(step.written), changed = new Set(step.changed);
    canvas.replaceChildren(
      ...step.pieces.map((piece, place) => {
        if (piece === null) return make("span", { class: "open-place", text: "·" });
        const kind = changed.has(place) ? "place changed" : written.has(place) ? "place new" : "place";
        return make("span", { class: kind, title: `confidence ${step.confidence[place]}`, text: piece });
      }),
    );
  };

  const lane = (number, told, way) => {
    const last = told.steps.length - 1;
    const canvas = make("div", { class: "canvas", "aria-live": "off" });
    const said = make("output", { class: "small quiet" });
    const slider = make("input", { type: "range", min: "0", max: String(last), value: "0", id: `step-${number}` });
    const play = make("button", { type: "button", text: "Play" });
    let timer = null;
    const go = (at) => {
      slider.value = String(at);
      show(canvas, told, at);
      const step = told.steps[at];
      const open = step.pieces.filter((one) => one === null).length;
      said.textContent = `step ${at + 1} of ${last + 1}, ${step.nfe} passes, ${step.written.length} new, ${open} masked`;
      slider.setAttribute("aria-valuetext", said.textContent);
    };
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    };
    const start = () => {
      if (Number(slider.value) >= last) go(0);
      play.textContent = "Pause";
      timer = setInterval(() => {
        const at = Number(slider.value);
        if (at >= last) stop();
        else go(at + 1);
      }, Math.max(60, Math.min(400, 6000 / (last + 1))));
    };
    slider.addEventListener("input", () => {
      stop();
      go(Number(slider.value));
    });
    play.addEventListener("click", () => (timer ? stop() : start()));
    const box = make(
      "section", { class: "card", "aria-label": `text ${number}` },
      make("div", { class: "row apart" }, make("h2", { text: `${number}. ${way}` }), play),
      make("div", { class: "scrub" }, make("label", { for: slider.id, class: "away", text: "Step" }), slider, said),
      canvas,
      make("details", {}, make("summary", { text: "Final text" }), make("p", { class: "pre", text: told.result.text })),
    );
    go(isStill() ? last : 0);
    if (!isStill()) start();
    return box;
  };

  const list = () => {
    $("table-box").hidden = false;
    const most = Math.max(...runs.map((one) => one.told.result.nfe));
    $("rows").replaceChildren(
      ...runs.map(({ number, way, told, seconds }) => {
        const { nfe, steps, tokens } = told.result;
        const bar = svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", class: "nfe", "aria-hidden": "true" },
          svg("rect", { width: String((100 * nfe) / most), height: "8", fill: "var(--accent)" }));
        const cell = (text) => make("td", { class: "number", text });
        return make("tr", {}, make("td", { text: String(number) }), make("th", { scope: "row", text: way }), cell(String(nfe)), make("td", {}, bar), cell(String(steps)), cell(String(tokens)), cell((tokens / (nfe || 1)).toFixed(2)), cell(seconds.toFixed(1)));
      }),
    );
  };

  const wanted = () => {
    const told = {};
    for (const id of ["prompt", "order", "commit", "remasking"]) told[id] = $(id).value;
    for (const id of ["at_once", "block_length", "max_new_tokens", "temperature", "seed"])
      if ($(id).value !== "") told[id] = Number($(id).value);
    told.is_chat = $("is_chat").checked;
    return told;
  };

  const name = (told) =>
    [told.order, told.at_once ? `${told.at_once} a step` : told.commit, told.remasking, told.block_length ? `blocks of ${told.block_length}` : "", told.temperature ? `temperature ${told.temperature}` : ""].filter(Boolean).join(", ");

  document.addEventListener("DOMContentLoaded", () => {
    if (!$("ask")) return;
    $("ask").addEventListener("submit", async (event) => {
      event.preventDefault();
      $("write").disabled = true;
      $("status").textContent = "Writing…";
      const asked = wanted();
      const begun = performance.now();
      try {
        const reply = await post(`/diffusion/write?at=${encodeURIComponent($("model").value)}`, asked);
        const isJson = (reply.headers.get("content-type") || "").startsWith("application/json");
        if (!reply.ok) {
          const page = isJson ? null : new DOMParser().parseFromString(await reply.text(), "text/html");
          const said = page && page.querySelector("main .card strong");
          $("status").textContent = said ? said.textContent : isJson ? await problem(reply) : `the console answered ${reply.status}`;
        } else {
          const told = await reply.json();
          const seconds = (performance.now() - begun) / 1000;
          if (told.steps.length) {
            const number = runs.length + 1;
            runs.push({ number, way: name(asked), told, seconds });
            list();
            $("lanes").prepend(lane(number, told, name(asked)));
            $("status").textContent = `Text ${number}: ${told.result.tokens} tokens in ${told.result.nfe} passes`;
          } else $("status").textContent = "No text was generated.";
        }
      } catch {
        $("status").textContent = "The console does not answer: is it still running?";
      }
      $("write").disabled = false;
    });
    $("write").disabled = false; // before, a click would have sent the form itself
  });
})();
