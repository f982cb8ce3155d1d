// API client: one streamed reply, read event by event.
window.stillroom = (() => {
  "use strict";
  const token = () => document.querySelector('meta[name="stillroom-token"]').content;

  const post = async (address, body, signal) => {
    const headers = { "content-type": "application/json", "x-stillroom-token": token() };
    try {
      return await fetch(address, { method: "POST", headers, body: JSON.stringify(body), signal });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Error("the console gives no answer: does it still run?");
    }
  };

  const problem = async (reply) => {
    try {
      const told = await reply.json();
      return told.error ? told.error.message : reply.statusText;
    } catch {
      return `the console answered ${reply.status}`;
    }
  };

  const events = async function* (reply) {
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
    }
  };

  // Streams a chat; reports every piece, canvas and closing delta.
  const chat = async (at, body, { onPiece, onDelta, onCanvas, onEnd, signal }) => {
    const reply = await post(`/v1/chat/completions?at=${encodeURIComponent(at)}`, body, signal);
    if (!reply.ok) throw new Error(await problem(reply));
    for await (const event of events(reply)) {
      if (event.error) throw new Error(event.error.message);
      if (event.canvas && onCanvas) onCanvas(event.canvas);
      if (event.usage && onEnd) onEnd(event.usage);
      const choice = event.choices[0];
      if (!choice) continue;
      if (choice.delta.content && onPiece) onPiece(choice.delta.content);
      if (choice.delta.citations && onDelta) onDelta(choice.delta);
      if (choice.finish_reason && onDelta) onDelta({ finish_reason: choice.finish_reason });
    }
  };

  const opened = new Map();
  const open = (at) => {
    if (!opened.has(at)) {
      const asked = post(`/ask/open?at=${encodeURIComponent(at)}`, {}).then(async (reply) => {
        if (reply.ok) return reply.json();
        const page = new DOMParser().parseFromString(await reply.text(), "text/html");
        const said = page.querySelector("main .card strong");
        throw new Error(said ? said.textContent : `the console answered ${reply.status}`);
      });
      opened.set(at, asked);
      asked.catch(() => opened.delete(at));
    }
    return opened.get(at);
  };

  const make = (name, more = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(more)) {
      if (key === "class") element.className = value;
      else if (key === "text") element.textContent = value;
      else if (value === true) element.setAttribute(key, "");
      else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  };

  const svg = (name, more = {}, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(more)) {
      if (key === "text") element.textContent = value;
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  };

  const kinds = ["human", "synthetic", "suspected-fake"];
  const badge = (kind) => {
    const name = kinds.includes(kind) ? kind : "unknown";
    return make("span", { class: `badge ${name}`, text: name });
  };

  return { token, post, problem, events, chat, open, make, svg, badge };
})();
