// Forensics: uploads files for the check and draws the findings.
(() => {
  "use strict";
  const { token, problem, make, svg } = window.stillroom;
  const $ = (id) => document.getElementById(id);

  const facts = (rows) => {
    const list = make("dl", { class: "facts" });
    for (const [name, value] of rows)
      if (value !== null && value !== undefined && value !== "")
        list.append(make("dt", { text: name }), make("dd", { text: String(value) }));
    return list;
  };

  const step = (number, title, ...children) =>
    make("section", { class: "evidence" }, make("h3", {}, make("span", { class: "at", text: String(number) }), title), ...children);

  const SAID = {
    intact: "The file is unchanged since it was signed.",
    broken: "The file was changed after it was signed.",
    none: "It has no content credentials, which is no evidence of a forgery.",
    unreadable: "Credentials that it may have cannot be read.",
  };

  const manifests = (store) => {
    const all = store.manifests || {};
    const seen = new Set();
    const draw = (key) => {
      const one = all[key];
      const item = make("li", {});
      if (!one || seen.has(key)) {
        item.append(make("span", { class: "quiet", text: one ? "shown above" : "its manifest is not here" }));
        return item;
      }
      seen.add(key);
      const signed = one.signature_info || {};
      item.append(
        make("div", {}, make("strong", { text: one.title || key }), ` ${one.format || ""}`),
        facts([
          ["made by", one.claim_generator],
          ["signed by", signed.issuer || signed.common_name],
          ["when", signed.time],
          ["did", (one.assertions || []).filter((a) => String(a.label).startsWith("c2pa.actions")).flatMap((a) => (a.data.actions || []).map((act) => act.action)).join(", ")],
        ]),
      );
      const parts = one.ingredients || [];
      if (parts.length) {
        const list = make("ul", {});
        for (const part of parts) {
          const inner = part.active_manifest ? draw(part.active_manifest) : make("li", {}, part.title || "a part without credentials");
          inner.prepend(make("span", { class: "tag", text: part.relationship || "part" }));
          list.append(inner);
        }
        item.append(list);
      }
      return item;
    };
    return make("ul", { class: "manifests" }, draw(store.active_manifest));
  };

  const credentials = (told) => {
    const parts = [make("p", { text: SAID[told.integrity] || told.integrity })];
    if (told.integrity !== "none") {
      const trust = { trusted: "on a trust list that you gave", untrusted: "on no trust list that you gave" };
      parts.push(facts([
        ["signer", told.signer], ["issuer", told.issuer], ["trust", trust[told.trust] || told.trust],
        ["claims to be made by", told.source_types.map((one) => one.split("/").pop()).join(", ")],
        ["made from a file that claims", told.parent_source_types.map((one) => one.split("/").pop()).join(", ")],
        ["found", [...told.codes, ...told.ingredient_codes].join(", ")], ["note", told.note],
      ]));
      if (told.manifests.active_manifest)
        parts.push(
          make("details", {}, make("summary", { text: "Signed ingredients" }), manifests(told.manifests)),
          make("details", {}, make("summary", { text: "Credentials in full" }), make("pre", { class: "scroll", tabindex: "0", text: JSON.stringify(told.manifests, null, 1) })),
        );
    }
    return step(1, "Content credentials", ...parts);
  };

  const bar = (chance) => {
    const picture = svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", class: "chance", "aria-hidden": "true" });
    picture.append(
      svg("rect", { width: "100", height: "8", fill: "var(--line)" }),
      svg("rect", { width: String(100 * chance), height: "8", fill: "var(--accent)" }),
    );
    return picture;
  };

  const heat = (finding) => {
    const size = finding.map.length;
    const picture = svg("svg", { viewBox: `0 0 ${size} ${size}`, role: "img", class: "heat", "aria-label": "where it indicates a forgery" });
    finding.map.forEach((row, y) =>
      row.forEach((value, x) => value > 0.05 && picture.append(svg("rect", { x, y, width: 1, height: 1, fill: "var(--bad)", "fill-opacity": Math.min(1, value).toFixed(2) }))),
    );
    return make("figure", {}, picture, make("figcaption", { class: "small quiet", text: "Regions of the face crop that influenced the score most; no proof of a forgery's location." }));
  };

  const taught = (one) => ` (trained on ${one.learned.name || "an unnamed set"}, digest ${one.learned.digest.slice(0, 12) || "not kept"})`;

  const findings = (told) => {
    const list = make("div", {});
    for (const one of told) {
      const [x, y, wide, high] = one.face;
      list.append(
        make("p", {}, make("strong", { text: one.detector }), `${taught(one)}, face of ${wide}×${high} at ${x},${y}: ${one.verdict}`),
      );
      if (one.chance !== null)
        list.append(make("div", { class: "score" }, bar(one.chance), make("span", { text: `${Math.round(100 * one.chance)} % at a prevalence of ${one.prevalence}, calibrated` })));
      for (const reason of one.reasons) list.append(make("p", { class: "small quiet", text: `withheld: ${reason}` }));
      if (one.map.length) list.append(heat(one));
    }
    return list;
  };

  const overlay = (frame, image, faces) => {
    if (!faces || !faces.length) return;
    const draw = () => {
      const picture = svg("svg", { viewBox: `0 0 ${image.naturalWidth} ${image.naturalHeight}`, class: "over", "aria-hidden": "true" });
      for (const [x, y, wide, high] of faces)
        picture.append(svg("rect", { x, y, width: wide, height: high, fill: "none", stroke: "var(--accent)", "stroke-width": Math.max(2, image.naturalWidth / 200) }));
      frame.append(picture);
    };
    if (image.complete) draw();
    else image.addEventListener("load", draw);
  };

  // Frames are drawn here from the file itself, at the sampled times.
  const frames = (box, address, times) => {
    const video = make("video", { muted: true, preload: "auto" });
    video.muted = true;
    const wanted = times.filter((_, at) => at % Math.max(1, Math.ceil(times.length / 8)) === 0).slice(0, 8);
    const strip = make("div", { class: "strip", role: "group", "aria-label": "Frames over time" });
    box.append(strip);
    let at = 0;
    video.addEventListener("loadeddata", () => (video.currentTime = wanted[0] || 0));
    video.addEventListener("seeked", () => {
      const canvas = make("canvas", { role: "img", "aria-label": `the frame at ${wanted[at].toFixed(1)} seconds` });
      canvas.width = 160;
      canvas.height = Math.round((160 * video.videoHeight) / (video.videoWidth || 1));
      canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
      strip.append(make("figure", {}, canvas, make("figcaption", { class: "small quiet", text: `${wanted[at].toFixed(1)} s` })));
      at += 1;
      if (at < wanted.length) video.currentTime = wanted[at];
    });
    video.addEventListener("error", () => strip.replaceWith(make("p", { class: "small quiet", text: "This browser cannot draw frames of this video." })));
    video.src = address;
  };

  const clip = (told, address) => {
    const scan = told.scan || { times: [], shots: 0, tracks: [] };
    const box = make("div", {}, facts([
      ["length", told.duration ? `${told.duration.toFixed(1)} s` : ""], ["size", told.width ? `${told.width} × ${told.height}` : ""],
      ["codec", told.codec], ["frames checked", scan.times.length], ["shots", scan.shots], ["faces over time", scan.tracks.length],
      ["frames with this lab's watermark", told.marked_frames], ["sound", told.sound ? "has sound" : "no sound"],
    ]));
    if (scan.times.length && told.width) frames(box, address, scan.times);
    for (const one of told.courses || []) {
      box.append(make("p", {}, make("strong", { text: one.detector }), `${taught(one)}, ${one.subject || `face ${one.face}`}: ${one.verdict}`));
      if (one.times && one.times.length > 1)
        box.append(window.curves.draw("probability over time", one.times.map((time, at) => [time, one.chances[at]]), "second"));
    }
    return box;
  };

  // Faces of a video are those that its scan tracked.
  const countFaces = (told) => {
    const faces = told.faces || (told.clip && told.clip.scan && told.clip.scan.tracks);
    return faces ? `Faces: ${faces.length}.` : "Faces were not searched.";
  };

  const draw = (file, told) => {
    const address = URL.createObjectURL(file);
    const frame = make("div", { class: "frame-of" });
    if (file.type.startsWith("image/")) {
      const image = make("img", { src: address, alt: `the image ${file.name}` });
      const picture = make("div", { class: "pictured" }, image);
      frame.append(picture);
      overlay(picture, image, told.faces);
    } else if (file.type.startsWith("video/")) frame.append(make("video", { src: address, controls: true, "aria-label": file.name }));
    else if (file.type.startsWith("audio/")) frame.append(make("audio", { src: address, controls: true, "aria-label": file.name }));
    const evidence = make("div", {});
    if (told.error) evidence.append(make("p", { class: "note bad", text: told.error }));
    let number = 2;
    if (told.credentials) evidence.append(credentials(told.credentials));
    else evidence.append(step(1, "Content credentials", make("p", { class: "quiet", text: "Files of this type have no readable credentials." })));
    const claims = told.claims || [];
    if (claims.length) evidence.append(step(number++, "Unsigned metadata", facts(claims.map((one) => [one.where, one.says])), make("p", { class: "small quiet", text: "Anyone can write or remove this." })));
    const mark = told.watermark;
    evidence.append(step(number++, "This lab's watermark", mark ? facts(Object.entries(mark).map(([k, v]) => [k.replaceAll("_", " "), typeof v === "object" && v ? JSON.stringify(v) : v])) : make("p", { class: "quiet", text: "There is no lab on this machine, so no watermark was searched." })));
    if (told.clip) evidence.append(step(number++, "Video and audio over time", clip(told.clip, address)));
    const limits = told.quality || [];
    evidence.append(step(number++, "Limits of pixel evidence", limits.length ? make("ul", {}, ...limits.map((one) => make("li", { text: one }))) : make("p", { class: "quiet", text: `None was found. ${countFaces(told)}` })));
    evidence.append(step(number++, "Detectors on faces", told.detectors && told.detectors.length ? findings(told.detectors) : make("p", { class: "quiet", text: "No detector was applied: nothing here tells whether it is forged." })));
    return make("article", { class: "looked" }, make("h2", { text: file.name }), make("p", { class: "verdict", text: told.verdict || told.error }), make("div", { class: "both" }, frame, evidence), make("p", { class: "small quiet" }, "sha256 ", make("code", { text: told.sha256 || "–" })));
  };

  const check = async (files) => {
    for (const file of files) {
      $("status").textContent = `Checking ${file.name}…`;
      const form = new FormData();
      form.append("file", file, file.name);
      form.append("prevalence", $("prevalence").value || "0.5");
      try {
        const reply = await fetch("/v1/forensics/check", { method: "POST", body: form, headers: { "x-stillroom-token": token() } });
        if (!reply.ok) {
          $("found").prepend(make("p", { class: "note bad", text: `${file.name}: ${await problem(reply)}` }));
          continue;
        }
        const told = await reply.json();
        for (const one of told.files) $("found").prepend(draw(file, one));
        $("limits").replaceChildren(...(told.limits || []).map((one) => make("li", { text: one })));
      } catch {
        $("found").prepend(make("p", { class: "note bad", text: "The console does not answer: is it still running?" }));
      }
    }
    $("status").textContent = files.length ? "Checked." : "";
  };

  document.addEventListener("DOMContentLoaded", () => {
    const drop = $("drop");
    $("file").addEventListener("change", () => check([...$("file").files]));
    for (const name of ["dragover", "dragenter"])
      drop.addEventListener(name, (event) => {
        event.preventDefault();
        drop.classList.add("over");
      });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      check([...event.dataTransfer.files]);
    });
  });
})();
