// Ask: streams an answer, links its marks to their sources, lists what was retrieved, takes judgments
// of the answer, and finds its words verbatim.
(() => {
  "use strict";
  const { chat, open, post, problem, make, svg, badge } = window.stillroom;
  const $ = (id) => document.getElementById(id);
  const KEPT = 20;
  const FLAGS = JSON.parse(($("talk") && $("talk").dataset.flags) || "{}"); // what each may mean
  const SENT_BEFORE = 6; // earlier questions, for a follow-up
  const NEAREST = 2; // passages shown if none is cited; the others are folded
  const AROUND = 80; // characters of a passage shown beside a quote

  // Opens a document at quotes, if any are given, or at a passage.
  const sourceLink = (at, passage, quotes) => {
    const places = quotes.map((one) => [one.start, one.end, one.byte_start, one.byte_end].join("-"));
    const marked = places.length ? `&quote=${encodeURIComponent(places.join(","))}` : "";
    return `/source?at=${encodeURIComponent(at)}&passage=${encodeURIComponent(passage)}${marked}#span`;
  };

  // A file with pages is a whole: its bytes say nothing of the place.
  const where = ({ pages, byte_start, byte_end }) =>
    pages.length ? `page ${pages[0]}` : `bytes ${byte_start}–${byte_end}`;

  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  const countMarks = (parts, state) => {
    const marks = parts.answer.querySelectorAll("a.cite").length;
    if (!state.details.abstained) return plural(marks, "citation");
    if (!marks) return "no answer";
    return `no answer, ${plural(marks, (state.details.quotes || []).length ? "nearest sentence" : "nearest passage")}`;
  };

  // The text with its marks as links and its unsupported sentences underlined.
  const render = (answer, state) => {
    const cited = new Map((state.citations || []).map((one) => [one.number, one]));
    const open = (state.details.statements || []).filter(
      (one) => "start" in one && (one.status === "unsupported" || one.status === "unverified"),
    );
    const cuts = new Set([0, state.text.length]);
    // Positions count characters as Python does; a letter outside the BMP is two of JavaScript's.
    const letters = Array.from(state.text);
    const place = [0];
    for (const letter of letters) place.push(place[place.length - 1] + letter.length);
    const spans = open.map((one) => ({ ...one, from: place[one.start], to: place[one.end] }));
    for (const span of spans) cuts.add(span.from).add(span.to);
    const length = (text) => Array.from(text).length;
    const isShort = (one) => one.short && !state.details.abstained;
    const quotes = (state.details.quotes || []).map((one) => {
      const short = one.answer_start + one.short_start - one.start;
      return {
        ...one,
        from: place[one.answer_start],
        to: place[one.answer_start + length(one.text)],
        shortFrom: isShort(one) ? place[short] : -1,
        shortTo: isShort(one) ? place[short + length(one.short)] : -1,
      };
    });
    for (const one of quotes) {
      cuts.add(one.from).add(one.to);
      if (isShort(one)) cuts.add(one.shortFrom).add(one.shortTo);
    }
    const endsAt = (mark) => quotes.find((one) => one.to + 1 === mark.index);
    // A mark cites all quotes since the one before it.
    const citedBy = (mark) => {
      const last = quotes.indexOf(endsAt(mark));
      let first = last;
      while (first > 0 && !marks.some((one) => one.index === quotes[first - 1].to + 1)) first -= 1;
      return last < 0 ? [] : quotes.slice(first, last + 1);
    };
    // What looks like a mark within a quote is the document's own.
    const marks = [...state.text.matchAll(/\[(\d{1,3})\]/g)].filter(
      (m) => cited.has(Number(m[1])) && (!quotes.length || endsAt(m)),
    );
    for (const mark of marks) cuts.add(mark.index).add(mark.index + mark[0].length);
    // Line ends that only wrap a quote's prose are shown as spaces.
    const soft = new Set(
      quotes.flatMap((one) => (one.soft_breaks || []).map((n) => place[one.answer_start + n])),
    );
    const at = [...cuts].filter((n) => n !== undefined).sort((a, b) => a - b);
    answer.replaceChildren();
    let box = null;
    for (let i = 0; i + 1 < at.length; i += 1) {
      const text = state.text.slice(at[i], at[i + 1]);
      const mark = marks.find((m) => m.index === at[i] && m[0] === text);
      if (mark) {
        const one = cited.get(Number(mark[1]));
        const run = citedBy(mark);
        const bytes = run.length ? { ...run[run.length - 1], byte_start: run[0].byte_start } : one;
        answer.append(
          make("a", {
            class: "cite to-source",
            href: sourceLink(state.at, one.passage_id, run),
            title: [`${one.path}: ${where(bytes)}`, ...(bytes.headings || [])].join(" › "),
            "aria-label": `source ${one.number}, ${one.path}`,
            text: mark[1],
          }),
        );
        continue;
      }
      const quote = quotes.find((one) => one.from <= at[i] && at[i + 1] <= one.to);
      if (quote) {
        if (at[i] === quote.from) answer.append((box = make("q")));
        const isShort = quote.shortFrom <= at[i] && at[i + 1] <= quote.shortTo;
        const words = text.replace(/[^\S\n]*\n\s*/g, (gap, n) =>
          soft.has(at[i] + n + gap.indexOf("\n")) ? " " : gap,
        );
        box.append(isShort ? make("mark", { title: "short answer", text: words }) : words);
        continue;
      }
      const span = spans.find((s) => s.from <= at[i] && at[i + 1] <= s.to);
      if (span && text.trim()) {
        const why =
          span.status === "unverified" ? "its citation does not say this" : "no passage says this";
        answer.append(make("span", { class: "open", title: why, text }));
      } else {
        answer.append(text);
      }
    }
  };

  const scoreBar = (score, best) => {
    const share = best > 0 ? Math.max(0, Math.min(1, score / best)) : 0;
    const bar = svg("svg", { viewBox: "0 0 100 5", preserveAspectRatio: "none", "aria-hidden": "true" });
    bar.append(
      svg("rect", { width: "100", height: "5", fill: "var(--line)" }),
      svg("rect", { width: String(share * 100), height: "5", fill: "var(--accent)" }),
    );
    return make("div", { class: "score" }, bar, make("span", { text: `score ${score.toPrecision(3)}` }));
  };

  // The lines of a passage that are headings, in Markdown, which parsers of pages write, too: from,
  // where its words begin, to. A text without sections may have other lines that begin so. Those
  // that it opens with and that stand above it show no words.
  const findHeadings = ({ text, headings }) => {
    const found = [];
    const flat = (line) => line.trim().split(/\s+/).join(" ");
    const named = new Set((headings || []).map(flat));
    let at = 0, isCode = false, isOpening = true;
    const isFence = (line) => /^\s*(```|~~~)/.test(line);
    const lines = headings && headings.length ? text.split("\n") : [];
    if (lines.filter(isFence).length % 2) return []; // it begins or ends in code
    for (const line of lines) {
      if (isFence(line)) isCode = !isCode;
      const mark = isCode ? null : /^#{1,6} +(?=\S)/.exec(line);
      const end = at + line.length;
      isOpening &&= !line.trim() || (mark && named.has(flat(line.slice(mark[0].length))));
      if (mark) found.push([at, isOpening && text.slice(end).trim() ? end : at + mark[0].length, end]);
      at = end + 1;
    }
    return found;
  };

  // Adds a part of a passage, its headings without their marks.
  const addPart = (box, told, from, to) => {
    let at = from;
    for (const [start, words, end] of findHeadings(told)) {
      if (end <= at || start >= to) continue;
      if (start > at) box.append(told.text.slice(at, start));
      at = Math.min(end, to);
      const shown = told.text.slice(Math.max(words, from), at);
      if (shown) box.append(make("strong", { text: shown }), " ");
    }
    if (at < to) box.append(told.text.slice(at, to));
  };

  // A passage with its quotes marked. With neighbours a quote
  // counts from the first of them; it is then looked for, and not marked if it is in another.
  // What is far from every quote is left out, so that each is shown whole.
  const markQuotes = (told, quotes) => {
    const shown = make("p", { class: "text" });
    const { text } = told;
    const letters = Array.from(text);
    const addBetween = (from, to, isFirst, isLast) => {
      const part = text.slice(from, to);
      const long = part.length > (isFirst || isLast ? AROUND : 2 * AROUND);
      if (!long || !quotes.length) return addPart(shown, told, from, to);
      const before = isFirst ? "" : part.slice(0, AROUND).replace(/\S*$/, "");
      const after = isLast ? "" : part.slice(-AROUND).replace(/^\S*/, "");
      addPart(shown, told, from, from + before.length);
      shown.append("…");
      return addPart(shown, told, to - after.length, to);
    };
    let end = 0;
    for (const quote of [...quotes].sort((one, other) => one.start - other.start)) {
      const own = letters.slice(0, quote.start).join("").length;
      const at = text.startsWith(quote.text, own) ? own : text.indexOf(quote.text, end);
      if (at < end) continue;
      addBetween(end, at, !end, false);
      shown.append(make("mark", { text: quote.text }));
      end = at + quote.text.length;
    }
    if (end) addBetween(end, text.length, false, true);
    else addPart(shown, told, 0, text.length);
    shown.classList.toggle("quoted", end > 0);
    return shown;
  };

  const VERDICTS = [
    ["right", "Right"], ["wrong", "Wrong"], ["quote", "This sentence…"], ["absent", "Not in the documents"],
  ];

  // The question that was answered: of a follow-up the whole question that it was read as, or none.
  const findRead = (state) => {
    const reading = (state.details.trace || []).find((one) => one.antecedents || one.step === "stand_alone");
    return reading ? (reading.antecedents && reading.query) || "" : state.question;
  };

  // Stores a verdict; "quote" names a sentence of the passages.
  const judge = async (parts, state, verdict, quote = "") => {
    const citations = (state.citations || []).map(({ number, passage_id }) => ({ number, passage_id }));
    parts.judged.textContent = "Storing…";
    try {
      const reply = await post(`/v1/judgments?at=${encodeURIComponent(state.at)}`, {
        model: state.model, question: findRead(state), answer: state.text, citations,
        quotes: (state.details.quotes || []).map(
          ({ text, answer_start, start, short, short_start }) =>
            short ? { text, answer_start, start, short, short_start } : { text, answer_start, start },
        ),
        index: state.details.index || "", answered_by: state.details.answered_by || "", verdict, quote,
      });
      if (!reply.ok) throw new Error(await problem(reply));
      const told = await reply.json();
      for (const button of parts.verdicts.querySelectorAll("[data-verdict]"))
        button.setAttribute("aria-pressed", String(button.dataset.verdict === told.verdict));
      const use = told.split === "test" ? "evaluation" : "training";
      const kept = told.evidence.length ? `for ${use}` : "for evaluation only";
      const what = quote ? `“${quote}” answers` : VERDICTS.find(([name]) => name === told.verdict)[1];
      const learned = told.evidence.map((one) => `, learned from “${one.quote}”`).join("");
      const lost = (state.details.quotes || []).length
        ? " (the documents changed: none holds the quoted sentence)"
        : " (it quotes no sentence, so readers cannot be trained on it)";
      const note = told.verdict !== "right" ? "" : learned || lost;
      const asked = findRead(state) === state.question ? "" : ` as the answer to “${findRead(state)}”`;
      parts.judged.textContent = told.verdict === "wrong"
        ? `Stored${asked}: Wrong. If a sentence answers, choose it.`
        : `Stored ${kept}${asked}: ${what}${note}`;
      if (told.verdict === "wrong") pickSentence(parts, state, true);
    } catch (error) {
      parts.judged.textContent = `It was not stored: ${error.message}`;
    }
  };

  // Makes every sentence of the listed passages a button, or the texts plain again.
  const pickSentence = (parts, state, isPicking) => {
    const wasPicking = parts.article.classList.contains("picking");
    parts.article.classList.toggle("picking", isPicking);
    for (const fold of parts.list.querySelectorAll("details"))
      if (isPicking !== wasPicking) fold.open = isPicking;
    for (const [text, told, quotes] of parts.texts) {
      text.replaceChildren(...markQuotes(told, quotes).childNodes);
      if (!isPicking) continue;
      text.replaceChildren();
      const letters = Array.from(told.text);
      const length = (from, to) => letters.slice(from, to).join("").length;
      let at = 0, place = 0;
      for (const [start, end] of told.sentences) {
        const sentence = letters.slice(start, end).join("");
        const button = make("button", { class: "sentence", type: "button", text: sentence });
        button.addEventListener("click", () => {
          pickSentence(parts, state, false);
          parts.verdicts.querySelector("[data-verdict=quote]").focus(); // the button has gone
          judge(parts, state, "quote", sentence);
        });
        const begin = place + length(at, start);
        addPart(text, told, place, begin);
        text.append(button);
        at = end;
        place = begin + sentence.length;
      }
      addPart(text, told, place, told.text.length);
    }
  };

  // The words of an answer in their places, and those of the program's own remarks between quotes.
  const splitRemarks = (state) => {
    const letters = Array.from(state.text);
    const quotes = (state.details.quotes || []).map(
      (one) => [one.answer_start, one.answer_start + Array.from(one.text).length],
    );
    const isOwn = (n) =>
      quotes.length ? !quotes.some(([from, to]) => from <= n && n < to) : Boolean(state.details.abstained);
    const pick = (isPicked) => letters.map((letter, n) => (isPicked(n) ? letter : " ")).join("");
    return [pick((n) => !isOwn(n)), pick(isOwn)];
  };

  // Lists where the answer's words stand verbatim: documents with bytes, and training records.
  const trace = async (parts, state) => {
    parts.traced.replaceChildren(make("p", { class: "under", text: "Looking for its words…" }));
    const letters = Array.from(state.text);
    const [text] = splitRemarks(state);
    try {
      const reply = await post(`/v1/traces?at=${encodeURIComponent(state.at)}`, {
        model: state.model, text, cited: (state.citations || []).map((one) => one.number),
      });
      if (!reply.ok) throw new Error(await problem(reply));
      const told = await reply.json();
      const said = told.own.map(([start, end]) => `“${letters.slice(start, end).join("")}”`).join(", ");
      const own = told.own_words ? `not found: ${said}` : "all were found";
      const counts = `${told.in_documents} of ${plural(told.words, "word")} verbatim in documents, ${told.in_records} in training records`;
      const list = make("ul", { class: "passages", "aria-label": "Where its words stand" });
      for (const span of told.spans) {
        const item = make("li", { class: "passage" }, make("p", {}, make("mark", { text: span.text })));
        const name = (text) => item.append(make("div", { class: "quiet", text }));
        for (const one of span.documents)
          name(`${one.path}: ${where(one)}${one.is_exact || one.pages.length ? "" : " (within markup or packed)"}`);
        for (const one of span.records) name(`${one.record}, ${one.role} turn, ${one.origin}`);
        const left = span.in_documents + span.in_records - span.documents.length - span.records.length;
        if (left) name(`and ${left} more`);
        list.append(item);
      }
      parts.traced.replaceChildren(make("p", { class: "under", text: `${counts}; ${own}` }), list);
    } catch (error) {
      const text = `Its words were not looked for: ${error.message}`;
      parts.traced.replaceChildren(make("p", { class: "under", text }));
    }
  };

  const offerTrace = (parts, state) => {
    if (!state.text || !state.isGrounded || state.isStopped || state.details.abstained) return;
    const button = make("button", { type: "button", text: "Find its words" });
    button.addEventListener("click", () => trace(parts, state));
    parts.traced.append(button);
  };

  const offerVerdicts = (parts, state) => {
    if (!("judged" in $("talk").dataset) || !state.isGrounded || state.isStopped) return;
    // A judgment is of a question's words, which for a follow-up may not be the whole question.
    if (!findRead(state)) {
      parts.judged.textContent = "The answer to a follow-up is not judged: ask a whole question to judge its answer.";
      return;
    }
    for (const [verdict, label] of VERDICTS) {
      const button = make("button", {
        type: "button", "data-verdict": verdict, "aria-pressed": "false", text: label,
      });
      button.addEventListener("click", () => {
        if (verdict !== "quote") {
          pickSentence(parts, state, false);
          judge(parts, state, verdict);
          return;
        }
        const isPicking = !parts.article.classList.contains("picking");
        pickSentence(parts, state, isPicking);
        parts.judged.textContent = isPicking ? "Choose the sentence that answers." : "";
      });
      parts.verdicts.append(button);
    }
    parts.verdicts.hidden = false;
  };

  const listPassages = async (parts, state) => {
    const list = parts.list;
    const sources = state.details.sources || [];
    list.replaceChildren();
    if (!sources.length) return;
    const cited = new Set((state.citations || []).map((one) => one.number));
    const best = Math.max(...sources.map((one) => one.score || 0));
    const rest = make("ul", { class: "passages", "aria-label": "More passages that were read" });
    let texts = new Map();
    try {
      const wanted = sources.map((one) => `id=${encodeURIComponent(one.passage_id)}`).join("&");
      const reply = await fetch(`/ask/passages?at=${encodeURIComponent(state.at)}&${wanted}`);
      if (reply.ok) texts = new Map((await reply.json()).data.map((one) => [one.id, one]));
    } catch {
      // The list stands without the texts; each still opens at its source.
    }
    for (const [place, one] of sources.entries()) {
      const told = texts.get(one.passage_id) || {};
      const isCited = cited.has(one.number);
      const item = make("li", { class: `passage${isCited ? " cited" : ""}` });
      const quotes = (state.details.quotes || []).filter((quote) => quote.number === one.number);
      const pages = one.pages.length ? `, page ${one.pages[0]}` : "";
      item.append(
        make(
          "a",
          { class: "to-source place", href: sourceLink(state.at, one.passage_id, quotes) },
          `[${one.number}] ${one.path}${pages}`,
        ),
      );
      if (told.headings && told.headings.length)
        item.append(make("div", { class: "quiet", text: told.headings.join(" › ") }));
      if (told.missing)
        item.append(make("p", { class: "text", text: "The index holds this passage no more." }));
      if (told.text) {
        const text = markQuotes(told, quotes);
        parts.texts.push([text, told, quotes]);
        item.append(text);
      }
      const places = quotes.map((quote) => `quoted: ${where(quote)}`);
      // The cells of a row are several quotes of the same bytes.
      for (const text of new Set(places)) item.append(make("div", { class: "quiet", text }));
      if (typeof one.score === "number") item.append(scoreBar(one.score, best));
      const tags = make("div", { class: "row" });
      if (one.origin !== "unknown") tags.append(badge(one.origin));
      if (one.license) tags.append(make("span", { class: "tag", text: one.license }));
      for (const flag of one.flags || [])
        item.append(make("p", { class: "note bad", text: `Caution: this may hold ${FLAGS[flag] || flag}.` }));
      if (tags.childNodes.length) item.append(tags);
      const isShown = isCited || (one.flags || []).length || (!cited.size && place < NEAREST);
      (isShown ? list : rest).append(item);
    }
    const count = rest.childNodes.length;
    if (!count) return;
    const summary = make("summary", { text: `${plural(count, "more passage")} read` });
    list.append(make("li", {}, make("details", {}, summary, rest)));
  };

  const conclude = (parts, state) => {
    const details = state.details;
    const said = [];
    if (state.isStopped && !state.text) {
      parts.under.textContent = "stopped before an answer";
      return;
    }
    if (details.abstained) {
      const note = details.refusal_note || "no passage supports an answer";
      parts.refusal.hidden = false;
      parts.refusal.textContent = `${note[0].toUpperCase()}${note.slice(1)}.`;
    } else if (state.isGrounded && !state.isStopped && !(state.citations || []).length) {
      parts.refusal.hidden = false;
      parts.refusal.textContent = "No passage supports this answer.";
    }
    const marks = parts.answer.querySelectorAll("a.cite").length;
    const passages = (state.citations || []).length;
    const same = marks > passages && !details.abstained ? ` of ${plural(passages, "passage")}` : "";
    if (state.isGrounded) said.push(`${countMarks(parts, state)}${same}`);
    else if (!state.isStopped) said.push("from the model alone, without documents");
    const open = (details.statements || []).filter((one) => one.status === "unsupported").length;
    if (open && !details.abstained) said.push(`${plural(open, "sentence")} no passage supports`);
    const origins = Object.entries(details.origins || {});
    const used = (state.citations || []).length ? "cited" : "read";
    if (origins.some(([kind]) => kind !== "unknown")) said.push(`origin of what is ${used}: ${origins.map(([k, n]) => `${n} ${k}`).join(", ")}`);
    const judgments = {
      right: "the answer is right",
      quote: "this sentence answers",
      wrong: "another answer was wrong, whose first quote is left out",
      absent: "the documents hold no answer; they have not changed since",
    };
    if (details.judged)
      said.push(`judged by a person on ${details.judged.time.slice(0, 10)}: ${judgments[details.judged.verdict]}`);
    if (state.finish === "length") said.push("cut off at the most tokens it may have");
    if (state.isStopped) said.push("stopped");
    const isQuoting = details.answering === "quote";
    if (isQuoting && !details.abstained) said.push(`quoted from the documents of ${state.model}`);
    else if (!isQuoting && state.model) said.push(`written by the model of ${state.model}`);
    for (const one of details.dropped_statements || []) said.push(`left out, since no passage says it: ${one.text}`);
    const [, remarks] = splitRemarks(state);
    const isInText = (notice) => {
      const tail = notice.split(": ").slice(1).join(": ");
      return remarks.includes(notice.slice(1)) || Boolean(tail && remarks.includes(tail));
    };
    said.push(...(details.notices || []).filter((one) => !isInText(one)));
    parts.under.textContent = said.join(" · ");
  };

  const draw = (state) => {
    const answer = make("div", { class: "answer" });
    const refusal = make("p", { class: "note ask", hidden: true });
    const under = make("p", { class: "under" });
    const verdicts = make("div", { class: "verdicts row", role: "group", "aria-label": "Judge this answer", hidden: true });
    const judged = make("p", { class: "under", role: "status" });
    const traced = make("div", { role: "status" });
    const list = make("ul", { class: "passages", "aria-label": "Passages that were retrieved" });
    const article = make(
      "article",
      { class: "exchange" },
      make("h2", { text: state.question }),
      make("div", {}, refusal, answer, under, verdicts, judged, traced),
      list,
    );
    $("exchanges").append(article);
    return { article, answer, refusal, under, verdicts, judged, traced, list, texts: [] };
  };

  const kept = () => {
    try {
      return JSON.parse(sessionStorage.getItem("exchanges") || "[]");
    } catch {
      return [];
    }
  };
  const keep = (state) => {
    try {
      const { controller, ...plain } = state;
      sessionStorage.setItem("exchanges", JSON.stringify([...kept(), plain].slice(-KEPT)));
    } catch {
      // A full store costs the history of this tab, nothing else.
    }
  };

  const settings = () => {
    const way = [$("retriever").value, $("reranker").value].filter(Boolean);
    const told = {};
    for (const input of document.querySelectorAll("[data-setting]")) {
      if (input.type === "checkbox") {
        if (input.checked !== input.defaultChecked) told[input.id] = input.checked;
      } else if (input.type === "number") {
        if (input.value && input.value !== input.defaultValue) told[input.id] = Number(input.value);
      } else if (!input.selectedOptions[0].defaultSelected) told[input.id] = input.value;
    }
    if ($("retriever").value) told.pipeline = way.join("+");
    else if ($("reranker").value) told.pipeline = `convex+${$("reranker").value}`;
    if ($("answering").value) told.answering = $("answering").value;
    return told;
  };

  let running = null;
  let isWaiting = false; // a question was entered before the answer to the last one was complete
  const setWaiting = (isOn) => {
    isWaiting = isOn;
    $("waits").textContent = isOn ? "This question waits, and is asked as soon as the answer above is complete." : "";
  };
  const setBusy = (isBusy) => {
    $("send").disabled = isBusy;
    $("stop").hidden = !isBusy;
  };

  const ask = async (question) => {
    const state = {
      at: $("run").value, question, text: "", citations: null, details: {}, finish: "", model: "",
      isGrounded: !$("bare").checked, isStopped: false, controller: new AbortController(),
    };
    running = state;
    $("hint").hidden = true;
    const parts = draw(state);
    parts.answer.setAttribute("aria-busy", "true");
    parts.under.textContent = state.isGrounded ? "Opening the documents…" : "Opening the model…";
    parts.article.scrollIntoView({ block: "start" });
    const seenAt = window.scrollY;
    setBusy(true);
    $("status").textContent = "Answering";
    try {
      const stopped = new Promise((_, fail) => {
        state.controller.signal.addEventListener("abort", () => fail(state.controller.signal.reason));
      });
      const names = await Promise.race([open(state.at), stopped]);
      state.model = names.model;
      parts.under.textContent = state.isGrounded ? "Looking for passages…" : "Reading…";
      // Only quotes are looked for with earlier questions: a model that writes would not read them.
      const isQuoting = state.isGrounded && ["", "quote"].includes($("answering").value);
      const asked = kept().filter((one) => isQuoting && one.at === state.at && one.details.answering === "quote");
      const before = asked.slice(-SENT_BEFORE).map((one) => one.question);
      const body = {
        model: state.isGrounded ? names.model : names.bare,
        messages: [...before, question].map((content) => ({ role: "user", content })),
        max_tokens: Number($("tokens").value) || 200,
        stream: true,
        ...(state.isGrounded ? settings() : {}),
      };
      await chat(state.at, body, {
        signal: state.controller.signal,
        onPiece: (piece) => {
          if (!state.text) parts.under.textContent = "Writing…";
          state.text += piece;
          parts.answer.textContent = state.text;
        },
        onDelta: (delta) => {
          if (delta.citations) {
            state.citations = delta.citations;
            state.details = delta.answer || {};
          }
          if (delta.finish_reason) state.finish = delta.finish_reason;
        },
      });
    } catch (error) {
      if (error.name === "AbortError") {
        state.isStopped = true;
      } else {
        parts.refusal.hidden = false;
        parts.refusal.className = "note bad";
        parts.refusal.textContent = `It could not be answered: ${error.message}`;
        state.failed = true;
      }
    }
    parts.answer.removeAttribute("aria-busy");
    render(parts.answer, state);
    if (!state.failed) conclude(parts, state);
    else parts.under.textContent = "";
    await listPassages(parts, state);
    if (!state.failed) {
      offerVerdicts(parts, state);
      offerTrace(parts, state);
      keep(state);
    }
    running = null;
    setBusy(false);
    $("status").textContent = state.failed
      ? "The question could not be answered"
      : `Answer complete, ${countMarks(parts, state)}: ${state.text}`;
    $("question").focus();
    // What was long in coming was drawn below the question box.
    if (window.scrollY === seenAt) parts.article.scrollIntoView({ block: "start" });
    if (isWaiting) $("composer").requestSubmit();
  };

  document.addEventListener("DOMContentLoaded", () => {
    if (!$("composer")) return;
    const drawn = [];
    let last = null;
    for (const state of kept().filter((one) => one.at === $("talk").dataset.at)) {
      const parts = draw(state);
      last = parts.article;
      render(parts.answer, state);
      conclude(parts, state);
      offerTrace(parts, state);
      drawn.push(listPassages(parts, state).then(() => offerVerdicts(parts, state)));
      $("hint").hidden = true;
    }
    // Where the browser leaves the page, nothing was drawn yet.
    Promise.all(drawn).then(() => last && !running && last.scrollIntoView({ block: "start" }));
    const grow = () => {
      $("question").rows = Math.min(8, $("question").value.split("\n").length);
    };
    $("question").addEventListener("input", () => {
      grow();
      setWaiting(false);
    });
    $("question").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        $("composer").requestSubmit();
      }
    });
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      const question = $("question").value.trim();
      setWaiting(Boolean(question && running));
      if (!question || running) return;
      $("question").value = "";
      grow();
      ask(question);
    });
    $("stop").addEventListener("click", () => {
      setWaiting(false);
      if (running) running.controller.abort();
    });
    setBusy(false); // before, a click would have been lost
    if (window.location.hash === "#settings") $("settings").open = true; // it was when this was chosen
    $("run").addEventListener("change", () => {
      window.location.href = `/ask?at=${encodeURIComponent($("run").value)}#settings`;
    });
  });
})();
