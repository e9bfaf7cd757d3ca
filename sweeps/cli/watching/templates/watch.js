"use strict";
/* Puts in sections as the server sends them, and asks SQL. Texts from outside come escaped, or are put in as text. */
(() => {
  const key = location.search; // has the token
  const byId = (id) => document.getElementById(id);
  const source = new EventSource("events" + key);
  const put = (event) => {
    const place = byId(event.type);
    const opened = new Set([...place.querySelectorAll("details[open] > summary")].map((s) => s.textContent));
    place.innerHTML = JSON.parse(event.data);
    for (const s of place.querySelectorAll("details > summary")) s.parentNode.open = opened.has(s.textContent);
  };
  for (const place of document.querySelectorAll("[data-live]")) source.addEventListener(place.id, put);
  source.onopen = () => { byId("state").textContent = "live"; };
  source.onerror = () => { byId("state").textContent = "not connected: `sweeps watch` has ended, or is out of reach"; };
  source.addEventListener("over", () => {
    source.close();
    byId("state").textContent = "as it was when the page's program ended; `sweeps watch` shows it again";
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
      const found = await reply.json();
      byId("said").textContent = found.error ?? found.says;
      if (found.rows) byId("answer").append(line("th", found.columns), ...found.rows.map((row) => line("td", row)));
    } catch {
      byId("said").textContent = "no answer: `sweeps watch` has ended, or is out of reach";
    }
  };
  byId("ask").addEventListener("submit", ask);
  byId("sql").addEventListener("keydown", (event) => { if (event.key === "Enter" && event.ctrlKey) ask(event); });
})();
