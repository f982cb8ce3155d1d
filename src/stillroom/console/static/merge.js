// Merge: conflict of task vectors by layer, and the loss along the line between two models.
(() => {
  "use strict";
  const { post, problem, make } = window.stillroom;
  const $ = (id) => document.getElementById(id);

  const told = async (reply) => {
    const isJson = (reply.headers.get("content-type") || "").startsWith("application/json");
    if (reply.ok && isJson) return reply.json();
    if (isJson) throw new Error(await problem(reply));
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    const said = page.querySelector("main .card strong");
    throw new Error(said ? said.textContent : `the console answered ${reply.status}`);
  };

  const ticking = (where, words) => {
    const begun = Date.now();
    const say = () => (where.textContent = `${words} ${Math.round((Date.now() - begun) / 1000)} s`);
    say();
    const timer = setInterval(say, 1000);
    return () => {
      clearInterval(timer);
      where.textContent = "";
    };
  };

  const show = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
  // The color is approximate, the number exact.
  const cell = (value, share, color) => {
    const element = make("td", { class: "number", text: show(value) });
    if (value !== null && value !== undefined)
      element.style.background = `color-mix(in srgb, var(${color}) ${Math.round(45 * Math.min(1, Math.max(0, share)))}%, transparent)`;
    return element;
  };

  const short = (name) => name.replace(/\/+$/, "").split("/").pop();
  const draw = (found) => {
    $("found").hidden = false;
    const pairs = found.whole.pairs.map((one) => one.parents.map((at) => short(found.parents[at])).join(" · "));
    const first = make("tr", {}, make("td", {}));
    const second = make("tr", {}, make("th", { scope: "col", text: "Layer" }));
    for (const pair of pairs) {
      first.append(make("th", { scope: "colgroup", colspan: "3", text: pair }));
      for (const name of ["cosine", "opposite signs", "kept by both"]) second.append(make("th", { scope: "col", class: "number", text: name }));
    }
    first.append(make("td", {}));
    second.append(make("th", { scope: "col", class: "number", text: "cancels" }));
    $("heads").replaceChildren(first, second);
    const rows = Object.entries({ "all of it": found.whole, ...found.layers });
    $("layers").replaceChildren(
      ...rows.map(([name, facts]) => {
        const row = make("tr", {}, make("th", { scope: "row", text: name }));
        for (const pair of facts.pairs)
          row.append(
            cell(pair.cosine, Math.abs(pair.cosine || 0), (pair.cosine || 0) < 0 ? "--bad" : "--good"),
            cell(pair.sign_conflict, 2 * (pair.sign_conflict || 0), "--bad"),
            cell(pair.kept_overlap, pair.kept_overlap || 0, "--second"),
          );
        row.append(cell(facts.cancelling, 2 * facts.cancelling, "--bad"));
        return row;
      }),
    );
    const lengths = found.parents.map((name, at) => `${short(name)} moved by ${(100 * found.whole.relative_norms[at]).toFixed(2)} % of the base`);
    $("summary").textContent = `${lengths.join("; ")}. In the sum of the task vectors ${(100 * found.whole.cancelling).toFixed(1)} % of all magnitude cancels.`;
  };

  const recipe = (ends, share) =>
    `version: 1\nkind: merge.weights\nmethod: {name: linear}\nmodels:\n` +
    ends.map((name, at) => `  - {model: ${JSON.stringify(name)}, weight: ${at ? share : Number((1 - share).toFixed(6))}}\n`).join("");

  const slide = (found) => {
    const at = Number($("share").value);
    const point = found.points[at];
    const text = `${point.share} of ${short(found.parents[1])}: ${point.value.toFixed(4)} nats a token, ${show(point.low)} to ${show(point.high)}`;
    $("at-share").textContent = text;
    $("share").setAttribute("aria-valuetext", text);
    $("make").href = `/make/new?kind=merge.weights&recipe=${encodeURIComponent(recipe(found.parents, point.share))}`;
    const dot = $("curve").querySelector("circle");
    const line = $("curve").querySelector("polyline");
    if (dot && line) {
      const [x, y] = line.getAttribute("points").split(" ")[at].split(",");
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", y);
      dot.setAttribute("r", "4");
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    if (!$("parents")) return;
    let path = null;
    $("parents").addEventListener("submit", async (event) => {
      event.preventDefault();
      const query = new URLSearchParams({ base: $("base").value, density: $("density").value });
      for (const box of document.querySelectorAll('#parents input[name="m"]:checked')) query.append("m", box.value);
      $("conflict").disabled = true;
      const done = ticking($("status"), "Reading every tensor…");
      try {
        const found = await told(await post(`/merge/conflict?${query}`, {}));
        done();
        draw(found);
      } catch (error) {
        done();
        $("status").textContent = error.message;
      }
      $("conflict").disabled = false;
    });
    $("line").addEventListener("submit", async (event) => {
      event.preventDefault();
      const query = new URLSearchParams({ records: $("records").value, n: $("n").value, points: $("points").value });
      query.append("m", $("first").value);
      query.append("m", $("second").value);
      $("measure").disabled = true;
      const done = ticking($("line-status"), "Measuring…");
      try {
        path = await told(await post(`/merge/path?${query}`, {}));
        done();
        $("path").hidden = false;
        $("share").max = String(path.points.length - 1);
        $("share").value = String(path.best);
        $("curve").replaceChildren(window.curves.draw(path.held_out ? "held-out loss" : "loss", path.points.map((one) => [one.share, one.value]), "share"));
        const where = path.held_out ? "held out of training" : "not marked as held out of training";
        $("barrier").textContent = `Barrier ${path.barrier.toFixed(4)} nats; lowest at a share of ${path.points[path.best].share}. Over ${path.records} records, ${where}.`;
        slide(path);
      } catch (error) {
        done();
        $("line-status").textContent = error.message;
      }
      $("measure").disabled = false;
    });
    $("share").addEventListener("input", () => path && slide(path));
    $("conflict").disabled = $("measure").disabled = false; // before, a click would have sent the form itself
  });
})();
