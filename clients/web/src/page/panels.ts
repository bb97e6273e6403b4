import { type RateReport, type RateSetting, type TurnReport, waterfall } from "../sdk";
import { byId, make } from "./dom";

const CHOICES: RateSetting[] = ["auto", 12.5, 8, 6.25, 5, 4];

/** The two rows of frame rates to choose from; calls back with both whenever one changes. */
export function rateChoices(changed: (rates: { input: RateSetting; output: RateSetting }) => void): void {
  const chosen: { input: RateSetting; output: RateSetting } = { input: "auto", output: "auto" };
  for (const side of ["input", "output"] as const) {
    const choices = CHOICES.map((choice) => {
      const label = make("label");
      const radio = make("input");
      radio.type = "radio";
      radio.name = `${side}-rate`;
      radio.value = String(choice);
      radio.checked = choice === "auto";
      radio.addEventListener("change", () => {
        chosen[side] = choice;
        changed({ ...chosen });
      });
      label.append(radio, make("span", String(choice)));
      return label;
    });
    byId(`${side}-rates`).append(...choices);
  }
}

function rate(report: RateReport): string {
  if (report.realised_hz === undefined) return "–";
  return `${report.realised_hz.toFixed(1)} Hz`;
}

/** Realised rates and times of the last answer. */
export function showReport(report: TurnReport | undefined): void {
  if (report === undefined) return;
  for (const [id, side] of [["input-hz", report.input], ["output-hz", report.output]] as const) {
    byId(id).textContent = rate(side);
    byId(id).title = side.reason ?? "";
  }
  const steps = waterfall(report.timing);
  const last = steps.at(-1);
  const totalMs = last === undefined ? 0 : last.startMs + last.durationMs;
  byId("timing-hint").hidden = true;
  byId("timing-total").replaceChildren(make("b", `${Math.round(totalMs)} ms`), " to first sound");
  byId("waterfall").replaceChildren(
    ...steps.map((step) => {
      const row = make("li");
      if (step.name === "end of turn") row.dataset.wait = "";
      const lane = make("span");
      lane.className = "lane";
      lane.append(make("i", "", { at: (100 * step.startMs) / totalMs, for: (100 * step.durationMs) / totalMs }));
      const ms = make("span", `${Math.round(step.durationMs)} ms`);
      ms.className = "ms";
      row.append(make("span", step.name), lane, ms);
      return row;
    }),
  );
  byId("stages").replaceChildren(
    ...Object.entries(report.timing.stages ?? {}).map(([name, ms]) => {
      const pair = make("div");
      pair.append(make("dt", name.replace(/_ms$/, "")), make("dd", `${Math.round(ms)} ms`));
      return pair;
    }),
  );
}
