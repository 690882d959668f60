/* How strong and how large the maps are shown. The page is complete without it. */
"use strict";

(function () {
  const form = document.querySelector(".filters");
  const { opacity, tile } = form.elements;
  const style = document.body.style;
  tile.value = parseInt(getComputedStyle(document.body).getPropertyValue("--tile"), 10);
  opacity.addEventListener("input", () => style.setProperty("--opacity", opacity.value / 100));
  tile.addEventListener("input", () => style.setProperty("--tile", tile.value + "px"));
  form.hidden = false;
})();
