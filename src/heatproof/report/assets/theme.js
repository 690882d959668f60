/* Light, dark, or as the system has it: the choice is applied before the page is drawn. */
"use strict";

(function () {
  const THEMES = ["auto", "light", "dark"];

  function stored() {
    try { return localStorage.getItem("heatproof-theme") || "auto"; } catch (error) { return "auto"; } /* storage may be blocked */
  }

  function apply(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }

  apply(stored());
  document.addEventListener("DOMContentLoaded", function () {
    const button = document.querySelector("button.theme");
    let theme = THEMES.includes(stored()) ? stored() : "auto";
    const say = () => { button.textContent = "Theme: " + theme; };
    button.addEventListener("click", function () {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      try { localStorage.setItem("heatproof-theme", theme); } catch (error) { /* then it holds for this page only */ }
      apply(theme);
      say();
    });
    button.hidden = false;
    say();
  });
})();
