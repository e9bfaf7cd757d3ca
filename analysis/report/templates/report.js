"use strict";
/* Numbers on hover, tap and focus, which without this script the figures' own titles say; a legend that hides methods. */
(() => {
  const box = document.createElement("div");
  box.id = "tip";
  box.setAttribute("role", "status");
  box.hidden = true;
  document.body.append(box);
  const hide = () => { box.hidden = true; };
  const show = (mark) => {
    box.textContent = mark.dataset.tip;
    box.hidden = false;
    const at = mark.getBoundingClientRect();
    const wide = document.documentElement.clientWidth;
    const left = Math.min(Math.max(8, at.left + at.width / 2 - box.offsetWidth / 2), wide - box.offsetWidth - 8);
    const above = at.top - box.offsetHeight - 8;
    box.style.left = `${left + scrollX}px`;
    box.style.top = `${(above < 4 ? at.bottom + 8 : above) + scrollY}px`;
  };
  const reach = 18; // pixels: markers are smaller than a finger
  for (const svg of document.querySelectorAll("figure svg")) {
    const marks = [...svg.querySelectorAll(".tip")];
    for (const mark of marks) {
      const title = mark.querySelector("title");
      mark.dataset.tip = title.textContent;
      mark.setAttribute("aria-label", title.textContent);
      mark.setAttribute("role", "img");
      title.remove();
    }
    if (!marks.length) continue;
    const nearest = (event) => {
      let best = null, least = reach;
      for (const mark of marks) {
        if (mark.classList.contains("off")) continue;
        const at = mark.getBoundingClientRect();
        const far = Math.hypot(at.left + at.width / 2 - event.clientX, at.top + at.height / 2 - event.clientY);
        if (far < least) [best, least] = [mark, far];
      }
      if (best) show(best); else hide();
    };
    svg.addEventListener("pointermove", nearest);
    svg.addEventListener("pointerdown", nearest);
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  }
  for (const svg of document.querySelectorAll("figure svg")) {
    const names = [...svg.querySelectorAll("[data-key]")];
    if (names.length < 2) continue;
    for (const name of names) {
      const parts = [...svg.querySelectorAll("[data-method]")].filter((part) => part.dataset.method === name.dataset.key);
      const turn = () => {
        const shown = name.getAttribute("aria-pressed") === "true";
        name.setAttribute("aria-pressed", String(!shown));
        for (const part of parts) part.classList.toggle("off", shown);
        hide();
      };
      for (const [key, value] of Object.entries({ "aria-pressed": "true", role: "button", tabindex: "0" })) name.setAttribute(key, value);
      name.classList.add("key");
      name.addEventListener("click", turn);
      name.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        turn();
      });
    }
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  let opened = [];
  addEventListener("beforeprint", () => {
    hide();
    opened = [...document.querySelectorAll("details:is(.table, .how):not([open], .more)")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
})();
