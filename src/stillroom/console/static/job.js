// Job: follows the events of one job, and stops or resumes it.
(() => {
  "use strict";
  const { post, problem, make } = window.stillroom;
  const $ = (id) => document.getElementById(id);
  const metrics = new Map();
  const steps = new Map();
  let source = null, isDrawing = false;

  const refresh = async () => {
    const had = $("state").contains(document.activeElement);
    const reply = await fetch(`/make/jobs/${$("job").dataset.id}?part=head`);
    if (!reply.ok) return;
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    $("state").replaceChildren(...page.body.childNodes);
    const first = $("state").querySelector("button, a.button");
    if (had && first) first.focus();
  };

  const spell = (seconds) =>
    seconds < 90 ? `${Math.ceil(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;

  const onProgress = (told) => {
    const share = told.share ?? (told.total ? told.done / told.total : 0);
    $("doing").textContent = told.total ? `${told.name}: ${told.done} of ${told.total} ${told.unit}` : `${told.name}: ${told.done} ${told.unit}`;
    if (told.total) {
      $("bar").max = 1;
      $("bar").value = share;
    } else $("bar").removeAttribute("value");
    const said = [];
    if (told.rate) said.push(`${Number(told.rate.toPrecision(3))} ${told.unit} a second`);
    if (told.seconds_left != null) said.push(`${spell(told.seconds_left)} left`);
    if (told.note) said.push(told.note);
    $("rate").textContent = said.join(" · ");
  };

  const onStep = (told) => {
    steps.set(told.number, told.name);
    const list = $("steps");
    list.hidden = false;
    list.replaceChildren();
    for (let at = 1; at <= told.of; at += 1) {
      const state = at < told.number ? "done" : at === told.number ? "now" : "";
      const item = make("li", { class: state, text: steps.get(at) || `step ${at}` });
      if (state === "now") item.setAttribute("aria-current", "step");
      list.append(item);
    }
  };

  const onMetric = (told) => {
    const step = "step" in told ? told.step : (metrics.get(told.name) || []).length;
    if (typeof told.value !== "number" || !Number.isFinite(told.value)) return;
    if (!metrics.has(told.name)) metrics.set(told.name, []);
    const points = metrics.get(told.name);
    // A resumed job continues from its last checkpoint: repeated points replace earlier ones.
    while (points.length && points[points.length - 1][0] >= step) points.pop();
    points.push([step, told.value]);
    if (isDrawing) return;
    isDrawing = true;
    setTimeout(() => {
      isDrawing = false;
      const drawn = [...metrics].filter(([, points]) => points.length > 1);
      $("curves-box").hidden = !drawn.length;
      $("curves").replaceChildren(...drawn.map(([name, points]) => window.curves.draw(name, points)));
    }, 300);
  };

  const onPhase = (told) => {
    $("phases-box").hidden = false;
    $("phases").append(
      make("tr", {}, make("th", { scope: "row", text: told.name }), make("td", { class: "number", text: String(told.count) }), make("td", { class: "number", text: String(told.seconds) })),
    );
  };

  const log = (text) => {
    const box = $("log");
    const isAtEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 4;
    box.append(make("p", { text }));
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  };

  const finish = (state) => {
    if (source) source.close();
    source = null;
    $("bar").value = state === "finished" ? $("bar").max : $("bar").value || 0;
    if (state === "finished") {
      for (const item of $("steps").children) {
        item.className = "done";
        item.removeAttribute("aria-current");
      }
      $("doing").textContent = "Finished";
      $("rate").textContent = "";
    }
    $("status").textContent = `The job is ${state}`;
    refresh();
  };

  let last = 0;
  const follow = () => {
    source = new EventSource(`/v1/jobs/${$("job").dataset.id}/events?after=${last}`);
    const on = (kind, act) =>
      source.addEventListener(kind, (event) => {
        last = Number(event.lastEventId) || last;
        act(JSON.parse(event.data));
      });
    on("progress", onProgress);
    on("metric", onMetric);
    on("step", onStep);
    on("phase", onPhase);
    on("said", (told) => log(told.text));
    on("warning", (told) => log(`warning: ${told.text}`));
    on("started", () => log("started"));
    on("resumed", () => log("resumed"));
    on("cancelled", () => log("stopped at a safe point"));
    on("finished", (told) => log(`finished, digest ${String(told.digest).slice(0, 12)}`));
    on("state", (told) => {
      $("status").textContent = `The job is ${told.state}`;
      refresh();
    });
    on("end", (told) => finish(told.state));
  };

  document.addEventListener("DOMContentLoaded", () => {
    follow();
    $("state").addEventListener("click", async (event) => {
      const button = event.target.closest("button[data-do]");
      if (!button) return;
      button.disabled = true;
      const reply = await post(`/v1/jobs/${$("job").dataset.id}/${button.dataset.do}`, {});
      if (!reply.ok) log(await problem(reply));
      await refresh();
      if (reply.ok && button.dataset.do === "resume") follow();
      const first = $("state").querySelector("button, a.button");
      if (first) first.focus();
    });
  });
})();
