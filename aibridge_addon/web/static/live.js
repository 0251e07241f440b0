"use strict";
// Renews the content of the page when something was recorded. Without it, a reload does the same.
(() => {
  const main = document.querySelector("main[data-live]");
  const status = document.getElementById("live");
  if (!main || !window.EventSource) return;
  const source = new EventSource("/events");
  let busy = false;
  let again = false;
  const isInUse = () =>
    main.contains(document.activeElement) && document.activeElement.matches("input, select, button") ||
    String(getSelection()) !== "";
  async function renew() {
    if (busy || document.hidden || isInUse()) { again = true; return; }
    busy = true; again = false;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
      const open = [...main.querySelectorAll("details")].map((each) => each.open);
      const focused = document.activeElement && document.activeElement.getAttribute("href");
      main.replaceChildren(...fresh.childNodes);
      [...main.querySelectorAll("details")].forEach((each, number) => { each.open = open[number] || false; });
      if (focused) [...main.querySelectorAll("a")].find((each) => each.getAttribute("href") === focused)?.focus();
    } finally { busy = false; }
  }
  source.addEventListener("open", () => { status.textContent = "live"; });
  source.addEventListener("error", () => { status.textContent = "not connected"; });
  source.addEventListener("change", renew);
  document.addEventListener("visibilitychange", () => { if (again && !document.hidden) renew(); });
})();
