// Two models answer the same question at once, each in its own column.
(() => {
  "use strict";
  const { chat, post, make } = window.stillroom;
  const $ = (id) => document.getElementById(id);
  let controller = null;

  const openModel = async (at) => {
    const reply = await post(`/models/open?at=${encodeURIComponent(at)}`, {});
    if (reply.ok) return (await reply.json()).model;
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    const said = page.querySelector("main .card strong");
    throw new Error(said ? said.textContent : `the console answered ${reply.status}`);
  };

  const ask = async (side, question, signal) => {
    const answer = make("div", { class: "answer", "aria-busy": "true" });
    const under = make("p", { class: "under", text: "Opening the model…" });
    side.querySelector(".turns").append(make("p", { class: "asked", text: question }), answer, under);
    const at = side.dataset.at;
    const begun = performance.now();
    let text = "", tokens = 0, first = 0;
    try {
      const model = await openModel(at);
      under.textContent = "Reading…";
      const start = performance.now();
      await chat(
        at,
        { model, messages: [{ role: "user", content: question }], max_tokens: 200, stream: true, stream_options: { include_usage: true } },
        {
          signal,
          onPiece: (piece) => {
            first = first || performance.now() - start;
            text += piece;
            answer.textContent = text;
          },
          onEnd: (usage) => (tokens = usage.completion_tokens),
        },
      );
      const seconds = (performance.now() - start) / 1000;
      under.textContent = `${tokens} tokens in ${seconds.toFixed(1)} s, the first after ${(first / 1000).toFixed(1)} s`;
    } catch (error) {
      under.textContent = error.name === "AbortError" ? "stopped" : `No answer: ${error.message}`;
    }
    answer.removeAttribute("aria-busy");
    return performance.now() - begun;
  };

  document.addEventListener("DOMContentLoaded", () => {
    const sides = [...document.querySelectorAll(".side[data-at]")];
    $("question").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        $("composer").requestSubmit();
      }
    });
    $("composer").addEventListener("submit", async (event) => {
      event.preventDefault();
      const question = $("question").value.trim();
      if (!question || controller) return;
      $("question").value = "";
      controller = new AbortController();
      $("send").disabled = true;
      $("stop").hidden = false;
      $("status").textContent = "Answering";
      await Promise.all(sides.map((side) => ask(side, question, controller.signal)));
      controller = null;
      $("send").disabled = false;
      $("stop").hidden = true;
      $("status").textContent = "Answered";
      $("question").focus();
    });
    $("stop").addEventListener("click", () => controller && controller.abort());
    $("send").disabled = !sides.length; // before, a click would have been lost
  });
})();
