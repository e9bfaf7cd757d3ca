"use strict";
/* Shows sections as the server sends them, and sends SQL. Texts from outside are escaped, or inserted as plain text. */
(() => {
  const key = location.search; // has the token
  const byId = (id) => document.getElementById(id);
  const source = new EventSource("events" + key);
  const show = (event) => {
    const place = byId(event.type);
    const opened = new Set([...place.querySelectorAll("details[open] > summary")].map((s) => s.textContent));
    place.innerHTML = JSON.parse(event.data);
    for (const s of place.querySelectorAll("details > summary")) s.parentNode.open = opened.has(s.textContent);
  };
  for (const place of document.querySelectorAll("[data-live]")) source.addEventListener(place.id, show);
  source.onopen = () => { byId("state").textContent = "live"; };
  source.onerror = () => { byId("state").textContent = "not connected: `sweeps watch` has ended or cannot be reached"; };
  source.addEventListener("over", () => {
    source.close();
    byId("state").textContent = "the program of this page has ended, so it no longer changes; start `sweeps watch` again";
  });
  const line = (tag, texts) => {
    const row = document.createElement("tr");
    for (const text of texts) row.appendChild(document.createElement(tag)).textContent = text;
    return row;
  };
  const ask = async (event) => {
    event.preventDefault();
    byId("said").textContent = "asking";
    byId("answer").replaceChildren();
    try {
      const reply = await fetch("sql" + key, { method: "POST", body: byId("sql").value });
      const result = await reply.json();
      byId("said").textContent = result.error ?? result.says;
      if (result.rows) byId("answer").append(line("th", result.columns), ...result.rows.map((row) => line("td", row)));
    } catch {
      byId("said").textContent = "no answer: `sweeps watch` has ended or cannot be reached";
    }
  };
  byId("ask").addEventListener("submit", ask);
  byId("sql").addEventListener("keydown", (event) => { if (event.key === "Enter" && event.ctrlKey) ask(event); });
})();
