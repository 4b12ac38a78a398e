"use strict";
// What stays the same on a slide's page: prediction, model, figures of trust, concepts, the way to the other slides.
function showAbout() {
  document.title = `${slide.slide_id}: ${slide.decision || slide.predicted}`;
  byId("slide_id").textContent = slide.slide_id;
  byId("prediction").textContent = slide.predicted + (slide.label ? `, label ${slide.label}` : "");
  byId("use").textContent = `${slide.use.charAt(0).toUpperCase()}${slide.use.slice(1)}.`;
  byId("model").textContent = `Model ${slide.model.aggregator}, run ${slide.run}, weights ${slide.model.sha256.slice(0, 12)}; encoder ${slide.encoder}, tiles of ${scales.map((scale) => `${shortText(scale.tile_um, false, 4)} µm`).join(" and ")}.`;
  byId("trust").textContent = scales.map((scale) => scale.trust.replaceAll("\n", "   ·   ")).filter(Boolean).join("   |   ");
  byId("no_picture").hidden = picture !== null;
  const isWhole = !picture || picture.factor === 1;
  byId("picture_said").textContent = isWhole ? "" : `Picture at ${shortText(slide.slide_mpp[0] * picture.factor, false)} µm a pixel, every ${picture.factor}th of the slide's: promptmil view with slides=… shows all.`;
  byId("classes").replaceChildren(...slide.classes.map((name) => {
    const row = element("tr");
    const sum = slide.logits[name] - slide.bias[name];
    row.append(element("td", name), ...[sum, slide.bias[name], slide.logits[name]].map((value) => element("td", shortText(value, true), "number")), element("td", slide.probabilities[name] === null ? "" : slide.probabilities[name].toFixed(3), "number"));
    return row;
  }));
  const concepts = scales[0].concepts;
  byId("concepts_part").hidden = concepts.length === 0;
  byId("without").hidden = !concepts.some((concept) => typeof concept.change === "number");
  byId("concepts").replaceChildren(...concepts.map((concept) => {
    const row = element("tr");
    row.append(element("td", concept.concept), element("td", concept.class), element("td", shortText(concept.contribution, true), "number"), element("td", String(concept.tiles), "number"));
    if (!byId("without").hidden) row.append(element("td", typeof concept.change === "number" ? shortText(concept.change, true, 2) : "", "number"));
    return row;
  }));
  const ids = promptmil.slides.map((one) => one.slide_id);
  for (const [id, step] of [["previous", -1], ["next", 1]]) {
    const other = ids[ids.indexOf(slide.slide_id) + step];
    if (other === undefined || !ids.includes(slide.slide_id)) byId(id).setAttribute("aria-disabled", "true");
    else byId(id).href = `../${encodeURIComponent(other)}/index.html`;
  }
}
