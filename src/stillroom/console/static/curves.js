// Lines over steps, drawn as SVG: one figure a metric, its first and last value in words.
window.curves = (() => {
  "use strict";
  const { make, svg } = window.stillroom;
  const WIDE = 260, HIGH = 110, LEFT = 46, LOW = 16, TOP = 6;
  const say = (value) =>
    Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3)
      ? value.toExponential(1)
      : String(Number(value.toPrecision(4)));

  const thin = (points, most) => {
    if (points.length <= most) return points;
    const every = (points.length - 1) / (most - 1);
    return Array.from({ length: most }, (_, i) => points[Math.round(i * every)]);
  };

  // Points are [x, y]; returns the figure.
  const draw = (name, points, unit = "step") => {
    const shown = thin(points, 400);
    const xs = shown.map((p) => p[0]), ys = shown.map((p) => p[1]);
    const x0 = Math.min(...xs), x1 = Math.max(...xs), y0 = Math.min(...ys), y1 = Math.max(...ys);
    const x = (v) => LEFT + ((v - x0) / (x1 - x0 || 1)) * (WIDE - LEFT - 4);
    const y = (v) => TOP + (1 - (v - y0) / (y1 - y0 || 1)) * (HIGH - TOP - LOW);
    const line = svg("polyline", {
      points: shown.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(" "),
      fill: "none", stroke: "var(--accent)", "stroke-width": "1.6", "stroke-linejoin": "round",
    });
    const first = points[0], last = points[points.length - 1];
    const picture = svg(
      "svg",
      { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${name} over ${unit}s` },
      svg("path", { d: `M${LEFT} ${TOP}V${HIGH - LOW}H${WIDE - 4}`, fill: "none", stroke: "var(--line)" }),
      svg("text", { x: LEFT - 4, y: TOP + 8, "text-anchor": "end", text: say(y1) }),
      svg("text", { x: LEFT - 4, y: HIGH - LOW, "text-anchor": "end", text: say(y0) }),
      svg("text", { x: LEFT, y: HIGH - 3, text: say(x0) }),
      svg("text", { x: WIDE - 4, y: HIGH - 3, "text-anchor": "end", text: `${unit} ${say(x1)}` }),
      line,
      svg("circle", { cx: x(last[0]), cy: y(last[1]), r: "2.6", fill: "var(--accent)" }),
    );
    return make(
      "figure",
      {},
      make("figcaption", {}, make("strong", { text: name }), ` ${say(first[1])} → ${say(last[1])}`),
      picture,
    );
  };
  return { draw, say };
})();
